"""Intervals against known truths: coverage by simulation, SciPy's t-test, closed forms, Holm's own steps."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from stubs import seeded

from lab5.fid import frechet_distance
from lab5.scoring.intervals import Difference, average, estimate, excluded, family, floor_of_halves, gap, with_spread
from lab5.scoring.resampling import Outcome, Resampled, resample, resamples

SCALE = 2 * torch.arange(1, 17) ** -0.5


def featured(features: torch.Tensor, right: torch.Tensor | None = None) -> Outcome:
    """An outcome of which only features, or right tokens of 100, matter."""
    ones = torch.ones(len(features), dtype=torch.long)
    return Outcome(
        features=features, right=ones if right is None else right, hidden=100 * ones, tokens=ones[:, None],
        missing=ones, read=ones, asked=ones, **dict.fromkeys(("error", "ssim", "edge", "natural"), ones.float()),
    )  # fmt: skip


def counted(right: torch.Tensor) -> Outcome:
    return featured(torch.zeros(len(right), 2), right)


def paired_difference(first, second, metric, weights, reference) -> Difference:
    """First minus second, of two methods with the same images: `estimate` of their `gap`."""
    return estimate(gap(*(resample(outcomes, metric, weights, reference) for outcomes in (first, second))))


def two_methods(n: int, seeds: int, generator: torch.Generator, off: float = 0.5, better: float = 0.0):
    """Features of true images, and those of two methods that make like mistakes, with noise of their own.

    At `off` = 0 they have the law of the true ones; the second is `better` by that much.
    """

    def noise() -> torch.Tensor:
        return torch.randn(n, 16, generator=generator) * SCALE

    true, own = noise(), noise()
    methods = [
        {seed: featured(0.8 * true + 0.36 * own + 0.48 * noise() + off + shift) for seed in range(seeds)}
        for shift in (0.0, -better)
    ]
    return true, *methods


# --- intervals


@pytest.mark.parametrize("metric, repeats, n, seeds, settings", [
    ("kid", 100, 48, 3, {"better": 0.2}),
    ("kid", 60, 48, 2, {"off": 0.0}),  # of good methods, whose error is mostly what bends away from the first order
    ("score", 40, 40, 2, {"better": 0.2}),
], ids=["kid", "kid of good methods", "frechet"])  # fmt: skip
def test_the_interval_contains_the_truth_as_often_as_it_says_and_its_error_is_the_true_one(
    metric, repeats, n, seeds, settings
):
    g = seeded(5)
    found, alone = [], []
    for _ in range(repeats):
        true, first, second = two_methods(n, seeds, g, **settings)
        found.append(paired_difference(first, second, metric, resamples(n, 100, g), true))
        for _ in range(2):  # more draws for the truth, which is the mean of them all
            true, first, second = two_methods(n, 1, g, **settings)
            alone.append(paired_difference(first, second, metric, torch.ones(2, n, dtype=torch.long), true).mean)
    means = torch.tensor([d.mean for d in found])
    truth = torch.cat([means, torch.tensor(alone)]).mean().item()
    assert sum(d.low <= truth <= d.high for d in found) / repeats >= 0.88
    error = math.sqrt(sum(d.standard_error**2 for d in found) / repeats)
    assert error == pytest.approx(means.std().item(), rel=0.25)


@pytest.mark.parametrize("seeds", [(3, 4), (4, 3)])
def test_the_difference_of_two_means_is_the_paired_t_test(seeds):
    a, b = (torch.randint(0, 100, (30,), generator=seeded(seed)) for seed in seeds)
    weights, nothing = resamples(30, 20, seeded()), torch.zeros(30, 2)
    found = paired_difference({0: counted(a)}, {0: counted(b)}, "token_accuracy", weights, nothing)
    theirs = scipy.stats.ttest_rel(a.numpy() / 100, b.numpy() / 100)
    assert found.mean == pytest.approx((a - b).double().mean().item() / 100)
    assert (found.p, found.low, found.high) == pytest.approx((theirs.pvalue, *theirs.confidence_interval()), rel=1e-6)


def test_more_seeds_leave_less_noise_and_the_same_images():
    """The error of a mean is that of the seed-averaged images: var(image) / n + var(noise) / (n seeds)."""
    g, n = seeded(6), 4000
    image = 10 * torch.randn(n, generator=g)
    outcomes = {s: counted((500 + image + 20 * torch.randn(n, generator=g)).round().long()) for s in range(16)}
    weights, nothing = resamples(n, 10, g), torch.zeros(n, 2)
    for seeds in (1, 4, 16):
        few = {seed: outcomes[seed] for seed in range(seeds)}
        found = estimate(resample(few, "token_accuracy", weights, nothing))
        assert found.standard_error == pytest.approx(((100 + 400 / seeds) / n) ** 0.5 / 100, rel=0.04)


def test_trainings_are_a_source_of_their_own():
    """Of R trainings: their variance / R beside that of the images, with the degrees of freedom of Welch's t-test."""
    g = seeded(7)
    one = Resampled((0, 1, 2), torch.tensor([1.0, 4.0, 1.0]).double(), torch.randn(3, 50, generator=g).double(),
                    torch.zeros(3, 9).double())  # fmt: skip
    images = estimate(one).standard_error ** 2
    luck, found = 3.0 / 3, estimate(one._replace(trained=True))
    freedom = (images + luck) ** 2 / (luck**2 / 2 + images**2 / 49)
    error = (images + luck) ** 0.5
    low, high = scipy.stats.t.interval(0.95, freedom, 2.0, error)
    assert found == pytest.approx((2.0, error, low, high, 2 * scipy.stats.t.sf(2.0 / error, freedom)))
    alike = one._replace(trained=True, value=torch.full((3,), 2.0).double())
    assert estimate(alike) == pytest.approx(estimate(alike._replace(trained=False))), "no luck in it"
    alone = Resampled((0,), *(part[:1] for part in one[1:4]), True)
    assert estimate(alone) == (1.0, math.inf, -math.inf, math.inf, 1.0) and not excluded(estimate(alone))
    both = gap(one._replace(trained=True), one)
    assert both.trained and average([both, one]).trained and not gap(one, one).trained


