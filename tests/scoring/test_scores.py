"""Scores against closed forms and stub networks: what is counted, of which images, and what every row stands beside."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lab5.data.dataset import Dataset
from lab5.data.holes import PASTES, paste_known
from lab5.data.toycats import random_holes, render
from lab5.fid import frechet_distance, kid
from lab5.inpainting.tokenizer import Tokenizer
from lab5.scoring.scores import Scorer, Scores, across_edge, psnr_db, ssim_map

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


@pytest.mark.parametrize("error", [1, 16, 100])
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


def test_without_error_psnr_is_a_finite_number():
    images = make_dataset().test
    assert psnr_db(images, images) == pytest.approx(138.13, abs=0.01)


# --- SSIM -------------------------------------------------------------------------------------------------------


def random_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Three pictures of noise, and the same with other noise on top."""
    generator = np.random.default_rng(5)
    truth = generator.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    noisy = np.clip(truth.astype(int) + generator.integers(-80, 81, truth.shape), 0, 255).astype(np.uint8)
    return torch.from_numpy(noisy), torch.from_numpy(truth)


def test_the_ssim_map_is_scikit_images():
    # structural_similarity(a, b, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    # data_range=255, full=True) of scikit-image 0.26.0: the mean of the map, two of its pixels, and a part's mean.
    expected = torch.tensor([
        [0.8397252975349491, 0.825412341784039, 0.8603755897196065, 0.8407773539090927],
        [0.8390429442441245, 0.8716987835613978, 0.8573667448964019, 0.8327614465010934],
        [0.840259047464277, 0.7985895851589597, 0.8403273309230109, 0.8385634882030746],
    ])  # fmt: skip
    found = [[m.mean(), m[0, 0], m[20, 30], m[40:, 3:].mean()] for m in ssim_map(*random_pictures())]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=2e-6)


