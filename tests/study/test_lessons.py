"""A leak ends where the encoder's sight does."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt

from lab5.checkpoint import load_vqgan
from lab5.data.dataset import token_mask
from lab5.data.holes import FILLS
from lab5.data.toycats import random_holes, render
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.folders import pretrained_folder
from lab5.study.lessons import leak


@pytest.fixture(scope="module")
def images():
    return render(5, 6).images


@pytest.fixture(scope="module")
def holes():
    return random_holes(6, 6)


@pytest.fixture(scope="module")
def pretrained() -> Tokenizer:
    return Tokenizer(load_vqgan(pretrained_folder() / "vqgan.safetensors"))


def chessboard(unknown: torch.Tensor) -> np.ndarray:
    return np.stack([distance_transform_cdt(~grid.numpy(), "chessboard") for grid in unknown.view(-1, 16, 16)])


class Shortsighted(Tokenizer):
    """A tokenizer whose code is the mean of a token's pixels and those up to `sight` pixels around it."""

    def __init__(self, sight: int):
        self.sight = sight

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        wide = torch.nn.functional.pad(images.float(), (self.sight,) * 4, mode="replicate")
        return torch.nn.functional.avg_pool2d(wide, 4 + 2 * self.sight, stride=4).mean(1).flatten(1).round().long()


@pytest.fixture
def whole_block():
    """White images with a black hole of 4 by 4 tokens in the middle, so that all is known."""
    holes = torch.zeros(2, 64, 64, dtype=torch.bool)
    holes[:, 24:40, 24:40] = True
    return torch.full((2, 3, 64, 64), 255, dtype=torch.uint8), holes


@pytest.mark.parametrize(("sight", "reach"), [(0, 0), (4, 1), (8, 2)])
def test_a_leak_ends_where_the_encoder_does_not_see_the_hole(whole_block, sight, reach):
    images, holes = whole_block
    leaked = leak(Shortsighted(sight), images, holes, "grey")
    assert leaked.by_distance == [1.0] * reach + [0.0] * (6 - reach), "six tokens from the hole to the border"
    grid = torch.from_numpy(chessboard(token_mask(holes))[0])
    assert torch.equal(leaked.where[grid > 0], (grid <= reach)[grid > 0].float())
    assert leaked.where[grid == 0].isnan().all(), "never known"


def test_true_images_as_their_own_fill_leak_nothing(pretrained, images, holes, monkeypatch):
    monkeypatch.setitem(FILLS, "truth", lambda images, holes: images)
    assert not any(leak(pretrained, images, holes, "truth").by_distance)


def test_the_pretrained_encoder_leaks_most_of_grey_and_little_far_off(pretrained, images, holes):
    grey, telea, navier_stokes = (
        leak(pretrained, images, holes, fill).by_distance for fill in ("grey", "telea", "navier_stokes")
    )
    assert grey[0] > 2 * max(telea[0], navier_stokes[0])
    assert grey[0] > grey[1] > grey[2] and max(grey[5:]) < 0.02
