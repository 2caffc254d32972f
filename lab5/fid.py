"""From features of two sets of images to the distance between the sets.

`frechet_distance` and `kid` compare two arrays of features.

No square root of a matrix is taken anywhere. If S = L Lᵀ and R = M Mᵀ then Tr sqrt(S R) is the sum of the
singular values of Lᵀ M, and centred features are such a factor L of their own covariance. That is exact, real
and never negative, also when there are fewer images than features and both covariances are singular.

Every network of features carries the name that a score on them must have, because a Fréchet distance is called FID only
when the standard Inception network measured it.
"""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

Array = np.ndarray | Tensor


# --- distances ------------------------------------------------------------------------------------------------


def frechet_distance(features_a: Float[Array, "n F"], features_b: Float[Array, "m F"]) -> float:
    """Squared Fréchet distance between the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

    |mean_a - mean_b|² + Tr(S_a + S_b - 2 sqrt(S_a S_b)) with the n-1 covariances, in the square of the
    features' unit. The estimate grows as n falls: compare only values of equal n.

    Raises ValueError for fewer than two images, unequal F, NaN or infinity.
    """
    a, b = checked_pair(features_a, features_b)
    return _distance(a.mean(0), _factor(a), b.mean(0), _factor(b))


def feature_stats(features: Float[Array, "n F"]) -> tuple[Float[Tensor, " F"], Float[Tensor, "F F"]]:
    """Mean and covariance (divided by n-1), float64: what a published FID reference keeps of its images."""
    x = checked(features, "features")
    centred = x - x.mean(0)
    return x.mean(0), centred.T @ centred / (len(x) - 1)


def frechet_distance_from_stats(
    mean_a: Float[Array, " F"], cov_a: Float[Array, "F F"], mean_b: Float[Array, " F"], cov_b: Float[Array, "F F"]
) -> float:
    """`frechet_distance` where only means and covariances are known; slower where n < F."""
    a, b = torch.as_tensor(mean_a, dtype=torch.float64), torch.as_tensor(mean_b, dtype=torch.float64)
    if a.shape != b.shape:
        raise ValueError(f"the two sets have {len(a)} and {len(b)} features; they must have the same")
    return _distance(a, _factor_of_covariance(cov_a), b, _factor_of_covariance(cov_b))


def _distance(mean_a: Tensor, factor_a: Tensor, mean_b: Tensor, factor_b: Tensor) -> float:
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    apart = (mean_a - mean_b).square().sum() + factor_a.square().sum() + factor_b.square().sum() - 2 * cross
    return max(0.0, apart.item())  # below zero only by rounding


def _factor(x: Float[Tensor, "n F"]) -> Float[Tensor, "r F"]:
    """L with LᵀL = the covariance of x: the centred rows, or their triangular factor if those are more than F."""
    rows = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return torch.linalg.qr(rows, mode="r").R if len(x) > x.shape[1] else rows


def _factor_of_covariance(covariance: Float[Array, "F F"]) -> Float[Tensor, "F F"]:
    values, vectors = torch.linalg.eigh(torch.as_tensor(covariance, dtype=torch.float64))
    return values.clamp(min=0).sqrt()[:, None] * vectors.T  # below zero only by rounding


def kid(features_a: Float[Array, "n F"], features_b: Float[Array, "m F"], *, paired: bool = False) -> float:
    """Kernel Inception Distance (Bińkowski et al. 2018): unbiased MMD² under the kernel (x·y/F + 1)³.

    Its mean is 0 for two sets of one law whatever n is, so it may be slightly negative. No subsets are drawn.

    That holds for independent sets. Where row i of one was made from row i of the other, say so by `paired`: the
    kernel of such a pair is then left out too (Gretton et al. 2012, eq. 4). A set has distance 0 to itself, and the
    mean is again the same at every n.
    """
    a, b = checked_pair(features_a, features_b)
    if paired and len(a) != len(b):
        raise ValueError(f"paired sets need the same number of images, found {len(a)} and {len(b)}")
    return (_mean_kernel(a, a, True) + _mean_kernel(b, b, True) - 2 * _mean_kernel(a, b, paired)).item()


def _mean_kernel(x: Tensor, y: Tensor, apart: bool) -> Tensor:
    """The mean over every row of x with every row of y; `apart` leaves out rows of the same number."""
    total = torch.stack([_kernel(rows @ y.T, x.shape[1]).sum() for rows in x.split(1024)]).sum()
    if not apart:
        return total / (len(x) * len(y))
    return (total - _kernel((x * y).sum(1), x.shape[1]).sum()) / (len(x) * (len(x) - 1))