def test_ssim_is_the_papers_formula_at_single_pixels():
    pictures = [images.double().numpy() for images in random_pictures()]
    padded = [np.pad(images, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="symmetric") for images in pictures]
    weights = np.array([[math.exp(-(u * u + v * v) / (2 * 1.5**2)) for u in range(-5, 6)] for v in range(-5, 6)])
    weights /= weights.sum()
    ours = ssim_map(*random_pictures())
    for image, row, column in ((0, 31, 7), (1, 0, 0), (2, 63, 40), (0, 5, 58)):
        values = []
        for colour in range(3):
            x, y = (p[image, colour, row : row + 11, column : column + 11] for p in padded)
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
            values.append(likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
        assert ours[image, row, column].item() == pytest.approx(sum(values) / 3, abs=2e-6)


def test_ssim_of_flat_pictures_is_the_likeness_of_their_means():
    truth, images = (torch.full((2, 3, 64, 64), value, dtype=torch.uint8) for value in (100, 160))
    expected = (2 * 100 * 160 + 6.5025) / (100**2 + 160**2 + 6.5025)
    assert scored(images, truth, make_dataset().holes[:2]).ssim == pytest.approx(expected, abs=1e-5)


def test_hole_ssim_is_the_mean_of_the_map_over_all_missing_pixels_together():
    generator = torch.Generator().manual_seed(3)
    images, truth = torch.randint(256, (2, 70, 3, 64, 64), dtype=torch.uint8, generator=generator)
    holes = torch.rand(70, 64, 64, generator=generator) < torch.rand(70, 1, 1, generator=generator) ** 4
    assert scored(images, truth, holes).ssim == pytest.approx(ssim_map(images, truth)[holes].mean().item(), abs=1e-6)


def test_hole_ssim_sees_the_rim_of_the_hole_and_nothing_further():
    dataset = make_dataset()
    far, near = dataset.test.clone(), dataset.test.clone()
    near[:, :, 30:35] = 128  # the hole ends above row 30, and a window reaches 5 pixels
    far[:, :, 35:] = 128
    assert scored(far, dataset.test, dataset.holes).ssim == pytest.approx(1, abs=1e-6)
    assert scored(near, dataset.test, dataset.holes).ssim < 0.99


# --- the seam -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return render(5, 6).images


@pytest.fixture(scope="module")
def holes():
    return random_holes(6, 6)


def test_the_truth_has_no_seam_and_neither_have_images_without_an_edge(images, holes):
    assert scored(images, images, holes).seam == 1.0
    flat = torch.full_like(images, 9)
    assert scored(flat, flat, holes).seam == 1.0
    for everywhere in (torch.ones_like(holes), torch.zeros_like(holes)):
        assert scored(255 - images, images, everywhere).seam == 1.0


@pytest.mark.parametrize("height", [10, 60])
def test_a_step_at_the_hole_is_a_seam_of_its_height(holes, height):
    """A slope of 2 grey levels a pixel, downwards: a step is added at one edge, and taken off at the other."""
    holes = torch.zeros_like(holes)
    holes[:, 20:30, 10:40] = True
    slope = (2 * torch.arange(64)[:, None].expand(64, 64) + 10).to(torch.uint8).expand(6, 3, 64, 64).contiguous()
    raised = torch.where(holes[:, None], slope + height, slope)
    above_and_below, beside = 30, 10
    natural = 2 * 2 * above_and_below
    expected = (height + 2 + height - 2) * above_and_below + 2 * height * beside
    assert across_edge(slope, holes).tolist() == [natural] * 6
    assert across_edge(raised, holes).tolist() == [expected] * 6
    assert scored(raised, slope, holes).seam == pytest.approx(expected / natural)


def test_a_truth_flatter_than_a_grey_level_counts_as_one(holes):
    flat = torch.full((6, 3, 64, 64), 100, dtype=torch.uint8)
    assert scored(torch.where(holes[:, None], flat + 37, flat), flat, holes).seam == pytest.approx(37)
    assert across_edge(flat, holes).tolist() == [int((one[1:] != one[:-1]).sum() + (one[:, 1:] != one[:, :-1]).sum())
                                                 for one in holes]  # fmt: skip


def test_only_the_edge_counts(images, holes):
    one = torch.zeros_like(holes)
    one[:, 32, 32] = True
    edge = torch.nn.functional.max_pool2d(one[:, None].float(), 3, stride=1, padding=1).bool()
    elsewhere = torch.where(edge, images, 255 - images)
    assert scored(elsewhere, images, one).seam == 1.0
    assert scored(torch.where(one[:, None], 255 - images, images), images, one).seam != 1.0


def test_a_poisson_paste_has_less_of_a_seam_than_a_hard_one(images, holes):
    brighter = (images.int() + 40).clamp(max=255).to(torch.uint8)
    seams = {paste: scored(paste_known(brighter, images, holes, paste), images, holes).seam for paste in PASTES}
    assert seams["hard"] > 2 and seams["hard"] > seams["blurred"] > seams["poisson"]
    assert seams["poisson"] == pytest.approx(1, abs=0.1)


# --- a row of scores --------------------------------------------------------------------------------------------


def test_the_truth_is_perfect_and_a_grey_hole_is_not():
    dataset = make_dataset()
    scorer = Scorer(dataset, Means(), tokenizer=FirstPixels())
    truth, grey = scorer(dataset.test), scorer(dataset.masked_test)
    assert truth.score == pytest.approx(0, abs=1e-9) and truth.kid == pytest.approx(0, abs=1e-9)
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


def test_the_columns_are_in_this_order():
    names = "score", "kid", "hole_psnr_db", "ssim", "seam", "token_accuracy", "attribute_accuracy", "n"
    assert Scores._fields == names


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


def test_attribute_accuracy_counts_only_what_is_hidden():
    # Hidden are three ears, of which only the second is 1, and one eye, which is 1: two of four are read rightly.
    assert Scorer(make_dataset(), Reading())(make_dataset().test).attribute_accuracy == 2 / 4


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
    for score in (Scorer(dataset, Means()), Scorer(dataset, Means()).by_group):
        with pytest.raises(ValueError, match=r"\(8, 3, 64, 64\) pictures to score, found \(7, 3, 64, 64\)"):
            score(dataset.test[:7])


def test_rows_name_what_they_were_measured_on():
    dataset = make_dataset()
    other = dataset.test.clone()
    other[3, 0, 0, 0] += 1
    others = make_dataset(test=other), make_dataset(holes=dataset.holes.roll(1, 2))
    labels = [Scorer(d, Means(), n).data for d, n in ((dataset, None), (dataset, 5), *((d, None) for d in others))]
    assert len(set(labels)) == 4 and Scorer(make_dataset(), Means()).data == labels[0]


def test_rows_name_the_weights_of_the_network():
    class Network(torch.nn.Module, Means):
        def __init__(self, value: float):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([value]))

    labels = [Scorer(make_dataset(), Network(value)).data for value in (1.0, 1.0, 2.0)]
    assert labels[0] == labels[1] != labels[2]


