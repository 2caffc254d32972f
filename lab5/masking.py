"""Which tokens a training hides: maskings by name.

A masking is a name, some of them with a number or two behind it, and several may share the images between them:

    "cosine"              gamma(u) of the tokens are masked, u uniform; so for every schedule of `lab5.gamma`
    "cosine_kept"         gamma(u) of them are kept
    "bernoulli:0.5"       each token with probability 0.5, and one in any case; with two numbers, a probability
                          drawn between them for each image
    "per_token:0:1"       each token with a probability drawn for it alone
    "count:0.4:0.5"       exactly so many, a share drawn between the two for each image; "uniform" from 1 to all
    "hole"                a part of a hole like the test's; "whole_hole" all of it; "mixed" is hole or cosine
    "hole+bernoulli:0.5"  each image by one of these, drawn for it
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.gamma import ROUND_OFF, SCHEDULES, gamma

Masking = Callable[[int, int, Tensor | None, torch.Generator], Tensor]


def mvtm_mask(
    tokens: Int[Tensor, "B N"], masking: str, generator: torch.Generator, holes: Bool[Tensor, "m N"] | None = None
) -> Bool[Tensor, "B N"]:
    """Which tokens to hide, at least one of each image; True = masked.

    Raises ValueError for a masking that `read_masking` refuses, and where it needs holes and there are none.
    """
    return read_masking(masking)(len(tokens), tokens.shape[1], holes, generator).to(tokens.device)


def read_masking(text: str) -> Masking:
    """The function (n, positions, holes, generator) -> masked (n,N) of a masking that is written as above.

    Raises ValueError for an unknown name, for numbers that are no shares 0 <= low <= high <= 1, and for numbers
    behind a name that takes none.
    """
    parts = [_read_one(part.strip()) for part in text.split("+")]
    return parts[0] if len(parts) == 1 else partial(_mixture, parts)


def _read_one(text: str) -> Masking:
    name, *numbers = text.split(":")
    if name not in MASKINGS:
        raise ValueError(f"unknown masking {name!r}; there are {', '.join(MASKINGS)}")
    if not numbers:
        return MASKINGS[name]
    if name not in WITH_NUMBERS or len(numbers) > 2:
        takes = "takes one or two numbers" if name in WITH_NUMBERS else "takes no numbers"
        raise ValueError(f"masking {name!r} {takes}, found {text!r}")
    try:
        low, high = float(numbers[0]), float(numbers[-1])
    except ValueError:
        low = high = math.nan
    if not 0 <= low <= high <= 1:
        raise ValueError(f"masking {name!r} takes shares from 0 to 1, the lower one first, found {text!r}")
    return partial(MASKINGS[name], low=low, high=high)


# --- shares of the tokens, anywhere ---------------------------------------------------------------------------------


def _gamma_masking(schedule: str, kept: bool = False) -> Masking:
    """gamma(u) of the tokens masked, u uniform: MaskGIT's training (Chang et al. 2022, section 3.1).

    With `kept` gamma(u) of them stay, as in report A (docs/five-reports.md): few are masked where MaskGIT masks many.
    """

    def masking(n: int, positions: int, holes: Tensor | None, generator: torch.Generator) -> Tensor:
        share = gamma(schedule, torch.rand(n, generator=generator, dtype=torch.float64), positions) * positions
        count = positions - share.floor() if kept else share.ceil()
        return exactly(count.clamp(min=1).long(), positions, generator)

    return masking


def _bernoulli(
    n: int, positions: int, holes: Tensor | None, generator: torch.Generator, low: float = 0.5, high: float = 0.5
) -> Tensor:
    """Each token with a probability, drawn for each image if `low` and `high` differ; 0 to 1 makes all counts alike."""
    share = _between(low, high, (n, 1), generator)
    return _bernoulli_of(share, torch.rand(n, positions, generator=generator), generator)


def _per_token(
    n: int, positions: int, holes: Tensor | None, generator: torch.Generator, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Each token with a probability of its own. That is "bernoulli" of the mean: no image is masked more."""
    share = _between(low, high, (n, positions), generator)
    return _bernoulli_of(share, torch.rand(n, positions, generator=generator), generator)


def _bernoulli_of(share: Tensor, drawn: Float[Tensor, "n N"], generator: torch.Generator) -> Bool[Tensor, "n N"]:
    """Each token where `drawn` is below its share, and a random one in any case."""
    return (drawn < share) | exactly(torch.ones(len(drawn), dtype=torch.int64), drawn.shape[1], generator)