def test_three_trainings_cover_the_truth_as_often_as_they_say():
    g, covered = seeded(9), 0
    for _ in range(400):
        images = 3 * torch.randn(1, 40, generator=g) + torch.randn(3, 40, generator=g)
        value = torch.randn(3, generator=g) + images.mean(1)
        influence = (images - images.mean(1, keepdim=True)).double()
        found = estimate(Resampled((0, 1, 2), value.double(), influence, torch.zeros(3, 9).double(), True))
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 400 <= 1.0


def test_a_method_does_not_differ_from_itself_and_a_gap_without_any_error_is_certain():
    g = seeded(8)
    true, first, _ = two_methods(20, 2, g)
    for metric in ("kid", "score", "token_accuracy"):
        found = paired_difference(first, first, metric, resamples(20, 10, g), true)
        assert found == (0, 0, 0, 0, 1) and not excluded(found)
    always = Resampled((0,), torch.ones(1).double(), torch.zeros(1, 5).double(), torch.zeros(1, 4).double())
    assert estimate(always) == (1, 0, 1, 1, 0) and excluded(estimate(always))


# --- which seeds


def made_of(seeds: tuple[int, ...], values: list[float]) -> Resampled:
    value = torch.tensor(values, dtype=torch.float64)
    return Resampled(seeds, value, value[:, None].repeat(1, 5), torch.zeros(len(seeds), 4).double())


def test_a_gap_is_of_the_seeds_that_both_have():
    found = gap(made_of((0, 1, 2), [1.0, 2.0, 3.0]), made_of((2, 5, 1), [10.0, 20.0, 40.0]))
    assert found.seeds == (1, 2) and found.value.tolist() == [-38, -7]
    assert found.influence[0].tolist() == [-38] * 5
    with pytest.raises(ValueError, match="share none"):
        gap(made_of((0, 1), [1.0, 2.0]), made_of((2, 3), [1.0, 2.0]))


def test_a_method_without_noise_is_compared_with_every_seed():
    noisy, still = made_of((3, 4, 5), [1.0, 2.0, 3.0]), made_of((0,), [10.0])
    assert gap(noisy, still).value.tolist() == [-9, -8, -7] and gap(noisy, still).seeds == (3, 4, 5)
    assert gap(still, noisy).value.tolist() == [9, 8, 7] and gap(still, noisy).seeds == (3, 4, 5)


