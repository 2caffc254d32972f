"""Distances against their definitions and pytorch-fid; what holds for any two sets is in test_properties.py."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from stubs import seeded

from lab5.fid import feature_stats, frechet_distance, frechet_distance_from_stats, kid

REFUSED = (ValueError, TypeError)  # the shape checker, where it is installed, refuses first with a TypeError


def draw(n: int, features: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated features whose variances fall like those of a real network."""
    mixing = torch.randn(features, features, generator=seeded(1)) / features**0.5
    scale = torch.arange(1, features + 1) ** -0.5
    return (torch.randn(n, features, generator=seeded(seed)) * scale) @ mixing + shift


# --- Fréchet distance -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, m", [(200, 300), (64, 65), (300, 25), (25, 25), (25, 31), (25, 200), (3, 2)])
def test_frechet_distance_is_its_definition_from_features_and_from_their_stats(n, m):
    # A square root of singular matrices is ill-conditioned, so the independent answer is the spectrum:
    # the eigenvalues of S_a S_b are those of the small matrix (A Bᵀ)(B Aᵀ), and zeros.
    a, b = draw(n, 64, seed=2).double(), draw(m, 64, seed=3, shift=0.05).double()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real
    eigenvalues = np.sort(eigenvalues)[::-1][: min(n, m) - 1]  # the rank; the rest is rounding
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = apart + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance_from_stats(*feature_stats(a), *feature_stats(b)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("n, m", [(200, 150), (60, 70), (40, 200), (25, 31)])
def test_frechet_distance_is_pytorch_fids(n, m):
    score = pytest.importorskip("pytorch_fid.fid_score")
    a, b = draw(n, 64, seed=12), draw(m, 64, seed=13, shift=0.1)
    stats = [s.numpy() for s in (*feature_stats(a), *feature_stats(b))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm(disp=) is deprecated in SciPy 1.17, gone in 1.18
        theirs = score.calculate_frechet_distance(*stats)
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


def test_feature_stats_are_numpys():
    x = draw(50, 7, seed=6)
    mean, cov = feature_stats(x)
    assert mean.dtype == cov.dtype == torch.float64
    np.testing.assert_allclose(mean, x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10, atol=1e-14)


def test_rank_deficient_features_are_measured_exactly():
    a, b = torch.zeros(2, 300, 16, dtype=torch.float64)
    a[:, 0] = b[:, 1] = line = torch.linspace(-1, 1, 300, dtype=torch.float64)  # two orthogonal lines: S_a S_b = 0
    expected = 2 * line.var().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance_from_stats(*feature_stats(a), *feature_stats(b)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(torch.zeros(5, 3), torch.ones(5, 3)) == pytest.approx(3)


def test_equal_sets_have_no_distance_and_never_one_below_zero():
    """Where rounding alone would be negative."""
    for seed in range(20):
        a = draw(200, 64, seed)
        assert 0 <= frechet_distance(a, a.flip(0)) < 1e-10


def test_means_and_covariances_of_float32_are_compared_in_float64():
    far = np.full(4, 4096, np.float32), np.full(4, 4096.0625, np.float32)
    far[1][0] = 4100.1
    apart = ((far[0].astype(float) - far[1]) ** 2).sum()
    eye = np.eye(4, dtype=np.float32)
    assert frechet_distance_from_stats(far[0], eye, far[1], eye) == pytest.approx(apart, rel=1e-12)
    covariance = feature_stats(draw(40, 4, seed=1))[1].numpy().astype(np.float32)
    found, expected = (frechet_distance_from_stats(far[0], covariance.astype(kind), far[0], eye) for kind in "fd")
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kid])
def test_arrays_and_float32_give_the_same_value_and_are_left_alone(distance):
    a, b = draw(40, 64, seed=10), draw(40, 64, seed=11)
    before = a.clone()
    assert distance(a.numpy(), b.double()) == pytest.approx(distance(a, b), rel=1e-12)
    assert torch.equal(a, before)


# --- KID --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "features", "settings"),
    [(9, 9, 5, {}), (9, 9, 5, {"paired": True}), (1500, 1100, 2, {})],
    ids=["independent", "paired", "more than a block"],
)
def test_kid_is_the_mean_kernel_without_that_of_an_image_with_itself_or_its_pair(n, m, features, settings):
    a, b = draw(n, features, seed=14).double().numpy(), draw(m, features, seed=15, shift=0.3).double().numpy()

    def mean(x, y, skip_diagonal):
        kernel = (x @ y.T / features + 1) ** 3
        return kernel[~np.eye(*kernel.shape, dtype=bool)].mean() if skip_diagonal else kernel.mean()

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, bool(settings))
    assert kid(a, b, **settings) == pytest.approx(expected, rel=1e-9)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [frechet_distance, kid])
def test_features_that_cannot_be_compared_are_refused(distance):
    good, broken = torch.randn(5, 4), torch.randn(5, 4)
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="^features_b hold NaN or infinity in 1 of 5 images"):
        distance(good, broken)
    with pytest.raises(ValueError, match="^features_a hold NaN"):
        distance(broken, good)
    with pytest.raises(ValueError, match=r"at least 2 images; found shape \(1, 4\)"):
        distance(good[:1], good)
    with pytest.raises(REFUSED):
        distance(good, torch.randn(5, 3))
    with pytest.raises(REFUSED):
        distance(good.flatten(), good)


def test_statistics_of_other_features_and_pairs_of_other_numbers_are_refused():
    bare = inspect.unwrap(frechet_distance_from_stats)  # of the shape checker, which users do not have
    with pytest.raises(ValueError, match="have 3 and 4 features"):
        bare(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))
    with pytest.raises(ValueError, match="^features hold NaN"):
        feature_stats(np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="found 9 and 8"):
        kid(torch.zeros(9, 2), torch.zeros(8, 2), paired=True)