def test_a_tokenizer_or_a_split_does_not_rename_rows():
    dataset = make_dataset()
    plain = Scorer(dataset, Means()).data
    assert Scorer(dataset, Means(), tokenizer=FirstPixels()).data == plain
    assert Scorer(make_dataset(leaked=torch.arange(N) < 3), Means()).data == plain


# --- leaked and unseen images apart -----------------------------------------------------------------------------


def subset(dataset: Dataset, chosen: torch.Tensor) -> Dataset:
    """The dataset as if it had only these test images."""
    labels = {name: value[chosen] for name, value in dataset.attributes["test"].items()}
    return dataclasses.replace(
        dataset, test=dataset.test[chosen], holes=dataset.holes[chosen], whole=dataset.whole[chosen],
        leaked=dataset.leaked[chosen], attributes={"test": labels},
        hidden={name: value[chosen] for name, value in dataset.hidden.items()},
    )  # fmt: skip


def mixed(leaked: torch.Tensor) -> Dataset:
    """Holes of different sizes, so that the images do not weigh alike."""
    holes = torch.zeros(N, 64, 64, dtype=torch.bool)
    for i in range(N):
        holes[i, 10 : 20 + 4 * i, 20:50] = True
    return make_dataset(holes=holes, leaked=leaked)


def test_each_group_has_the_scores_of_its_images_alone():
    dataset = mixed(leaked=torch.tensor([1, 0, 1, 0, 0, 1, 0, 0]).bool())
    pictures = dataset.masked_test
    groups = Scorer(dataset, Reading(), tokenizer=FirstPixels()).by_group(pictures)
    assert list(groups) == ["all", "leaked", "unseen"]
    for name, chosen in (("leaked", dataset.leaked), ("unseen", ~dataset.leaked)):
        alone = Scorer(subset(dataset, chosen), Reading(), tokenizer=FirstPixels())(pictures[chosen])
        assert groups[name] == pytest.approx(alone, rel=1e-9), name
    assert groups["all"] == Scorer(dataset, Reading(), tokenizer=FirstPixels())(pictures)


def test_the_groups_add_up():
    dataset = mixed(leaked=torch.arange(N) < 3)
    scorer = Scorer(dataset, Reading(), tokenizer=FirstPixels())
    everyone, leaked, unseen = scorer.by_group(dataset.masked_test).values()
    assert (everyone.n, leaked.n, unseen.n) == (N, 3, N - 3)
    assert leaked.hole_psnr_db != unseen.hole_psnr_db

    def together(column: str, weights: list[float]) -> float:
        values = [getattr(row, column) for row in (leaked, unseen)]
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    pixels = [float(dataset.holes[part].sum()) for part in (slice(3), slice(3, N))]
    assert everyone.ssim == pytest.approx(together("ssim", pixels))
    errors = [10 ** (-row.hole_psnr_db / 10) for row in (everyone, leaked, unseen)]
    assert errors[0] == pytest.approx((errors[1] * pixels[0] + errors[2] * pixels[1]) / sum(pixels))
    assert everyone.attribute_accuracy == pytest.approx(together("attribute_accuracy", [3, 1]))  # 3 ears and 1 eye


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
    class Counting(Means):
        calls = 0

        def features(self, images):
            self.calls += 1
            return super().features(images)

    dataset, network, tokenizer = make_dataset(leaked=torch.arange(N) < 3), Counting(), FirstPixels()
    scorer = Scorer(dataset, network, tokenizer=tokenizer)
    assert len(scorer.by_group(dataset.masked_test)) == 3
    assert network.calls == tokenizer.calls == 2, "once the truth, once the pictures"
