"""Pictures to a row of numbers: the set score, hole PSNR, and whether hidden attributes come back.

Every row can stand beside its baselines: the truth, the reconstruction floor, doing nothing, a mean colour, the
classical inpainters. It knows no model: a method is whatever made the pictures.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from lab5.data import Dataset, normalise
from lab5.fid import frechet_distance, kid
from lab5.vqgan import VQGAN


@runtime_checkable
class Features(Protocol):
    """A feature extractor with the name that its score must carry."""

    score_name: str

    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n F"]: ...


class EncoderFeatures:
    """What the VQGAN's encoder sees, averaged over 4x4 neighbourhoods: for photographs without Inception weights."""

    score_name = "Frechet distance on VQGAN-encoder features"

    def __init__(self, vqgan: VQGAN, batch: int = 64):
        self.vqgan, self.batch = vqgan, batch

    @torch.no_grad()
    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n F"]:
        device = next(self.vqgan.parameters()).device
        maps = [self.vqgan.latents(normalise(part).to(device)) for part in images.split(self.batch)]
        return torch.cat([adaptive_avg_pool2d(part, 4).flatten(1).cpu() for part in maps])


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
    """Peak signal-to-noise ratio over the missing pixels of all images together. It rewards blur.

    Without any error it is 138 dB, a number where infinity would be none.
    """
    if not bool(holes.any()):
        raise ValueError("hole PSNR needs at least one missing pixel, found none")
    error = (images.double() - truth.double()).square().sum(1)[holes].mean() / 3
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-9)))


def psnr_db(images: UInt8[Tensor, "n 3 64 64"], truth: UInt8[Tensor, "n 3 64 64"]) -> float:
    """Peak signal-to-noise ratio over all pixels of all images together."""
    return hole_psnr_db(images, truth, torch.ones(len(images), *images.shape[2:], dtype=torch.bool))


class Scorer:
    """Compares pictures with test images of a dataset, whose features are computed once.

    These are the first `n` of which the truth is known under the hole too; `places` are their numbers in the test
    set. Raises ValueError where there are fewer than two.
    """

    def __init__(self, dataset: Dataset, network: Features, n: int | None = None, read: Callable | None = None):
        self.places = dataset.whole.nonzero()[:, 0][:n]
        if len(self.places) < 2:
            raise ValueError(f"scores need at least 2 test images whose truth is known, found {len(self.places)}")
        self.truth, self.holes = dataset.test[self.places], dataset.holes[self.places]
        self.labels = {name: value[self.places] for name, value in dataset.attributes.get("test", {}).items()}
        self.hidden = {name: value[self.places] for name, value in dataset.hidden.items()}
        self.network = network
        self.read = read or getattr(network, "predict", None)
        self.reference = network.features(self.truth.float() / 255)
        self.data = f"{dataset.name} {_digest(self.truth, self.holes, network)}"

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
        return float(right.double().mean()) if len(right) else None


def _digest(truth: Tensor, holes: Tensor, network: Features) -> str:
    """Changes with any pixel and any weight: rows of equal digest can be compared."""
    digest = hashlib.sha256(network.score_name.encode())
    weights = network.state_dict().values() if isinstance(network, nn.Module) else ()
    for tensor in (truth, holes, *weights):
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:12]
