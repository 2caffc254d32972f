"""Holes in images: what is put in before encoding, the known pixels over a result, rings of tokens around.

A test image has a hole, and the encoder has to be shown something there: one of FILLS, each an inpainter of its own and
a baseline. Pasting puts the known pixels back over a result. The lab forbids it for the pictures that it scores: what
comes back from the decoder is to be judged, seams and all. In a photograph that somebody wants to keep, known pixels
should be the photograph's. Whoever pastes says so.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from lab5.data.archives import GREY
from lab5.data.dataset import GRID

# --- fills: what stands in a hole before encoding -------------------------------------------------------------------


def _grey(images: Tensor, holes: Tensor) -> Tensor:
    """The lab's: 128 in every channel."""
    return images.masked_fill(holes[:, None], GREY)


def _mean(images: Tensor, holes: Tensor) -> Tensor:
    """The mean colour of what is known."""
    known = (~holes)[:, None]
    mean = (images * known).sum((2, 3), dtype=torch.float64) / known.sum((2, 3)).clamp(min=1)
    return torch.where(known, images, mean.round().to(torch.uint8)[:, :, None, None])


def _classical(method: int) -> Callable[[Tensor, Tensor], Tensor]:
    def fill(images: Tensor, holes: Tensor) -> Tensor:
        # Over grey, because OpenCV's Telea lets some of what lies under a hole shine through.
        colours, missing = _grey(images, holes).permute(0, 2, 3, 1).contiguous().numpy(), holes.numpy().astype(np.uint8)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # one takes a millisecond, without Python's lock
            filled = list(pool.map(lambda image, hole: cv2.inpaint(image, hole, 3, method), colours, missing))
        return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).contiguous()

    return fill


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grey": _grey,
    "mean": _mean,
    "telea": _classical(cv2.INPAINT_TELEA),  # Telea 2004, by OpenCV
    "navier_stokes": _classical(cv2.INPAINT_NS),  # Bertalmio et al. 2001, by OpenCV
}


def fill_holes(
    images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], fill: str
) -> UInt8[Tensor, "n 3 64 64"]:
    """`images` with every hole filled by a name in FILLS; what was under the hole does not matter."""
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}; there are {', '.join(FILLS)}")
    return FILLS[fill](images.cpu(), holes.cpu())


# --- pastes: known pixels over a result -----------------------------------------------------------------------------


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
    laplace, solve = _equations(hole.numpy().tobytes(), *hole.shape)
    missing = hole.numpy().ravel()
    result, known = (x.double().flatten(1).numpy().T for x in (picture, image))
    right = laplace @ result - laplace[:, ~missing] @ known[~missing]
    filled = np.where(missing[:, None], 0, known)
    filled[missing] = solve(right)
    return torch.from_numpy(filled.T).round().clamp(0, 255).to(torch.uint8).reshape(picture.shape)


@lru_cache(maxsize=512)  # a study fills the same holes again and again
def _equations(hole: bytes, height: int, width: int) -> tuple[sparse.csr_array, Callable[[np.ndarray], np.ndarray]]:
    """For each pixel p of the hole, with neighbours q: sum of (f_p - f_q) = sum of (picture_p - picture_q).

    The left side as a matrix (pixels of the hole, all pixels), and what solves it for right sides (pixels of the hole,
    channels).
    """
    missing = np.frombuffer(hole, dtype=bool)
    place = np.arange(height * width).reshape(height, width)
    pairs = [(place[:, 1:], place[:, :-1]), (place[1:], place[:-1])]
    p = np.concatenate([end.ravel() for one, other in pairs for end in (one, other)])
    q = np.concatenate([end.ravel() for one, other in pairs for end in (other, one)])
    p, q = p[missing[p]], q[missing[p]]
    ones = np.ones(len(p))
    square = sparse.csr_array((np.r_[ones, -ones], (np.r_[p, p], np.r_[p, q])), shape=(missing.size, missing.size))
    laplace = square[missing]
    return laplace, splu(laplace[:, missing].tocsc()).solve


PASTES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": lambda pictures, images, holes: pictures, "hard": _hard, "blurred": _blurred, "poisson": _poisson,
}  # fmt: skip


def paste_known(
    pictures: UInt8[Tensor, "n 3 H W"], images: UInt8[Tensor, "n 3 H W"], holes: Bool[Tensor, "n H W"], paste: str
) -> UInt8[Tensor, "n 3 H W"]:
    """`pictures` with the known pixels of `images` by a name in PASTES. Pixels of `images` in a hole are not read."""
    if paste not in PASTES:
        raise ValueError(f"unknown paste {paste!r}; there are {', '.join(PASTES)}")
    return PASTES[paste](pictures, images.masked_fill(holes[:, None], 0), holes)


# --- rings of tokens ------------------------------------------------------------------------------------------------


def dilate(unknown: Bool[Tensor, "B 256"], rings: int) -> Bool[Tensor, "B 256"]:
    """`unknown` grown by whole rings of tokens, corners included; 0 leaves it as it is.

    What is added is hidden although all its pixels are there: MaskGIT's editing demo and MAGE's author give up one
    ring, because the tokens next to a hole tell of it.
    """
    grid = unknown.unflatten(1, (1, GRID, GRID)).float()
    return max_pool2d(grid, 2 * rings + 1, stride=1, padding=rings).flatten(1).bool()


def rings(unknown: Bool[Tensor, "B 256"]) -> Int[Tensor, "B 256"]:
    """How far each token is from the nearest unknown one: 0 = unknown, 1 = touching one, if only at a corner, ...

    This is the Chebyshev distance. An image without a hole has 16 everywhere, more than any distance in its grid.
    """
    return torch.stack([~dilate(unknown, ring) for ring in range(GRID)]).sum(0)
