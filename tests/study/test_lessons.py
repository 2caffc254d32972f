"""A leak ends where the encoder's sight does."""

import pytest
import torch

from lab5.checkpoint import load_vqgan
from lab5.data.holes import FILLS
from lab5.data.toycats import random_holes, render
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.folders import pretrained_folder
from lab5.study.lessons import leak


@pytest.fixture(scope="module")
def leaks():
    """The share of known tokens that leak into 6 cats by the pretrained encoder, by distance, under a fill."""
    tokenizer = Tokenizer(load_vqgan(pretrained_folder() / "vqgan.safetensors"))
    images, holes = render(5, 6).images, random_holes(6, 6)
    return lambda fill: leak(tokenizer, images, holes, fill).by_distance


class Shortsighted(Tokenizer):
    """A tokenizer whose code is the mean of a token's pixels and those up to `sight` pixels around it."""

    def __init__(self, sight: int):
        self.sight = sight

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        wide = torch.nn.functional.pad(images.float(), (self.sight,) * 4, mode="replicate")
        return torch.nn.functional.avg_pool2d(wide, 4 + 2 * self.sight, stride=4).mean(1).flatten(1).round().long()


@pytest.mark.parametrize(("sight", "reach"), [(0, 0), (4, 1), (8, 2)])
def test_a_leak_ends_where_the_encoder_does_not_see_the_hole(sight, reach):
    images, holes = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8), torch.zeros(2, 64, 64, dtype=torch.bool)
    holes[:, 24:40, 24:40] = True  # 4 by 4 tokens in the middle, of 16 by 16
    leaked = leak(Shortsighted(sight), images, holes, "grey")
    assert leaked.by_distance == [1.0] * reach + [0.0] * (6 - reach), "six tokens from the hole to the border"
    right = torch.zeros(16, 16)
    right[6 - reach : 10 + reach, 6 - reach : 10 + reach] = 1
    right[6:10, 6:10] = torch.nan  # never known
    torch.testing.assert_close(leaked.where, right, equal_nan=True)


def test_true_images_as_their_own_fill_leak_nothing(leaks, monkeypatch):
    monkeypatch.setitem(FILLS, "truth", lambda images, holes: images)
    assert not any(leaks("truth"))


def test_the_pretrained_encoder_leaks_most_of_grey_and_little_far_off(leaks):
    grey, telea, navier_stokes = map(leaks, ("grey", "telea", "navier_stokes"))
    assert grey[0] > 2 * max(telea[0], navier_stokes[0])
    assert grey[0] > grey[1] > grey[2] and max(grey[5:]) < 0.02
