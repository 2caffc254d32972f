"""From features of two sets of images to the distance between the sets.

`frechet_distance` and `kid` compare two arrays of features.

sqrt(S R) of the covariances is never computed. If S = AᵀA and R = BᵀB, then Tr sqrt(S R) is the sum of the
singular values of A Bᵀ, and centred features are such a factor A of their own covariance. That is exact, real
and never negative, also when there are fewer images than features and both covariances are singular.

Every network of features carries the name that a score on them must have, because a Fréchet distance is called FID only
when the standard Inception network measured it.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Array = np.ndarray | Tensor


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
    """A with AᵀA = the covariance of x: the centred rows, or their triangular factor if those are more than F."""
    rows = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return torch.linalg.qr(rows, mode="r").R if len(x) > x.shape[1] else rows


def _factor_of_covariance(covariance: Float[Array, "F F"]) -> Float[Tensor, "F F"]:
    values, vectors = torch.linalg.eigh(torch.as_tensor(covariance, dtype=torch.float64))
    return values.clamp(min=0).sqrt()[:, None] * vectors.T  # below zero only by rounding


def kid(features_a: Float[Array, "n F"], features_b: Float[Array, "m F"], *, paired: bool = False) -> float:
    """Kernel Inception Distance (Bińkowski et al. 2018): unbiased MMD² under the kernel (x·y/F + 1)³.

    Its mean is 0 for two sets of one distribution whatever n is, so it may be slightly negative. No subsets are drawn.

    That holds for independent sets. Where row i of one was made from row i of the other, say so by `paired`: the
    kernel of such a pair is then left out too (Gretton et al. 2012, eq. 4): the mean is again the same at every n, and
    a set has distance 0 to itself.
    """
    a, b = checked_pair(features_a, features_b)
    if paired and len(a) != len(b):
        raise ValueError(f"paired sets need the same number of images, found {len(a)} and {len(b)}")
    return (_mean_kernel(a, a, True) + _mean_kernel(b, b, True) - 2 * _mean_kernel(a, b, paired)).item()


def _mean_kernel(x: Tensor, y: Tensor, skip_diagonal: bool) -> Tensor:
    """The mean over every row of x with every row of y, if asked but for rows of the same number."""
    total = torch.stack([_kernel(rows @ y.T, x.shape[1]).sum() for rows in x.split(1024)]).sum()
    if not skip_diagonal:
        return total / (len(x) * len(y))
    return (total - _kernel((x * y).sum(1), x.shape[1]).sum()) / (len(x) * (len(x) - 1))


def _kernel(products: Tensor, features: int) -> Tensor:
    return (products / features + 1) ** 3


# --- checks of the input ----------------------------------------------------------------------------------------------


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


@runtime_checkable
class Features(Protocol):
    """A feature extractor with the name that its score must carry."""

    score_name: str

    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n F"]: ...
