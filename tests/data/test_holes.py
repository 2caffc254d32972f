"""Fills and pastes: known pixels are the photograph's, none under a hole is read. Rings are SciPy's distances."""

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt

from lab5.data.archives import GREY
from lab5.data.dataset import token_mask
from lab5.data.holes import FILLS, PASTES, dilate, fill_holes, paste_known, rings
from lab5.data.toycats import random_holes, render

# --- fills ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return render(1, 7).images


@pytest.fixture(scope="module")
def holes():
    return random_holes(2, 7)


@pytest.mark.parametrize("fill", FILLS)
def test_known_pixels_stay_and_what_is_under_a_hole_never_matters(fill, images, holes, generator):
    before = images.clone(), holes.clone()
    filled = fill_holes(images, holes, fill)
    known = ~holes[:, None].expand_as(images)
    assert filled.dtype == torch.uint8 and torch.equal(filled[known], images[known])
    assert not torch.equal(filled[~known], images[~known])
    junk = torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
    assert torch.equal(fill_holes(torch.where(known, images, junk), holes, fill), filled)
    assert torch.equal(images, before[0]) and torch.equal(holes, before[1]), "the caller's tensors"


def test_grey_is_the_labs(images, holes):
    filled = fill_holes(images, holes, "grey")
    assert (filled[holes[:, None].expand_as(filled)] == GREY).all() and GREY == 128


def test_the_mean_is_that_of_each_images_known_pixels(images, holes):
    filled = fill_holes(images, holes, "mean")
    for image, hole, found in zip(images, holes, filled, strict=True):
        for channel in range(3):
            expected = round(image[channel][~hole].double().mean().item())
            assert (found[channel][hole] == expected).all()


@pytest.mark.parametrize(("fill", "method"), [("telea", cv2.INPAINT_TELEA), ("navier_stokes", cv2.INPAINT_NS)])
def test_classical_fills_are_opencvs_channel_by_channel_and_leave_no_hole(fill, method, images, holes):
    filled = fill_holes(images, holes, fill)
    grey, hole = images[0].clone(), holes[0].numpy().astype(np.uint8)
    grey[:, holes[0]] = GREY
    expected = cv2.inpaint(np.ascontiguousarray(grey.permute(1, 2, 0).numpy()), hole, 3, method)
    assert np.array_equal(filled[0].permute(1, 2, 0).numpy(), expected)
    # Of a slope, a fill that looks at its surroundings comes closer than grey does.
    slope = (torch.arange(64, dtype=torch.uint8) * 3).expand(1, 3, 64, 64)
    middle = torch.zeros(1, 64, 64, dtype=torch.bool)
    middle[:, 10:20, 4:14] = True
    error = {name: (fill_holes(slope, middle, name).int() - slope.int()).abs().max() for name in (fill, "grey")}
    assert error[fill] < 20 < error["grey"]


def test_an_image_without_a_hole_is_left_alone_and_one_of_hole_alone_is_filled_with_something(images):
    none, all_ = torch.zeros(7, 64, 64, dtype=torch.bool), torch.ones(7, 64, 64, dtype=torch.bool)
    for fill in FILLS:
        assert torch.equal(fill_holes(images, none, fill), images)
        assert fill_holes(images, all_, fill).shape == images.shape


# --- pastes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case():
    images, holes = render(3, 4).images, random_holes(4, 4)
    pictures = (images.float() * 0.8 + 20).round().to(torch.uint8)  # right but for brightness and contrast
    return pictures, images, holes


@pytest.mark.parametrize(
    ("paste", "known", "hidden"),
    [("none", "result", "result"), ("hard", "photograph", "result"), ("blurred", None, "result"),
     ("poisson", "photograph", None)],
)  # fmt: skip
def test_known_pixels_and_those_of_the_hole_are_the_photographs_or_the_results(case, paste, known, hidden):
    pictures, images, holes = case
    pasted, hole = paste_known(*case, paste), holes[:, None].expand_as(images)
    shown = {"result": pictures, "photograph": images, None: pasted}
    assert torch.equal(pasted[~hole], shown[known][~hole])
    assert torch.equal(pasted[hole], shown[hidden][hole])


