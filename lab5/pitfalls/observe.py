"""What is seen of a solution at the seams that do not move, condensed to numbers.

In: the events of a `World`, such as what the transformer was given, what was painted, which loss was computed. Out:
plain numbers and texts, from which `lab5.pitfalls.judge` says what they mean.
"""

import builtins
import contextlib
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lab5.pitfalls.standins import GREY, STEPS, K, N, World, read

Event = dict[str, Any]
LENGTHS = ("T_max", "total_iters", "total_steps")  # of a scheduler: how many steps it was made for
EVALUATE = "eval_one_epoch"


# --- training: what is recorded ---------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(world: World) -> Iterator[None]:
    """Record losses, gradients, steps, learning rates and what the validation returns."""
    events = world.events
    cross_entropy, backward, zero_module = F.cross_entropy, Tensor.backward, nn.Module.zero_grad
    zero_optimiser = torch.optim.Optimizer.zero_grad
    signature, build_class = inspect.signature(cross_entropy), builtins.__build_class__

    def loss(*arguments: Any, **named: Any) -> Tensor:
        value = cross_entropy(*arguments, **named)
        given = signature.bind(*arguments, **named)
        given.apply_defaults()
        target = given.arguments["target"]
        ignored = given.arguments["ignore_index"]
        events.append({
            "kind": "loss", "value": float(value.detach().sum()), "ignore": ignored,
            "ignored": int((target == ignored).sum()) if not target.is_floating_point() else 0,
        })  # fmt: skip
        return value

    def back(self: Tensor, *arguments: Any, **named: Any) -> None:
        with torch._C.DisableTorchFunction():  # through which torch would come here a second time
            events.append({"kind": "backward", "value": float(self.detach().sum())})
            backward(self, *arguments, **named)

    def cleared(function: Any) -> Any:
        def zero_grad(self: Any, *arguments: Any, **named: Any) -> None:
            events.append({"kind": "cleared"})
            function(self, *arguments, **named)

        return zero_grad

    def step(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimiser.param_groups
        events.append(
            {"kind": "step", "lr": float(groups[0]["lr"]), "own": {id(p) for g in groups for p in g["params"]}}
        )

    def build(*arguments: Any, **named: Any) -> Any:
        made = build_class(*arguments, **named)
        if EVALUATE in vars(made) and inspect.isfunction(vars(made)[EVALUATE]):
            setattr(made, EVALUATE, validation(vars(made)[EVALUATE]))
        return made

    def validation(function: Any) -> Any:
        def eval_one_epoch(*arguments: Any, **named: Any) -> Any:
            events.append({"kind": "validation begins"})
            value = function(*arguments, **named)
            events.append({"kind": "validation ends", "value": _first_number(value)})
            return value

        return eval_one_epoch

    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (F, "cross_entropy", loss), (Tensor, "backward", back), (nn.Module, "zero_grad", cleared(zero_module)),
            (torch.optim.Optimizer, "zero_grad", cleared(zero_optimiser)), (builtins, "__build_class__", build),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(place, name, value))
        for kind in vars(lr_scheduler).values():
            if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and "__init__" in vars(kind):
                stack.enter_context(mock.patch.object(kind, "__init__", _noted(kind.__init__, events)))
        hook = register_optimizer_step_pre_hook(step)
        stack.callback(hook.remove)
        yield


def _noted(make: Any, events: list[Event]) -> Any:
    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        if not any(event["kind"] == "scheduler" and event["self"] is self for event in events):
            events.append({"kind": "scheduler", "self": self})

    return __init__


def _first_number(value: Any) -> float | None:
    while isinstance(value, tuple | list) and value:
        value = value[0]
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        return float(value)
    return None


# --- training: what it comes to ---------------------------------------------------------------------------------


