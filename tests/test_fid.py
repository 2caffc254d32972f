"""Distances against SciPy, pytorch-fid, closed forms and naive loops."""

import inspect
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from lab5.fid import feature_stats, frechet_distance, frechet_distance_from_stats, kid

REFUSED = (ValueError, TypeError)  # the shape checker, where it is installed, refuses first with a TypeError


def draw(n: int, features: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated features whose variances fall like those of a real network."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(1)) / features**0.5
    scale = torch.arange(1, features + 1) ** -0.5
    return (torch.randn(n, features, generator=generator) * scale) @ mixing + shift


def by_matrix_square_root(a: torch.Tensor, b: torch.Tensor) -> float:
    """The definition, literally, in NumPy and SciPy."""
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return apart + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)


@pytest.mark.parametrize("n, m", [(200, 300), (300, 41), (60, 45)])
def test_frechet_distance_equals_scipys_matrix_square_root(n, m):
    a, b = draw(n, 40, seed=2), draw(m, 40, seed=3, shift=0.05)
    assert frechet_distance(a, b) == pytest.approx(by_matrix_square_root(a, b), rel=1e-6)


@pytest.mark.parametrize("n, m", [(25, 25), (25, 31), (25, 200), (200, 25), (3, 2)])
def test_fewer_images_than_features_agrees_with_the_padded_spectrum(n, m):
    # A square root of singular matrices is ill-conditioned, so the independent answer is the spectrum:
    # the eigenvalues of S_a S_b are those of the small matrix (A Bᵀ)(B Aᵀ), and zeros.
    a, b = draw(n, 64, seed=2).double(), draw(m, 64, seed=3, shift=0.05).double()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real
    eigenvalues = np.sort(eigenvalues)[::-1][: min(n, m) - 1]  # the rank; the rest is rounding
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = apart + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n, m", [(25, 31), (25, 300), (300, 200), (64, 65)])
def test_features_and_their_stats_give_the_same_distance(n, m):
    a, b = draw(n, 64, seed=4), draw(m, 64, seed=5, shift=0.1)
    from_stats = frechet_distance_from_stats(*feature_stats(a), *feature_stats(b))
    assert frechet_distance(a, b) == pytest.approx(from_stats, rel=1e-7)


def test_feature_stats_are_numpys():
    x = draw(50, 7, seed=6)
    mean, cov = feature_stats(x)
    assert mean.dtype == cov.dtype == torch.float64
    np.testing.assert_allclose(mean, x.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10, atol=1e-14)


def test_diagonal_gaussians_have_the_closed_form():
    mean_a, mean_b = np.array([0.0, 1.0, -2.0, 0.5]), np.array([0.5, 1.0, 1.0, 0.5])
    sd_a, sd_b = np.array([1.0, 2.0, 0.0, 0.1]), np.array([3.0, 2.0, 0.5, 0.0])
    expected = ((mean_a - mean_b) ** 2 + (sd_a - sd_b) ** 2).sum()
    value = frechet_distance_from_stats(mean_a, np.diag(sd_a**2), mean_b, np.diag(sd_b**2))
    assert value == pytest.approx(expected, rel=1e-12)


def test_a_shift_and_a_scale_have_the_closed_form():
    a = draw(30, 64, seed=7).double()
    b = 1.5 * (a - a.mean(0)) + a.mean(0) + 0.25  # S_b = 2.25 S_a, so Tr sqrt(S_a S_b) = 1.5 Tr S_a
    expected = 64 * 0.25**2 + 0.25 * a.var(0).sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [20, 200])
def test_frechet_distance_is_symmetric_and_zero_for_equal_sets(n):
    a, b = draw(n, 64, seed=8), draw(n, 64, seed=9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, b) > 1e-3
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-10)