def test_the_average_of_gaps_is_of_the_seeds_that_all_have():
    several = [made_of((0, 1, 2), [1.0, 2.0, 3.0]), made_of((1, 2), [10.0, 20.0]), made_of((2, 1), [5.0, 6.0])]
    found = average(several)
    assert found.seeds == (1, 2)
    assert found.value.tolist() == pytest.approx([(2 + 10 + 6) / 3, (3 + 20 + 5) / 3])
    assert average(several[:1]).value.tolist() == [1, 2, 3]


# --- many of them


def differing(p: float, sign: int = 1) -> Difference:
    """A difference of this p, of 200 images."""
    z, reach = scipy.stats.t.isf([p / 2, 0.025], 199).tolist()
    return Difference(sign * z, 1.0, sign * z - reach, sign * z + reach, p)


def test_holms_steps():
    # 0.01 <= 0.05 / 4, 0.015 <= 0.05 / 3, 0.03 > 0.05 / 2: there it stops, though 0.04 <= 0.05 / 1.
    found = family([differing(0.04), differing(0.01, -1), differing(0.03), differing(0.015, -1)])
    assert found == (4, 4, pytest.approx(0.2), 2)
    assert family([differing(0.5), differing(0.051, -1)]) == (2, 0, pytest.approx(0.1), 0)
    assert family([]) == (0, 0, 0, 0)


# --- the spread of a distance


def test_spread_is_that_of_fresh_samples():
    def distance(a, b):
        return (a.mean(0) - b.mean(0)).sum().item()  # its SD is known: sqrt(2 F / n)

    a, b = (torch.randn(400, 8, generator=seeded(seed)) for seed in (16, 17))
    value, sd = with_spread(distance, a, b, repeats=400, generator=seeded(18))
    assert value == pytest.approx(distance(a, b), rel=1e-6)
    assert sd == pytest.approx((2 * 8 / 400) ** 0.5, rel=0.2)


def test_spread_keeps_pairs_together():
    a = torch.randn(100, 8, generator=seeded(19)).double()

    def distance(x, y):
        return (y - x).mean().item()

    value, sd = with_spread(distance, a, a + 0.5, generator=seeded(20))
    assert value == pytest.approx(0.5) and sd < 1e-12


def test_spread_is_a_function_of_its_generator():
    a, b = (torch.randn(60, 8, generator=seeded(seed)) for seed in (21, 22))
    first, again, other = (with_spread(frechet_distance, a, b, repeats=5, generator=seeded(s)) for s in (1, 1, 2))
    assert first == again and first[0] == other[0] and first[1] != other[1]


# --- its floor


def test_the_floor_of_frechet_is_the_closed_form_of_two_samples_of_one_gaussian():
    # Of unit Gaussians and m images a side, E|mean_a - mean_b|² = 2F/m, and to first order the covariances add
    # E|S_a - S_b|²/4 = F(F+1)/(2m).
    x, m = torch.randn(4000, 8, generator=seeded(32)), 2000
    floor, spread = floor_of_halves(frechet_distance, x, repeats=40, generator=seeded(33))
    assert floor == pytest.approx(2 * 8 / m + 8 * 9 / (2 * m), rel=0.1)
    assert 0 < spread < floor


def test_halves_are_disjoint_of_equal_size_and_drawn_by_the_generator():
    x, seen = torch.arange(9.0)[:, None], []

    def distance(a, b):
        seen.append((a[:, 0].tolist(), b[:, 0].tolist()))
        return 1.0

    for seed in (1, 1, 2):
        settings = {"repeats": 3, "generator": seeded(seed)}
        assert floor_of_halves(distance, x, **settings) == (1.0, 0.0)
    assert all(len(a) == len(b) == 4 and not set(a) & set(b) for a, b in seen)
    assert seen[:3] == seen[3:6] != seen[6:]


@pytest.mark.parametrize("measure, calls", [(with_spread, 51), (floor_of_halves, 20)])
def test_the_spread_of_many_nearly_equal_values_is_told_from_four_images_on(measure, calls):
    asked = []

    def distance(a, b):
        asked.append(len(a))
        return 1 + 1e-12 * len(asked)

    sets = [torch.ones(4, 3)] * (2 if measure is with_spread else 1)
    _, sd = measure(distance, *sets, generator=seeded(0))
    assert len(asked) == calls and set(asked) <= {2, 4}
    repeats = calls - (measure is with_spread)
    assert sd == pytest.approx(1e-12 * np.std(np.arange(repeats), ddof=1), rel=1e-3)
