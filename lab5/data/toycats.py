"""The embedded dataset: procedural cat faces whose every attribute is known, and the lab's kind of holes, by seed.

`chimera=True` draws the left and the right half of a face from different attributes. Such cats are for training
the attribute classifier (`lab5.scoring.classifier`), which thereby learns to read the left eye from the left eye.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lab5.data import painter
from lab5.data.painter import SIZE, head_axes, paint

VERSION = 1  # counts up whenever the cats or the holes of a seed would come out differently
WALK = 3280  # steps of the walk that makes a hole
BATCH = 32  # images painted at a time: the planes stay in the processor's cache
SIDED = {
    "pattern": painter.PATTERNS, "ear": painter.EARS, "eye": tuple(painter.EYES), "lid": painter.LIDS,
    "gaze": painter.GAZES,
}  # fmt: skip

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "fur": tuple(painter.FURS),
    "background": tuple(painter.BACKGROUNDS),
    "light": painter.LIGHTS,
    "mouth": painter.MOUTHS,
    "whiskers": ("none", "long"),
} | {f"{name}_{side}": values for name, values in SIDED.items() for side in ("left", "right")}
"""Attribute name -> names of its values. Sides are those of the picture."""


class ToyCats(NamedTuple):
    """Pictures and what is in them."""

    images: UInt8[Tensor, "n 3 64 64"]
    attributes: dict[str, Int[Tensor, " n"]]  # classes: an index into ATTRIBUTES[name]
    pose: Float[Tensor, "n 4"]  # tilt (radians), scale, x and y of the head's centre (pixels)


def render(seed: int, n: int, chimera: bool = False) -> ToyCats:
    """Paint `n` cats; the same seed gives the same cats, and the first ones do not depend on `n`."""
    generator = torch.Generator().manual_seed(seed)
    images, classes, poses = [], [], []
    for start in range(0, n, BATCH):
        drawn = {name: torch.randint(len(v), (BATCH,), generator=generator) for name, v in ATTRIBUTES.items()}
        if not chimera:
            for name in drawn:
                if name.endswith("_right"):
                    drawn[name] = drawn[name.replace("_right", "_left")].clone()
        u = torch.rand(BATCH, 4, generator=generator)
        pose = torch.stack([(u[:, 0] - 0.5) * 0.44, 0.92 + 0.2 * u[:, 1], 28 + 7 * u[:, 2], 33.5 + 5 * u[:, 3]], 1)
        keep = min(BATCH, n - start)
        images.append(paint(drawn, pose)[:keep])
        classes.append({name: value[:keep] for name, value in drawn.items()})
        poses.append(pose[:keep])
    attributes = {name: torch.cat([part[name] for part in classes]) for name in ATTRIBUTES}
    return ToyCats(torch.cat(images), attributes, torch.cat(poses))


def random_holes(seed: int, n: int) -> Bool[Tensor, "n 64 64"]:
    """`n` holes, True = missing: what a random walk that is held at the borders has visited.

    With WALK steps from a uniform start this reproduces the lab's masks: their area, the tokens they touch
    and where they lie (LAB masks: 20.8 % of the pixels, 85.0 of the 256 tokens).
    """
    generator = torch.Generator().manual_seed(seed)
    holes = []
    for start in range(0, n, 256):  # drawn in full chunks, so the first holes do not depend on n
        keep = min(256, n - start)
        where = torch.randint(SIZE, (2, 256), generator=generator)
        moves = torch.tensor([[0, 0, 1, -1], [1, -1, 0, 0]])[:, torch.randint(4, (WALK, 256), generator=generator)]
        visited = torch.empty(WALK, 256, dtype=torch.int64)
        for step in range(WALK):
            where = (where + moves[:, step]).clamp_(0, SIZE - 1)
            visited[step] = where[0] * SIZE + where[1]
        hole = torch.zeros(256, SIZE**2, dtype=torch.bool).scatter_(1, visited.T, True)
        holes.append(hole[:keep].view(-1, SIZE, SIZE))
    return torch.cat(holes)


def hidden_attributes(
    holes: Bool[Tensor, "n 64 64"], pose: Float[Tensor, "n 4"], share: float = 0.75
) -> dict[str, Bool[Tensor, " n"]]:
    """For each attribute that has a place in the face: is at least `share` of that place under the hole?"""
    x, y = head_axes(pose)
    hidden = {"mouth": _covered(holes, (x / 5.5) ** 2 + ((y - 12) / 4) ** 2 < 1, share)}
    for side, sign in (("left", -1), ("right", 1)):
        eye = ((sign * x - 8) / 6) ** 2 + ((y + 1.5) / 5.5) ** 2 < 1
        ear = ((sign * x - 14) / 6.5) ** 2 + ((y + 16) / 7) ** 2 < 1
        half = (sign * x > 0) & ((x / 20) ** 2 + (y / 17) ** 2 < 1)
        hidden |= {f"{name}_{side}": _covered(holes, eye, share) for name in ("eye", "lid", "gaze")}
        hidden |= {f"ear_{side}": _covered(holes, ear, share), f"pattern_{side}": _covered(holes, half, share)}
    return hidden


def _covered(holes: Bool[Tensor, "n 64 64"], place: Bool[Tensor, "n 64 64"], share: float) -> Bool[Tensor, " n"]:
    area = place.sum((1, 2))
    return ((holes & place).sum((1, 2)) >= share * area) & (area > 0)
