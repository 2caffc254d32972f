"""From features of two sets of images to the distance between the sets.

`frechet_distance` and `kid` compare two arrays of features; `InceptionFeatures` and `ToyFeatures` make such
features out of images. Every score carries its extractor's `score_name`, because a Fréchet distance is called
FID only when the standard Inception network measured it.

No square root of a matrix is taken anywhere. If S = L Lᵀ and R = M Mᵀ then Tr sqrt(S R) is the sum of the
singular values of Lᵀ M, and centred features are such a factor L of their own covariance. That is exact, real
and never negative, also when there are fewer images than features and both covariances are singular.

It does not know datasets, tokens, or where the images came from.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"  # start of the file's sha256

Array = np.ndarray | Tensor


# --- distances ------------------------------------------------------------------------------------------------


def frechet_distance(features_a: Float[Array, "n F"], features_b: Float[Array, "m F"]) -> float:
    """Squared Fréchet distance between the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

    |mean_a - mean_b|² + Tr(S_a + S_b - 2 sqrt(S_a S_b)) with the n-1 covariances, in the square of the
    features' unit. The estimate grows as n falls: compare only values of equal n.

    Raises ValueError for fewer than two images, unequal F, NaN or infinity.
    """
    a, b = _pair(features_a, features_b)
    return _distance(a.mean(0), _factor(a), b.mean(0), _factor(b))


def feature_stats(features: Float[Array, "n F"]) -> tuple[Float[Tensor, " F"], Float[Tensor, "F F"]]:
    """Mean and covariance (divided by n-1), float64: what a published FID reference keeps of its images."""
    x = _float64(features, "features")
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


def kid(features_a: Float[Array, "n F"], features_b: Float[Array, "m F"]) -> float:
    """Kernel Inception Distance (Bińkowski et al. 2018): unbiased MMD² under the kernel (x·y/F + 1)³.

    Its mean is 0 for two sets of one law whatever n is, so it may be slightly negative. No subsets are drawn.
    """
    a, b = _pair(features_a, features_b)
    within = sum((_kernel_sum(x, x) - _kernel(x, x, paired=True).sum()) / (len(x) * (len(x) - 1)) for x in (a, b))
    return (within - 2 * _kernel_sum(a, b) / (len(a) * len(b))).item()


def _kernel(x: Tensor, y: Tensor, paired: bool = False) -> Tensor:
    products = (x * y).sum(1) if paired else x @ y.T
    return (products / x.shape[1] + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([_kernel(rows, y).sum() for rows in x.split(1024)]).sum()


def with_spread(
    distance: Callable[[Array, Array], float],
    features_a: Float[Array, "n F"],
    features_b: Float[Array, "m F"],
    *,
    generator: torch.Generator,
    repeats: int = 50,
) -> tuple[float, float]:
    """`distance` of two paired sets, and the standard deviation it owes to the choice of the images.

    The SD is that of random halves drawn without replacement: a half scatters about the whole as the whole
    scatters about the truth (half-sampling, a jackknife that leaves n/2 out). Unlike a bootstrap it makes no
    duplicates, which both distances would mistake for structure. Row i of both sets belongs together and is
    drawn together. Near a true distance of 0 the SD comes out up to twice too large; far from it it was within a
    tenth of the SD of fresh samples (Gaussian features, n 60 and 200).
    """
    a, b = _pair(features_a, features_b)
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f"paired sets need the same number of images, at least 4; found {len(a)} and {len(b)}")
    halves = [torch.randperm(len(a), generator=generator)[: len(a) // 2] for _ in range(repeats)]
    values = torch.tensor([distance(a[half], b[half]) for half in halves], dtype=torch.float64)
    return distance(a, b), values.std().item()


def _float64(features: Array, name: str) -> Tensor:
    x = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"{name} must be (images, features) with at least 2 images; found shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity in {(~x.isfinite()).any(1).sum()} of {len(x)} images")
    return x


def _pair(features_a: Array, features_b: Array) -> tuple[Tensor, Tensor]:
    a, b = _float64(features_a, "features_a"), _float64(features_b, "features_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the two sets have {a.shape[1]} and {b.shape[1]} features; they must have the same")
    return a, b


# --- features -------------------------------------------------------------------------------------------------


class InceptionFeatures(nn.Module):
    """pool3 features of the Inception network that FID is defined by, as the pytorch-fid package computes them.

    `weights` is the file; without it the environment's LAB5_INCEPTION_WEIGHTS, then torch hub's cache are
    looked at. Nothing is downloaded. Raises FileNotFoundError without weights, ValueError for other weights.
    """

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        file = _inception_file(weights)
        self.weights_hash = hashlib.sha256(file.read_bytes()).hexdigest()
        genuine = self.weights_hash.startswith(INCEPTION_HASH)
        label = f"Inception {self.weights_hash[:8]}"
        self.score_name = f"FID ({label})" if genuine else f"Frechet distance on features of {label}"
        self.network = _fid_inception(file).eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "n 3 H W"], batch: int = 50) -> Float[Tensor, "n 2048"]:
        """Features of images in [0,1], on the CPU. Round them to 8 bits first if they stand for saved files."""
        _check_unit_range(images)
        device = next(self.parameters()).device
        return torch.cat([self(part.to(device)).cpu() for part in images.split(batch)])

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 2048"]:
        large = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        return self.network(2 * large - 1)


def _inception_file(weights: str | Path | None) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    file = Path(weights or os.environ.get("LAB5_INCEPTION_WEIGHTS") or cached)
    if not file.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {file}: pass the path of {INCEPTION_FILE} (a release file of pytorch-fid), "
            f"name it in LAB5_INCEPTION_WEIGHTS, or put it at {cached}"
        )
    return file


def _fid_inception(file: Path) -> nn.Module:
    """pytorch-fid's `fid_inception_v3` with weights from a file, without the final classifier."""
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
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # a pickle that is damaged or asks for code fails in many ways
        raise ValueError(f"{file} does not hold the weights of pytorch-fid's Inception network") from error
    network.fc = nn.Identity()
    return network


