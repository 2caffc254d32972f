"""Around a hole: the known tokens into which it leaks, and the settings that concern its surroundings.

An encoder has to be shown something in the hole (`data.holes.FILLS`), and its convolutions carry that across the edge:
known tokens come out as others than those of the true image. `leak` says how many, by their distance to the hole, and
what it costs. True images are for measuring alone.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lab5.config import DecodeConfig
from lab5.data.dataset import BLOCK, GRID, token_mask
from lab5.data.holes import PASTES, fill_holes, rings
from lab5.inpainting.tokenizer import Tokenizer

# --- the leak -------------------------------------------------------------------------------------------------------


class Ring(NamedTuple):
    """The known tokens at one distance from the holes of all images."""

    ring: int  # 1 = they touch the hole
    n: int
    changed: float  # the share that are other codes than the true image's
    leaked_db: float  # PSNR of their pixels with these codes, in a picture whose holes are decoded from the true ones
    true_db: float  # with the true image's codes throughout: what the tokens can do at best


class Leak(NamedTuple):
    rings: list[Ring]  # from 1 outwards
    where: Float[Tensor, "16 16"]  # of the images in which this token is known, the share that changed; NaN = in none


def leak(
    tokenizer: Tokenizer, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], fill: str = "grey"
) -> Leak:
    """Which of the known tokens change when an image is encoded with `fill` in its hole; with the truth none would."""
    true, unknown = tokenizer.encode(images), token_mask(holes)
    leaked = torch.where(unknown, true, tokenizer.encode(fill_holes(images, holes, fill)))
    changed, distance = leaked != true, rings(unknown)
    errors = [_block_errors(tokenizer.decode(tokens), images) for tokens in (leaked, true)]
    rows = []
    for ring in range(1, GRID):
        at = distance == ring
        if at.any():
            share = float(changed[at].double().mean())
            rows.append(Ring(ring, int(at.sum()), share, *(_decibels(error[at]) for error in errors)))
    where = changed.sum(0) / (~unknown).sum(0)
    return Leak(rows, where.view(GRID, GRID))


def _block_errors(pictures: Tensor, images: Tensor) -> Float[Tensor, "n 256"]:
    """The mean squared error of each token's pixels, in [0,1] units."""
    squared = ((pictures.float() - images.float()) / 255).square().mean(1, keepdim=True)
    return avg_pool2d(squared, BLOCK).flatten(1)


def _decibels(errors: Tensor) -> float:
    """PSNR; without any error 120 dB, a number where infinity would be none."""
    return float(-10 * errors.double().mean().clamp(min=1e-12).log10())


# --- the choices ----------------------------------------------------------------------------------------------------

AROUND: dict[str, tuple] = {
    "dilate": (0, 1, 2),
    "fill": ("grey", "mean", "navier_stokes"),
    "passes": (1, 2),
    "paste": tuple(PASTES),
}
"""Settings of DecodeConfig that concern the surroundings of a hole, and what a study tries of each."""


def around_grid(base: DecodeConfig) -> list[DecodeConfig]:
    """`base`, and all that differ from it in one of AROUND."""
    others = [(name, value) for name, values in AROUND.items() for value in values if getattr(base, name) != value]
    return [base] + [replace(base, **{name: value}) for name, value in others]
