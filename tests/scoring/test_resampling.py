"""Metrics of weighted images: against the unweighted ones, against repeated images, and influences against slopes."""

import numpy as np
import pytest
import torch
from stubs import seeded

from lab5.fid import frechet_distance, kid
from lab5.scoring.resampling import METRICS, Outcome, resample, resamples

SIZES = pytest.mark.parametrize("n, features", [(30, 5), (12, 20)])


def reference(n: int, features: int) -> torch.Tensor:
    return torch.randn(n, features, generator=seeded(99)) * torch.arange(1, features + 1) ** -0.5


def outcome(n: int, features: int = 4, seed: int = 0) -> Outcome:
    """Features near those of `reference`, and counts of everything else."""
    g = seeded(seed)

    def counts(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (n,), generator=g)

    return Outcome(
        features=0.9 * reference(n, features) + 0.3 * torch.randn(n, features, generator=g) + 0.1,
        error=100 * torch.rand(n, generator=g) * 50,
        missing=counts(20, 80),
        ssim=torch.rand(n, generator=g),
        right=counts(0, 6),
        hidden=counts(6, 12),
        tokens=torch.zeros(n, 0, dtype=torch.int16),
        edge=torch.rand(n, generator=g),
        natural=torch.rand(n, generator=g) + 0.5,
        read=counts(0, 2),
        asked=counts(2, 4),
    )


def whole(metric: str, o: Outcome, true: torch.Tensor) -> float:
    """The metric as the package computes it elsewhere, or as its definition says."""
    if metric == "kid":
        return kid(o.features, true, paired=True)
    if metric == "score":
        return frechet_distance(o.features, true)
    if metric == "hole_psnr_db":
        return float(10 * torch.log10(255**2 * o.missing.sum() / o.error.double().sum()))
    if metric == "ssim":
        return float((o.ssim.double() * o.missing).sum() / o.missing.sum())
    above, below = {
        "seam": (o.edge, o.natural),
        "token_accuracy": (o.right, o.hidden),
        "attribute_accuracy": (o.read, o.asked),
    }[metric]
    return float(above.double().sum() / below.double().sum())


def every(metric: str, o: Outcome, true: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return METRICS[metric](o, true.double(), weights.double())[2]


# --- weights


def test_resamples_draw_every_image_alike_and_as_often_as_chance_says():
    weights = resamples(20, 4000, seeded())
    assert weights.shape == (4000, 20) and weights.dtype == torch.int64
    assert (weights.sum(dim=1) == 20).all() and weights.min() == 0
    assert weights.double().mean(0) == pytest.approx(1, abs=0.08)
    assert weights.double().var(0).mean().item() == pytest.approx(1 - 1 / 20, rel=0.03)  # multinomial
    assert torch.equal(weights, resamples(20, 4000, seeded()))
    assert not torch.equal(weights, resamples(20, 4000, seeded(1)))


# --- metrics


@pytest.mark.parametrize("metric", METRICS)
@SIZES
def test_with_every_image_once_a_metric_is_what_it_is_elsewhere(metric, n, features):
    o, true = outcome(n, features), reference(n, features)
    found = resample({7: o}, metric, torch.ones(2, n, dtype=torch.long), true)
    assert found.seeds == (7,)
    assert found.value.item() == pytest.approx(whole(metric, o, true), rel=1e-6)
    assert found.bend.abs().max() < 1e-6, "nothing bends where nothing is resampled"


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "kid"])
@SIZES
def test_an_image_that_counts_twice_is_in_the_set_twice(metric, n, features):
    o, true = outcome(n, features), reference(n, features)
    weights = resamples(n, 5, seeded(3))
    repeated = (Outcome(*(part.repeat_interleave(w, dim=0) for part in o)) for w in weights)
    expected = [whole(metric, r, true.repeat_interleave(w, dim=0)) for r, w in zip(repeated, weights, strict=True)]
    assert every(metric, o, true, weights).tolist() == pytest.approx(expected, rel=1e-6)


def test_kid_leaves_out_all_pairs_of_an_image_with_its_own_duplicates():
    n, features = 8, 3
    o, true = outcome(n, features), reference(n, features)
    x, y = true.double().numpy(), o.features.double().numpy()

    def kernel(a, b):
        return (float(np.dot(a, b)) / features + 1) ** 3

    for weights in resamples(n, 4, seeded(4)):
        drawn = torch.arange(n).repeat_interleave(weights).tolist()
        values = [
            kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(y[i], x[j])
            for i in drawn for j in drawn if i != j
        ]  # fmt: skip
        assert every("kid", o, true, weights[None]).item() == pytest.approx(sum(values) / len(values), rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@SIZES
def test_influences_are_the_slopes_of_the_metric(metric, n, features):
    o, true = outcome(n, features), reference(n, features)
    found = resample({0: o}, metric, resamples(n, 20, seeded(6)), true)
    assert found.influence.mean().abs() < 1e-9 * found.influence.abs().max()
    step, more = 1e-4, n * torch.eye(n, dtype=torch.float64) - 1  # of one image, and less of all
    ahead, behind = 1 + step * more, 1 - step * more
    slopes = (every(metric, o, true, ahead) - every(metric, o, true, behind)) / (2 * step)
    torch.testing.assert_close(found.influence[0], slopes, rtol=1e-4, atol=1e-4 * slopes.abs().max().item())


@pytest.mark.parametrize("metric", METRICS)
def test_value_influence_and_bend_make_up_the_resampled_value(metric):
    n = 64
    o, true, weights = outcome(n), reference(n, 4), resamples(n, 200, seeded(7))
    found = resample({0: o, 1: outcome(n, seed=1)}, metric, weights, true)
    assert found.seeds == (0, 1) and found.bend.shape == (2, 200)
    first_order = found.value[0] + (weights - 1).double() @ found.influence[0] / n
    torch.testing.assert_close(first_order + found.bend[0], every(metric, o, true, weights))
    assert found.bend[0].var() < first_order.var()


def test_no_error_at_all_is_138_db_in_every_resample():
    o = outcome(10)._replace(error=torch.zeros(10))
    found = resample({0: o}, "hole_psnr_db", resamples(10, 5, seeded()), reference(10, 4))
    assert found.value.item() == pytest.approx(138.13, abs=0.01)
    assert not found.influence.any() and not found.bend.any()


def test_the_truth_itself_has_no_distance_and_no_error():
    true = reference(30, 5)
    for metric in ("kid", "score"):
        found = resample({0: outcome(30, 5)._replace(features=true)}, metric, resamples(30, 5, seeded()), true)
        for part in found[1:4]:
            assert part.abs().max() < 1e-5


def test_what_cannot_be_measured_in_some_resample_is_refused():
    rare = torch.zeros(10, dtype=torch.long).index_fill(0, torch.tensor([3]), 1)
    weights, true = resamples(10, 50, seeded()), reference(10, 4)
    with pytest.raises(ValueError, match="token_accuracy must be finite in all resamples: too few of the 10 images"):
        resample({0: outcome(10)._replace(right=rare, hidden=rare)}, "token_accuracy", weights, true)
    broken = outcome(10)
    broken.features[2, 1] = torch.nan
    with pytest.raises(ValueError, match="kid must be finite"):
        resample({0: broken}, "kid", weights, true)