class ToyFeatures(nn.Module):
    """A small classifier of the toy cats' attributes; its last hidden layer stands in for Inception's.

    `attributes` maps a name to its number of classes; each has a linear head on the same F features. The last
    map is flattened, not averaged, so that heads can tell the left eye from the right one. 64x64 images only.
    """

    score_name = "Frechet distance on toy-attribute features"

    def __init__(self, attributes: dict[str, int], features: int = 96, channels: tuple[int, ...] = (24, 48, 64, 64)):
        super().__init__()
        self.attributes = dict(attributes)
        layers: list[nn.Module] = []
        for wide_in, wide_out in zip((3, *channels), channels, strict=False):  # 64 -> 32 -> 16 -> 8 -> 4
            convolution = nn.Conv2d(wide_in, wide_out, 3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(8, wide_out), nn.SiLU()]
        side = 64 >> len(channels)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, features), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(features, classes) for name, classes in attributes.items()})
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "n 3 64 64"]) -> None:
        """Make every feature of unit variance over these images, so that none rules a distance by its scale."""
        hidden = self.body(2 * images - 1)
        self.mean.copy_(hidden.mean(0))
        self.scale.copy_(hidden.std(0).clamp(min=0.05 * hidden.std(0).mean()))

    def forward(self, images: Float[Tensor, "n 3 64 64"]) -> dict[str, Float[Tensor, "n _"]]:
        """Logits of every attribute for images in [0,1]."""
        hidden = self.body(2 * images - 1)
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def features(self, images: Float[Tensor, "n 3 64 64"], batch: int = 256) -> Float[Tensor, "n F"]:
        """The penultimate layer for images in [0,1], standardised as `calibrate` found it, on the CPU."""
        return (self._hidden(images, batch) - self.mean.cpu()) / self.scale.cpu()

    def _hidden(self, images: Float[Tensor, "n 3 64 64"], batch: int) -> Float[Tensor, "n F"]:
        _check_unit_range(images)
        device = next(self.parameters()).device
        return torch.cat([self.body(2 * part.to(device) - 1).cpu() for part in images.split(batch)])

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "n 3 64 64"], batch: int = 256) -> dict[str, Int[Tensor, " n"]]:
        """The likeliest class of every attribute, on the CPU."""
        hidden = self._hidden(images, batch).to(next(self.parameters()).device)
        return {name: head(hidden).argmax(1).cpu() for name, head in self.heads.items()}


def attribute_loss(
    logits: dict[str, Float[Tensor, "n _"]], attributes: dict[str, Int[Tensor, " n"]]
) -> Float[Tensor, ""]:
    """Cross-entropy in nats, averaged over images and attributes."""
    if missing := sorted(logits.keys() - attributes.keys()):
        raise ValueError(f"the classifier has heads for {missing}, but the labels hold only {sorted(attributes)}")
    return torch.stack([F.cross_entropy(logits[name], attributes[name]) for name in logits]).mean()


def _check_unit_range(images: Tensor) -> None:
    low, high = images.aminmax()
    if low < 0 or high > 1:
        raise ValueError(f"images must be in [0,1] for features; found {low.item():.3g} to {high.item():.3g}")
