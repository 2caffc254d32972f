"""What the committed weights and the score made with them promise, on cats that nothing was trained on."""

import pytest
import torch
from torch.nn import functional as F

from lab5.checkpoint import load_transformer, load_vqgan
from lab5.data.dataset import open_dataset
from lab5.data.holes import fill_holes, paste_known
from lab5.inpainting.fill import inpaint_images
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.runtime.folders import pretrained_folder
from lab5.scoring.classifier import load_classifier
from lab5.scoring.scores import Scorer, psnr_db

N = 64


@pytest.fixture(scope="module")
def cats(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cats")
    return open_dataset("toycats", n_train=1, n_val=1, n_test=N, seed=777, cache=cache)


@pytest.fixture(scope="module")
def pair():
    folder = pretrained_folder()
    tokenizer = Tokenizer(load_vqgan(folder / "vqgan.safetensors"))
    return Pair(tokenizer, load_transformer(folder / "transformer.safetensors"), "pretrained")


@pytest.fixture(scope="module")
def score(cats):
    scorer = Scorer(cats, load_classifier())
    return lambda images: scorer(images).score


@pytest.fixture(scope="module")
def inpainted(cats, pair):
    return inpaint_images(pair, cats.test, cats.holes, configure("quick").decode, seed=0)


@pytest.fixture(scope="module")
def reconstruction(cats, pair):
    return pair.tokenizer.decode(pair.tokenizer.encode(cats.test))


def blurred(images, times):
    soft = images.float()
    for _ in range(times):
        soft = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
    return soft.round().to(torch.uint8)


def noisy(images, strength):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * strength * noise).clamp(0, 255).round().to(torch.uint8)


def framed(images, width):
    hole = torch.zeros(N, 64, 64, dtype=torch.bool)
    hole[:, 32 - width : 32 + width, 32 - width : 32 + width] = True
    return fill_holes(images, hole, "grey")


def test_the_score_puts_truth_reconstruction_inpainting_and_damage_in_this_order(
    cats, score, reconstruction, inpainted
):
    assert score(cats.test) == pytest.approx(0, abs=1e-6)
    assert 0 < score(reconstruction) < score(inpainted)
    for damaged in (blurred(cats.test, 12), noisy(cats.test, 0.3), fill_holes(cats.test, cats.holes, "grey")):
        assert score(inpainted) < score(damaged)


@pytest.mark.parametrize("damage, strengths", [
    (blurred, (0, 2, 6, 12, 24)), (noisy, (0.0, 0.05, 0.1, 0.2, 0.4)), (framed, (0, 2, 6, 12, 20)),
], ids=["blur", "noise", "grey hole"])  # fmt: skip
def test_the_score_grows_with_the_strength_of_the_damage(cats, score, damage, strengths):
    values = [score(damage(cats.test, strength)) for strength in strengths]
    assert values == sorted(values) and values[-1] > values[1] > 0


def test_the_pretrained_pair_is_half_as_far_from_the_truth_as_classical_inpainters_and_within_twice_the_floor(
    cats, score, inpainted, reconstruction
):
    """With the known pixels of the image, as the classical inpainters keep them."""
    kept = score(paste_known(inpainted, cats.test, cats.holes, "poisson"))
    assert kept <= min(score(fill_holes(cats.test, cats.holes, name)) for name in ("telea", "navier_stokes")) / 2
    assert kept <= 2 * score(reconstruction)


def test_the_pretrained_pair_is_nearer_to_the_truth_in_the_hole_than_classical_inpainters(cats, inpainted):
    def in_the_hole(pictures):
        return psnr_db(torch.where(cats.holes[:, None], pictures, cats.test), cats.test)

    for name in ("telea", "navier_stokes"):
        assert in_the_hole(inpainted) > 2 + in_the_hole(fill_holes(cats.test, cats.holes, name))


def test_cats_return_from_their_tokens_at_30_db(cats, reconstruction):
    assert psnr_db(reconstruction, cats.test) > 30