def test_rank_deficient_features_are_measured_exactly():
    line = torch.linspace(-1, 1, 300, dtype=torch.float64)
    a, b = torch.zeros(300, 16, dtype=torch.float64), torch.zeros(300, 16, dtype=torch.float64)
    a[:, 0], b[:, 1] = line, line  # two orthogonal lines: S_a S_b = 0
    expected = 2 * line.var().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance_from_stats(*feature_stats(a), *feature_stats(b)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(torch.zeros(5, 3), torch.ones(5, 3)) == pytest.approx(3)


def test_arrays_and_float32_give_the_same_value_and_are_left_alone():
    a, b = draw(40, 64, seed=10), draw(40, 64, seed=11)
    before = a.clone()
    assert frechet_distance(a.numpy(), b.double()) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    kid(a, b)
    assert torch.equal(a, before)


@pytest.mark.parametrize("n, m", [(200, 150), (60, 70), (40, 200), (25, 31)])
def test_frechet_distance_is_pytorch_fids(n, m):
    score = pytest.importorskip("pytorch_fid.fid_score")
    a, b = draw(n, 64, seed=12), draw(m, 64, seed=13, shift=0.1)
    stats = [s.numpy() for s in (*feature_stats(a), *feature_stats(b))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm(disp=) is deprecated in SciPy 1.17, gone in 1.18
        theirs = score.calculate_frechet_distance(*stats)
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


# --- KID --------------------------------------------------------------------------------------------------------


def test_kid_equals_a_naive_double_loop():
    a, b = draw(9, 5, seed=14).double().numpy(), draw(7, 5, seed=15, shift=0.3).double().numpy()

    def mean_kernel(x, y, skip_diagonal):
        values = [
            (float(np.dot(p, q)) / 5 + 1) ** 3
            for i, p in enumerate(x)
            for j, q in enumerate(y)
            if not (skip_diagonal and i == j)
        ]
        return sum(values) / len(values)

    expected = mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)
    assert kid(a, b) == pytest.approx(expected, rel=1e-10)


def test_kid_of_pairs_leaves_every_pair_out():
    a, b = draw(9, 5, seed=14).double().numpy(), draw(9, 5, seed=15, shift=0.3).double().numpy()
    values = [
        sum((float(np.dot(x, y)) / 5 + 1) ** 3 * sign for x, y, sign in
            ((a[i], a[j], 1), (b[i], b[j], 1), (a[i], b[j], -1), (b[i], a[j], -1)))
        for i in range(9) for j in range(9) if i != j
    ]  # fmt: skip
    assert kid(a, b, paired=True) == pytest.approx(sum(values) / len(values), rel=1e-10)
    assert kid(a, a, paired=True) == pytest.approx(0, abs=1e-12) and kid(a, a) < -0.1
    with pytest.raises(ValueError, match="found 9 and 8"):
        kid(a, b[:8], paired=True)


def test_kid_of_pairs_is_unbiased_at_every_n_and_that_of_independent_sets_is_not():
    def mean(n: int, paired: bool) -> tuple[float, float]:
        values = []
        for seed in range(120):
            a, noise = draw(n, 16, 100 + seed), draw(n, 16, 900 + seed)
            values.append(kid(a, 0.8 * a + 0.6 * noise, paired=paired))  # of the law of a, and close to it
        values = torch.tensor(values)
        return values.mean().item(), values.std().item() / 120**0.5

    for n in (10, 40):
        value, error = mean(n, paired=True)
        assert abs(value) < 3 * error
        value, error = mean(n, paired=False)
        assert value < -10 * error


def test_kid_does_not_depend_on_its_blocks():
    a, b = draw(1500, 2, seed=28).double(), draw(1100, 2, seed=29, shift=0.5).double()
    kernel = [(x @ y.T / 2 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    assert kid(a, b) == pytest.approx((within[0] + within[1] - 2 * kernel[2].mean()).item(), rel=1e-9)


def test_kid_is_unbiased_where_frechet_is_not():
    values = torch.tensor([kid(draw(40, 16, 100 + i), draw(40, 16, 900 + i)) for i in range(200)])
    standard_error = values.std() / 200**0.5
    assert abs(values.mean()) < 3 * standard_error
    assert values.min() < 0 < values.max()
    shifted = torch.tensor([kid(draw(40, 16, 100 + i), draw(40, 16, 900 + i, shift=0.2)) for i in range(50)])
    assert shifted.mean() > 10 * standard_error


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [frechet_distance, kid])
def test_features_that_cannot_be_compared_are_refused(distance):
    good, broken = torch.randn(5, 4), torch.randn(5, 4)
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="features_b hold NaN or infinity in 1 of 5 images"):
        distance(good, broken)
    with pytest.raises(ValueError, match=r"at least 2 images; found shape \(1, 4\)"):
        distance(good[:1], good)
    with pytest.raises(REFUSED):
        distance(good, torch.randn(5, 3))
    with pytest.raises(REFUSED):
        distance(good.flatten(), good)


def test_statistics_of_other_features_are_refused_in_a_sentence():
    bare = inspect.unwrap(frechet_distance_from_stats)  # of the shape checker, which users do not have
    with pytest.raises(ValueError, match="have 3 and 4 features"):
        bare(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))
    for place, name in enumerate(("features_a", "features_b")):
        sets = [np.zeros((3, 2)), np.zeros((3, 2))]
        sets[place][1] = np.nan
        with pytest.raises(ValueError, match=f"^{name} hold NaN"):
            kid(*sets)
    with pytest.raises(ValueError, match="^features hold NaN"):
        feature_stats(np.full((5, 2), np.nan))


def test_means_of_float32_are_compared_in_float64():
    far = np.full(4, 4096, np.float32), np.full(4, 4096.0625, np.float32)
    far[1][0] = 4100.1
    apart = ((far[0].astype(float) - far[1]) ** 2).sum()
    eye = np.eye(4, dtype=np.float32)
    assert frechet_distance_from_stats(far[0], eye, far[1], eye) == pytest.approx(apart, rel=1e-12)
    covariance = feature_stats(draw(40, 4, seed=1))[1].numpy().astype(np.float32)
    found, expected = (frechet_distance_from_stats(far[0], covariance.astype(kind), far[0], eye) for kind in "fd")
    assert found == pytest.approx(expected, rel=1e-12)