def _kernel(products: Tensor, features: int) -> Tensor:
    return (products / features + 1) ** 3


# --- the door -------------------------------------------------------------------------------------------------


def checked(features: Array, name: str) -> Tensor:
    x = torch.as_tensor(features).detach().to(torch.float64)
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"{name} must be (images, features) with at least 2 images; found shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity in {(~x.isfinite()).any(1).sum()} of {len(x)} images")
    return x


def checked_pair(features_a: Array, features_b: Array) -> tuple[Tensor, Tensor]:
    a, b = checked(features_a, "features_a"), checked(features_b, "features_b")
    b = b.to(a.device)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the two sets have {a.shape[1]} and {b.shape[1]} features; they must have the same")
    return a, b

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"


INCEPTION_HASH = "6726825d"  # start of the file's sha256


INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"


@runtime_checkable
class Features(Protocol):
    """A feature extractor with the name that its score must carry."""

    score_name: str

    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n F"]: ...


# --- Inception ------------------------------------------------------------------------------------------------


class InceptionFeatures(nn.Module):
    """pool3 features of the Inception network that FID is defined by, as the pytorch-fid package computes them.

    `weights` is the file; without it the environment's LAB5_INCEPTION_WEIGHTS names it, and without that torch hub's
    cache is looked at. `download` fetches the file into that cache where neither names one and none is there, and
    keeps it only if its hash is right. Raises FileNotFoundError without weights, ValueError for those of another
    network. Other values of the same parameters are taken, but never called FID.

    `folded` lays the network out for speed: each normalisation in the convolution before it, channels last. That is
    the same function, 1.7 times as fast on a CPU.
    """

    def __init__(self, weights: str | Path | None = None, *, download: bool = False, folded: bool = True):
        super().__init__()
        file = _inception_file(weights, download)
        self.weights_hash = hashlib.sha256(file.read_bytes()).hexdigest()
        genuine = self.weights_hash.startswith(INCEPTION_HASH)
        label = f"Inception {self.weights_hash[:8]}"
        self.score_name = f"FID ({label})" if genuine else f"Frechet distance on features of {label}"
        self.network = _fid_inception(file).eval().requires_grad_(False)
        if folded:
            self.network = _fold(self.network).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "n 3 H W"], batch: int = 16) -> Float[Tensor, "n 2048"]:
        """Features of images in [0,1], on the CPU. Round them to 8 bits first if they stand for saved files."""
        check_unit_range(images)
        device = next(self.parameters()).device
        return torch.cat([self(part.to(device)).cpu() for part in images.split(batch)])

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 2048"]:
        large = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        return self.network(2 * large - 1)


def _inception_file(weights: str | Path | None, download: bool) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    named = weights or os.environ.get("LAB5_INCEPTION_WEIGHTS")
    file = Path(named or cached)
    failed = _download(file) if download and not named and not file.is_file() else ""
    if not file.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {_from_home(file)}{failed}: LAB5_INCEPTION_WEIGHTS can name {INCEPTION_FILE}, "
            "a release file of pytorch-fid"
        )
    return file


def _from_home(file: Path) -> str:
    """A path that can be shown to others: without the name of the user."""
    return f"~/{file.relative_to(Path.home())}" if file.is_relative_to(Path.home()) else str(file)


def _download(file: Path) -> str:
    """The release file, whole and of the right hash, or no file and what went wrong."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(file), hash_prefix=INCEPTION_HASH)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError is torch's for a wrong hash
        return f", and the download from {INCEPTION_URL} failed with {error}"
    return ""


def fid_inception() -> nn.Module:
    """pytorch-fid's `fid_inception_v3`, weights as they happen to be in memory."""
    import torchvision  # takes a second to import, and only Inception needs it
    from pytorch_fid import inception as fid

    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = fid.FIDInceptionE_1(1280)
    network.Mixed_7c = fid.FIDInceptionE_2(2048)
    return network


def _fid_inception(file: Path) -> nn.Module:
    """The network with weights from a file, without the final classifier."""
    network = fid_inception()
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # a pickle that is damaged or asks for code fails in many ways
        raise ValueError(f"{file} does not hold the weights of pytorch-fid's Inception network") from error
    network.fc = nn.Identity()
    return network


def _fold(network: nn.Module) -> nn.Module:
    """Every batch normalisation becomes part of the convolution before it: at rest it only scales and shifts."""
    for block in list(network.modules()):
        if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    return network


def check_unit_range(images: Tensor) -> None:
    low, high = images.aminmax()
    if low < 0 or high > 1:
        raise ValueError(f"images must be in [0,1] for features; found {low.item():.3g} to {high.item():.3g}")
