"""What is wrong with a learner's own attention, schedule, masking, loss or decoding.

    print(check_gamma(lambda x: math.cos(math.pi * x / 2)))  # a table: check, verdict, evidence, meaning, remedy
    assert check_decoding(my_decoding).ok

A check calls the function on inputs whose right answer is known. It says "fails" only for evidence that right code
cannot produce; where two readings are legitimate it says which one it has met, and that is a choice.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode

from lab5.gamma import BY_TOKENS, SCHEDULES, masked_counts
from lab5.gamma import gamma as named_gamma
from lab5.pitfalls.decoding import GREY_CODE, HOLE, STEPS, a_hole, from_step_zero, of_the_current_mask, package_counts
from lab5.pitfalls.readings import check_attention
from lab5.pitfalls.training import K, N, Stub, seeded, some_tokens
from lab5.pitfalls.verdicts import Checks, Row, Unusable, Verdict, at_seed, judged, not_tested, raised
from lab5.runtime.transfers import Places

__all__ = [
    "Checks", "Row", "Verdict", "check_attention", "check_decoding", "check_gamma", "check_loss", "check_masking"
]  # fmt: skip


def _numbers(values: Iterable[float], digits: int = 3) -> str:
    return " ".join(f"{value:.{digits}g}" for value in values)


# --- γ --------------------------------------------------------------------------------------------------------------

QUARTERS = (0, 0.25, 0.5, 0.75, 1)
FINE = [i / 64 for i in range(1, 64)]


def check_gamma(gamma: Callable[[float], float]) -> Checks:
    """Of a schedule: the share of the tokens that stays masked after a share x in 0..1 of the decoding."""

    def value(x: float) -> float:
        try:
            return float(gamma(x))
        except (TypeError, AttributeError):  # written for tensors
            return float(gamma(torch.tensor(x, dtype=torch.float64)))

    try:
        inner, end = [value(x) for x in FINE], value(1.0)
    except Exception as error:  # whatever a learner's code may raise
        return Checks((raised("values", error),))
    try:
        start = value(0.0)
    except (ValueError, ArithmeticError):  # log(0), where decoding never asks
        start = math.nan
    quarters = [start, *(inner[int(64 * x) - 1] for x in QUARTERS[1:-1]), end]
    values = f"at 0, ¼, ½, ¾, 1: {_numbers(quarters)}"
    if not (named := _named(inner)) and (kept := _named([1 - v for v in inner])):
        meaning, remedy = "It is the share that is committed: masked and kept change places.", "Return 1 minus it."
        return Checks((Row("its name", Verdict.FAILS, f"{values}; 1 − {kept}", meaning, remedy, 9),))
    given = f"γ(0) = {start:.3g}, should be 1"
    if not math.isfinite(start):
        first = Row("starts at 1", Verdict.CHOICE, given, "Undefined at 0, where decoding never asks; training may.")
    else:
        first = judged("starts at 1", abs(start - 1) < 0.01, given, "Before the first step all of the hole is masked.",
                     "Return the share that stays masked, which falls from 1 to 0.")  # fmt: skip
    rises = max(b - a for a, b in zip(inner, [*inner[1:], end], strict=True))
    outside = [v for v in inner if not -1e-6 <= v <= 1 + 1e-6]
    rows = [
        first,
        judged(
            "ends at 0", abs(end) < 1e-6, f"γ(1) = {end:.3g}, should be 0",
            "The last step leaves tokens masked.", "Set γ(1) to 0; count steps from 1 to T.", 12,
        ),
        judged(
            "falls", rises < 1e-6, f"greatest rise within 1/64: {max(rises, 0):.2g}, should be 0",
            "Tokens that were committed would have to be masked again.", "Return the share that stays masked.",
        ),
        judged(
            "within 0..1", not outside, f"{len(outside)} of {len(FINE)} values lie outside 0..1, should be none",
            "A share is no less than nothing and no more than all.", "Clamp it to 0..1.",
        ),
    ]  # fmt: skip
    if named:
        beside = [1, *(named_gamma(named, x) for x in QUARTERS[1:-1]), 0]
        rows.append(Row("its name", Verdict.PASSES, f"{values}; {named} is {_numbers(beside)}"))
    else:
        rows.append(Row("its name", Verdict.CHOICE, values, "None of the named schedules, which is no mistake."))
    if 0 < end < 1e-6:
        rows[1] = replace(
            rows[1], meaning="Rounded up this is a whole token that stays masked: round down, or set it to 0."
        )
    return Checks(tuple(rows))


def _named(inner: Sequence[float]) -> str:
    """The schedule with these values at FINE, or nothing. A stair may come a hair later: at most two may differ."""
    for name in SCHEDULES:
        far = sum(abs(named_gamma(name, x, N) - v) > 1e-3 or v != v for x, v in zip(FINE, inner, strict=True))
        if far <= (2 if name == "stair" else 0):
            return name
    return ""


# --- masking --------------------------------------------------------------------------------------------------------

IMAGES, CALLS = 4, 2000


class _HalfShare(TorchFunctionMode):
    """Draws of no more than a number for each image come out in the middle: the share at which an image is masked."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() <= IMAGES:
            if func in (torch.rand, torch.rand_like):
                result.fill_(0.5)
            elif func in (torch.randint, torch.Tensor.random_):
                result.fill_(N // 2)
            elif func is torch.Tensor.uniform_:
                low, high = (*args[1:], 0.0, 1.0)[:2] if len(args) > 2 else (0.0, 1.0)
                kwargs = kwargs or {}
                result.fill_((kwargs.get("from", low) + kwargs.get("to", high)) / 2)
        return result


def check_masking(hide: Callable[[Tensor, torch.Generator], Tensor]) -> Checks:
    """Of the tokens that a training hides: `hide(tokens (B,N), generator)` is bool (B,N), True = hidden."""
    tokens = some_tokens(IMAGES)
    given, generator = tokens.clone(), seeded()
    try:
        with at_seed(0):
            first = hide(given, generator)
            if not isinstance(first, Tensor) or first.shape != tokens.shape or first.dtype != torch.bool:
                found = f"{first.dtype} {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
                evidence = f"{found}, should be torch.bool {tuple(tokens.shape)}"
                meaning = "As an index, other types pick positions 0 and 1 instead of choosing."
                return Checks((judged("shape and type", False, evidence, meaning, "Return a comparison, or .bool()."),))
            hidden = torch.stack([first, *(hide(tokens.clone(), generator) for _ in range(CALLS - 1))])
            with _HalfShare():
                half = torch.cat([hide(tokens.clone(), seeded(10 + i)) for i in range(50)])
        with at_seed(1):
            again = hide(tokens.clone(), seeded())
    except Exception as error:  # whatever a learner's code may raise
        return Checks((raised("answers", error),))
    touched = int((given != tokens).sum())
    rows = [
        Row("shape and type", Verdict.PASSES, f"torch.bool {tuple(tokens.shape)}"),
        judged(
            "tokens stay", not touched, f"{touched} of {tokens.numel()} tokens of the caller changed, should be 0",
            "The targets of the loss are overwritten.", "masked = tokens.masked_fill(hidden, mask_id), a new tensor.",
        ),
    ]  # fmt: skip
    counts = hidden.sum(-1).double()  # (CALLS, IMAGES)
    mean = float(counts.mean()) / N
    if not 0 < mean < 1:
        evidence = f"{mean:.0%} of the tokens are hidden, should be 64% on average"
        remedy = "Hide γ(u) of them, with u drawn for each image."
        return Checks((*rows, judged("share", False, evidence, "There is nothing to learn.", remedy)))
    same = float((hidden == hidden[0]).all(-1).all(-1).double().mean())
    first_n = float((hidden == (torch.arange(N) < hidden.sum(-1, keepdim=True))).all(-1).double().mean())
    rows += [
        _share_row(counts.flatten() / N, mean),
        judged(
            "drawn anew", same < 0.5, f"{same:.0%} of {CALLS} masks are the first one again, should be under 50%",
            "The same tokens are hidden every time: the others are never learnt.",
            "Draw with the generator that is handed over; do not seed it inside.",
        ),
        judged(
            "anywhere", first_n < 0.5,
            f"in {first_n:.0%} of the images the first n tokens are hidden, should be under 50%",
            "Positions are not drawn: the last ones are hardly ever learnt.",
            "torch.rand(B, N, generator=g).argsort(1).argsort(1) < n[:, None]",
        ),
    ]  # fmt: skip
    rows += [_drawn_for(counts, mean), _exact_row(half.sum(-1).double())]
    one, other = hidden[:, :2].unbind(1)
    nested = float((~(one & ~other).any(-1) | ~(other & ~one).any(-1)).double().mean())
    if nested > 0.5 > max(same, first_n):
        evidence = f"in {nested:.0%} of the batches one image's hidden positions lie within another's: each batch"
        meaning = "Images of a batch share their positions: training sees fewer masks than it could."
        remedy = "torch.rand(B, N, generator=g) ranks the positions of each image."
        rows.append(Row("positions drawn for", Verdict.CHOICE, evidence, meaning, remedy))
    empty = float((counts == 0).double().mean())
    if empty:
        meaning = "Such an image teaches nothing; a batch of them has no mean."
        rows.append(Row("at least one", Verdict.CHOICE, f"{empty:.1%} of the images have nothing hidden", meaning))
    if not torch.equal(again, first):
        meaning = "It draws from a stream of its own: a training cannot be repeated."
        rows.append(Row("its generator", Verdict.CHOICE, "one seed, two masks", meaning, "Pass generator=generator."))
    return Checks(tuple(rows))


def _share_row(shares: Tensor, mean: float) -> Row:
    """Which schedule's shares they are, or those of one that keeps in place of hiding."""
    at = (torch.arange(len(shares), dtype=torch.float64) + 0.5) / len(shares)
    ordered = shares.sort().values

    grid = torch.arange(8, N - 7, dtype=torch.float64) / N + 1e-9  # at the ends all hangs on how counts are rounded

    def distance(expected: Tensor, round_to: Callable[[Tensor], Tensor] = torch.ceil) -> float:
        """Kolmogorov and Smirnov's; counts are whole numbers."""
        expected = (round_to(expected * N).clamp(1, N) / N).sort().values
        below = torch.searchsorted(ordered, grid) - torch.searchsorted(expected, grid)
        return float(below.abs().max()) / len(at)

    names = {name: distance(named_gamma(name, at)) for name in SCHEDULES if name not in BY_TOKENS}
    for name in ("cosine", "square"):  # an inverted mask rounds the other way
        shown = 1 - named_gamma(name, at)
        names[f"1 − {name}"] = min(distance(shown), distance(shown, torch.floor))
    (name, nearest), (_, second) = sorted(names.items(), key=lambda item: item[1])[:2]
    evidence = f"{mean:.0%} are hidden on average, under a cosine {2 / math.pi:.0%}"
    if name == "1 − cosine" and nearest < 0.03 and second > nearest + 0.01:
        return Row("share", Verdict.FAILS, f"{evidence}; shares are those of 1 − cos(πu/2)",
                   "γ(u) of the tokens is kept in place of hidden: the network hardly learns to fill large holes.",
                   "hidden = rank < γ(u) N: True where γ(u) of them are hidden.", 9)  # fmt: skip
    if name == "cosine" and nearest < 0.05:
        return Row("share", Verdict.PASSES, evidence)
    low, high = float(shares.min()), float(shares.max())
    like = f"; as {name} of u" if nearest < 0.05 else f"; between {low:.0%} and {high:.0%}"
    return Row("share", Verdict.CHOICE, evidence + like, "Another masking than MaskGIT's cosine, which is no mistake.")


def _drawn_for(counts: Tensor, mean: float) -> Row:
    """Whether the share is drawn for each token, image, batch, or never: from the spread of counts (CALLS, IMAGES)."""
    binomial = N * mean * (1 - mean)
    within, between = float(counts.var(1).mean()), float(counts.mean(1).var())
    spreads = float(counts.std()), within**0.5, binomial**0.5
    evidence = (
        "counts spread by ±{:.0f}, within a batch by ±{:.0f}; a coin for each token would spread them by ±{:.0f}"
    ).format(*spreads)
    if within > 2 * binomial:
        return Row("share drawn for", Verdict.PASSES, evidence + ": each image")
    if between > 2 * binomial:
        return Row("share drawn for", Verdict.CHOICE, evidence + ": each batch", "Images of a batch share their ratio.")
    meaning = "No image is hidden more than another: the network seldom meets the first and last steps of decoding."
    return Row("share drawn for", Verdict.CHOICE, evidence + ": none, or each token alone", meaning)


def _exact_row(counts: Tensor) -> Row:
    """Counts where the images' share is held fixed."""
    mean, variance = float(counts.mean()) / N, float(counts.var())
    evidence = f"at one share, {float(counts.min()):.0f} .. {float(counts.max()):.0f} of {N} are hidden"
    binomial = N * mean * (1 - mean)
    if variance < 0.05 * binomial:
        return Row("count", Verdict.PASSES, evidence + ": exactly so many")
    if 0.5 * binomial < variance < 2 * binomial:
        meaning = "Counts vary about the share, where MaskGIT hides exactly so many; both train."
        return Row("count", Verdict.CHOICE, evidence + ": a coin for each token", meaning)
    return not_tested("count", "its share could not be held fixed")


# --- loss -----------------------------------------------------------------------------------------------------------


CLASS_AXIS = "F.cross_entropy(logits[hidden], tokens[hidden]), or logits.transpose(1, 2): classes go to axis 1."


def check_loss(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Checks:
    """Of masked cross-entropy: `loss(logits (B,N,K), tokens (B,N), hidden (B,N))` is a number, in nats per token.

    K is 1024 here, whatever the codes of your tokenizer. Logits have a class for the mask id only where a loss raises
    without one.
    """
    tokens = some_tokens(2)
    hidden = torch.rand(2, N, generator=seeded()).argsort(1).argsort(1) < torch.tensor([[100], [60]])
    try:
        with at_seed(0):
            value, gradient = _at_uniform(loss, tokens, hidden, K)
    except Exception as error:  # whatever a learner's code may raise
        if f"Expected target size [2, {K}], got [2, {N}]" in str(error):
            meaning = "F.cross_entropy takes axis 1 for the classes, and there it finds the positions."
            return Checks((judged("class axis", False, f"it raises {error}", meaning, CLASS_AXIS, 7),))
        try:
            with at_seed(0):  # its labels or its classes may count the mask id
                value, gradient = _at_uniform(loss, tokens, hidden, K + 1)
        except Exception:
            row = raised("answers", error)
            return Checks((replace(row, evidence=f"{row.evidence} (logits are {(2, N, K)} here, codes 0..{K - 1})"),))
    if gradient is None:
        return Checks((judged("gradient", False, f"{value:.2f} without a gradient", "The network cannot learn from it.",
                            "No argmax, no .item(), no detach on the way."),))  # fmt: skip
    classes = gradient.shape[-1]
    n, uniform = int(hidden.sum()), math.log(classes)
    weight, counted = value / uniform, gradient.abs().sum(-1) > 0
    evidence = f"a model without opinion loses {value:.3f}, should be {uniform:.3f} = ln {classes}"
    scales = {
        1.0: "", 1 / math.log(2): "in bits", n: "a sum over the hidden tokens", 2 * N: "a sum over all tokens",
        n / 2: "a sum over tokens, a mean over images", N: "a sum over tokens, a mean over images",
        n / (2 * N): "a mean over all positions, most of them 0",
    }  # fmt: skip
    positions = abs(value - math.log(N) * N / classes) < 1e-3
    reduction = next((text for scale, text in scales.items() if abs(weight / scale - 1) < 1e-3), None)
    if positions or reduction is None:
        why = "which is ln(256) / 4: the positions are taken for classes" if positions else "no mean or sum of ln K"
        meaning = "It is not the cross-entropy over the codes."
        return Checks((judged("class axis", False, f"{evidence}; {why}", meaning, CLASS_AXIS, 7),))
    rows = [Row("class axis", Verdict.PASSES, evidence)]
    if reduction:
        meaning, remedy = "Not nats per token: it compares with no other loss.", "A mean over the tokens that count."
        rows = [Row("reduction", Verdict.CHOICE, f"{evidence}: {reduction}", meaning, remedy)]
    rows += _label_rows(gradient, tokens, counted, weight)
    rows.append(_counted_row(counted, hidden))
    return Checks(tuple(rows))


def _at_uniform(loss: Callable, tokens: Tensor, hidden: Tensor, classes: int) -> tuple[float, Tensor | None]:
    """The loss of a model without opinion, and its gradient: it pulls a token's own code up where the token counts."""
    logits = torch.zeros(*tokens.shape, classes, requires_grad=True)
    value = loss(logits, tokens.clone(), hidden.clone())
    if not isinstance(value, Tensor) or not value.requires_grad:
        return float(value), None
    value.backward()
    return float(value.detach()), logits.grad


def _label_rows(gradient: Tensor, tokens: Tensor, counted: Tensor, weight: float) -> list[Row]:
    """Where each counted token pulls, and how hard."""
    pulled, up = gradient.argmin(-1)[counted], gradient.argmax(-1)[counted]
    total, target = int(counted.sum()), tokens[counted]
    right, masks, inverted = (int(x.sum()) for x in (pulled == target, pulled == K, up == target))
    evidence = f"{right} of {total} counted tokens pull their own code up, should be all"
    remedy = "The target is the tokens before masking: F.cross_entropy(logits[hidden], tokens[hidden])."
    if masks:
        evidence, meaning = f"{masks} of {total} counted tokens pull the mask id up", "The mask id is the label."
        return [Row("label", Verdict.FAILS, evidence, meaning, remedy, 13)]
    if right < total:
        meaning = "It is maximised, not minimised." if inverted == total else "It pulls codes that are not there."
        remedy = "Minus sign." if inverted == total else "logits.transpose(1, 2), not a view: classes go to axis 1."
        return [Row("label", Verdict.FAILS, evidence, meaning, remedy, 7)]
    rows = [Row("label", Verdict.PASSES, evidence)]
    strength = float(-gradient.gather(-1, tokens[..., None]).sum()) / (1 - 1 / gradient.shape[-1]) / weight
    if strength < 0.1:
        rows.append(Row("softmax once", Verdict.FAILS, f"the gradient is {strength:.2g} of what it should be",
                        "A softmax stands before a loss that has its own: learning nearly stops.",
                        "Give F.cross_entropy the logits as they are."))  # fmt: skip
    elif strength < 0.99:
        rows.append(Row("smoothing", Verdict.CHOICE, f"the gradient is {strength:.2f} of a plain one: smoothed labels",
                        "Some train so; compare its loss only with others of the same smoothing."))  # fmt: skip
    return rows


def _counted_row(counted: Tensor, hidden: Tensor) -> Row:
    inside, known = int((counted & hidden).sum()), int((counted & ~hidden).sum())
    n, rest = int(hidden.sum()), int((~hidden).sum())
    evidence = f"{inside} of {n} hidden and {known} of {rest} known tokens count"
    if inside == n and known == 0:
        return Row("counted", Verdict.PASSES, evidence)
    if inside == n and known == rest:
        meaning = "All tokens count: legitimate, unless an ignore_index was meant to leave the known ones out."
        return Row("counted", Verdict.CHOICE, evidence, meaning, "For masked ones: logits[hidden], tokens[hidden].", 8)
    if inside == 0:
        return Row("counted", Verdict.FAILS, evidence, "The known tokens are predicted: the network learns to copy.",
                   "True = hidden: logits[hidden], tokens[hidden].", 9)  # fmt: skip
    if known == 0:
        meaning = "Some hidden tokens are left out, such as a code taken for padding."
        return Row("counted", Verdict.FAILS, evidence, meaning, "Choose by `hidden`, not by a token's value.", 8)
    return Row("counted", Verdict.CHOICE, evidence, "Some known tokens count as well.")


# --- decoding -------------------------------------------------------------------------------------------------------

Decode = Callable[..., Iterable[Tensor]]
SMALL = 60  # the hole of a second image
PAIRS, RUNS = 128, 8
OWN = 10**6  # seeds of a check's own draws: a decoding is given small ones, and may draw in the same way


class Cause(Row):
    """A failure from which others may follow."""


class Watched(Stub):
    """In the transformer's place: answers by `answer(tokens, calls so far)`, and keeps what it is shown."""

    def __init__(self, answer: Callable[[Tensor, int], Tensor]):
        super().__init__(lambda tokens: answer(tokens, len(self.inputs)))
        self.inputs: list[Tensor] = []
        self.changed = 0  # tokens of the caller
        self.eval()

    def forward(self, tokens: Tensor, where: Tensor | Places | None = None) -> Tensor:
        logits = super().forward(tokens, where)
        self.inputs.append(tokens.clone())
        return logits


def _sure(codes: Tensor, mask_id: float = 0.0) -> Tensor:
    """Logits of 20 for these codes, and of `mask_id` for the mask id."""
    logits = 20.0 * one_hot(codes, K + 1).float()
    logits[..., K] = mask_id
    return logits


def _undecided(codes: Tensor) -> Watched:
    """Sure of the next code at every call, at known positions too: what is redrawn is seen."""
    return Watched(lambda tokens, calls: _sure(codes + 1 + calls))


def _hole() -> tuple[Tensor, Tensor, Tensor]:
    """`a_hole` with codes to which a call's number can be added: they never come to grey, nor past the last one."""
    truth, tokens, unknown = a_hole()
    return truth.clamp(max=K - 10 * STEPS), tokens, unknown


def check_decoding(decode: Decode) -> Checks:
    """Of iterative decoding: `decode(model, tokens, unknown, schedule, steps, generator)`.

    It yields or returns the tokens (B,N) after each of the steps, those still masked being `model.mask_id`. The model
    is one of known answers, tokens (B,N) to logits (B,N,K+1).
    """
    codes, tokens, unknown = _hole()
    model = _undecided(codes)
    try:
        states = _states(decode, model, tokens, unknown, "cosine")
        again = _states(decode, _undecided(codes), tokens, unknown, "cosine", stream=1)
    except Exception as error:  # whatever a learner's code may raise
        return Checks((raised("answers", error),))
    order, *noise = _order_rows(decode)
    rows = _cause_first(
        [
            _start_row(model, tokens, unknown),
            *_count_rows(decode, _masked(states)),
            _known_row(states, tokens, unknown),
            *_committed_rows(states, model, tokens, unknown, codes),
            _batch_row(decode),
            order,
            _mask_id_row(decode),
        ]
    )
    if order.verdict is Verdict.PASSES and not any(row.verdict is Verdict.FAILS for row in rows):
        rows += [*noise, *_confidence_rows(decode)]
    if model.changed:
        evidence, meaning = f"{model.changed} tokens of the caller changed", "What is decoded next starts from them."
        rows.append(Row("caller's tokens", Verdict.CHOICE, evidence, meaning, "tokens = tokens.clone() first."))
    if not torch.equal(torch.cat(states), torch.cat(again)):
        meaning = "It draws from a stream of its own: a decoding cannot be repeated."
        rows.append(Row("its generator", Verdict.CHOICE, "one seed, two decodings", meaning, "generator=generator"))
    return Checks(tuple(rows))


def _cause_first(rows: list[Row]) -> list[Row]:
    """The first cause stands first, and nothing is said of what may follow from it."""
    cause = next((row for row in rows if isinstance(row, Cause)), None)
    if cause is None:
        return rows
    blamed = f"mend “{cause.check}” first, which may be the cause"
    others = [not_tested(row.check, blamed) if row.verdict in (Verdict.FAILS, Verdict.CHOICE) else row for row in rows
              if row is not cause]  # fmt: skip
    return [cause, *others]


def _start_row(model: Watched, tokens: Tensor, unknown: Tensor) -> Row:
    """Whether the model is ever asked with all of the hole masked."""
    shown = [int((asked == K)[unknown].sum()) for asked in model.inputs if asked.shape == tokens.shape]
    if not shown:
        return not_tested("start masked", f"the model is never shown tokens of shape {tuple(tokens.shape)}")
    evidence = f"{max(shown)} of {HOLE} tokens of the hole are masked when the model is asked, should be all at first"
    if max(shown) == HOLE:
        return Row("start masked", Verdict.PASSES, evidence)
    meaning = "The hole still holds the codes of its grey filling."
    remedy = "tokens = tokens.masked_fill(unknown, model.mask_id) before the loop."
    return Cause("start masked", Verdict.FAILS, evidence, meaning, remedy)


def _known_row(states: list[Tensor], tokens: Tensor, unknown: Tensor) -> Row:
    """Whether known tokens stay, and if not, whether they were masked or only overwritten."""
    moved = max(int((state != tokens)[~unknown].sum()) for state in states)
    masked = max(int((state == K)[~unknown].sum()) for state in states)
    evidence = f"{moved} of {N - HOLE} known tokens changed, should be 0"
    if masked:
        remedy = (
            "score = score.masked_fill(~masked, inf), then rank = score.argsort(1).argsort(1): rank < n stays masked; "
            "write proposals only where it was masked before the step."
        )
        evidence, meaning = f"{evidence}; up to {masked} are masked", "Known tokens are ranked with the others."
        return Cause("known tokens", Verdict.FAILS, evidence, meaning, remedy, 3)
    return judged(
        "known tokens", not moved, evidence, "The face around the hole is redrawn.",
        "tokens = torch.where(masked, proposed, tokens): write only where it was masked before the step.", 3,
    )  # fmt: skip


@torch.no_grad()
def _states(
    decode: Decode, model: Watched, tokens: Tensor, unknown: Tensor, schedule: str, stream: int = 0, seed: int = 0
) -> list[Tensor]:
    """The tokens after each step, with the mask id where they are still masked. `stream` seeds torch's own.

    Raises Unusable for states that cannot be read.
    """
    given = tokens.clone()
    with at_seed(stream):
        answer = decode(model, given, unknown.clone(), schedule, STEPS, seeded(seed))
        if isinstance(answer, list) and len(answer) > 1 and all(state is answer[0] for state in answer):
            raise Unusable("all states are one tensor: append tokens.clone()")
        states = [state.clone() for state in answer]
    model.changed = int((given != tokens).sum())
    if any(state.shape != tokens.shape for state in states):
        raise Unusable(f"a state is {tuple(states[0].shape)}, should be {tuple(tokens.shape)}")
    if len(states) == STEPS + 1 and bool((states[0] == K)[unknown].all()):
        states = states[1:]  # the start was handed over as well
    shown = model.inputs
    if not any((state == K).any() for state in states):
        # Filled in at every step: what is masked is what the model is shown as masked next.
        if not len(states) == len(shown) == STEPS or shown[0].shape != tokens.shape:
            raise Unusable("no state says what is still masked: yield it as model.mask_id")
        states = [s.masked_fill(x == K, K) for s, x in zip(states, [*shown[1:], states[-1]], strict=True)]
    if states and not (states[-1] == K).any():
        states += states[-1:] * (STEPS - len(states))  # it was done early
    if len(states) != STEPS:
        raise Unusable(f"there are {len(states)} states, should be one after each of {STEPS} steps")
    return states


def _masked(states: list[Tensor], image: int = 0) -> list[int]:
    return [int((state[image] == K).sum()) for state in states]


def _committed_rows(
    states: list[Tensor], model: Watched, tokens: Tensor, unknown: Tensor, codes: Tensor
) -> tuple[Row, ...]:
    """Whether what is committed is the model's answer, stays as it is, and is there when the model is asked again."""
    calls, before = len(model.inputs), tokens.masked_fill(unknown, K)
    new = grey = foreign = back = redrawn = remasked = unseen = 0
    comparable = calls == STEPS and all(shown.shape == tokens.shape for shown in model.inputs)
    for step, state in enumerate(states):
        start, committed, kept = state == GREY_CODE, unknown & (before == K) & (state != K), unknown & (before != K)
        new += int(committed.sum())
        grey += int((committed & start).sum())
        foreign += int((committed & ~start & ((state - codes - 1) % K >= calls)).sum())
        back += int((kept & start & (before != GREY_CODE)).sum())
        remasked += int((kept & (state == K)).sum())
        redrawn += int((kept & ~start & (state != K) & (state != before)).sum())
        unseen += int((unknown & (model.inputs[step] != before)).sum()) if comparable else 0
        before = state
    where = "Write proposals where the mask was before the step, not where it is after it"
    if not new:
        meaning = "The mask never shrinks: what a step decides is not written, or nothing is decided."
        remedy = f"{where}; and see that γ(t/T) falls."
        evidence = f"none of {HOLE} tokens is committed in {STEPS} steps, should be all"
        return (Cause("committed is the answer", Verdict.FAILS, evidence, meaning, remedy, 1),)
    answers = judged(
        "committed is the answer", not grey + foreign,
        f"of {new} tokens committed, {grey} are what the hole held before it was masked (grey) and {foreign} are codes "
        "that the model never answered; both should be 0",
        "What the model answers does not come into the picture.", f"{where}.", 1,
    )  # fmt: skip
    stay = judged(
        "committed stays", not back + redrawn + remasked,
        f"of tokens committed, {back} turn back to what the hole held at the start (grey), {redrawn} are drawn again, "
        f"{remasked} are masked again; all should be 0",
        "A step undoes what an earlier one has decided.",
        "tokens = torch.where(masked, proposed, tokens) from step to step; a score of infinity where not masked.",
        2 if back else 0,
    )  # fmt: skip
    if Verdict.FAILS in (answers.verdict, stay.verdict):
        return answers, stay  # and so the model is not shown what it should be
    if not comparable:
        return answers, stay, not_tested("the model sees", f"the model is asked {calls} times in {STEPS} steps")
    return answers, stay, judged(
        "the model sees", not unseen, f"{unseen} tokens differ between a step's result and the next input, should be 0",
        "The network is not shown what was decided.", "model(tokens), masked ones being mask_id, at every step.", 2,
    )  # fmt: skip


def _count_rows(decode: Decode, cosine: list[int]) -> list[Row]:
    """How many stay masked, by three schedules: against the plan, and at the end."""
    codes, tokens, unknown = _hole()
    counts = {"cosine": cosine}
    try:
        for name in ("linear", "square"):
            counts[name] = _masked(_states(decode, _undecided(codes), tokens, unknown, name))
    except Exception as error:  # a schedule that there is not, for one
        rows = [raised("schedules", error)]
    else:
        deaf = len({tuple(masked) for masked in counts.values()}) == 1
        evidence = "; ".join(f"{name} {_numbers(masked)}" for name, masked in counts.items())
        rows = [
            judged(
                "schedules", not deaf, f"masked after each step: {evidence}",
                "The schedule's name never reaches the loop: three schedules, one result.",
                "Hand the name on to where γ is computed, in place of a default.", 15,
            )
        ]  # fmt: skip
        if deaf:
            counts = {next((name for name in SCHEDULES if not _departs(cosine, name)), "cosine"): cosine}
    left = {name: masked[-1] for name, masked in counts.items() if masked[-1]}
    ends = ", ".join(f"{masked} of {HOLE} under {name}" for name, masked in left.items()) or f"0 of {HOLE}"
    rows.append(
        judged(
            "nothing left", not left, f"masked after the last step: {ends}, should be 0", "Mask ids are painted.",
            "Count steps from 1 to T; set γ(1) = 0, because cos(π/2) is 6e-17 and rounded up a whole token.", 12,
        )
    )  # fmt: skip
    name = next((name for name, masked in counts.items() if _departs(masked, name)), next(iter(counts)))
    masked, plan = counts[name], package_counts(name, STEPS, HOLE)
    evidence = f"{name}: {_numbers(masked)}, should be {_numbers(plan)}"
    if _departs(masked, name):
        kind, *explanation = _explained(masked, name)
        return [kind("counts", Verdict.FAILS, evidence, *explanation), *rows]
    if masked[:-1] == plan[:-1]:
        return [Row("counts", Verdict.PASSES, evidence), *rows]
    up = masked[:-1] == masked_counts(name, STEPS, HOLE, "ceil")[:-1]
    rounding = "Rounded up, as in the paper." if up else "Within one token of the schedule."
    return [Row("counts", Verdict.CHOICE, evidence, rounding), *rows]


def _departs(masked: list[int], schedule: str) -> bool:
    """Before the last step, from γ(t/T) of the hole, however that is rounded."""
    exact = [named_gamma(schedule, step / STEPS, HOLE) * HOLE for step in range(1, STEPS)]
    return any(abs(m - e) > 1 for m, e in zip(masked[:-1], exact, strict=True))


def _explained(masked: list[int], name: str) -> tuple[type[Row], str, str, int]:
    """The kind of row for counts that depart from the schedule, with its meaning, remedy and pitfall."""
    of_grid = package_counts(name, STEPS, N)
    known = (
        (of_the_current_mask(name, STEPS, HOLE), Row, "The share is taken of what is masked now: it compounds.",
         "n = γ(t/T) times the number masked at the start.", 11),
        (from_step_zero(name, STEPS, HOLE), Row, "Steps are counted from 0: every count is a step late.",
         "γ((t + 1) / T) for t = 0 .. T − 1.", 12),
        *((counts, Cause, "The share is taken of 256 tokens, not of the hole.", "n = γ(t/T) times unknown.sum().", 0)
          for counts in (of_grid, [min(HOLE, n) for n in of_grid])),
        ([HOLE - n for n in package_counts(name, STEPS, HOLE)], Cause,
         "γ is the share committed, not that which stays masked.", "n = γ(t/T) times unknown.sum() stay masked.", 9),
    )  # fmt: skip
    for counts, *explanation in known:
        if sum(abs(a - b) for a, b in zip(counts, masked, strict=True)) <= STEPS:  # one a step for another rounding
            return tuple(explanation)
    return Row, "It follows no rounding of the schedule.", "n = floor(γ(t/T) times unknown.sum()), t = 1 .. T.", 0


def _batch_row(decode: Decode) -> Row:
    """Two images with holes of two sizes: counts and codes are of each."""
    codes, tokens, unknown = _hole()
    smaller = unknown & (unknown.cumsum(1) <= SMALL)
    both, two = torch.cat([unknown, smaller]), torch.cat([codes, codes.flip(1)])
    model = _undecided(two)
    try:
        states = _states(decode, model, tokens.repeat(2, 1).masked_fill(both, GREY_CODE), both, "cosine")
        apart = [_states(decode, _undecided(codes), tokens, hole, "cosine") for hole in (unknown, smaller)]
    except Exception as error:  # one image at a time, for one
        return raised("two images", error)
    counts, alone = [_masked(states, image) for image in (0, 1)], [_masked(part) for part in apart]
    evidence = f"holes of {HOLE} and {SMALL} together: {_numbers(counts[0])} and {_numbers(counts[1])}, alone: "
    if counts != alone:
        meaning, remedy = (
            "One image's count is used for another.",
            "n = γ(t/T) times unknown.sum(dim=1), of each image.",
        )
        evidence = f"{evidence}{_numbers(alone[0])} and {_numbers(alone[1])}"
        return judged("two images", False, evidence, meaning, remedy)
    own = both & ((states[-1] - two - 1) % K < len(model.inputs))
    own_alone = unknown & ((apart[0][-1] - codes - 1) % K < len(model.inputs))
    right, right_alone = int(own[0].sum()), int(own_alone.sum())
    if not right_alone:
        return not_tested("two images", f"{evidence}as many; but no code is the model's")
    evidence = f"{right} of {HOLE} codes are the model's for this image, alone {right_alone}"
    return judged(
        "two images", right == right_alone, evidence, "Images of a batch are mixed.", "Keep the batch as first axis."
    )


def _order_rows(decode: Decode) -> tuple[Row, ...]:
    """How often a token that the model is sure of comes before one that it knows nothing about."""
    won, late, comparable = 0.0, 0.0, True
    nothing = torch.zeros(K + 1).index_fill(0, torch.tensor(K), -20.0)
    for run in range(RUNS):
        # For the last two steps it is sure of others, so that there are sure ones left to choose between.
        draws = [torch.rand(1, N, generator=seeded(OWN + run + at)) for at in (0, RUNS)]
        sure, then = (draw.argsort(1).argsort(1) < PAIRS for draw in draws)
        codes = _sure(torch.randint(K, (1, N), generator=seeded(OWN + run)), -20.0)
        logits = [torch.where(known[..., None], codes, nothing) for known in (sure, then)]
        model = Watched(lambda tokens, calls, logits=logits: logits[calls >= STEPS - 2].clone())
        try:
            states = _states(decode, model, torch.zeros(1, N, dtype=torch.int64), sure | ~sure, "linear", run, run)
        except Exception as error:  # whatever a learner's code may raise
            return (raised("order", error),)
        step = torch.stack([state == K for state in states]).sum(0)  # in which it is committed
        left = step >= STEPS - 2
        won += _comes_first(step[sure], step[~sure]) / RUNS
        late += _comes_first(step[then & left], step[~then & left]) / RUNS
        comparable &= len(model.inputs) == STEPS
    evidence = f"of two tokens, one sure and one unknown, the sure one comes first in {won:.0%}; by chance in 50%"
    # Noise of 4.5, falling to 0, leaves 90 % where it is added to log p and 61 % where it is added to p.
    if won > 0.75:
        rows = [Row("order", Verdict.PASSES, evidence)]
        if comparable and late < 0.85:  # 4.5 throughout leaves 73 %, falling to 0 at least 91 %
            evidence = f"of two tokens left for the last but one step, the sure one comes first in {late:.0%}"
            meaning = "Noise is as loud at the end as at the start; MaskGIT's falls to 0, which leaves over 90%."
            rows.append(Row("noise", Verdict.CHOICE, evidence, meaning, "log p + 4.5 (1 − t/T) · Gumbel."))
        return tuple(rows)
    if 0.45 < won < 0.55:
        meaning = "The order does not look at the confidence: at random, or by place."
        return (Row("order", Verdict.CHOICE, evidence, meaning, "MaskGIT's: log p + 4.5 (1 − t/T) · Gumbel.", 10),)
    meaning, remedy = "Noise drowns the confidence: the order is nearly random.", "Add it to log p, not to p in 0..1."
    if won < 0.5:
        meaning, remedy = "The least confident tokens are committed first.", "Keep the lowest scores masked."
    return (Row("order", Verdict.FAILS, evidence, meaning, remedy, 10),)


def _comes_first(one: Tensor, other: Tensor) -> float:
    """How often one of these comes before one of those; at the same time counts half."""
    one, other = one[:, None], other[None]
    return float((one < other).double().mean() + (one == other).double().mean() / 2)


def _confidence_rows(decode: Decode) -> tuple[Row, ...]:
    """Whether the score is of the code that was drawn: every token has one code of p = 1/2 and 1023 unlikely ones."""
    likely = torch.zeros(2)  # their share of what is committed before the last step, and in it, where nothing is chosen
    for run in range(3):
        codes = torch.randint(K, (1, N), generator=seeded(OWN + run))
        logits = math.log(K - 1) * one_hot(codes, K + 1).float()
        logits[..., K] = -20.0
        model = Watched(lambda tokens, calls, logits=logits: logits.clone())
        try:
            states = _states(decode, model, torch.zeros(1, N, dtype=torch.int64), codes >= 0, "square", run, run)
        except Exception as error:  # whatever a learner's code may raise
            return (raised("confidence", error),)
        last, right = states[-2] == K, states[-1] == codes
        likely += torch.stack([right[~last].float().mean(), right[last].float().mean()]) / 3
    early, late = likely.tolist()
    # Odds rise fourfold or more where the score is of the code; beyond these limits nearly all draws are alike.
    if not 0.05 < late < 0.95 or early * (1 - late) > 1.8 * late * (1 - early):
        return ()
    evidence = f"codes of p = 1/2 are {early:.0%} of those committed before the last step, {late:.0%} of the last one's"
    meaning = "The score is of the position and not of the code drawn, as the largest p or a margin: rare draws stay."
    return (Row("confidence", Verdict.CHOICE, evidence, meaning, "MaskGIT's: log p of the code that was drawn."),)


def _mask_id_row(decode: Decode) -> Row:
    """A model that finds the mask id a little more likely than the right code."""
    codes, tokens, unknown = _hole()
    right = []
    for lead in (-20.0, 20.5):
        model = Watched(lambda tokens, calls, lead=lead: _sure(codes, lead))
        try:
            end = _states(decode, model, tokens, unknown, "cosine")[-1]
        except Exception as error:  # whatever a learner's code may raise
            return raised("mask id", error)
        right.append(int((end == codes)[unknown].sum()))
    if not right[0]:
        return not_tested("mask id", f"0 of {HOLE} tokens end right even where the mask id is unlikely")
    last, masks = (int((end == code)[unknown].sum()) for code in (K - 1, K))
    return judged(
        "mask id", right[0] == right[1],
        f"{right[1]} of {HOLE} tokens end right where the mask id is likely, {right[0]} where it is not",
        f"The mask id is chosen like a code: {last} tokens end as code {K - 1}, {masks} as the mask id.",
        "logits[..., :mask_id] before any softmax or argmax.", 13,
    )  # fmt: skip
