"""Mask schedules: which share of the tokens is still masked after a share r of the decoding is done.

MaskGIT (Chang et al. 2022, section 3.3) asks of a schedule gamma that it falls from gamma(0) = 1 to
gamma(1) = 0. Training draws r at random and masks gamma(r) of the tokens; decoding walks r = 1/T, 2/T, to 1.

It does not know which tokens are masked, only how many.
"""

import math
from collections.abc import Callable
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


def _stair(r: float) -> float:
    """A tenth at a time. Written with r // 0.1 the last stair is missing, because 1.0 // 0.1 is 9.0."""
    return (10 - math.floor(10 * r + ROUND_OFF)) / 10


def _one_shot(r: float) -> float:
    """Everything at the first step."""
    return 1.0 if r == 0 else 0.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "square": _square,
    "cubic": _cubic,
    "square_root": _square_root,
    "raised_cosine": _raised_cosine,
    "stair": _stair,
    "one_shot": _one_shot,
}


def gamma(schedule: str, ratio: Ratio) -> Ratio:
    """The share of tokens still masked at `ratio` in [0, 1], exactly 1 at ratio 0 and exactly 0 at ratio 1.

    `ratio` is a float, or a floating-point tensor of any shape (training draws one ratio per image); the
    answer is of the same kind. Raises ValueError for an unknown schedule and for a ratio outside [0, 1].
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, but it is {schedule!r}.")
    if isinstance(ratio, Tensor):
        shares = [gamma(schedule, r) for r in ratio.flatten().tolist()]
        return torch.tensor(shares, dtype=ratio.dtype, device=ratio.device).view(ratio.shape)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie between 0 and 1, but it is {ratio}.")
    # The ends are set, not computed: cos(pi / 2) is 6e-17, which one rounding up would make a whole token.
    if ratio in (0, 1):
        return 1.0 - ratio
    return SCHEDULES[schedule](ratio)


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
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"rounding must be 'floor' or 'ceil', but it is {rounding!r}.")
    share = gamma(schedule, step / steps)
    if isinstance(at_start, Tensor):
        exact = at_start.double() * share
        count = (exact + ROUND_OFF).floor() if rounding == "floor" else (exact - ROUND_OFF).ceil()
        return count.to(at_start.dtype)
    exact = at_start * share
    return math.floor(exact + ROUND_OFF) if rounding == "floor" else math.ceil(exact - ROUND_OFF)
