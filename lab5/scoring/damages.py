"""How far a score can be trusted: pictures are damaged more and more, and it has to put them in that order.

A family is one kind of damage at several strengths, from the least to the greatest. What is drawn at random is drawn
once for all strengths of a family, so that a greater one does more of the same.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from lab5.data.holes import FILLS, fill_holes
from lab5.fid import Features, frechet_distance, kid
from lab5.inpainting.tokenizer import Tokenizer
from lab5.scoring.scores import psnr_db, ssim_map

SEED = 20
CELL = 16  # pixels of a patch that is taken from another picture, along a side


class Subject(NamedTuple):
    """Pictures that are to be damaged, each whole, with the hole that is filled in some families."""

    images: UInt8[Tensor, "n 3 H W"]
    holes: Bool[Tensor, "n H W"]
    tokenizer: Tokenizer | None = None  # without one there is no family "tokens"


class Family(NamedTuple):
    """One kind of damage; `label` says a strength in words."""

    strengths: tuple[float, ...]
    label: str
    damage: Callable[[Subject, float], UInt8[Tensor, "n 3 H W"]]


def damaged_rows(
    subject: Subject, judges: Mapping[str, Features], families: Mapping[str, Family] | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each strength of each family: how far the damaged pictures are from themselves as they were.

    Under the name of each judge is the Fréchet distance on its features, and beside the first one's the KID of pairs;
    PSNR and SSIM are of all pixels.
    """
    references = {name: judge.features(subject.images.float() / 255) for name, judge in judges.items()}
    first = next(iter(judges))
    for name, family in (FAMILIES if families is None else families).items():
        if name == "tokens" and subject.tokenizer is None:
            continue
        for strength in family.strengths:
            pictures = family.damage(subject, strength)
            row: dict[str, Any] = {"damage": name, "strength": family.label.format(strength)}
            for judge, network in judges.items():
                features = network.features(pictures.float() / 255)
                row[judge] = frechet_distance(features, references[judge])
                if judge == first:
                    row["KID"] = kid(features, references[judge], paired=True)
            yield row | {
                "PSNR (dB)": psnr_db(pictures, subject.images),
                "SSIM": ssim_map(pictures, subject.images).mean().item(),
            }


def out_of_order(rows: list[dict[str, Any]], column: str) -> list[str]:
    """The families in which a column does not find every greater strength worse than the one before it."""
    better = -1 if column in ("PSNR (dB)", "SSIM") else 1  # distances grow as pictures get worse
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["damage"], []).append(better * row[column])
    return [name for name, column in values.items() if any(b <= a for a, b in pairwise(column))]


# --- the families -------------------------------------------------------------------------------------------------


def _to_bytes(images: Tensor) -> UInt8[Tensor, "n 3 H W"]:
    return images.round().clamp(0, 255).to(torch.uint8)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _blur(subject: Subject, deviation: float) -> Tensor:
    return _to_bytes(torch.from_numpy(gaussian_filter(subject.images.float().numpy(), deviation, axes=(2, 3))))


def _noise(subject: Subject, deviation: float) -> Tensor:
    return _to_bytes(subject.images + deviation * torch.randn(subject.images.shape, generator=_generator()))


def _jpeg(subject: Subject, quality: float) -> Tensor:
    pictures = []
    for image in subject.images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(quality))
        pictures.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _colour(subject: Subject, levels: float) -> Tensor:
    return _to_bytes(subject.images + levels * torch.tensor([1.0, 0, -1])[:, None, None])


def _contrast(subject: Subject, lost: float) -> Tensor:
    """Every pixel is drawn towards the mean colour of its picture."""
    images = subject.images.float()
    return _to_bytes(torch.lerp(images, images.mean((2, 3), keepdim=True), lost))


def _filled(fill: str) -> Callable[[Subject, float], Tensor]:
    return lambda subject, share: fill_holes(subject.images, _scaled(subject.holes, share), fill)


def _scaled(holes: Bool[Tensor, "n H W"], share: float) -> Bool[Tensor, "n H W"]:
    """Holes of this share of their pixels: the deepest ones, or beyond 1 with the nearest ones around them."""
    scaled = torch.zeros_like(holes)
    for hole, result in zip(holes, scaled, strict=True):
        depth = distance_transform_edt(hole) - distance_transform_edt(~hole)
        most = min(int(np.ceil(share * hole.sum().item())), hole.numel() - 1)
        result.view(-1)[torch.from_numpy(np.argsort(-depth, axis=None, kind="stable")[:most].copy())] = True
    return scaled


def _patches(subject: Subject, cells: float) -> Tensor:
    """So many cells of a grid show what is there in the picture that follows, the last one's being the first."""
    n, _, height, width = subject.images.shape
    grid = (height // CELL, width // CELL)
    order = torch.rand(n, grid[0] * grid[1], generator=_generator()).argsort(1)
    taken = torch.zeros(n, grid[0] * grid[1], dtype=torch.bool).scatter_(1, order[:, : int(cells)], True)
    taken = taken.view(n, 1, *grid).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    return torch.where(taken, subject.images.roll(-1, 0), subject.images)


def _tokens(subject: Subject, share: float) -> Tensor:
    """Encoded, and decoded again with so many of the tokens drawn at random."""
    tokenizer, generator = subject.tokenizer, _generator()
    tokens = tokenizer.encode(subject.images)
    others = torch.randint(tokenizer.codes, tokens.shape, generator=generator)
    return tokenizer.decode(torch.where(torch.rand(tokens.shape, generator=generator) < share, others, tokens))


FAMILIES: dict[str, Family] = {
    "blur": Family((0.4, 0.6, 1, 2), "SD {:g} pixels", _blur),
    "noise": Family((4, 8, 16, 32), "SD {:g} of 255", _noise),
    "JPEG": Family((90, 70, 40, 10), "quality {:g}", _jpeg),
    "colour": Family((8, 16, 32, 64), "red +{0:g}, blue -{0:g}", _colour),
    "contrast": Family((0.2, 0.4, 0.6, 0.8), "{:.0%} lost", _contrast),
    **{fill: Family((0.25, 0.5, 1, 2), "{:g} times the hole", _filled(fill)) for fill in FILLS},
    "patches": Family((1, 2, 4, 8), "{:g} of 16 of another", _patches),
    "tokens": Family((0, 0.02, 0.05, 0.2), "decoded, {:.0%} random", _tokens),
}
