"""Bits against the exact small world, calibration by hand, diversity against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from stubs import named, seeded

from lab5.samplers import ORDERS, halton_order
from lab5.scoring.predictions import (
    Bin,
    bits_per_token,
    calibration,
    calibration_error,
    code_lengths,
    disagreement,
    hidden_predictions,
)
from lab5.study.small_world import World

HOLE = torch.tensor([True, False, True, True])
EVERYTHING = torch.ones(1, 4, dtype=torch.bool)


@pytest.fixture(scope="module")
def world() -> World:
    """A 2x2 grid of 3 codes, in which no two positions are alike."""
    return World(10 ** torch.rand(3, 3, 3, 3, generator=seeded(), dtype=torch.float64))


@pytest.fixture(scope="module")
def pictures(world) -> torch.Tensor:
    return world.pictures[torch.randperm(len(world.pictures), generator=seeded(1))[:24]]


def exact_bits(world: World, picture: torch.Tensor, hole: torch.Tensor) -> float:
    """-log2 p(hidden | known), from the joint law alone."""
    visible = picture.masked_fill(hole, world.mask_id)
    return -math.log2(world.given(visible.tolist())[tuple(picture.tolist())])


def marginal_bits(world: World, picture: torch.Tensor, hole: torch.Tensor) -> float:
    """The same as if the hidden tokens were independent given the known ones."""
    law = world.given(picture.masked_fill(hole, world.mask_id).tolist())
    places = hole.nonzero()[:, 0].tolist()
    marginal = {n: law.sum(dim=[m for m in range(world.positions) if m != n]) for n in places}
    return -sum(math.log2(marginal[n][picture[n]]) for n in places)


def bits(model, tokens: torch.Tensor, unknown: torch.Tensor, generator=None, **settings) -> torch.Tensor:
    """`code_lengths` of a linear schedule."""
    return code_lengths(model, tokens, unknown, generator=generator or seeded(), schedule="linear", **settings)


# --- bits


@pytest.mark.parametrize("order", ORDERS)
def test_one_token_at_a_time_every_order_has_the_exact_code_length(world, pictures, order):
    found = bits(world.model(), pictures, HOLE.expand(len(pictures), -1), steps=3, order=order)
    expected = torch.tensor([exact_bits(world, picture, HOLE) for picture in pictures])
    torch.testing.assert_close(found, expected.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule, steps", [("cosine", 1), ("one_shot", 1), ("one_shot", 4)])
def test_in_one_shot_the_code_length_is_the_sum_of_the_marginals(world, pictures, schedule, steps):
    unknown = HOLE.expand(len(pictures), -1)
    found = code_lengths(world.model(), pictures, unknown, schedule=schedule, steps=steps, generator=seeded())
    expected = torch.tensor([marginal_bits(world, picture, HOLE) for picture in pictures]).double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_two_steps_are_two_batches_of_independent_tokens(world, pictures):
    """Of 4 unknown tokens in 2 linear steps the 2 of the highest maximum come first, then the others given these."""
    surest = world.conditionals(torch.full((1, 4), 3))[0].amax(dim=1).argsort(descending=True)[:2]
    later = torch.ones(4, dtype=torch.bool).index_fill(0, surest, False)
    law = world.given([3] * 4)
    marginals = {n: law.sum(dim=[m for m in range(4) if m != n]) for n in surest.tolist()}
    expected = [
        marginal_bits(world, picture, later) - sum(math.log2(law[picture[n]]) for n, law in marginals.items())
        for picture in pictures
    ]
    found = bits(world.model(), pictures, EVERYTHING.expand(len(pictures), -1), steps=2, order="confidence")
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_bits_per_token_is_the_mean_over_hidden_tokens(world, pictures):
    unknown = torch.rand(len(pictures), 4, generator=seeded()) < 0.5
    mean = bits_per_token(world.model(), pictures, unknown, generator=seeded(), schedule="linear", steps=4)
    exact = [exact_bits(world, picture, hole) for picture, hole in zip(pictures, unknown, strict=True) if hole.any()]
    assert mean == pytest.approx(sum(exact) / int(unknown.sum()), abs=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_does_not_see_the_truth(world, pictures, order):
    """What is revealed at the first step is the same whatever the hidden tokens are."""
    seen, model, revealed = [], world.model(), []
    spy = named(lambda tokens: seen.append(tokens) or model(tokens), 3)
    for truth in pictures[:6]:
        seen.clear()
        bits(spy, truth[None], EVERYTHING, steps=4, order=order)
        revealed.append((seen[1] != 3).tolist())
        assert len(seen) == 4 and ((seen[-1] == truth) | (seen[-1] == 3)).all()
    assert revealed.count(revealed[0]) == len(revealed)


@pytest.mark.parametrize("seed", range(4))
def test_the_halton_order_goes_on_where_it_began(world, pictures, seed):
    seen, model = [], world.model()
    spy = named(lambda tokens: seen.append(tokens[0] != 3) or model(tokens), 3)
    bits(spy, pictures[:1], EVERYTHING, seeded(seed), steps=4, order="halton")
    revealed = [int((after & ~before).nonzero()) for before, after in pairwise([*seen, EVERYTHING[0]])]
    order = list(halton_order(2)) * 2
    start = order.index(revealed[0])
    assert revealed == order[start : start + 4]


def test_an_image_is_coded_alike_in_any_batch_and_the_callers_tensors_stay(world, pictures):
    unknown = torch.rand(len(pictures), 4, generator=seeded()) < 0.7
    kept = pictures.clone(), unknown.clone()
    together = bits(world.model(), pictures, unknown, [seeded(i) for i in range(len(pictures))], steps=2)
    for i in (0, 7):
        alone = bits(world.model(), pictures[i : i + 1].int(), unknown[i : i + 1], [seeded(i)], steps=2)
        assert alone.item() == pytest.approx(together[i].item(), abs=1e-9)
    assert torch.equal(pictures, kept[0]) and torch.equal(unknown, kept[1])


def test_the_mask_id_has_no_probability(world, pictures):
    unknown = HOLE.expand(len(pictures), -1)

    def padded(tokens):
        """Logits of K + 1, the last one high."""
        logits = world.model()(tokens)
        return torch.cat([logits, torch.full_like(logits[..., :1], 9.0)], dim=-1)

    log_p, true = hidden_predictions(named(padded, 3), pictures, unknown)
    expected = world.conditionals(pictures.masked_fill(unknown, 3))[unknown]
    torch.testing.assert_close(log_p.double().exp(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(true, pictures[unknown])
    bits = code_lengths(named(padded, 3), pictures, unknown, generator=seeded())
    assert bits.sum().item() == pytest.approx(-log_p.gather(1, true[:, None]).sum().item() / math.log(2), rel=1e-6)


# --- calibration


def test_calibration_by_hand():
    def sure(p: float) -> list[float]:
        return [p, (1 - p) / 2, (1 - p) / 2]

    probabilities = torch.tensor([sure(0.95), sure(0.95), sure(0.95), sure(0.95), sure(0.45), sure(0.55)])
    bins = calibration(probabilities.log(), torch.tensor([0, 0, 1, 2, 0, 1]), bins=10)
    assert [(b.low, b.high, b.accuracy, b.n) for b in bins] == [
        (0.4, 0.5, 1.0, 1), (0.5, 0.6, 0.0, 1), (0.9, 1.0, 0.5, 4)]  # fmt: skip
    assert [b.confidence for b in bins] == pytest.approx([0.45, 0.55, 0.95])
    assert calibration_error(bins) == pytest.approx((0.55 + 0.55 + 4 * 0.45) / 6)


def test_every_prediction_is_in_one_bin_also_at_the_edges():
    certain = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    assert calibration(certain, torch.tensor([0, 1]), bins=4) == [Bin(0.75, 1.0, 1.0, 0.5, 2)]
    log_p = torch.randn(500, 5, generator=seeded()).log_softmax(dim=1)
    for number in (1, 7, 15):
        assert sum(b.n for b in calibration(log_p, torch.zeros(500, dtype=torch.int64), bins=number)) == 500
    half = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    assert [(b.low, b.high) for b in calibration(half, torch.tensor([0]), bins=4)] == [(0.25, 0.5)]


# --- diversity


def test_disagreement_by_hand():
    unknown = torch.tensor([[True, True, False], [False, True, True]])
    same = torch.arange(6).view(2, 3)
    other = same.masked_fill(unknown, 9)
    assert disagreement(torch.stack([same, same, same]), unknown) == 0
    assert disagreement(torch.stack([same, other]), unknown) == 1
    assert disagreement(torch.stack([same, same, other]), unknown) == pytest.approx(2 / 3)
    one = same.clone()
    one[1, 1] = 9
    assert disagreement(torch.stack([same, one]), unknown) == 1 / 4
    assert disagreement(torch.stack([same, same.masked_fill(~unknown, 9)]), unknown) == 0, "outside does not count"