def training_facts(world: World) -> dict[str, Any]:
    """Numbers about the masks, the loss, validation, steps and learning rates of a whole training."""
    calls: list[Event] = []
    images: list[Any] = []
    gammas: list[float] = []
    linear = asked = 0
    for event in world.events:
        if event["kind"] == "gamma":
            gammas += event["values"]
            linear += event["linear"]
            asked += 1
        elif event["kind"] == "encode":
            images, gammas = event["images"], []
        elif event["kind"] == "model":
            calls.append(event | {"images": images, "gammas": gammas})
            gammas = []
        elif event["kind"] in ("loss", "backward") and calls:
            calls[-1].setdefault(event["kind"], event)
    train = [call for call in calls if call["images"] and call["images"][0] and call["images"][0][0] == "train"]
    val = [call for call in calls if call["images"] and call["images"][0] and call["images"][0][0] == "val"]
    facts: dict[str, Any] = {"train calls": len(train), "val calls": len(val)}
    if train:
        facts |= _masks(train, linear == asked > 0) | _loss(train, world) | _steps(world.events, train[0]["self"])
    if val:
        facts["val"] = _validation(world.events, val)
    return facts


def _masks(calls: list[Event], linear: bool) -> dict[str, Any]:
    """Of which share, of what kind, and whether what is not hidden is as it was."""
    hidden = [call["tokens"] == K for call in calls]
    shares = torch.cat([h.float().mean(1) for h in hidden])
    changed = sum(int(((c["tokens"] != c["truth"]) & ~h).sum()) for c, h in zip(calls, hidden, strict=True)
                  if c["truth"] is not None and c["truth"].shape == h.shape)  # fmt: skip
    within = torch.stack(
        [h.sum(1).float().var(unbiased=True) for h in hidden if len(h) > 1] or [torch.zeros(())]
    ).mean()
    between = torch.stack([h.sum(1).float().mean() for h in hidden]).var() if len(hidden) > 1 else torch.zeros(())
    same = sum(bool((h == h[0]).all()) for h in hidden if len(h) > 1)
    mean = float(shares.mean())
    by_gamma: dict[str, int] = {"hidden": 0, "kept": 0, "neither": 0, "both": 0}
    for call, h in zip(calls, hidden, strict=True):
        gammas = call["gammas"]
        if not gammas:
            continue
        g = torch.tensor(gammas[-len(h) :] if len(gammas) >= len(h) > 1 else gammas[-1:] * len(h))
        slack = 4 * (g * (1 - g) / N).clamp(min=0).sqrt() + 2 / N
        share = h.float().mean(1)
        as_hidden = bool(((share - g).abs() <= slack).all())
        as_kept = bool(((share - 1 + g).abs() <= slack).all())
        by_gamma["both" if as_hidden and as_kept else "hidden" if as_hidden else "kept" if as_kept else "neither"] += 1
    exact = [float(h.sum(1).float().mean()) - g * N for call, h in zip(calls, hidden, strict=True)
             for g in call["gammas"][-1:]]  # fmt: skip
    return {"masks": {
        "mean": mean, "low": float(shares.min()), "high": float(shares.max()), "changed": changed,
        "within": float(within), "between": float(between), "binomial": N * mean * (1 - mean), "one for all": same,
        "batches": len(hidden), "gamma": by_gamma, "linear": linear, "off": max(map(abs, exact), default=0.0),
        "wrong ids": sorted({int(t) for c in calls for t in c["tokens"][c["tokens"] > K].tolist()})[:3],
    }}  # fmt: skip


def _loss(calls: list[Event], world: World) -> dict[str, Any]:
    """Which tokens count, with which labels, and what a model without opinion loses."""
    inside = known = of_hidden = of_known = right = masks = spread = batches = 0
    weights = []
    for call in calls:
        if "gradient" not in call or call["truth"] is None or call["truth"].shape != call["tokens"].shape:
            continue
        batches += 1
        gradient, hidden = call["gradient"], call["tokens"] == K
        largest = gradient.abs().amax()
        counted = gradient.abs().amax(-1) > 1e-3 * largest if largest > 0 else torch.zeros_like(hidden)
        label = gradient.argmin(-1)
        inside, of_hidden = inside + int((counted & hidden).sum()), of_hidden + int(hidden.sum())
        known, of_known = known + int((counted & ~hidden).sum()), of_known + int((~hidden).sum())
        right += int(((label == call["truth"]) & counted).sum())
        masks += int(((label == K) & counted).sum())
        others = gradient.scatter(-1, label[..., None], 0.0)[counted]
        low = gradient.gather(-1, label[..., None])[..., 0][counted]
        # Of a softmax over the classes all other classes pull alike, but for one that may be cut off.
        if len(others):
            typical = others.median(-1, keepdim=True).values
            spread += int(((others - typical).abs() > 1e-4 * low.abs()[:, None]).sum(-1).gt(2).sum())
        weights.append(float(-low.sum() / (1 - 1 / world.classes)))
    losses = [call["loss"] for call in calls if "loss" in call]
    backward = [call["backward"]["value"] for call in calls if "backward" in call]
    return {"loss": {
        "batches": batches, "hidden": [inside, of_hidden], "known": [known, of_known], "right": right,
        "mask labels": masks,
        "uneven": spread, "weight": sum(weights) / len(weights) if weights else None,
        "value": losses[0]["value"] if losses else None, "backward": backward[0] if backward else None,
        "ignore": losses[0]["ignore"] if losses else None, "ignored": sum(loss["ignored"] for loss in losses),
        "targets": len(losses), "classes": world.classes,
    }}  # fmt: skip


