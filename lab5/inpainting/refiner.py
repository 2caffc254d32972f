"""A small network after the decoder, that sees the known pixels beside what was painted into the hole.

The lab's holes are strokes: most of their pixels lie within two of an edge, while a token is a block of four by four,
and says nothing of how the lines outside go on. Liu et al. 2022 ("PUT") show their decoder the known pixels for that
reason; here the decoder stays as it is, and a U-Net (Ronneberger et al. 2015) corrects its picture.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.checkpoint import with_weights
from lab5.data.dataset import denormalise, normalise
from lab5.runtime.files import load_tensors, save_tensors
from lab5.runtime.machine import exact_float32
from lab5.runtime.transfers import sent


class Block(nn.Module):
    """Two convolutions beside the identity; the first reaches `dilation` pixels far."""

    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Refiner(nn.Module):
    """Pictures whose known pixels are the image's, in normalised units, to the same with another hole.

    Three levels, of 64x64, 32x32 and 16x16 positions, `widths` wide. It begins as the identity.
    """

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 96)):
        super().__init__()
        fine, middle, coarse = self.widths = tuple(widths)
        self.begin = nn.Sequential(nn.Conv2d(4, fine, 3, padding=1), Block(fine))
        self.down = nn.Sequential(nn.Conv2d(fine, middle, 3, stride=2, padding=1), Block(middle))
        blocks = [Block(coarse, dilation) for dilation in (1, 2, 4, 1)]
        self.bottom = nn.Sequential(nn.Conv2d(middle, coarse, 3, stride=2, padding=1), *blocks)
        self.to_middle, self.middle = nn.Conv2d(coarse, middle, 3, padding=1), Block(middle)
        self.to_fine, self.fine = nn.Conv2d(middle, fine, 3, padding=1), Block(fine)
        self.end = nn.Conv2d(fine, 3, 3, padding=1)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)

    def forward(
        self, pictures: Float[Tensor, "B 3 64 64"], holes: Bool[Tensor, "B 64 64"]
    ) -> Float[Tensor, "B 3 64 64"]:
        missing = holes[:, None].to(pictures.dtype)
        fine = self.begin(torch.cat([pictures, missing], dim=1))
        middle = self.down(fine)
        middle = self.middle(middle + self.to_middle(F.interpolate(self.bottom(middle), scale_factor=2.0)))
        fine = self.fine(fine + self.to_fine(F.interpolate(middle, scale_factor=2.0)))
        return pictures + missing * self.end(F.silu(fine))


@torch.no_grad()
def refine(
    refiner: Refiner, pictures: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], batch: int = 64
) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures with refined holes, in exact float32, on the CPU; their other pixels stay as they are."""
    device, parts = next(refiner.parameters()).device, zip(pictures.split(batch), holes.split(batch), strict=True)
    with exact_float32(device):
        made = [refiner(sent(normalise(part), device), sent(hole, device)) for part, hole in parts]
    refined = (torch.cat([denormalise(part) for part in made]).cpu() * 255).round().to(torch.uint8)
    return torch.where(holes[:, None], refined, pictures)


def save_refiner(path: Path, model: Refiner, **meta: Any) -> None:
    save_tensors(path, model.state_dict(), {"kind": "refiner", "widths": list(model.widths)} | meta)


def load_refiner(path: Path) -> Refiner:
    """The refiner of a file, frozen. Raises ValueError for another kind of file."""
    state, meta = load_tensors(path)
    if meta.get("kind") != "refiner":
        raise ValueError(f"{path} is not a refiner but {meta.get('kind', 'something else')!r}")
    widths = meta.get("widths")
    if not (isinstance(widths, list) and len(widths) == 3 and all(isinstance(w, int) and w > 0 for w in widths)):
        raise ValueError(f"{path} must say in its header how wide the refiner's three levels are; found {widths!r}")
    model = with_weights(lambda: Refiner(tuple(widths)), state, path).eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)
