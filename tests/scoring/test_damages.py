"""Damages: each family does more of the same, and each number is asked whether it sees that."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from stubs import Blocks, untrained_pair

from lab5.data.holes import fill_holes
from lab5.data.toycats import random_holes, render
from lab5.fid import frechet_distance, kid
from lab5.scoring.damages import FAMILIES, Family, Subject, _scaled, damaged_rows, out_of_order
from lab5.scoring.imagenet import ImageNetFeatures
from lab5.scoring.scores import psnr_db, ssim_map


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(render(3, 8).images, random_holes(5, 8), untrained_pair().tokenizer)


def differing(pictures: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (pictures != images).any(1)


def test_there_are_ten_families_of_several_strengths():
    assert len(FAMILIES) >= 10 and all(len(set(family.strengths)) >= 3 for family in FAMILIES.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_damage_is_the_same_whenever_it_is_done_and_grows_with_its_strength(name, subject):
    before, errors = subject.images.clone(), []
    for strength in FAMILIES[name].strengths:
        pictures = FAMILIES[name].damage(subject, strength)
        assert pictures.dtype == torch.uint8 and pictures.shape == subject.images.shape
        assert torch.equal(pictures, FAMILIES[name].damage(subject, strength))
        errors.append((pictures.double() - subject.images.double()).square().mean().item())
    assert torch.equal(subject.images, before)
    assert 0 < errors[0] < errors[-1]
    assert name == "tokens" or errors == sorted(errors), "an untrained decoder returns nothing that could get worse"


def test_the_numbers_of_a_row_are_those_of_their_modules_and_the_first_judge_has_the_kid(subject):
    families = {"mean": FAMILIES["mean"]._replace(strengths=(1,)), "tokens": FAMILIES["tokens"]}
    judges = {"one": Blocks(), "other": ImageNetFeatures()}
    (row,) = damaged_rows(subject._replace(tokenizer=None), judges, families)
    pictures = fill_holes(subject.images, subject.holes, "mean")
    of = {name: [judge.features(x / 255) for x in (pictures, subject.images)] for name, judge in judges.items()}
    assert list(row) == ["damage", "strength", "one", "KID", "other", "PSNR (dB)", "SSIM"]
    assert (row["damage"], row["strength"]) == ("mean", "1 times the hole")
    assert row["one"] == pytest.approx(frechet_distance(*of["one"]))
    assert row["other"] == pytest.approx(frechet_distance(*of["other"]))
    assert row["KID"] == pytest.approx(kid(*of["one"], paired=True))
    assert row["PSNR (dB)"] == pytest.approx(psnr_db(pictures, subject.images))
    assert row["SSIM"] == pytest.approx(ssim_map(pictures, subject.images).mean().item())


def test_a_column_that_finds_a_greater_damage_no_worse_is_told_from_one_that_does():
    values = [("a", 1, 30), ("a", 2, 20), ("b", 5, 30), ("b", 5, 31), ("c", 1, 9)]
    rows = [{"damage": name, "score": score, "PSNR (dB)": psnr} for name, score, psnr in values]
    assert out_of_order(rows, "score") == ["b"] and out_of_order(rows, "PSNR (dB)") == ["b"]
    assert out_of_order(rows[:2], "score") == out_of_order(rows[:2], "PSNR (dB)") == []


# --- single damages -----------------------------------------------------------------------------------------------


def test_scaled_holes_are_within_each_other_and_of_their_share(subject):
    holes = subject.holes
    small, same, large = (_scaled(holes, share) for share in (0.25, 1, 2))
    assert torch.equal(same, holes)
    assert not (small & ~holes).any() and not (holes & ~large).any()
    size = holes.sum((1, 2)).double()
    torch.testing.assert_close(small.sum((1, 2)).double(), (size / 4).ceil())
    torch.testing.assert_close(large.sum((1, 2)).double(), 2 * size)
    square = torch.zeros(1, 9, 9, dtype=torch.bool)
    square[0, 2:7, 2:7] = True
    assert _scaled(square, 1 / 25).nonzero().tolist() == [[0, 4, 4]], "its middle"
    assert not _scaled(square, 9).all(), "something is known"


def test_patches_are_those_of_the_picture_that_follows(subject):
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 64, 64)
    taken = differing(FAMILIES["patches"].damage(Subject(images, images[:, 0] > 9), 4), images)
    assert taken.view(5, 4, 16, 4, 16).float().mean((2, 4)).unique().tolist() == [0, 1], "whole cells"
    assert taken.view(5, -1).sum(1).tolist() == [4 * 256] * 5 and len(taken.unique(dim=0)) == 5
    pictures = FAMILIES["patches"].damage(Subject(images, images[:, 0] > 9), 16)
    assert pictures[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 0]


def test_noise_colour_contrast_and_jpeg_are_what_their_strengths_say(subject):
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    plain = Subject(grey, grey[:, 0] > 200)
    noise = FAMILIES["noise"].damage(plain, 8).double()
    assert noise.std().item() == pytest.approx(8, abs=0.1) and noise.mean().item() == pytest.approx(128, abs=0.2)
    assert FAMILIES["colour"].damage(plain, 16)[0, :, 0, 0].tolist() == [144, 128, 112]
    assert torch.equal(FAMILIES["contrast"].damage(plain, 0.4), grey)
    images = subject.images
    halved = FAMILIES["contrast"].damage(subject, 0.5).double()
    torch.testing.assert_close(halved.std((2, 3)), images.double().std((2, 3)) / 2, atol=0.2, rtol=0)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=40)
    jpeg = FAMILIES["JPEG"].damage(subject, 40)[0]
    assert np.array_equal(jpeg.permute(1, 2, 0), np.asarray(Image.open(file)))


def test_blur_keeps_the_mean_and_is_of_its_deviation():
    """The square of a Gaussian integrates to 1 / (4 pi SD²)."""
    point = torch.zeros(1, 3, 65, 65, dtype=torch.uint8)
    point[:, :, 32, 32] = 255
    blurred = FAMILIES["blur"].damage(Subject(point, point[:, 0] > 9), 1)
    assert blurred[0, 0, 32, 32].item() == pytest.approx(255 / (2 * np.pi), abs=1)


def test_tokens_drawn_at_random_are_as_many_as_is_said_and_the_others_are_the_pictures(subject, monkeypatch):
    tokenizer = subject.tokenizer
    assert torch.equal(FAMILIES["tokens"].damage(subject, 0), tokenizer.decode(tokenizer.encode(subject.images)))
    whole, decoded = tokenizer.encode(subject.images), []
    monkeypatch.setattr(tokenizer, "decode", lambda tokens: decoded.append(tokens) or subject.images)
    FAMILIES["tokens"].damage(subject, 0.2)
    drawn = (decoded[0] != whole).double().mean().item()
    assert drawn == pytest.approx(0.2 * (1 - 1 / tokenizer.codes), abs=0.04)


def test_imagenet_orders_toy_cats_by_strength_in_every_family_that_needs_no_network():
    cats = Subject(render(11, 8).images, random_holes(12, 8))
    rows = list(damaged_rows(cats, {"imagenet": ImageNetFeatures()}))
    assert len({row["damage"] for row in rows}) >= 10
    assert out_of_order(rows, "imagenet") == []


def test_a_family_of_ones_own_can_be_added(subject):
    darker = Family((0.9, 0.5), "{:g} of the light", lambda subject, share: (subject.images * share).to(torch.uint8))
    rows = list(damaged_rows(subject, {"blocks": Blocks()}, {"dark": darker}))
    assert [row["strength"] for row in rows] == ["0.9 of the light", "0.5 of the light"]
    assert out_of_order(rows, "blocks") == []
