"""Mask schedules: which share of the tokens is still masked after a share r of the decoding is done.

MaskGIT (Chang et al. 2022, section 3.3) asks of a schedule gamma that it falls from gamma(0) = 1 to
gamma(1) = 0. Training draws r at random and masks gamma(r) of the tokens; decoding walks r = 1/T, 2/T, to 1.
Public code means different things by the same schedule: `committed` translates them all into tokens per step.
"""

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Ratio = TypeVar("Ratio", float, Tensor)

# 0.3 * 100 is 30.000000000000004 in floats; a count this close to a whole number is that number.
ROUND_OFF = 1e-9


def _linear(r: float) -> float:
    return 1 - r


def _cosine(r: float) -> float:
    return math.cos(math.pi * r / 2)


def _square(r: float) -> float:
    return 1 - r**2


def _cubic(r: float) -> float:
    return 1 - r**3


def _square_root(r: float) -> float:
    return 1 - math.sqrt(r)


def _raised_cosine(r: float) -> float:
    """Half a period of a cosine, slow at both ends; also called half-cosine."""
    return (1 + math.cos(math.pi * r)) / 2


def _arccos(r: float) -> float:
    """Nearly linear, and steep at the end (valeoai's MaskGIT, TiTok)."""
    return 2 / math.pi * math.acos(r)


def _log(r: float, tokens: int) -> float:
    """Half of the tokens or more at the first steps (mask_schedule.py of MaskGIT's code)."""
    return min(1.0, -math.log(r) / math.log(max(tokens, 2)))


def _exp(r: float, tokens: int) -> float:
    """One token at first, then ever more (mask_schedule.py of MaskGIT's code)."""
    return 1 - max(tokens, 1) ** (r - 1)


def _stair(r: float) -> float:
    """A tenth at a time. Written with r // 0.1 the last stair is missing, because 1.0 // 0.1 is 9.0."""
    return (10 - math.floor(10 * r + ROUND_OFF)) / 10


def _one_shot(r: float) -> float:
    """Everything at the first step."""
    return 1.0 if r == 0 else 0.0


