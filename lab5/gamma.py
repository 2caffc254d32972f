"""Mask schedules: which share of the tokens is still masked after a share r of the decoding is done.

MaskGIT (Chang et al. 2022, section 3.3) asks of a schedule gamma that it falls from gamma(0) = 1 to
gamma(1) = 0. Training draws r at random and masks gamma(r) of the tokens; decoding walks r = 1/T, 2/T, to 1.
"""

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

Ratio = TypeVar("Ratio", float, Tensor)

# 0.3 * 100 is 30.000000000000004 in floats; a count this close to a whole number is that number.
ROUND_OFF = 1e-9


SCHEDULES: dict[str, Callable[..., float]] = {
    "linear": lambda r: 1 - r,
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "square_root": lambda r: 1 - math.sqrt(r),
    "raised_cosine": lambda r: (1 + math.cos(math.pi * r)) / 2,  # slow at both ends; also called half-cosine
    "arccos": lambda r: 2 / math.pi * math.acos(r),  # nearly linear, steep at the end (valeoai's MaskGIT, TiTok)
    # log commits most tokens early, exp most of them late (mask_schedule.py of MaskGIT).
    "log": lambda r, tokens: min(1.0, -math.log(r) / math.log(max(tokens, 2))),
    "exp": lambda r, tokens: 1 - max(tokens, 1) ** (r - 1),
    # A tenth at a time. Written with r // 0.1 a stair comes late, because 0.3 // 0.1 is 2.0.
    "stair": lambda r: (10 - math.floor(10 * r + ROUND_OFF)) / 10,
    "one_shot": lambda r: 0.0,  # everything at the first step
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
    number of tokens unknown before the first step, as an int or as one count per image: gamma times the tokens
    masked at the moment would apply the schedule twice. No step is forced to commit a token, so a hole
    smaller than `steps` has steps that commit nothing.

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
    return rounded(at_start * gamma(schedule, step / steps, at_start), rounding)


def masked_counts(
    schedule: str, steps: int, at_start: int | Int[Tensor, "B"], rounding: str = "floor"
) -> list[int | Int[Tensor, "B"]]:
    """How many tokens are still masked after each of the `steps` steps: `masked_count` for 1..`steps`."""
    return [masked_count(schedule, step, steps, at_start, rounding) for step in range(1, steps + 1)]


def rounded(exact: float, rounding: str) -> int:
    """A whole number of tokens by "floor" or "ceil"; raises ValueError for another rounding."""
    if rounding not in ("floor", "ceil"):
        raise ValueError(f"rounding must be 'floor' or 'ceil', but it is {rounding!r}.")
    return math.floor(exact + ROUND_OFF) if rounding == "floor" else math.ceil(exact - ROUND_OFF)


class _Callable(ModuleType):
    """`from lab5 import gamma` gives this module, which has the function's name and can be called as it is."""

    __call__ = staticmethod(gamma)


sys.modules[__name__].__class__ = _Callable
