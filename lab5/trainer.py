"""One training loop for both stages, as a generator: the caller owns progress, plots and early stop.

    for step in fit(model, objective, config, seed=0):
        print(step.step, step.loss)

An objective is a callable `(model, draw, generator) -> (loss, metrics)`; `draw` numbers the batches from 1, of which a
step takes `accumulate`, shared by its processes (`runtime.ranks`). A metric "weight" says over how many terms the loss
is a mean: batches of a step count by it, as if they were one. The generator is seeded anew from (seed, draw), as is
torch's own stream for dropout: a step follows from the state on disk, the seed and its number alone, so a resumed run
goes on exactly where it was. Of an objective with a method `prepare(draw, device, generator)` a GPU has the next batch
made while it is at this one.
"""

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lab5.config import TrainConfig, check
from lab5.runtime.machine import compile_parts, fast_float32, oom_hint
from lab5.runtime.ranks import here
from lab5.runtime.states import Parts, load_state, save_state
from lab5.runtime.transfers import fetched

OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
DROPOUT = 0x9E3779B9  # added to the seed of a draw: dropout's numbers are not those that the objective is given

Objective = Callable[[nn.Module, int, torch.Generator], tuple[Tensor, dict[str, float | Tensor]]]


class TrainStep(NamedTuple):
    """One optimiser step, seen from outside."""

    step: int  # 1-based
    steps: int
    loss: float
    lr: float
    seconds: float  # since the loop began, of this process
    metrics: dict[str, float]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of 1-based `step`, after a linear warm-up of `config.warmup` steps (0: no warm-up).

    constant                      stays
    warmup_cosine, warmup_linear  falls to 1 %, as half a cosine or in a line
    multi_step                    times `config.decay` after each of the steps `config.milestones`
    step                          times `config.decay` after every `config.decay_every` steps behind the warm-up

    Raises ValueError for an unknown schedule and for milestones and intervals that lie outside the training.
    """
    _check_schedule(config)
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "multi_step":
        return config.lr * config.decay ** sum(step > milestone for milestone in config.milestones)
    if config.schedule == "step":
        return config.lr * config.decay ** ((step - config.warmup - 1) // config.decay_every)
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = 0.01
    if config.schedule == "warmup_cosine":
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    if config.schedule == "warmup_linear":
        return config.lr * max(floor, 1 - done)
    return config.lr


def learning_rates(config: TrainConfig) -> list[float]:
    """Those of all steps, for a plot."""
    return [learning_rate(config, step) for step in range(1, config.steps + 1)]


def _check_schedule(config: TrainConfig) -> None:
    check(config)
    name = config.schedule
    rising = sorted({m for m in config.milestones if config.warmup < m <= config.steps})
    if name == "multi_step" and rising != list(config.milestones):
        expected = f"rise from {config.warmup + 1}, behind the warm-up, to {config.steps}, the last step"
        raise ValueError(f"milestones must {expected}; found {config.milestones}")
    if name == "step" and not 1 <= config.decay_every <= config.steps:
        raise ValueError(f"decay_every must lie in 1..{config.steps}, the number of steps; found {config.decay_every}")


def fit(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    *,
    seed: int,
    save_to: Path | None = None,
    save_every: float = 120.0,
    settings: dict[str, Any] | None = None,
    history: list[TrainStep] | None = None,
) -> Iterator[TrainStep]:
    """Train `model` in place; when the loop ends, or is left early, the averaged weights (EMA) are in it.

    With `save_to` the state is written to `<save_to>-<step>` every `save_every` seconds and at the end, the last two
    kept, and a run that finds its own goes on from it. Ctrl-C and SIGTERM wait for the end of a step, whose state is
    then written; an error within a step leaves the states as they are. A step that such a signal kept from its caller,
    or in place of which the caller threw an error into the generator, is handed out again by the run that goes on.
    `settings` say what else, beside `config`, `seed` and the number of parameters, a state belongs to. `history`
    receives every step, also those of the runs before.

    Raises FloatingPointError, with the step and the learning rate, for a loss or gradient that is not finite,
    MemoryError where a batch is too large, ValueError for a state of other settings, and OSError for a full disk.
    """
    _check_schedule(config)
    device = next(model.parameters()).device
    average = copy.deepcopy(model) if config.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    parts = Parts(model, average, _optimiser(model, config, device), scaler, objective)
    own = {"seed": seed, "parameters": sum(p.numel() for p in model.parameters()), "training": asdict(config)}
    if config.compile and device.type == "cuda":
        compile_parts(model)
    settings = own | (settings or {})
    history = [] if history is None else history
    facts = save_to and load_state(save_to, parts, settings) or {"step": 0, "history": ()}
    done = facts["step"]
    history[:] = [TrainStep(*row) for row in facts["history"]]
    again = facts.get("again", False)  # the last step was not, or not quite, dealt with by whoever it was handed to

    def store() -> None:
        if here().first:
            save_state(save_to, done, parts, settings, {"history": history, "again": again})

    model.train()
    saved, whole = done, True  # whether the parts are those after a step, or in the midst of one
    began = last_save = time.monotonic()
    as_many = f", and {section(config)}.accumulate = {2 * config.accumulate} for as many images a step"
    try:
        if again:
            yield history[-1]
            again = False
        while done < config.steps:
            if save_to is not None and done > saved and time.monotonic() - last_save > save_every:
                saved, last_save = done, time.monotonic()  # before it is tried: once is enough on a full disk
                store()
            whole = False
            with here().defer_signals() as waiting:
                lr = learning_rate(config, done + 1)
                with fast_float32(device), oom_hint(f"{section(config)}.batch", config.batch, as_many):
                    loss, metrics = _step(parts, config, done + 1, lr, seed)
                done, whole, again = done + 1, True, True
                history.append(TrainStep(done, config.steps, loss, lr, time.monotonic() - began, metrics))
            if waiting:
                if save_to is not None:
                    saved = done
                    store()
                signal.raise_signal(waiting[0])
            yield history[-1]
            again = False
    except GeneratorExit:  # the loop was left
        again = False
        raise
    finally:
        if save_to is not None and whole and done > saved:
            store()
        if average is not None:
            model.load_state_dict(average.state_dict())
        model.eval()


def section(config: TrainConfig) -> str:
    """The name of its settings: `config.stage1` is a Stage1Config."""
    return type(config).__name__.removesuffix("Config").lower()


def _step(parts: Parts, config: TrainConfig, step: int, lr: float, seed: int) -> tuple[float, dict[str, float]]:
    """One step of the optimiser; returns the loss and the metrics of its last batch."""
    model, average, optimiser, scaler, objective = parts
    device = next(model.parameters()).device
    generator = torch.Generator(device="cpu")
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    total, metrics, weights, ranks = torch.zeros((), device=device), {}, [], here()
    prepare = getattr(objective, "prepare", None) if device.type == "cuda" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        draws = ranks.draws(step, config.accumulate)
        for draw, following in zip(draws, [*draws[1:], *ranks.draws(step + 1, config.accumulate)], strict=False):
            torch.manual_seed(seed * 1_000_003 + draw + DROPOUT)
            generator.manual_seed(seed * 1_000_003 + draw)
            with autocast(config.amp, device):
                part, metrics = objective(model, draw, generator)
            weights.append(metrics.pop("weight", 1.0))
            share = weights[-1] / weights[0] / config.accumulate
            scaler.scale(part * share).backward()
            total += part.detach() * share
            if prepare and following <= config.steps * config.accumulate:
                prepare(following, device, generator.manual_seed(seed * 1_000_003 + following))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if (others := config.accumulate * weights[0] / ranks.agree(sum(weights))) != 1:  # the shares do not add up to 1
        total *= others
        torch._foreach_mul_(gradients, others)
    ranks.sum_([*gradients, total])  # the mean over all batches, of which each rank has its part
    scaler.unscale_(optimiser)
    clipped = nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
    loss, norm, *values = fetched(total, clipped, *metrics.values())  # all that a step waits for a GPU
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step} with a learning rate of {lr:.2g}")
    if not math.isfinite(norm) and not scaler.is_enabled():  # a scaler skips such a step by itself
        raise FloatingPointError(f"the gradient is {norm} at step {step} with a learning rate of {lr:.2g}")
    scaler.step(optimiser)
    scaler.update()
    if average is not None:
        _follow(average, model, min(config.ema, step / (step + 9)) if step > 1 else 0.0)
    return loss, ranks.last_says(dict(zip(metrics, values, strict=True)))


def autocast(amp: str, device: torch.device):
    """The autocast region of a setting "bf16", "fp16" or "off"."""
    return torch.autocast(device.type, torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "off")


def _optimiser(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """A name in OPTIMISERS; biases, norms and embeddings are not decayed, which leaves the weights of linear maps.

    AdamW shrinks the weights themselves; Adam adds the decay to the gradients, where it is scaled as they are.
    """
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    decayed = [p for p in model.parameters() if id(p) in linear]
    kept = [p for p in model.parameters() if id(p) not in linear]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    build = OPTIMISERS[config.optimiser]
    return build(groups, lr=config.lr, betas=config.betas, fused=device.type in ("cpu", "cuda"))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights; the rest is the model's."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)
