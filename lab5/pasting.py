"""The known pixels of an image over a result that was painted anew from its tokens.

The lab forbids it for the pictures that it scores: what comes back from the decoder is to be judged, seams and all.
In a photograph that somebody wants to keep, known pixels should be the photograph's. Whoever pastes says so.

It knows no tokens and no networks: two pictures and a hole.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.nn.functional import avg_pool2d


def _none(pictures: Tensor, images: Tensor, holes: Tensor) -> Tensor:
    return pictures


def _hard(pictures: Tensor, images: Tensor, holes: Tensor) -> Tensor:
    """Every known pixel is the image's."""
    return torch.where(holes[:, None], pictures, images)


def _blurred(pictures: Tensor, images: Tensor, holes: Tensor) -> Tensor:
    """As "hard", but within two pixels of the hole the image comes in gradually."""
    near = avg_pool2d(holes[:, None].float(), 5, stride=1, padding=2, count_include_pad=False)
    weight = torch.where(holes[:, None], 1.0, near)
    return torch.lerp(images.float(), pictures.float(), weight).round().to(torch.uint8)


def _poisson(pictures: Tensor, images: Tensor, holes: Tensor) -> Tensor:
    """As "hard", but inside the hole the result keeps its gradients and meets the image's colours at the edge.

    (Perez et al. 2003, "Poisson image editing", section 3.)
    """
    return torch.stack([_cloned(*three) for three in zip(pictures, images, holes, strict=True)])


def _cloned(picture: UInt8[Tensor, "3 H W"], image: UInt8[Tensor, "3 H W"], hole: Bool[Tensor, "H W"]) -> Tensor:
    if not hole.any() or hole.all():
        return torch.where(hole, picture, image)
    equations = _equations(hole.numpy().tobytes(), *hole.shape)
    missing = hole.numpy().ravel()
    result, known = (x.double().flatten(1).numpy().T for x in (picture, image))
    right = equations.laplace @ result - equations.laplace[:, ~missing] @ known[~missing]
    filled = np.where(missing[:, None], 0, known)
    filled[missing] = equations.solve(right)
    return torch.from_numpy(filled.T).round().clamp(0, 255).to(torch.uint8).reshape(picture.shape)


class _Equations(NamedTuple):
    laplace: sparse.csr_array  # (pixels of the hole, all pixels)
    solve: Callable[[np.ndarray], np.ndarray]  # right-hand sides (pixels of the hole, channels) to values


@lru_cache(maxsize=512)  # a study fills the same holes again and again
def _equations(hole: bytes, height: int, width: int) -> _Equations:
    """For each pixel p of the hole, with neighbours q: sum of (f_p - f_q) = sum of (picture_p - picture_q)."""
    missing = np.frombuffer(hole, dtype=bool)
    place = np.arange(height * width).reshape(height, width)
    pairs = [(place[:, 1:], place[:, :-1]), (place[1:], place[:-1])]
    p = np.concatenate([end.ravel() for one, other in pairs for end in (one, other)])
    q = np.concatenate([end.ravel() for one, other in pairs for end in (other, one)])
    p, q = p[missing[p]], q[missing[p]]
    ones = np.ones(len(p))
    square = sparse.csr_array((np.r_[ones, -ones], (np.r_[p, p], np.r_[p, q])), shape=(missing.size, missing.size))
    laplace = square[missing]
    return _Equations(laplace, splu(laplace[:, missing].tocsc()).solve)


PASTES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": _none,
    "hard": _hard,
    "blurred": _blurred,
    "poisson": _poisson,
}


def paste_known(
    pictures: UInt8[Tensor, "n 3 H W"],
    images: UInt8[Tensor, "n 3 H W"],
    holes: Bool[Tensor, "n H W"],
    paste: str,
) -> UInt8[Tensor, "n 3 H W"]:
    """`pictures` with the known pixels of `images` by a name in PASTES. Pixels of `images` in a hole are not read."""
    if paste not in PASTES:
        raise ValueError(f"unknown paste {paste!r}; there are {', '.join(PASTES)}")
    return PASTES[paste](pictures, images.masked_fill(holes[:, None], 0), holes)