def _steps(events: list[Event], transformer: nn.Module) -> dict[str, Any]:
    """How many backward passes each step of the optimiser has seen, learning rates, and what it never moves."""
    sizes, kept, rates, since_step, since_cleared, own = [], [], [], 0, 0, set()
    for event in events:
        if event["kind"] == "backward":
            since_step, since_cleared = since_step + 1, since_cleared + 1
        elif event["kind"] == "step":
            sizes.append(since_step)
            kept.append(since_cleared)
            rates.append(event["lr"])
            since_step, own = 0, own | event["own"]
        elif event["kind"] == "cleared":
            since_cleared = 0
    schedulers = [event["self"] for event in events if event["kind"] == "scheduler"]
    lengths = [[type(s).__name__, int(getattr(s, "last_epoch", 0)), next((int(getattr(s,
    n)) for n in LENGTHS if hasattr(s, n)), 0)]
               for s in schedulers]  # fmt: skip
    left_out = (
        [name for name, p in transformer.named_parameters() if p.requires_grad and id(p) not in own] if own else []
    )
    return {"steps": {
        "backwards": sum(event["kind"] == "backward" for event in events), "sizes": sizes, "since cleared": kept,
        "rates": rates, "schedulers": lengths, "left out": left_out[:6],
    }}  # fmt: skip


def _validation(events: list[Event], calls: list[Event]) -> dict[str, Any]:
    """Its mode, whether an image has one mask at all times, and what it returns beside the mean of its losses."""
    masks: dict[Any, list[Tensor]] = {}
    for call in calls:
        for image, tokens in zip(call["images"], call["tokens"], strict=False):
            masks.setdefault(image, []).append(tokens == K)
    again = {image: seen for image, seen in masks.items() if image and len(seen) > 1}
    fresh = sum(any(not torch.equal(seen[0], other) for other in seen[1:]) for seen in again.values())
    returned, losses, ratios = None, [], []
    for event in events:
        if event["kind"] == "validation begins":
            losses = []
        elif event["kind"] == "loss":
            losses.append(event["value"])
        elif event["kind"] == "validation ends" and event["value"] is not None and losses:
            returned = event["value"]
            ratios.append(returned / (sum(losses) / len(losses)))
    batches = len({id(call) for call in calls}) // max(1, len(next(iter(masks.values()))))
    return {
        "training": sum(call["training"] for call in calls), "calls": len(calls), "seen again": len(again),
        "fresh": fresh,
        "returned": returned, "ratio": ratios[-1] if ratios else None, "batches": batches,
    }  # fmt: skip


# --- decoding -------------------------------------------------------------------------------------------------------


def decoding_facts(world: World) -> dict[str, Any]:
    """For each test image in turn: what was masked, shown, painted and kept, in numbers."""
    pictures: list[list[Event]] = []
    for event in world.events:
        if event["kind"] == "new picture":
            pictures.append([event])
        elif pictures:
            pictures[-1].append(event)
    return {"pictures": [_picture(world, events) for events in pictures]}