def _count(
    n: int, positions: int, holes: Tensor | None, generator: torch.Generator, low: float = 0.5, high: float = 0.5
) -> Tensor:
    """A share between `low` and `high` of each image's tokens, exactly (report C: 40 to 50 %)."""
    share = _between(low, high, (n,), generator)
    return exactly((share * positions + ROUND_OFF).floor().clamp(min=1).long(), positions, generator)


def _between(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Uniform numbers; where there is nothing to choose, none are drawn."""
    if low == high:
        return torch.full(shape, low, dtype=torch.float64)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _uniform(n: int, positions: int, holes: Tensor | None, generator: torch.Generator) -> Tensor:
    """A count drawn uniformly from 1..N."""
    return exactly(torch.randint(1, positions + 1, (n,), generator=generator), positions, generator)


def exactly(count: Int[Tensor, " n"], positions: int, generator: torch.Generator) -> Bool[Tensor, "n N"]:
    """`count` random positions of each image."""
    return torch.rand(len(count), positions, generator=generator).argsort(1).argsort(1) < count[:, None]


# --- holes ----------------------------------------------------------------------------------------------------------


def _hole(n: int, positions: int, holes: Tensor | None, generator: torch.Generator) -> Tensor:
    """A `part_of` a hole like the test's: what decoding will meet."""
    return part_of(_chosen("hole", n, holes, generator), generator)


def _whole_hole(n: int, positions: int, holes: Tensor | None, generator: torch.Generator) -> Tensor:
    """A hole like the test's: what decoding will meet at its first step, and all of it if that is the only one."""
    hole = _chosen("whole_hole", n, holes, generator)
    one = exactly(torch.ones(n, dtype=torch.int64), positions, generator)
    return hole | (one & ~hole.any(1, keepdim=True))


def _chosen(name: str, n: int, holes: Bool[Tensor, "m N"] | None, generator: torch.Generator) -> Bool[Tensor, "n N"]:
    if holes is None:
        raise ValueError(f"masking {name!r} needs holes (m,N) to draw from, found none")
    return holes[torch.randint(len(holes), (n,), generator=generator)]


def part_of(chosen: Bool[Tensor, "n N"], generator: torch.Generator) -> Bool[Tensor, "n N"]:
    """Of each row's tokens cosine(u), in a quarter of the rows all; the first position of a row that has none."""
    n, positions = chosen.shape
    share = gamma("cosine", torch.rand(n, generator=generator, dtype=torch.float64))
    share = torch.where(torch.rand(n, generator=generator) < 0.25, torch.ones_like(share), share)
    count = (share * chosen.sum(1)).ceil().clamp(min=1).long()
    score = torch.rand(n, positions, generator=generator).masked_fill(~chosen, 2.0)
    return score.argsort(1).argsort(1) < count[:, None]


# --- mixtures -------------------------------------------------------------------------------------------------------


def _mixed(n: int, positions: int, holes: Tensor | None, generator: torch.Generator) -> Tensor:
    """Half of the images with a hole, half with cosine(u) of the tokens masked anywhere."""
    hole = part_of(_chosen("mixed", n, holes, generator), generator)
    anywhere = MASKINGS["cosine"](n, positions, holes, generator)
    return torch.where(torch.rand(n, 1, generator=generator) < 0.5, hole, anywhere)


def _mixture(
    parts: list[Masking], n: int, positions: int, holes: Tensor | None, generator: torch.Generator
) -> Bool[Tensor, "n N"]:
    """Each image by one of the maskings, all of them equally likely."""
    masked = torch.stack([part(n, positions, holes, generator) for part in parts])
    return masked[torch.randint(len(parts), (n,), generator=generator), torch.arange(n)]


_GAMMAS = [schedule for schedule in SCHEDULES if schedule != "one_shot"]  # which would hide one token, always

MASKINGS: dict[str, Masking] = {
    **{schedule: _gamma_masking(schedule) for schedule in _GAMMAS},
    **{f"{schedule}_kept": _gamma_masking(schedule, kept=True) for schedule in _GAMMAS},
    "bernoulli": _bernoulli,
    "per_token": _per_token,
    "count": _count,
    "uniform": _uniform,
    "hole": _hole,
    "whole_hole": _whole_hole,
    "mixed": _mixed,
}
"""Name -> function (n, positions, holes, generator) -> masked (n,N) bool, at least one token each."""

WITH_NUMBERS = ("bernoulli", "per_token", "count")
"""Maskings that take shares low:high behind their name; one number stands for both."""
