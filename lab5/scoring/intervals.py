"""How sure a difference of two methods is.

Two things make another study of the same networks come out differently: other images, and other noise in the decoding.
A third one, where trainings are compared, is the luck of each: such methods are trained several times.

Both methods see the same images, which are resampled for both alike, so that what makes an image easy or hard cancels.
And since a decoding draws the noise of each image for itself, other images bring other noise: resampling the images
of what is averaged over the seeds covers both.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import stdtr, stdtrit
from torch import Tensor

from lab5.scoring.resampling import Resampled

LEVEL = 0.05  # of all intervals and counts: 95 %


class Difference(NamedTuple):
    """A mean over seeds with its 95 % interval."""

    mean: float
    standard_error: float
    low: float
    high: float
    p: float  # of a difference this large by chance alone


# --- differences ----------------------------------------------------------------------------------------------------


def gap(first: Resampled, second: Resampled) -> Resampled:
    """First minus second, seed by seed, of the seeds that both have.

    A method that has but one seed, as one without noise has, is compared with every seed of the other. Raises
    ValueError for no common seed.
    """
    if len(first.seeds) > 1 and len(second.seeds) > 1:
        seeds = tuple(seed for seed in first.seeds if seed in second.seeds)
        first, second = _only(first, seeds), _only(second, seeds)
    seeds, trained = max(first.seeds, second.seeds, key=len), first.trained or second.trained
    return Resampled(seeds, *(a - b for a, b in zip(first[1:4], second[1:4], strict=True)), trained)


def average(several: Sequence[Resampled]) -> Resampled:
    """The mean of several gaps, of the seeds that all of them have. Raises ValueError for no common seed."""
    seeds = tuple(seed for seed in several[0].seeds if all(seed in one.seeds for one in several))
    parts = zip(*(_only(one, seeds)[1:4] for one in several), strict=True)
    return Resampled(seeds, *(torch.stack(part).mean(0) for part in parts), any(one.trained for one in several))


def _only(resampled: Resampled, seeds: tuple[int, ...]) -> Resampled:
    if not seeds:
        raise ValueError("methods with several seeds each can be compared where they share some, but they share none.")
    rows = [resampled.seeds.index(seed) for seed in seeds]
    return Resampled(seeds, *(part[rows] for part in resampled[1:4]), resampled.trained)


def estimate(resampled: Resampled) -> Difference:
    """The mean over seeds, of a gap or of one method, and how far another study of this size may come out from it.

    The interval is mean ± t · standard error. It is not made of percentiles, which for the Fréchet distance would lie
    beside the value: its resamples are biased. How the distance depends on n is no part of the error either; what is
    estimated is the distance at this n.

    Seeds are of decodings, in which every image has noise of its own: to resample the seeds too would count their noise
    three times (Owen 2007, "The pigeonhole bootstrap"). Where each seed is also that of a training, other trainings are
    a source of their own: the variance between them is added, with the degrees of freedom of Satterthwaite (1946). A
    little noise of the decoding is in both. Of a single training nothing is known: its interval has no end.
    """
    seeds, images = resampled.influence.shape
    mean, variance, freedom = float(resampled.value.mean()), _variance(resampled), images - 1.0
    if resampled.trained and seeds == 1:
        return Difference(mean, math.inf, -math.inf, math.inf, 1.0)
    if resampled.trained and (luck := float(resampled.value.var()) / seeds):
        together = variance + luck
        freedom = together**2 / (luck**2 / (seeds - 1) + variance**2 / freedom)
        variance = together
    error = math.sqrt(variance)
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(mean) / error)) if error else float(mean == 0)
    return Difference(mean, error, mean - reach, mean + reach, p)


def _covariance(resampled: Resampled) -> tuple[Float[Tensor, "S S"], Float[Tensor, "S S"]]:
    """Between the seeds, over the images: of the first order, and of what bends away from it.

    Subtract the second from the first. Of a statistic such as KID, a sum over pairs of images, the variance is
    4 a / n + 2 b / n², where a is the part of a pair that is owed to one image and b the rest. But the influences vary
    by 4 a / n + 4 b / n² (Efron and Stein 1981 on the jackknife), and the bend by 2 b / n²: a plain bootstrap counts
    their sum. Methods that are much alike differ mostly by b: at n = 64 it made their standard error 1.6 times too
    large.
    """
    n = resampled.influence.shape[1]
    return resampled.influence @ resampled.influence.T / (n * (n - 1)), torch.atleast_2d(resampled.bend.cov())


def _variance(resampled: Resampled) -> float:
    """Of the mean over seeds: no less than what bends, which is a part of it."""
    smooth, bent = (float(part.mean()) for part in _covariance(resampled))
    return max(smooth - bent, bent)


# --- many differences -----------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """Several comparisons at once: by chance alone some intervals exclude 0."""

    comparisons: int
    excluded: int  # intervals that do not contain 0
    by_chance: float  # how many of them are to be expected where no method differs
    holm: int  # differences that hold at this level all together


def excluded(difference: Difference) -> bool:
    """Whether the interval excludes 0."""
    return difference.low > 0 or difference.high < 0


def family(differences: Sequence[Difference]) -> Family:
    """How many of these differences are more than luck; `holm` by the step-down test of Holm (1979).

    The chance of one false difference or more among those of `holm` is at most 5 %, however they depend on each other.
    """
    several = len(differences)
    holm = 0
    for rank, p in enumerate(sorted(difference.p for difference in differences)):
        if p > LEVEL / (several - rank):
            break
        holm += 1
    return Family(several, sum(map(excluded, differences)), LEVEL * several, holm)


# --- how sure a distance is -----------------------------------------------------------------------------------


def with_spread(
    distance: Callable[[Tensor, Tensor], float],
    features_a: Float[Tensor, "n F"],
    features_b: Float[Tensor, "n F"],
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
    n = len(features_a)
    halves = [torch.randperm(n, generator=generator)[: n // 2] for _ in range(repeats)]
    values = torch.tensor([distance(features_a[half], features_b[half]) for half in halves], dtype=torch.float64)
    return distance(features_a, features_b), values.std().item()


def floor_of_halves(
    distance: Callable[[Tensor, Tensor], float],
    features: Float[Tensor, "n F"],
    *,
    generator: torch.Generator,
    repeats: int = 20,
) -> tuple[float, float]:
    """`distance` between disjoint random halves of one set: its mean and standard deviation over the splits.

    What independent sets of n/2 images score where nothing is wrong: about 0 for KID, more for the Fréchet distance.
    Pictures that were made from the very images they are compared with may score less, for they are not independent.
    """
    half = len(features) // 2
    orders = [torch.randperm(len(features), generator=generator) for _ in range(repeats)]
    pairs = [(features[order[:half]], features[order[half : 2 * half]]) for order in orders]
    values = torch.tensor([distance(*pair) for pair in pairs], dtype=torch.float64)
    return values.mean().item(), values.std().item()
