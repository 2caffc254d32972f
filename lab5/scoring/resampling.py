"""A metric as a function of the images that happened to be in the test set.

Another test set of n images would have other images. A bootstrap resample stands for one: it counts each of these
images as often as it is drawn. For every metric of a method there is its value, what it owes to each image, and what
it becomes in every resample.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Outcome(NamedTuple):
    """What is known of each of n pictures by itself, of one decoding."""

    features: Float[Tensor, "n F"]
    error: Float[Tensor, " n"]  # squared error summed over the missing pixels, mean of the colours
    missing: Int[Tensor, " n"]  # missing pixels
    ssim: Float[Tensor, " n"]  # mean over the missing pixels
    right: Int[Tensor, " n"]  # hidden tokens that are the truth's
    hidden: Int[Tensor, " n"]  # hidden tokens
    tokens: Int[Tensor, "n _"]  # decoded tokens; none where they are not known
    edge: Float[Tensor, " n"]  # contrast across the edges of the hole, summed
    natural: Float[Tensor, " n"]  # the same of the truth
    read: Int[Tensor, " n"]  # hidden attributes that are read rightly
    asked: Int[Tensor, " n"]  # hidden attributes


class Resampled(NamedTuple):
    """A metric of one method, or of the gap between two, for each of S seeds, and how it hangs on the images.

    Where image i counts 1 + v_i times it is, to first order, value + the mean of v_i influence_i (Jaeckel 1972, "The
    infinitesimal jackknife").
    """

    seeds: tuple[int, ...]
    value: Float[Tensor, " S"]
    influence: Float[Tensor, "S n"]  # of each image; their mean is 0
    bend: Float[Tensor, "S R"]  # what R resamples of the images add to the first order
    trained: bool = False  # each seed has a training of its own


# --- the metrics, weighted ------------------------------------------------------------------------------------------


def resamples(n: int, times: int, generator: torch.Generator) -> Int[Tensor, "R n"]:
    """How often each of n images occurs in each of R = `times` bootstrap resamples of n images."""
    drawn = torch.randint(n, (times, n), generator=generator, device=generator.device)
    return torch.zeros_like(drawn).scatter_add_(1, drawn, torch.ones_like(drawn))


def resample(
    outcomes: Mapping[int, Outcome], metric: str, weights: Int[Tensor, "R n"], reference: Float[Tensor, "n F"]
) -> Resampled:
    """One of METRICS of a method, given its outcome for each seed; `reference` are the features of the true images.

    All methods that are to be compared need the same `weights`, for their images are resampled together.
    Raises ValueError where some resample has nothing to measure or what is not a number.
    """
    n, parts = len(reference), []
    for outcome in outcomes.values():
        value, influence, every = METRICS[metric](outcome, reference.double(), weights.double())
        if not every.isfinite().all():
            raise ValueError(f"{metric} must be finite in all resamples: too few of the {n} images tell it.")
        influence = influence - influence.mean()
        parts.append((value, influence, every - value - (weights - 1).double() @ influence / n))
    return Resampled(tuple(outcomes), *(torch.stack(part) for part in zip(*parts, strict=True)))


Measured = tuple[Tensor, Tensor, Tensor]  # the value, the influence of each image, the value in every resample


def _kid(outcome: Outcome, reference: Float[Tensor, "n F"], weights: Float[Tensor, "R n"]) -> Measured:
    """`fid.kid` of pairs. Two images that are drawn w_i and w_j times make w_i w_j pairs; an image makes none with
    itself however often it is drawn, for a duplicate is no independent image."""
    x, y = reference, outcome.features.double()
    between = _kernel(x, x) + _kernel(y, y) - _kernel(x, y) - _kernel(y, x)
    between.fill_diagonal_(0)
    n = len(x)
    value, pairs = between.sum() / (n * (n - 1)), n**2 - weights.square().sum(1)
    return value, 2 * between.sum(1) / (n - 1), ((weights @ between) * weights).sum(1) / pairs


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _frechet(outcome: Outcome, reference: Float[Tensor, "n F"], weights: Float[Tensor, "R n"]) -> Measured:
    """`fid.frechet_distance`, whose value depends on n: few images are further apart than many of one kind.

    A resample has only some n (1 - 1/e) distinct images, so that resamples are biased, and no interval can be made of
    their percentiles. With S = AᵀA and R = BᵀB, A and B being rows of centred features, Tr sqrt(S R) is the sum of the
    singular values of A Bᵀ = U diag(s) Vᵀ; its derivative in the weight of image i is half the i-th diagonal entry of
    U diag(s) Uᵀ + V diag(s) Vᵀ.
    """
    x, y = reference, outcome.features.double()
    (mean_x, a), (mean_y, b) = (_rows(features, torch.ones_like(weights[:1])) for features in (x, y))
    shift, spread = mean_x[0] - mean_y[0], (a.square() + b.square()).sum(-1)[0]
    u, s, v = torch.linalg.svd((a @ b.mT)[0])
    value = shift.square().sum() + spread.sum() - 2 * s.sum()
    influence = 2 * (x - y) @ shift + len(x) * (spread - u.square() @ s - v.mT.square() @ s)
    if len(x) <= x.shape[1]:
        every = _distances_of_few(x, y, weights)
    else:
        every = torch.cat([_distances(x, y, part) for part in weights.split(64)])  # 64 at a time: n F numbers each
    return value.clamp(min=0), influence, every


def _distances(x: Float[Tensor, "n F"], y: Float[Tensor, "n F"], weights: Float[Tensor, "R n"]) -> Float[Tensor, " R"]:
    (mean_x, a), (mean_y, b) = _rows(x, weights), _rows(y, weights)
    apart = (mean_x - mean_y).square().sum(-1) + a.square().sum((1, 2)) + b.square().sum((1, 2))
    a = torch.linalg.qr(a, mode="r").R
    return apart - 2 * _singular_values(a @ b.mT)


def _distances_of_few(
    x: Float[Tensor, "n F"], y: Float[Tensor, "n F"], weights: Float[Tensor, "R n"]
) -> Float[Tensor, " R"]:
    """The same where n <= F: products of images with each other are made once, and a resample has but its distinct
    images, 63 % of n, in a matrix of their number."""
    n, shift = len(x), x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    mean_x, mean_y, products, every = weights @ x / n, weights @ y / n, x @ y.T, []  # (R, F), (n, n)
    apart = (shift + mean_x - mean_y).square().sum(1)
    for z, mean in ((x, mean_x), (y, mean_y)):  # the weighted covariances' traces
        squares = z.square().sum(1) - 2 * mean @ z.T + mean.square().sum(1, keepdim=True)  # of z - mean, (R, n)
        apart += (weights * squares).sum(1) / (n - 1)
    for row, x_mean, y_mean, means in zip(weights, mean_y @ x.T, mean_x @ y.T, (mean_x * mean_y).sum(1), strict=True):
        drawn = row.nonzero().squeeze(1)
        cross = products[drawn][:, drawn] - x_mean[drawn, None] - y_mean[drawn] + means  # of x - mean_x with y - mean_y
        weight = (row[drawn] / (n - 1)).sqrt()
        every.append(_singular_values(weight[:, None] * cross * weight))
    return apart - 2 * torch.stack(every)


def _singular_values(cross: Float[Tensor, "*R m k"]) -> Float[Tensor, "*R"]:
    """Their sum. Eigenvalues take half the time of singular values, of which they are the squares; below 0 only by
    rounding."""
    return torch.linalg.eigvalsh(cross @ cross.mT).clamp(min=0).sqrt().sum(-1)


def _rows(x: Float[Tensor, "n F"], weights: Float[Tensor, "R n"]) -> tuple[Tensor, Float[Tensor, "R n F"]]:
    """The weighted mean, and rows L of which LᵀL is the weighted covariance."""
    mean = weights @ x / len(x)
    return mean, (weights / (len(x) - 1)).sqrt()[..., None] * (x - mean[:, None])


def _ratio(above: Callable[[Outcome], Tensor], below: Callable[[Outcome], Tensor]) -> Callable[..., Measured]:
    """The sum of one count over all images, divided by that of another."""

    def measure(outcome: Outcome, reference: Float[Tensor, "n F"], weights: Float[Tensor, "R n"]) -> Measured:
        a, b = above(outcome).double(), below(outcome).double()
        value = a.sum() / b.sum()
        return value, (a - value * b) / b.mean(), (weights @ a) / (weights @ b)

    return measure


def _psnr(outcome: Outcome, reference: Float[Tensor, "n F"], weights: Float[Tensor, "R n"]) -> Measured:
    """As `scores` has it, never more than 138 dB."""
    value, influence, every = _ratio(lambda o: o.error, lambda o: o.missing)(outcome, reference, weights)
    value, every = value.clamp(min=1e-9), torch.where(every < 1e-9, 1e-9, every)
    slope = -10 / (math.log(10) * value)
    return 10 * torch.log10(255**2 / value), slope * influence, 10 * torch.log10(255**2 / every)


METRICS: dict[str, Callable[..., Measured]] = {
    "kid": _kid,
    "score": _frechet,
    "hole_psnr_db": _psnr,
    "ssim": _ratio(lambda o: o.ssim * o.missing, lambda o: o.missing),
    "seam": _ratio(lambda o: o.edge, lambda o: o.natural),
    "token_accuracy": _ratio(lambda o: o.right, lambda o: o.hidden),
    "attribute_accuracy": _ratio(lambda o: o.read, lambda o: o.asked),
}
