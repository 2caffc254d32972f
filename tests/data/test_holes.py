"""Pasting: what is known is the photograph's, and what is under a hole is never read."""

import pytest
import torch

from lab5.data.holes import PASTES, paste_known
from lab5.data.toycats import random_holes, render


@pytest.fixture(scope="module")
def case():
    images, holes = render(3, 4).images, random_holes(4, 4)
    pictures = (images.float() * 0.8 + 20).round().to(torch.uint8)  # right but for brightness and contrast
    return pictures, images, holes


@pytest.mark.parametrize("paste", ["hard", "poisson"])
def test_known_pixels_are_the_photographs(case, paste):
    pictures, images, holes = case
    known = ~holes[:, None].expand_as(images)
    assert torch.equal(paste_known(pictures, images, holes, paste)[known], images[known])


def test_without_pasting_nothing_changes(case):
    assert torch.equal(paste_known(*case, "none"), case[0])


@pytest.mark.parametrize("paste", ["hard", "blurred"])
def test_the_hole_shows_the_result(case, paste):
    pictures, images, holes = case
    hidden = holes[:, None].expand_as(images)
    assert torch.equal(paste_known(pictures, images, holes, paste)[hidden], pictures[hidden])


@pytest.mark.parametrize("paste", PASTES)
def test_pixels_under_the_hole_are_never_read(case, paste):
    pictures, images, holes = case
    junk = torch.where(holes[:, None], 255 - images, images)
    assert torch.equal(paste_known(pictures, junk, holes, paste), paste_known(pictures, images, holes, paste))


@pytest.mark.parametrize("paste", PASTES)
def test_a_perfect_result_is_the_photograph(case, paste):
    _, images, holes = case
    assert torch.equal(paste_known(images, images, holes, paste), images)


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


@pytest.mark.parametrize("paste", PASTES)
def test_without_a_hole_and_with_nothing_else(case, paste):
    pictures, images, _ = case
    nothing = torch.zeros(len(images), 64, 64, dtype=torch.bool)
    assert torch.equal(paste_known(pictures, images, ~nothing, paste), pictures)
    assert torch.equal(paste_known(images, images, nothing, paste), images)


def test_an_unknown_paste_is_refused_by_name(case):
    with pytest.raises(ValueError, match="unknown paste 'soft'; there are none, hard, blurred, poisson"):
        paste_known(*case, "soft")