SCHEDULES: dict[str, Callable[..., float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "square": _square,
    "cubic": _cubic,
    "square_root": _square_root,
    "raised_cosine": _raised_cosine,
    "arccos": _arccos,
    "log": _log,
    "exp": _exp,
    "stair": _stair,
    "one_shot": _one_shot,
}
BY_TOKENS = {"log", "exp"}  # their shares depend on how many tokens there are to decode


def gamma(schedule: str, ratio: Ratio, tokens: int = 256) -> Ratio:
    """The share of tokens still masked at `ratio` in [0, 1], exactly 1 at ratio 0 and exactly 0 at ratio 1.

    `ratio` is a float, or a floating-point tensor of any shape (training draws one ratio per image); the
    answer is of the same kind. `tokens` is the size of the hole, to the schedules log and exp alone.
    Raises ValueError for an unknown schedule and for a ratio outside [0, 1].
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, but it is {schedule!r}.")
    if isinstance(ratio, Tensor):
        shares = [gamma(schedule, r, tokens) for r in ratio.flatten().tolist()]
        return torch.tensor(shares, dtype=ratio.dtype, device=ratio.device).view(ratio.shape)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie between 0 and 1, but it is {ratio}.")
    # The ends are set, not computed: cos(pi / 2) is 6e-17, which one rounding up would make a whole token.
    if ratio in (0, 1):
        return 1.0 - ratio
    share = SCHEDULES[schedule]
    return share(ratio, tokens) if schedule in BY_TOKENS else share(ratio)


def masked_count(
    schedule: str, step: int, steps: int, at_start: int | Int[Tensor, "B"], rounding: str = "floor"
) -> int | Int[Tensor, "B"]:
    """How many tokens are still masked after `step` of `steps`.

    `step` counts from 1; step 0 gives `at_start` back and step == steps gives exactly 0. `at_start` is the
    number of tokens unknown before the first step, as an int or as one count per image; counted from the
    shrinking mask of the moment, the shares would compound. No step is forced to commit a token, so a hole
    smaller than `steps` has steps without news.

    `rounding` is "floor", as in MaskGIT's own code (parallel_decode.py), or "ceil", as in the paper
    (section 3.2: n = ceil(gamma(t/T) N)).
    Raises ValueError for an unknown schedule or rounding and for a step outside 0..steps.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but it is {steps}.")
    if not 0 <= step <= steps:
        raise ValueError(f"step must lie between 0 and the {steps} steps of the decoding, but it is {step}.")
    if isinstance(at_start, Tensor):
        holes, image = at_start.unique(return_inverse=True)
        counts = [masked_count(schedule, step, steps, hole, rounding) for hole in holes.tolist()]
        return torch.tensor(counts, dtype=at_start.dtype, device=at_start.device)[image]
    return _round(at_start * gamma(schedule, step / steps, at_start), rounding)


def masked_counts(
    schedule: str, steps: int, at_start: int | Int[Tensor, "B"], rounding: str = "floor"
) -> list[int | Int[Tensor, "B"]]:
    """How many tokens are still masked after each of the `steps` steps: `masked_count` for 1..`steps`."""
    return [masked_count(schedule, step, steps, at_start, rounding) for step in range(1, steps + 1)]


CONVENTIONS = ("end", "start", "share", "count")


def committed(
    schedule: str | Sequence[float], steps: int, hole: int, convention: str = "end", rounding: str = "floor"
) -> list[int]:
    """How many of the `hole` tokens each of the `steps` steps commits: any schedule, in any convention.

    `schedule` is a name, or a number for each step. What the numbers mean, and where a name is evaluated:

    end    the share still masked after a step, gamma(t/T): MaskGIT's code, aMUSEd, TiTok, MAGE, and this package
    start  the share masked before a step, gamma((t-1)/(T-1)), and at least one token: muse-maskgit-pytorch
    share  proportions of what the steps commit, gamma(1 - (t-1)/(T-1)), rounded to the nearest, at least one token
           each, the last step taking what is left: `adap_sche` of valeoai's Maskgit-pytorch
    count  tokens committed at each step; numbers only

    In all of them the last step commits the rest, and no step more than there is. `rounding` is that of the tokens
    still masked, in "end" and "start". Raises ValueError for an unknown name and for another number of
    numbers than steps.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, but it is {convention!r}.")
    values = _values(schedule, steps, hole, convention)
    if convention == "end":
        left = [_round(hole * share, rounding) for share in values]
    elif convention == "start":
        left = [max(1, _round(hole * share, rounding)) for share in values[1:]]
    else:
        scale = 1 if convention == "count" else hole / (sum(values) or 1)
        least = 0 if convention == "count" else 1
        counts = [max(least, round(scale * value)) for value in values]
        left = [hole - sum(counts[: step + 1]) for step in range(steps)]
    masked = [hole]
    for planned in [*left[: steps - 1], 0]:
        masked.append(min(masked[-1], max(0, planned)))
    return [before - after for before, after in pairwise(masked)]


def _values(schedule: str | Sequence[float], steps: int, hole: int, convention: str) -> list[float]:
    """The schedule's number for each step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but it is {steps}.")
    if not isinstance(schedule, str):
        if len(schedule) != steps:
            raise ValueError(f"schedule must be a name or {steps} numbers, one a step, but it has {len(schedule)}.")
        return list(schedule)
    if convention == "count":
        raise ValueError(f"the convention 'count' takes a number for each step, but the schedule is {schedule!r}.")
    if convention == "end":
        ratios = [step / steps for step in range(1, steps + 1)]
    else:
        ratios = [step / max(1, steps - 1) for step in range(steps)]
        ratios = ratios if convention == "start" else ratios[::-1]
    return [gamma(schedule, ratio, hole) for ratio in ratios]


def _round(exact: float, rounding: str) -> int:
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"rounding must be 'floor' or 'ceil', but it is {rounding!r}.")
    return math.floor(exact + ROUND_OFF) if rounding == "floor" else math.ceil(exact - ROUND_OFF)


class _Callable(ModuleType):
    """`from lab5 import gamma` gives this module, which has the function's name and can be called as it is."""

    __call__ = staticmethod(gamma)


sys.modules[__name__].__class__ = _Callable
