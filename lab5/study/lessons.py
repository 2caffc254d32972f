"""Two lessons of notebook 04: what public code means by a schedule's name, and how far a hole leaks into its image."""

from itertools import pairwise
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lab5.data.dataset import GRID, token_mask
from lab5.data.holes import fill_holes, rings
from lab5.gamma import gamma, masked_counts, rounded
from lab5.inpainting.tokenizer import Tokenizer

CONVENTIONS = ("end", "start", "share")


def committed(schedule: str, steps: int, hole: int, convention: str = "end") -> list[int]:
    """How many of the `hole` tokens each of the `steps` steps commits, in any of CONVENTIONS:

    end    the share still masked after a step is gamma(t/T): MaskGIT's code, aMUSEd, TiTok, MAGE, and this package
    start  the share masked before a step is gamma((t-1)/(T-1)), at least one token: muse-maskgit-pytorch
    share  the steps commit in proportion to gamma(1 - (t-1)/(T-1)), rounded to the nearest, at least one token
           each, the last step taking what is left: `adap_sche` of valeoai's Maskgit-pytorch

    In all of them the last step commits the rest, and no step more than there is.
    """
    shares = [gamma(schedule, step / max(1, steps - 1), hole) for step in range(steps)]
    if convention == "end":
        left = masked_counts(schedule, steps, hole)
    elif convention == "start":
        left = [max(1, rounded(hole * share, "floor")) for share in shares[1:]]
    else:
        shares.reverse()
        scale = hole / (sum(shares) or 1)
        counts = [max(1, round(scale * share)) for share in shares]
        left = [hole - sum(counts[: step + 1]) for step in range(steps)]
    masked = [hole]
    for planned in [*left[: steps - 1], 0]:
        masked.append(min(masked[-1], max(0, planned)))
    return [before - after for before, after in pairwise(masked)]


class Leak(NamedTuple):
    """Of the known tokens, the share that are other codes than the true image's."""

    by_distance: list[float]  # from 1, where they touch the hole, outwards
    where: Float[Tensor, "16 16"]  # among the images in which this token is known; NaN = in none


def leak(tokenizer: Tokenizer, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], fill: str) -> Leak:
    """Which of the known tokens change when an image is encoded with `fill` in its hole; with the truth none would.

    The encoder has to be shown something in the hole, and its convolutions carry that across the edge.
    """
    unknown = token_mask(holes)
    changed = tokenizer.encode(fill_holes(images, holes, fill)) != tokenizer.encode(images)
    distance = rings(unknown)
    by_distance = [changed[at] for ring in range(1, GRID) if (at := distance == ring).any()]
    where = (changed & ~unknown).sum(0) / (~unknown).sum(0)
    return Leak([float(some.double().mean()) for some in by_distance], where.view(GRID, GRID))
