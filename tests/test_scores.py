"""Scores against closed forms and stub networks: what is counted, of which images, and what every row stands beside."""

import dataclasses
import math

import pytest
import torch

from lab5.config import configure
from lab5.data import Dataset, normalise
from lab5.fid import frechet_distance, kid
from lab5.scores import EncoderFeatures, Scorer, hole_psnr_db, psnr_db
from lab5.vqgan import VQGAN

N = 8


class Means:
    """Features that can be computed by hand: the mean of each colour in each quarter of the image."""

    score_name = "Frechet distance on quarter means"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.unfold(2, 32, 32).unfold(3, 32, 32).mean((-1, -2)).flatten(1)


class Reading(Means):
    """One that also reads attributes: always class 1."""

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: torch.ones(len(images), dtype=torch.int64) for name in ("ear", "eye")}


def make_dataset(**changes) -> Dataset:
    """Random images, a square hole; of the ear 1 0 1 0 ... and of the eye 1 everywhere, hidden in some images."""
    images = torch.randint(256, (N, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    holes = torch.zeros(N, 64, 64, dtype=torch.bool)
    holes[:, 10:30, 20:50] = True
    labels = {"ear": torch.arange(N) % 2, "eye": torch.ones(N, dtype=torch.int64)}
    hidden = {"ear": torch.arange(N) < 3, "eye": torch.arange(N) == 5}
    yes = torch.ones(N, dtype=torch.bool)
    dataset = Dataset("stub", images[:0], images[:0], images, holes, yes, ~yes, {"test": labels}, hidden)
    return dataclasses.replace(dataset, **changes)


# --- PSNR -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [1, 16, 100])
def test_hole_psnr_is_the_closed_form_of_a_constant_error(error):
    truth = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    holes = make_dataset().holes[:2]
    wrong = torch.where(holes[:, None], truth + error, truth)
    assert hole_psnr_db(wrong, truth, holes) == pytest.approx(20 * math.log10(255 / error))
    share = holes.double().mean().item()
    assert psnr_db(wrong, truth) == pytest.approx(20 * math.log10(255 / error) - 10 * math.log10(share))


def test_hole_psnr_weighs_every_missing_pixel_alike_and_no_other():
    truth = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    holes = torch.zeros(2, 64, 64, dtype=torch.bool)
    holes[0, 0, :30], holes[1, 0, :10] = True, True  # 30 pixels without error, 10 with an error in one colour
    wrong = truth.clone()
    wrong[1, 0, 0, :10] = 112
    wrong[:, :, 40:] = 0
    assert hole_psnr_db(wrong, truth, holes) == pytest.approx(10 * math.log10(255**2 / (12**2 / 3 * 10 / 40)))


def test_without_error_psnr_is_a_finite_number_and_without_hole_it_is_refused():
    images = make_dataset().test
    assert psnr_db(images, images) == pytest.approx(138.13, abs=0.01)
    with pytest.raises(ValueError, match="at least one missing pixel"):
        hole_psnr_db(images, images, torch.zeros(N, 64, 64, dtype=torch.bool))


# --- a row of scores --------------------------------------------------------------------------------------------


def test_the_truth_is_perfect_and_a_grey_hole_is_not():
    dataset = make_dataset()
    scorer = Scorer(dataset, Means())
    truth, grey = scorer(dataset.test), scorer(dataset.masked_test)
    assert truth.score == pytest.approx(0, abs=1e-9) and truth.hole_psnr_db > 138
    assert grey.score > 100 * abs(truth.score) and grey.hole_psnr_db < 15
    assert truth.n == grey.n == N and scorer.score_name == Means.score_name


def test_scores_are_the_distances_of_the_networks_features():
    dataset = make_dataset()
    scores = Scorer(dataset, Means())(dataset.masked_test)
    a, b = (Means().features(images.float() / 255) for images in (dataset.masked_test, dataset.test))
    assert scores.score == frechet_distance(a, b) and scores.kid == kid(a, b)


def test_attribute_accuracy_counts_only_what_is_hidden():
    # Hidden are three ears, of which only the second is 1, and one eye, which is 1: two of four are read rightly.
    assert Scorer(make_dataset(), Reading())(make_dataset().test).attribute_accuracy == 2 / 4


def test_a_reader_can_be_given_and_sees_the_pictures():
    seen = []

    def read(images):
        seen.append(images)
        return {name: torch.zeros(len(images), dtype=torch.int64) for name in ("ear", "eye")}

    dataset = make_dataset()
    assert Scorer(dataset, Reading(), read=read)(dataset.masked_test).attribute_accuracy == 2 / 4  # two ears are 0
    assert torch.equal(seen[0], dataset.masked_test / 255)


@pytest.mark.parametrize("dataset, network", [
    (make_dataset(attributes={}, hidden={}), Reading()),
    (make_dataset(), Means()),
    (make_dataset(hidden={"ear": torch.zeros(N, dtype=torch.bool)}), Reading()),
], ids=["photographs", "no reader", "nothing hidden"])  # fmt: skip
def test_attribute_accuracy_is_none_where_there_is_nothing_to_read(dataset, network):
    assert Scorer(dataset, network)(dataset.test).attribute_accuracy is None


def test_only_images_whose_truth_is_known_are_scored():
    whole = torch.tensor([False, True, True, False, True, True, False, True])
    dataset = make_dataset(whole=whole)
    scorer = Scorer(dataset, Reading(), n=4)
    assert scorer.places.tolist() == [1, 2, 4, 5]
    assert torch.equal(scorer.truth, dataset.test[[1, 2, 4, 5]])
    assert scorer(dataset.test[scorer.places]).score == pytest.approx(0, abs=1e-9)
    assert scorer(scorer.truth).attribute_accuracy == 2 / 3  # of ears 1 and 2 the first, and of the eyes number 5


def test_too_few_known_images_and_pictures_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="at least 2 test images whose truth is known, found 1"):
        Scorer(make_dataset(whole=torch.arange(N) == 3), Means())
    dataset = make_dataset()
    with pytest.raises(ValueError, match=r"\(8, 3, 64, 64\) pictures to score, found \(7, 3, 64, 64\)"):
        Scorer(dataset, Means())(dataset.test[:7])


def test_rows_name_what_they_were_measured_on():
    dataset = make_dataset()
    other = dataset.test.clone()
    other[3, 0, 0, 0] += 1
    labels = [Scorer(d, Means(), n).data for d, n in ((dataset, None), (make_dataset(test=other), None), (dataset, 5))]
    assert len(set(labels)) == 3 and Scorer(make_dataset(), Means()).data == labels[0]


def test_rows_name_the_weights_of_the_network():
    class Network(torch.nn.Module, Means):
        def __init__(self, value: float):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([value]))

    labels = [Scorer(make_dataset(), Network(value)).data for value in (1.0, 1.0, 2.0)]
    assert labels[0] == labels[1] != labels[2]


# --- the VQGAN's encoder as a network of features ----------------------------------------------------------------


def test_encoder_features_are_the_means_of_latents_over_4x4_tokens():
    vqgan = VQGAN(configure("smoke", device="cpu").vqgan).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = EncoderFeatures(vqgan, batch=2).features(images)
    with torch.no_grad():
        latents = vqgan.latents(normalise(images))
    expected = latents.view(3, -1, 4, 4, 4, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert not EncoderFeatures.score_name.startswith("FID")