@pytest.mark.parametrize("paste", PASTES)
def test_pixels_under_the_hole_are_never_read_and_a_perfect_result_is_the_photograph(case, paste):
    pictures, images, holes = case
    junk = torch.where(holes[:, None], 255 - images, images)
    assert torch.equal(paste_known(pictures, junk, holes, paste), paste_known(pictures, images, holes, paste))
    nothing = torch.zeros_like(holes)
    for hole in (holes, nothing):
        assert torch.equal(paste_known(images, images, hole, paste), images)
    assert torch.equal(paste_known(pictures, images, ~nothing, paste), pictures)


def test_blurred_fades_within_two_pixels_of_the_hole_and_leaves_the_rest(case):
    pictures, images, holes = case
    near = torch.nn.functional.max_pool2d(holes[:, None].float(), 5, stride=1, padding=2).bool().expand_as(images)
    pasted = paste_known(pictures, images, holes, "blurred")
    assert torch.equal(pasted[~near], images[~near])
    between = (pasted >= torch.minimum(images, pictures)) & (pasted <= torch.maximum(images, pictures))
    assert bool(between.all())


def test_poisson_keeps_gradients_so_a_wrong_brightness_vanishes(case):
    _, images, holes = case
    images = images.clamp(20, 200)
    shifted = images + 40
    assert torch.equal(paste_known(shifted, images, holes, "poisson"), images)


def test_poisson_solves_its_equation():
    generator = torch.Generator().manual_seed(0)
    pictures, images = (torch.randint(100, 140, (1, 3, 12, 12), generator=generator, dtype=torch.uint8) for _ in "ab")
    holes = torch.zeros(1, 12, 12, dtype=torch.bool)
    holes[0, 3:8, 4:9] = True
    pasted = paste_known(pictures, images, holes, "poisson").float()

    def laplacian(x):
        inner = x[..., 1:-1, 1:-1]
        return 4 * inner - x[..., :-2, 1:-1] - x[..., 2:, 1:-1] - x[..., 1:-1, :-2] - x[..., 1:-1, 2:]

    gap = (laplacian(pasted) - laplacian(pictures.float()))[..., holes[0, 1:-1, 1:-1]]
    assert gap.abs().max() <= 4  # five values rounded to bytes, each by at most a half, weights 4 and 1


# --- rings --------------------------------------------------------------------------------------------------------


def chessboard(unknown: torch.Tensor) -> np.ndarray:
    return np.stack([distance_transform_cdt(~grid.numpy(), "chessboard") for grid in unknown.view(-1, 16, 16)])


def test_rings_are_the_chessboard_distances_of_scipy(holes):
    corner = torch.arange(256)[None] == 255  # from here, every distance up to 15
    unknown = torch.cat([token_mask(holes), corner, torch.ones(1, 256, dtype=torch.bool)])
    distance = rings(unknown)
    assert np.array_equal(distance.view(-1, 16, 16), chessboard(unknown))
    assert distance[-2].unique().tolist() == list(range(16)) and not distance[-1].any()


def test_without_a_hole_every_token_is_further_than_any_other():
    assert rings(torch.zeros(2, 256, dtype=torch.bool)).unique().tolist() == [16]


@pytest.mark.parametrize("steps", [0, 1, 2, 20])
def test_dilating_takes_the_rings_up_to_there(holes, steps):
    unknown = token_mask(holes)
    before = unknown.clone()
    assert np.array_equal(dilate(unknown, steps).view(-1, 16, 16), chessboard(unknown) <= steps)
    assert torch.equal(unknown, before)


def test_a_mask_does_not_grow_around_the_border_of_the_image():
    edge = torch.arange(256)[None] == 31  # the end of the second row
    assert dilate(edge, 1).nonzero()[:, 1].tolist() == [14, 15, 30, 31, 46, 47]
