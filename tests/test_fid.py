"""Distances against SciPy, closed forms and naive loops; feature networks against pytorch-fid and known labels."""

import hashlib
import re
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional as F

from lab5 import fid
from lab5.fid import (
    InceptionFeatures,
    ToyFeatures,
    attribute_loss,
    feature_stats,
    frechet_distance,
    frechet_distance_from_stats,
    kid,
    with_spread,
)

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


def test_frechet_distance_is_pytorch_fids():
    score = pytest.importorskip("pytorch_fid.fid_score")
    a, b = draw(200, 24, seed=12), draw(150, 24, seed=13, shift=0.1)
    stats = [s.numpy() for s in (*feature_stats(a), *feature_stats(b))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm(disp=) is deprecated in SciPy 1.17, gone in 1.18
        theirs = score.calculate_frechet_distance(*stats)
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-7)


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


# --- spread -----------------------------------------------------------------------------------------------------


def test_spread_is_that_of_fresh_samples():
    def distance(a, b):
        return (a.mean(0) - b.mean(0)).sum().item()  # its SD is known: sqrt(2 F / n)

    a, b = (torch.randn(400, 8, generator=torch.Generator().manual_seed(seed)) for seed in (16, 17))
    value, sd = with_spread(distance, a, b, repeats=400, generator=torch.Generator().manual_seed(18))
    assert value == pytest.approx(distance(a, b), rel=1e-6)
    assert sd == pytest.approx((2 * 8 / 400) ** 0.5, rel=0.2)


def test_spread_keeps_pairs_together():
    a = torch.randn(100, 8, generator=torch.Generator().manual_seed(19)).double()

    def distance(x, y):
        return (y - x).mean().item()

    value, sd = with_spread(distance, a, a + 0.5, generator=torch.Generator().manual_seed(20))
    assert value == pytest.approx(0.5) and sd < 1e-12


def test_spread_is_a_function_of_its_generator():
    a, b = draw(60, 8, seed=21), draw(60, 8, seed=22)
    first, again, other = (
        with_spread(frechet_distance, a, b, repeats=5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert first == again and first[0] == other[0] and first[1] != other[1]


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
    with pytest.raises(ValueError, match="found 5 and 4"):
        with_spread(distance, good, good[:4], generator=torch.Generator())


# --- Inception --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A random state dict of the FID network, with statistics that keep the activations in a sensible range."""
    inception = pytest.importorskip("pytorch_fid.inception")
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.Mixed_7b, network.Mixed_7c = inception.FIDInceptionE_1(1280), inception.FIDInceptionE_2(2048)
    network.Mixed_5b = inception.FIDInceptionA(192, 32)
    network.Mixed_5c, network.Mixed_5d = inception.FIDInceptionA(256, 64), inception.FIDInceptionA(288, 64)
    for name, width in {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}.items():
        setattr(network, name, inception.FIDInceptionC(768, width))
    generator = torch.Generator().manual_seed(23)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    file = tmp_path_factory.mktemp("inception") / fid.INCEPTION_FILE
    torch.save(network.state_dict(), file)
    return file


def test_inception_features_are_pytorch_fids(inception_file, monkeypatch):
    from pytorch_fid import inception

    state = torch.load(inception_file, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    theirs = inception.InceptionV3().eval()
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(inception_file))
    ours = InceptionFeatures()

    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(24))
    with torch.no_grad():
        expected = theirs(images)[0].flatten(1)
    features = ours.features(images, batch=2)
    assert features.shape == (3, 2048) and features.std(0).mean() > 1e-2 * expected.abs().mean() > 0
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)

    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert ours.weights_hash == digest
    assert "FID" not in ours.score_name and digest[:8] in ours.score_name  # other weights than the standard ones


def test_the_standard_weights_are_called_fid(inception_file, monkeypatch):
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    monkeypatch.setattr(fid, "INCEPTION_HASH", digest[:8])
    assert InceptionFeatures(inception_file).score_name == f"FID (Inception {digest[:8]})"


def test_missing_inception_weights_name_the_alternatives(tmp_path, monkeypatch):
    monkeypatch.delenv("LAB5_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError) as error:
        InceptionFeatures()
    for word in (fid.INCEPTION_FILE, "LAB5_INCEPTION_WEIGHTS", str(tmp_path / "hub")):
        assert word in str(error.value)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "absent.pth"))):
        InceptionFeatures(tmp_path / "absent.pth")


def test_other_files_are_refused_as_inception_weights(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ValueError, match="does not hold the weights"):
        InceptionFeatures(file)


# --- the toy classifier -----------------------------------------------------------------------------------------

CORNERS = {"left": 3, "right": 2}


def corner_images(n: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Noise with a square at the left and one at the right, whose independent colours are the labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 64, 64, generator=generator) * 0.3
    labels = {name: torch.randint(classes, (n,), generator=generator) for name, classes in CORNERS.items()}
    for name, column in (("left", 16), ("right", 40)):
        images[torch.arange(n), labels[name], 26:34, column : column + 8] += 0.6
    return images, labels


def test_toy_classifier_learns_left_and_right_apart():
    torch.manual_seed(0)
    model = ToyFeatures(CORNERS, features=32, channels=(8, 16, 16, 16))
    images, labels = corner_images(256, seed=25)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(30):
        optimiser.zero_grad()
        attribute_loss(model(images), labels).backward()
        optimiser.step()
    unseen, truth = corner_images(100, seed=26)
    predicted = model.predict(unseen)
    for name in CORNERS:
        assert predicted[name].dtype == torch.int64
        assert (predicted[name] == truth[name]).float().mean() > 0.95, name


def test_toy_features_are_what_the_heads_read():
    model = ToyFeatures(CORNERS)
    images, _ = corner_images(5, seed=27)
    features = model.features(images, batch=2)
    assert features.shape == (5, 96) and not features.requires_grad
    for name, logits in model(images).items():
        torch.testing.assert_close(F.linear(features, model.heads[name].weight, model.heads[name].bias), logits)
        assert torch.equal(model.predict(images, batch=3)[name], logits.argmax(1))


def test_the_toy_score_is_not_called_fid():
    assert ToyFeatures.score_name == "Frechet distance on toy-attribute features"


def test_the_toy_classifier_is_small():
    classes = dict.fromkeys("abcdefghijklmno", 4)
    assert 100_000 < sum(p.numel() for p in ToyFeatures(classes).parameters()) < 200_000


def test_attribute_loss_averages_over_attributes_and_wants_every_label():
    logits = {"left": torch.zeros(4, 3), "right": torch.tensor([[9.0, -9.0]] * 4)}
    zeros = torch.zeros(4, dtype=torch.int64)
    labels = {"left": torch.tensor([0, 1, 2, 0]), "right": zeros, "unread": zeros}
    assert attribute_loss(logits, labels).item() == pytest.approx(np.log(3) / 2, abs=1e-6)
    with pytest.raises(ValueError, match="right"):
        attribute_loss(logits, {"left": labels["left"]})


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_images_outside_the_unit_range_are_refused(wrong):
    images = torch.full((2, 3, 64, 64), 0.5)
    images[1, 0, 5, 5] = wrong
    with pytest.raises(ValueError, match=r"images must be in \[0,1\]"):
        ToyFeatures(CORNERS).features(images)
