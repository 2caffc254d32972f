"""One name, several meanings: what public code means by a mask schedule, all translated into tokens per step."""

from collections.abc import Sequence
from itertools import pairwise

from lab5.gamma import gamma, rounded

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
        left = [rounded(hole * share, rounding) for share in values]
    elif convention == "start":
        left = [max(1, rounded(hole * share, rounding)) for share in values[1:]]
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
