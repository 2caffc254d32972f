"""Around a hole: distances are SciPy's, a leak ends where the encoder's sight does, and the truth has no seam."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt

from lab5.checkpoint import load_vqgan
from lab5.config import DecodeConfig
from lab5.data.dataset import token_mask
from lab5.data.holes import FILLS, PASTES, dilate, paste_known, rings
from lab5.data.toycats import random_holes, render
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import INPAINTING, configure
from lab5.runtime.folders import pretrained_folder
from lab5.scoring.scores import across_edge, seam
from lab5.study.around_hole import AROUND, around_grid, leak


@pytest.fixture(scope="module")
def images():
    return render(5, 6).images


@pytest.fixture(scope="module")
def holes():
    return random_holes(6, 6)


@pytest.fixture(scope="module")
def pretrained() -> Tokenizer:
    return Tokenizer(load_vqgan(pretrained_folder() / "vqgan.safetensors"))


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


def test_a_mask_does_not_grow_around_the_border_of_the_image_nor_shrink():
    edge = torch.arange(256)[None] == 31  # the end of the second row
    assert dilate(edge, 1).nonzero()[:, 1].tolist() == [14, 15, 30, 31, 46, 47]
    with pytest.raises(ValueError, match="by 0 rings of tokens or more, not by -1"):
        dilate(edge, -1)


# --- the leak -----------------------------------------------------------------------------------------------------


class Shortsighted(Tokenizer):
    """A tokenizer whose code is the mean of a token's pixels and those up to `sight` pixels around it."""

    def __init__(self, sight: int):
        self.sight = sight

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        wide = torch.nn.functional.pad(images.float(), (self.sight,) * 4, mode="replicate")
        return torch.nn.functional.avg_pool2d(wide, 4 + 2 * self.sight, stride=4).mean(1).flatten(1).round().long()

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        grey = tokens.view(-1, 1, 16, 16).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return grey.expand(-1, 3, -1, -1).to(torch.uint8)


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
    assert [row.changed for row in leaked.rings[:3]] == [1.0] * reach + [0.0] * (3 - reach)
    assert [row.n for row in leaked.rings] == [2 * (8 * ring + 12) for ring in range(1, 7)]  # squares around a square
    grid = torch.from_numpy(chessboard(token_mask(holes))[0])
    assert torch.equal(leaked.where[grid > 0], (grid <= reach)[grid > 0].float())
    assert leaked.where[grid == 0].isnan().all(), "never known"


def test_what_a_leak_costs_is_the_error_of_the_changed_tokens(whole_block):
    images, holes = whole_block
    first = leak(Shortsighted(4), images, holes, "grey").rings[0]
    # The window is 12 by 12: 4 by 8 to 4 by 12 of its pixels are in the hole, at a corner 4 by 4, and 127 darker.
    tokens = {"corner": (4, 16), "beside a corner": (8, 32), "side": (8, 48)}
    errors = [n * (255 - round(255 - 127 * area / 144)) ** 2 for n, area in tokens.values()]
    assert first.true_db == 120.0
    assert first.leaked_db == pytest.approx(10 * np.log10(255**2 * 20 / sum(errors)), abs=1e-4)


def test_true_images_as_their_own_fill_leak_nothing(pretrained, images, holes, monkeypatch):
    monkeypatch.setitem(FILLS, "truth", lambda images, holes: images)
    for row in leak(pretrained, images, holes, "truth").rings:
        assert row.changed == 0 and row.leaked_db == row.true_db


def test_the_pretrained_encoder_leaks_most_of_grey_and_little_far_off(pretrained, images, holes):
    near = {fill: leak(pretrained, images, holes, fill).rings for fill in ("grey", "telea", "navier_stokes")}
    assert near["grey"][0].changed > 2 * max(near[fill][0].changed for fill in ("telea", "navier_stokes"))
    shares = [row.changed for row in near["grey"]]
    assert shares[0] > shares[1] > shares[2] and max(shares[5:]) < 0.02
    assert near["grey"][0].leaked_db < near["grey"][0].true_db - 0.5  # the others lose too little to tell with 6


# --- the seam -----------------------------------------------------------------------------------------------------


def test_the_truth_has_no_seam_and_neither_have_images_without_an_edge(images, holes):
    assert seam(images, images, holes) == 1.0
    flat = torch.full_like(images, 9)
    assert seam(flat, flat, holes) == 1.0
    for everywhere in (torch.ones_like(holes), torch.zeros_like(holes)):
        assert seam(255 - images, images, everywhere) == 1.0


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
    assert seam(raised, slope, holes) == pytest.approx(expected / natural)


def test_a_truth_flatter_than_a_grey_level_counts_as_one(holes):
    flat = torch.full((6, 3, 64, 64), 100, dtype=torch.uint8)
    assert seam(torch.where(holes[:, None], flat + 37, flat), flat, holes) == pytest.approx(37)
    assert across_edge(flat, holes).tolist() == [int((one[1:] != one[:-1]).sum() + (one[:, 1:] != one[:, :-1]).sum())
                                                 for one in holes]  # fmt: skip


def test_only_the_edge_counts(images, holes):
    one = torch.zeros_like(holes)
    one[:, 32, 32] = True
    edge = torch.nn.functional.max_pool2d(one[:, None].float(), 3, stride=1, padding=1).bool()
    elsewhere = torch.where(edge, images, 255 - images)
    assert seam(elsewhere, images, one) == 1.0
    assert seam(torch.where(one[:, None], 255 - images, images), images, one) != 1.0


def test_a_poisson_paste_has_less_of_a_seam_than_a_hard_one(images, holes):
    brighter = (images.int() + 40).clamp(max=255).to(torch.uint8)
    seams = {paste: seam(paste_known(brighter, images, holes, paste), images, holes) for paste in PASTES}
    assert seams["hard"] > 2 and seams["hard"] > seams["blurred"] > seams["poisson"]
    assert seams["poisson"] == pytest.approx(1, abs=0.1)


# --- the choices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [DecodeConfig(), INPAINTING])
def test_the_grid_is_the_base_and_all_that_differ_in_one_setting_that_there_is(base):
    first, *others = around_grid(base)
    assert first == base and len(set(others)) == len(others) == sum(map(len, AROUND.values())) - len(AROUND)
    for variant in others:
        (name,) = [name for name, value in vars(variant).items() if value != getattr(base, name)]
        assert replace(base, **{name: getattr(variant, name)}) == variant
    assert set(AROUND["fill"]) <= set(FILLS) and AROUND["paste"] == tuple(PASTES)


def test_a_mask_that_shall_shrink_is_refused():
    assert configure("smoke", device="cpu", **{"decode.dilate": 2}).decode.dilate == 2
    with pytest.raises(ValueError, match="decode.dilate must be at least 0, not -1"):
        configure("smoke", device="cpu", **{"decode.dilate": -1})
