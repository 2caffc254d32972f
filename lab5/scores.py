"""Pictures to a row of numbers: the set score, hole PSNR, and whether hidden attributes come back.

Every row can stand beside its baselines: the truth, the reconstruction floor, doing nothing, a mean colour, the
classical inpainters. It knows no model: a method is whatever made the pictures.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lab5.data import Dataset
from lab5.fid import frechet_distance, kid


class Features(Protocol):
    """A feature extractor with the name that its score must carry."""

    score_name: str

    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n F"]: ...


class Scores(NamedTuple):
    """One method on n test images."""

    score: float  # Fréchet distance to the truth
    kid: float
    hole_psnr_db: float
    attribute_accuracy: float | None  # of attributes that the hole hides; None for photographs
    n: int


def hole_psnr_db(
    images: UInt8[Tensor, "n 3 64 64"], truth: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"]
) -> float:
    """Peak signal-to-noise ratio over the missing pixels of all images together. It rewards blur."""
    if not bool(holes.any()):
        raise ValueError("hole PSNR needs at least one missing pixel, found none")
    error = (images.double() - truth.double()).square().sum(1)[holes].mean() / 3
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-9)))


def psnr_db(images: UInt8[Tensor, "n 3 64 64"], truth: UInt8[Tensor, "n 3 64 64"]) -> float:
    """Peak signal-to-noise ratio over all pixels of all images together."""
    return hole_psnr_db(images, truth, torch.ones(len(images), *images.shape[2:], dtype=torch.bool))


class Scorer:
    """Compares pictures with the first `n` test images of a dataset, whose features are computed once."""

    def __init__(self, dataset: Dataset, network: Features, n: int | None = None, read: Callable | None = None):
        self.truth, self.holes = dataset.test[:n], dataset.holes[:n]
        self.labels = {name: value[:n] for name, value in dataset.attributes.get("test", {}).items()}
        self.hidden = {name: value[:n] for name, value in dataset.hidden.items()}
        self.network = network
        self.read = read or getattr(network, "predict", None)
        self.reference = network.features(self.truth.float() / 255)

    @property
    def score_name(self) -> str:
        return self.network.score_name

    def __call__(self, pictures: UInt8[Tensor, "n 3 64 64"]) -> Scores:
        if pictures.shape != self.truth.shape:
            raise ValueError(f"expected {tuple(self.truth.shape)} pictures to score, found {tuple(pictures.shape)}")
        images = pictures.float() / 255
        features = self.network.features(images)
        return Scores(
            score=frechet_distance(features, self.reference),
            kid=kid(features, self.reference),
            hole_psnr_db=hole_psnr_db(pictures, self.truth, self.holes),
            attribute_accuracy=self._attributes(images),
            n=len(pictures),
        )

    def _attributes(self, images: Float[Tensor, "n 3 64 64"]) -> float | None:
        if not self.hidden or self.read is None:
            return None
        read = self.read(images)
        right = torch.cat([(read[name] == self.labels[name])[hidden] for name, hidden in self.hidden.items()])
        return float(right.float().mean()) if len(right) else None