def _picture(world: World, events: list[Event]) -> dict[str, Any]:
    image = events[0]["image"]
    encoded = next(event["tokens"][0] for event in events if event["kind"] == "encode")
    inputs = [event["tokens"][0] for event in events if event["kind"] == "model" and len(event["tokens"]) == 1]
    before = [tokens == K for tokens in inputs]
    after = _masks_after(events, before)
    hole, start = world.unknown[image], []
    if before and (before[0].any() or not after):
        start = [int((before[0] & ~hole).sum()), int((~before[0] & hole).sum())]
    facts: dict[str, Any] = {"image": image, "calls": len(inputs), "final": [], "start": start}
    facts["pixels' hole"] = int(hole.sum())
    if start and start[1] == 0 and start[0] < 0.5 * int((~hole).sum()):
        hole = before[0]  # with a margin, perhaps
    facts["hole"], facts["grey"] = int(hole.sum()), int((encoded == GREY)[world.unknown[image]].sum())
    facts["masked before"] = [int(mask.sum()) for mask in before]
    facts["masked after"] = [int(mask.sum()) for mask in after]
    last = after if len(after) >= len(before) else [*before[1:], *after[-1:]]  # the mask after each step
    facts["known changed"] = [int(((tokens != encoded) & ~hole).sum()) for tokens in inputs[1:]]
    # Committed: masked before some step, not masked after it. What is shown of it later?
    lost = redrawn = 0
    committed = torch.zeros(N, dtype=torch.bool)
    for step, tokens in enumerate(inputs):
        lost += int((committed & (tokens == encoded)).sum())
        if step and step + 1 < len(inputs):
            stays = committed & ~before[step] & ~before[step + 1]
            redrawn += int((stays & (tokens != inputs[step + 1])).sum())
        if step < len(last):
            committed = (committed | (hole & before[step])) & ~last[step]
    facts["committed lost"], facts["committed redrawn"] = lost, redrawn
    # The order: of two positions of which the oracle is certain and is not, which left the mask first? By halves.
    leaves = torch.full((N,), len(last))
    for step in reversed(range(len(last))):
        leaves = torch.where(~last[step], step, leaves)
    certain, other = leaves[world.certain() & hole][:, None], leaves[hole & ~world.certain()][None]
    early = torch.minimum(certain, other) < STEPS // 2
    facts["order"] = [[int((half & (certain < other)).sum()), int((half & (certain > other)).sum())]
                      for half in (early, ~early)]  # fmt: skip
    if finals := _finals(events):
        painted = read(finals[0]["pictures"])[0]
        when = world.when(painted)
        kept = painted == encoded
        drawn = torch.where(~kept & (when < max(1, len(inputs))), when, -1)
        facts["final"] = [int(kept[~hole].sum()), int((drawn >= 0)[~hole].sum()), int((~hole).sum())]
        facts["in hole"] = {
            "as at the start": int(kept[hole].sum()), "drawn": int((drawn >= 0)[hole].sum()),
            "drawn last": int((drawn == len(inputs) - 1)[hole].sum()),
        }  # fmt: skip
        tempted = world.tempted()[image]
        facts["tempted"] = [
            int((painted == K - 1)[tempted].sum()),
            int(((when >= 0) & (when < len(inputs)))[tempted].sum()),
            int(tempted.sum()),
        ]
    looked_up = [event["tokens"] for event in events if event["kind"] == "painted"]
    facts["mask id painted"] = int((looked_up[-1] >= K).sum()) if looked_up else 0
    return facts


def _finals(events: list[Event]) -> list[Event]:
    """The pictures that were saved after the last call of the transformer, those for the score first."""
    calls = [i for i, event in enumerate(events) if event["kind"] == "model"]
    saved = [e for e in events[calls[-1] if calls else 0 :] if e["kind"] == "images" and len(e["pictures"]) == 1]
    return sorted(saved, key=lambda event: "test_results" not in event["path"])


def _masks_after(events: list[Event], before: list[Tensor]) -> list[Tensor]:
    """The masks after each step, from the picture of them, black = masked, or from what model.inpainting returns.

    They are believed only where they shrink, and where each is what the next step was given, if it was given any.
    """
    pictures = [event["pictures"] for event in events if event["kind"] == "masks"]
    drawn = [frame.mean(0).flatten() < 0.5 for frame in pictures[-1][: len(before)]] if pictures else []
    returned = [event["mask"] for event in events if event["kind"] == "returned"]
    shown = any(mask.any() for mask in before)
    for masks in (drawn, returned):
        if len(masks) != len(before) or len(masks) < 2 or masks[0].all():
            continue
        shrink = not any(bool((later & ~earlier).any()) for earlier, later in zip(masks, masks[1:], strict=False))
        if shrink and (not shown or all(map(torch.equal, masks, before[1:]))):
            return masks
    return []
