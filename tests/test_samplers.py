"""Codes are drawn from the right distribution; orders rank as their closed forms do."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from stubs import seeded

from lab5 import samplers
from lab5.samplers import CODES, ORDERS, Proposal, nucleus, sample, top_k

CPU = torch.device("cpu")


def logits_of(probabilities, draws):
    """One image whose `draws` positions all have these probabilities."""
    return torch.tensor(probabilities).log().expand(1, draws, -1)


def random_proposal(images=2, positions=16, codes=5, **changes):
    log_probabilities = torch.randn(images, positions, codes, generator=seeded(1)).log_softmax(dim=-1)
    drawn = torch.randint(0, codes, (images, positions), generator=seeded(2))
    return Proposal(log_probabilities, drawn, torch.ones_like(drawn, dtype=torch.bool), 0.0)._replace(**changes)


def assert_frequencies(codes, probabilities):
    """A chi-square test over the codes that can occur; the others must not occur at all."""
    counts = torch.bincount(codes.flatten(), minlength=len(probabilities)).numpy()
    probabilities = np.asarray(probabilities)
    assert counts[probabilities == 0].sum() == 0
    possible = probabilities > 0
    if possible.sum() > 1:
        expected = probabilities[possible] / probabilities.sum() * counts.sum()
        assert scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-3


# --- noise


def test_noise_is_finer_than_float32():
    noise = samplers.uniform((1, 1000), seeded(), CPU)
    assert (noise.float().double() != noise).float().mean() > 0.9


@pytest.mark.parametrize("name, law", [("uniform", scipy.stats.uniform), ("gumbel", scipy.stats.gumbel_r)])
def test_noise_follows_its_law(name, law):
    noise = getattr(samplers, name)((20, 1000), seeded(), CPU)
    assert noise.shape == (20, 1000)
    assert scipy.stats.kstest(noise.flatten().numpy(), law.cdf).pvalue > 1e-3


def every_draw_is(monkeypatch, value):
    monkeypatch.setattr(samplers, "_rand", lambda shape, _: torch.full(shape, value, dtype=torch.float64))


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-53])
def test_noise_is_finite_at_both_ends_of_the_generator(drawn, monkeypatch):
    every_draw_is(monkeypatch, drawn)
    assert 0 < samplers.uniform((1, 1), seeded(), CPU) < 1
    assert samplers.gumbel((1, 1), seeded(), CPU).isfinite()


# --- codes

SKEWED = [0.5, 0.25, 0.125, 0.125, 0.0]


@pytest.mark.parametrize("draw, probabilities, temperature, right", [
    (sample, SKEWED, 1.0, SKEWED),
    (sample, SKEWED, 0.5, [16, 4, 1, 1, 0]),
    (sample, SKEWED, 2.0, [2, 2**0.5, 1, 1, 0]),
    (partial(top_k, share=0.25), [i / 78 for i in range(1, 13)], 1.0, [0] * 9 + [10, 11, 12]),
    (top_k, [i / 820 for i in range(1, 41)], 1.0, [0] * 36 + [37, 38, 39, 40]),  # a tenth
    (partial(nucleus, mass=0.4), [0.6, 0.05, 0.25, 0.1], 1.0, [1, 0, 0, 0]),
    (partial(nucleus, mass=0.7), [0.6, 0.05, 0.25, 0.1], 1.0, [60, 0, 25, 0]),
    (nucleus, [0.6, 0.05, 0.25, 0.1], 1.0, [60, 0, 25, 10]),  # nine tenths
    # The square roots are as 6 : 3 : 1: three quarters of the mass take two codes, where one would do before.
    (partial(nucleus, mass=0.75), [36 / 46, 9 / 46, 1 / 46], 2.0, [6, 3, 0]),
], ids=["sample", "cold", "warm", "top quarter", "top tenth", "0.4", "0.7", "0.9", "0.75 of the warm"])  # fmt: skip
def test_codes_are_drawn_in_their_proportions_among_those_kept(draw, probabilities, temperature, right):
    codes = draw(logits_of(probabilities, 40_000), temperature, seeded())
    assert_frequencies(codes, np.asarray(right) / sum(right))


@pytest.mark.parametrize("name, temperature", [
    *((name, temperature) for name in CODES for temperature in (0.0, 5e-324, 4e-201, 1e-30)), ("argmax", 5.0),
])  # fmt: skip
def test_temperature_zero_is_argmax_and_so_is_one_that_no_float32_can_hold(name, temperature):
    logits = torch.randn(2, 50, 30, generator=seeded())
    assert torch.equal(CODES[name](logits, temperature, seeded()), logits.argmax(dim=-1))


def test_no_draw_however_extreme_lands_on_an_impossible_code(monkeypatch):
    every_draw_is(monkeypatch, 1 - 2**-53)
    assert (CODES["sample"](logits_of(SKEWED, 3), 1.0, seeded()) == 3).all()
    # Probabilities in float32 rarely sum to exactly 1.
    assert (CODES["sample"](torch.randn(1, 100, 1000, generator=seeded()), 1.0, seeded()) < 1000).all()
    every_draw_is(monkeypatch, 0.0)
    assert (CODES["sample"](logits_of(SKEWED[::-1], 3), 1.0, seeded()) == 1).all()


@pytest.mark.parametrize("name", CODES)
def test_drawing_codes_is_pure_and_follows_the_seed(name):
    logits = torch.randn(3, 20, 30, generator=seeded())
    before = logits.clone()
    codes = CODES[name](logits, 1.0, seeded(4))
    assert torch.equal(codes, CODES[name](logits, 1.0, seeded(4)))
    assert torch.equal(logits, before)
    assert codes.shape == (3, 20) and codes.dtype == torch.int64
    alone = [CODES[name](logits[i : i + 1], 1.0, [seeded(i)]) for i in range(3)]
    assert torch.equal(CODES[name](logits, 1.0, [seeded(i) for i in range(3)]), torch.cat(alone))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [*CODES, *ORDERS])
def test_a_generator_of_either_device_serves_a_gpu(name):
    proposal = random_proposal(temperature=0.5)
    moved = Proposal(*(field.cuda() if isinstance(field, torch.Tensor) else field for field in proposal))
    for generator in (seeded(3), torch.Generator("cuda").manual_seed(3)):
        if name in CODES:
            answer = CODES[name](moved.log_probabilities, 1.0, generator)
        else:
            answer = ORDERS[name](moved, generator)
        assert answer.device == moved.codes.device and answer.shape == (2, 16)


# --- orders


@pytest.mark.parametrize("name, closed_form", [
    ("confidence", lambda p, chosen: math.log(chosen)),
    ("lab", lambda p, chosen: chosen),
    ("max_probability", lambda p, chosen: math.log(max(p))),
    ("moment", lambda p, chosen: math.log(max(p))),
    ("margin", lambda p, chosen: sorted(p)[-1] - sorted(p)[-2]),
    ("entropy", lambda p, chosen: -scipy.stats.entropy(p)),
])  # fmt: skip
def test_scores_without_noise_are_their_closed_forms(name, closed_form):
    proposal = random_proposal()
    scores = ORDERS[name](proposal, seeded())
    for b in range(2):
        for n in range(16):
            p = proposal.log_probabilities[b, n].double().exp().tolist()
            assert scores[b, n].item() == pytest.approx(closed_form(p, p[proposal.codes[b, n]]), abs=1e-5)


@pytest.mark.parametrize("name", ["confidence", "lab"])
@pytest.mark.parametrize("temperature", [0.5, 4.5])
def test_noise_on_the_order_is_gumbel_times_its_temperature(name, temperature):
    quiet, noisy = (random_proposal(images=50, temperature=t) for t in (0.0, temperature))
    noise = (ORDERS[name](noisy, seeded(5)) - ORDERS[name](quiet, seeded(6))) / temperature
    assert scipy.stats.kstest(noise.flatten().numpy(), scipy.stats.gumbel_r.cdf).pvalue > 1e-3


def test_the_random_order_puts_every_position_first_equally_often():
    first = ORDERS["random"](random_proposal(images=8000, positions=8), seeded()).argmax(dim=1)
    assert_frequencies(first, [1 / 8] * 8)


def test_rings_go_from_the_rim_inwards_and_without_a_rim_there_is_one():
    shares = torch.tensor([0.1, 0.5, 0.9, 0.97, 0.99, 0.0])
    unknown = torch.rand(6, 256, generator=seeded(1)) < shares[:, None]
    unknown[:, 100] = False  # somewhere to start from
    scores = ORDERS["rings"](random_proposal(6, 256, unknown=unknown), seeded())
    for image in range(6):
        hole = unknown[image].view(16, 16).numpy()
        distance = scipy.ndimage.distance_transform_cdt(hole, metric="chessboard")
        assert np.array_equal(np.ceil(-scores[image].view(16, 16).numpy()), distance)
    nothing_known = ORDERS["rings"](random_proposal(), seeded())
    assert nothing_known.max() - nothing_known.min() < 1


@pytest.mark.parametrize("name", ["rings", "halton"])
def test_orders_on_a_grid_need_a_square_one(name):
    with pytest.raises(ValueError, match=f"'{name}' needs a square grid of positions, but there are 15"):
        ORDERS[name](random_proposal(positions=15), seeded())


@pytest.mark.parametrize("code_temperature", [1.0, 0.5])
@pytest.mark.parametrize("temperature", [0.25, 4.5])
def test_the_moment_sampler_chooses_in_proportion_to_its_moments(temperature, code_temperature):
    """sum_v q(v) p(v)^(1/temperature), with q = p at code temperature 1 and p^2 / sum p^2 at one half."""
    p = np.array([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]])
    q = p ** (1 / code_temperature)
    moments = (q / q.sum(axis=1, keepdims=True) * p ** (1 / temperature)).sum(axis=1)
    log_p = torch.tensor(p).log().float().expand(40_000, -1, -1)
    codes = torch.zeros(40_000, 4, dtype=torch.int64)
    proposal = Proposal(log_p, codes, codes == 0, temperature, code_temperature)
    assert_frequencies(ORDERS["moment"](proposal, seeded()).argmax(dim=1), moments / moments.sum())


@pytest.mark.parametrize("close", [1e-3, 4e-201])
@pytest.mark.parametrize("code_temperature", [1.0, 0.0])
def test_the_moment_samplers_scores_are_continuous_in_the_temperature(code_temperature, close):
    """Both temperatures have cases of their own at 0, to which the formula must tend."""
    at_zero, near = (
        ORDERS["moment"](random_proposal(temperature=t, code_temperature=max(code_temperature, t)), seeded())
        for t in (0.0, close)
    )
    torch.testing.assert_close(near, at_zero, rtol=0, atol=0.02)


@pytest.mark.parametrize("codes, choice, right", [
    (1.0, 4.5, 1 / (1 + 1 / 4.5)), (0.5, 0.25, 1 / 6), (2.0, 1.0, 1 / 1.5), (0.0, 1.0, 0), (1.0, 0.0, 0), (0.0, 0.0, 0),
])  # fmt: skip
def test_the_moment_samplers_exponents_add_up_and_where_a_temperature_is_zero_it_is_greedy(codes, choice, right):
    proposal = random_proposal(temperature=choice, code_temperature=codes)
    assert samplers.moment_temperature(proposal) == pytest.approx(right)


@pytest.mark.parametrize("side", [1, 2, 4, 16])
def test_the_halton_order_is_the_first_visits_of_scipys_sequence(side):
    points = scipy.stats.qmc.Halton(2, scramble=False).random(20_000)[1:]  # its first point is the corner
    cells = np.floor(points * side + 1e-9).astype(int) @ [side, 1]
    _, first = np.unique(cells, return_index=True)
    assert samplers.halton_order(side) == tuple(cells[np.sort(first)])


def test_the_halton_order_begins_anywhere_and_goes_round():
    order = np.array(samplers.halton_order(4))
    starts = set()
    for once in np.arange(0.5, 16) / 16:
        scores = ORDERS["halton"](random_proposal(once=torch.tensor([once, 0.0])), seeded())
        visited = scores.argsort(dim=1, descending=True).numpy()
        start = int(np.flatnonzero(order == visited[0, 0])[0])
        assert np.array_equal(visited[0], np.roll(order, -start))
        assert np.array_equal(visited[1], order)
        starts.add(start)
    assert starts == set(range(16))


def test_the_lowest_scores_are_counted_per_image_and_ties_go_to_the_first():
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0], [0.0, 1.0, 2.0, 3.0]])
    right = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(samplers.lowest(scores, torch.tensor([3, 2, 0])), right)


@pytest.mark.parametrize("name", ORDERS)
def test_scores_stay_ordered_where_codes_are_impossible(name):
    probabilities = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0], [0.4, 0.3, 0.3], [0.9, 0.1, 0]]])
    proposal = Proposal(probabilities.log(), torch.tensor([[0, 2, 1, 0]]), torch.ones(1, 4, dtype=torch.bool), 1.0)
    assert (ORDERS[name](proposal, seeded()) < torch.inf).all()  # which a not-a-number fails too


@pytest.mark.parametrize("name", ORDERS)
def test_ordering_is_pure_and_follows_the_seed(name):
    proposal = random_proposal(temperature=1.0)
    before = [field.clone() for field in proposal[:3]]
    assert torch.equal(ORDERS[name](proposal, seeded(4)), ORDERS[name](proposal, seeded(4)))
    assert all(torch.equal(new, old) for new, old in zip(proposal[:3], before, strict=True))
