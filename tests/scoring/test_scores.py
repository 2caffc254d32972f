"""Scores against closed forms and stub networks: what is counted, of which images, and what every row stands beside."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lab5.data.dataset import Dataset
from lab5.data.toycats import random_holes, render
from lab5.fid import frechet_distance, kid
from lab5.inpainting.tokenizer import Tokenizer
from lab5.scoring.scores import Scorer, Scores, across_edge, psnr_db, ssim_map

N = 8


class Means:
    """Features that can be computed by hand: the mean of each colour in each quarter of the image."""

    score_name = "Frechet distance on quarter means"
    calls = 0

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.unfold(2, 32, 32).unfold(3, 32, 32).mean((-1, -2)).flatten(1)


class Reading(Means):
    """One that also reads attributes: always class 1."""

    def predict(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: torch.ones(len(images), dtype=torch.int64) for name in ("ear", "eye")}


class Weighted(torch.nn.Module, Means):
    def __init__(self, value: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([value]))


class FirstPixels(Tokenizer):
    """A tokenizer without a network: the red of the first pixel of each 4x4 block."""

    def __init__(self):
        self.calls = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images[:, 0, ::4, ::4].flatten(1).long()


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


def scored(pictures: torch.Tensor, truth: torch.Tensor, holes: torch.Tensor) -> Scores:
    """The scores of pictures with this truth and these holes."""
    yes = torch.ones(len(truth), dtype=torch.bool)
    dataset = make_dataset(test=truth, holes=holes, whole=yes, leaked=~yes, attributes={}, hidden={})
    return Scorer(dataset, Means())(pictures)


# --- PSNR -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [1, 100])
def test_hole_psnr_is_the_closed_form_of_a_constant_error(error):
    truth = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    holes = make_dataset().holes[:2]
    wrong = torch.where(holes[:, None], truth + error, truth)
    assert scored(wrong, truth, holes).hole_psnr_db == pytest.approx(20 * math.log10(255 / error))
    share = holes.double().mean().item()
    assert psnr_db(wrong, truth) == pytest.approx(20 * math.log10(255 / error) - 10 * math.log10(share))


def test_hole_psnr_weighs_every_missing_pixel_alike_and_no_other():
    truth = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    holes = torch.zeros(2, 64, 64, dtype=torch.bool)
    holes[0, 0, :30], holes[1, 0, :10] = True, True  # 30 pixels without error, 10 with an error in one colour
    wrong = truth.clone()
    wrong[1, 0, 0, :10] = 112
    wrong[:, :, 40:] = 0
    assert scored(wrong, truth, holes).hole_psnr_db == pytest.approx(10 * math.log10(255**2 / (12**2 / 3 * 10 / 40)))


# --- SSIM -------------------------------------------------------------------------------------------------------


def test_the_ssim_map_is_scikit_images():
    # structural_similarity(a, b, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    # data_range=255, full=True) of scikit-image 0.26.0: the mean of the map, two of its pixels, and a part's mean.
    expected = torch.tensor([
        [0.8397252975349491, 0.825412341784039, 0.8603755897196065, 0.8407773539090927],
        [0.8390429442441245, 0.8716987835613978, 0.8573667448964019, 0.8327614465010934],
        [0.840259047464277, 0.7985895851589597, 0.8403273309230109, 0.8385634882030746],
    ])  # fmt: skip
    generator = np.random.default_rng(5)
    truth = generator.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    noisy = np.clip(truth.astype(int) + generator.integers(-80, 81, truth.shape), 0, 255).astype(np.uint8)
    maps = ssim_map(torch.from_numpy(noisy), torch.from_numpy(truth))
    found = [[m.mean(), m[0, 0], m[20, 30], m[40:, 3:].mean()] for m in maps]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=2e-6)


def test_hole_ssim_is_the_mean_of_the_map_over_all_missing_pixels_together():
    generator = torch.Generator().manual_seed(3)
    images, truth = torch.randint(256, (2, 70, 3, 64, 64), dtype=torch.uint8, generator=generator)
    holes = torch.rand(70, 64, 64, generator=generator) < torch.rand(70, 1, 1, generator=generator) ** 4
    assert scored(images, truth, holes).ssim == pytest.approx(ssim_map(images, truth)[holes].mean().item(), abs=1e-6)


# --- the seam -----------------------------------------------------------------------------------------------------


def test_the_truth_has_no_seam_and_neither_have_images_without_an_edge():
    images, holes = render(5, 6).images, random_holes(6, 6)
    flat = torch.full_like(images, 9)
    assert scored(images, images, holes).seam == scored(flat, flat, holes).seam == 1.0
    for everywhere in (torch.ones_like(holes), torch.zeros_like(holes)):
        assert scored(255 - images, images, everywhere).seam == 1.0


def test_a_step_at_the_hole_is_a_seam_of_its_height():
    """A slope of 2 grey levels a pixel, downwards: a step is added at one edge, and taken off at the other."""
    holes = torch.zeros(6, 64, 64, dtype=torch.bool)
    holes[:, 20:30, 10:40] = True
    slope = (2 * torch.arange(64)[:, None].expand(64, 64) + 10).to(torch.uint8).expand(6, 3, 64, 64).contiguous()
    raised = torch.where(holes[:, None], slope + 10, slope)
    above_and_below, beside = 30, 10
    natural = 2 * 2 * above_and_below
    expected = (10 + 2 + 10 - 2) * above_and_below + 2 * 10 * beside
    assert across_edge(slope, holes).tolist() == [natural] * 6
    assert across_edge(raised, holes).tolist() == [expected] * 6
    assert scored(raised, slope, holes).seam == pytest.approx(expected / natural)


def test_a_truth_flatter_than_a_grey_level_counts_as_one_and_the_colours_by_their_mean():
    flat, holes = torch.full((6, 3, 64, 64), 100, dtype=torch.uint8), random_holes(6, 6)
    blue = flat.clone()
    blue[:, 2][holes] += 111
    assert scored(blue, flat, holes).seam == pytest.approx(111 / 3)
    edges = [int((hole[1:] != hole[:-1]).sum() + (hole[:, 1:] != hole[:, :-1]).sum()) for hole in holes]
    assert across_edge(flat, holes).tolist() == edges


# --- a row of scores --------------------------------------------------------------------------------------------


def test_the_truth_is_perfect_and_a_grey_hole_is_not():
    dataset = make_dataset()
    scorer = Scorer(dataset, Means(), tokenizer=FirstPixels())
    truth, grey = scorer(dataset.test), scorer(dataset.masked_test)
    assert (truth.score, truth.kid) == pytest.approx((0, 0), abs=1e-9)
    assert truth.hole_psnr_db == pytest.approx(138.13, abs=0.01)
    assert truth.ssim == pytest.approx(1, abs=1e-6) and truth.token_accuracy == 1
    assert grey.score > 100 * abs(truth.score) and grey.hole_psnr_db < 15
    assert grey.ssim < 0.5 and grey.token_accuracy < 0.2  # the first row of blocks begins above the hole
    assert truth.n == grey.n == N and scorer.score_name == Means.score_name


def test_scores_are_the_distances_of_the_networks_features():
    dataset = make_dataset()
    scores = Scorer(dataset, Means())(dataset.masked_test)
    a, b = (Means().features(images.float() / 255) for images in (dataset.masked_test, dataset.test))
    assert scores.score == frechet_distance(a, b) and scores.kid == kid(a, b, paired=True)


def test_token_accuracy_counts_the_tokens_that_the_hole_hides_and_no_other():
    # The hole of rows 10..29 and columns 20..49 touches the 6 x 8 blocks of rows 2..7 and columns 5..12. Of those
    # the first half is made wrong in half of the images, and so is everything that is known.
    dataset = make_dataset()
    blocks = torch.zeros(16, 16, dtype=torch.bool)
    blocks[2:5, 5:13] = True
    known = torch.ones(16, 16, dtype=torch.bool)
    known[2:8, 5:13] = False
    wrong = (blocks | known).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(N // 2, 3, 64, 64)
    pictures = dataset.test.clone()
    pictures[: N // 2][wrong] += 1
    scorer = Scorer(dataset, Means(), tokenizer=FirstPixels())
    assert scorer(pictures).token_accuracy == 1 - 0.5 / 2
    assert Scorer(dataset, Means())(pictures).token_accuracy is None


@pytest.mark.parametrize("dataset, network, accuracy", [
    # Hidden are three ears, of which only the second is 1, and one eye, which is 1: two of four are read rightly.
    (make_dataset(), Reading(), 2 / 4),
    (make_dataset(attributes={}, hidden={}), Reading(), None),
    (make_dataset(), Means(), None),
    (make_dataset(hidden={"ear": torch.zeros(N, dtype=torch.bool)}), Reading(), None),
], ids=["hidden", "photographs", "no reader", "nothing hidden"])  # fmt: skip
def test_attribute_accuracy_counts_only_what_is_hidden_and_is_none_of_nothing(dataset, network, accuracy):
    assert Scorer(dataset, network)(dataset.test).attribute_accuracy == accuracy


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
    for score in (Scorer(dataset, Means()), Scorer(dataset, Means()).by_group):
        with pytest.raises(ValueError, match=r"\(8, 3, 64, 64\) pictures to score, found \(7, 3, 64, 64\)"):
            score(dataset.test[:7])


def test_rows_name_the_images_holes_and_weights_that_they_were_measured_with_and_nothing_else():
    dataset = make_dataset()
    other, moved = dataset.test.clone(), dataset.holes.roll(1, 2)
    other[3, 0, 0, 0] += 1

    def name(network=None, n=None, tokenizer=None, **changes):
        return Scorer(make_dataset(**changes), network or Means(), n, tokenizer).data

    names = {name(), name(test=other), name(holes=moved), name(n=5), name(Weighted(1.0)), name(Weighted(2.0))}
    assert len(names) == 6 and name(Weighted(1.0)) in names
    assert name(leaked=torch.arange(N) < 3, tokenizer=FirstPixels()) == name()


# --- leaked and unseen images apart -----------------------------------------------------------------------------


def test_each_group_has_the_scores_of_its_images_alone():
    holes = torch.zeros(N, 64, 64, dtype=torch.bool)
    for i in range(N):  # of different sizes, so that the images do not weigh alike
        holes[i, 10 : 20 + 4 * i, 20:50] = True
    dataset = make_dataset(holes=holes, leaked=torch.tensor([1, 0, 1, 0, 0, 1, 0, 0]).bool())
    pictures = dataset.masked_test
    groups = Scorer(dataset, Reading(), tokenizer=FirstPixels()).by_group(pictures)
    assert list(groups) == ["all", "leaked", "unseen"]
    for name, chosen in (("all", dataset.whole), ("leaked", dataset.leaked), ("unseen", ~dataset.leaked)):
        alone = Scorer(dataclasses.replace(dataset, whole=chosen), Reading(), tokenizer=FirstPixels())
        assert groups[name] == pytest.approx(alone(pictures[chosen]), rel=1e-9), name


def test_the_groups_are_those_of_the_images_that_are_scored():
    leaked = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).bool()
    whole = torch.tensor([1, 1, 1, 0, 1, 1, 0, 1]).bool()
    groups = Scorer(make_dataset(leaked=leaked, whole=whole), Means()).groups
    assert {name: members.tolist() for name, members in groups.items()} == {
        "all": [True] * 6, "leaked": [True, True, False, True, True, False], "unseen": [False, False, True] * 2,
    }  # fmt: skip


@pytest.mark.parametrize("leaked, names", [
    ([0] * 8, ["all"]), ([1] * 8, ["all"]), ([1] + [0] * 7, ["all", "unseen"]), ([1] * 7 + [0], ["all", "leaked"]),
    ([1, 1] + [0] * 6, ["all", "leaked", "unseen"]),
])  # fmt: skip
def test_a_group_of_one_image_and_the_only_group_are_left_out(leaked, names):
    dataset = make_dataset(leaked=torch.tensor(leaked).bool())
    assert list(Scorer(dataset, Means()).by_group(dataset.test)) == names


def test_pictures_are_looked_at_once_for_all_groups():
    dataset, network, tokenizer = make_dataset(leaked=torch.arange(N) < 3), Means(), FirstPixels()
    assert len(Scorer(dataset, network, tokenizer=tokenizer).by_group(dataset.masked_test)) == 3
    assert network.calls == tokenizer.calls == 2, "once the truth, once the pictures"
