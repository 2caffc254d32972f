"""The exact small world: its conditionals by brute force, its laws by other means, and the decoder against them."""

from itertools import permutations, product

import numpy as np
import pytest
import scipy.stats
import torch
from stubs import named, seeded

from lab5 import variants
from lab5.config import DecodeConfig
from lab5.decoder import decode_steps, inpaint
from lab5.samplers import halton_order
from lab5.study.small_world import (
    ENUMERATED,
    World,
    distributions_by_steps,
    exact_distribution,
    first,
    first_committed,
    hidden_exponent,
    kl,
    neighbours,
    total_variation,
)

ONE_BY_ONE = {"schedule": "linear", "steps": 4}


def a_world(shape=(2, 2, 2, 2), seed=0) -> World:
    """Some pictures are ten times as likely as others, and no two positions alike."""
    return World(10 ** torch.rand(shape, generator=seeded(seed), dtype=torch.float64))


def brute_conditional(world: World, tokens: tuple, position: int) -> np.ndarray:
    """By asking every picture whether it agrees with what is visible elsewhere."""
    law = np.zeros(world.codes)
    for picture in product(range(world.codes), repeat=world.positions):
        if all(n == position or t in (world.mask_id, c) for n, (t, c) in enumerate(zip(tokens, picture, strict=True))):
            law[picture[position]] += world.probabilities[picture]
    return law / law.sum()


def marginals_product(world: World) -> torch.Tensor:
    p = world.probabilities
    axes = range(world.positions)
    result = torch.ones(())
    for n in axes:
        result = result[..., None] * p.sum(dim=[m for m in axes if m != n])
    return result


def decoded(world: World, n: int, generator, decode=decode_steps, **settings) -> torch.Tensor:
    masked = torch.ones(n, world.positions, dtype=torch.bool)
    *_, last = decode(world.model(), masked.long(), masked, DecodeConfig(**settings), generator=generator)
    return last.filled


def frequencies(world: World, tokens: torch.Tensor) -> torch.Tensor:
    """How often each picture occurs among these, shaped as the probabilities are."""
    counts = torch.zeros_like(world.probabilities)
    return counts.index_put(tuple(tokens.T), counts.new_tensor(1 / len(tokens)), accumulate=True)


def assert_follows(tokens: torch.Tensor, world: World, law: torch.Tensor) -> None:
    """A chi-square test of the decoded pictures against their law."""
    possible = law.flatten() > 0
    counts = (frequencies(world, tokens) * len(tokens)).flatten()
    assert counts[~possible].sum() == 0
    expected = law.flatten()[possible] * len(tokens)
    assert expected.min() > 5, "too few for a chi-square test"
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-3


# --- the world


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3), (4,)])
def test_the_model_knows_every_conditional(shape):
    world = a_world(shape)
    inputs = list(product(range(world.codes + 1), repeat=world.positions))
    answers = world.model()(torch.tensor(inputs)).exp()
    for tokens, answer in zip(inputs, answers, strict=True):
        for position in range(world.positions):
            assert np.allclose(answer[position], brute_conditional(world, tokens, position), atol=1e-12)


def test_probabilities_are_normalised():
    assert World(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).probabilities.tolist() == [[0.1, 0.2], [0.3, 0.4]]


def test_neighbours_like_to_be_equal():
    world = neighbours(2, 2, codes=2, coupling=1.5, favour=0.0)
    checkerboard, plain, one_off = (float(world.probabilities[p]) for p in ((0, 1, 1, 0), (0, 0, 0, 0), (0, 0, 0, 1)))
    assert plain / checkerboard == pytest.approx(np.exp(4 * 1.5))
    assert plain / one_off == pytest.approx(np.exp(2 * 1.5))
    leaning = neighbours(1, 2, codes=3, coupling=0.0, favour=0.6).probabilities
    assert leaning[0, 1] / leaning[1, 1] == pytest.approx(np.exp(0.6))
    assert leaning[1, 0] / leaning[1, 1] == pytest.approx(np.exp(0.3))


def test_given_is_the_law_of_the_pictures_that_agree():
    world = a_world((3, 3, 3))
    law = world.given([3, 1, 3])
    right = torch.zeros(3, 3, 3, dtype=torch.float64)
    right[:, 1] = world.probabilities[:, 1] / world.probabilities[:, 1].sum()
    torch.testing.assert_close(law, right)


# --- the law of choosing


def test_drawing_without_replacement_is_enumerated_right():
    """Against the sum over all orders in which the set can be drawn."""
    scores, noise = [0.3, -1.0, 2.0, 0.0], 0.7
    weights = np.exp(np.array(scores) / noise)
    for count in range(5):
        sets = first(scores, noise, count)
        assert sum(sets.values()) == pytest.approx(1)
        for chosen, chance in sets.items():
            right = 0.0
            for order in permutations(chosen):
                left, p = weights.sum(), 1.0
                for i in order:
                    p, left = p * weights[i] / left, left - weights[i]
                right += p
            assert chance == pytest.approx(right)


def test_without_noise_the_highest_are_chosen_and_the_last_of_equal_ones():
    assert first([1.0, 3.0, 2.0, 3.0], 0.0, 1) == {(3,): 1.0}
    assert first([1.0, 3.0, 2.0, 3.0], 0.0, 3) == {(1, 2, 3): 1.0}


# --- what a sampler does to the truth


@pytest.mark.parametrize("order", [*permutations(range(4)), "random", "max_probability", "margin", "entropy"])
def test_one_token_at_a_time_is_the_truth_in_any_order_that_does_not_look_at_the_drawn_codes(order):
    for world in (a_world(), neighbours(2, 2)):
        law = exact_distribution(world, order=order, **ONE_BY_ONE)
        assert total_variation(law, world.probabilities) < 1e-12
        assert kl(world.probabilities, law) < 1e-12


@pytest.mark.parametrize("order", ENUMERATED)
def test_one_shot_is_the_product_of_the_marginals(order):
    world = a_world((3, 3, 3))
    law = exact_distribution(world, order=order, steps=1)
    torch.testing.assert_close(law, marginals_product(world))
    assert total_variation(law, world.probabilities) > 0.1


@pytest.mark.parametrize("order", ["confidence", "lab", "moment"])
def test_looking_at_the_drawn_codes_costs_the_truth_even_one_by_one(order):
    world = neighbours(2, 2)
    law = exact_distribution(world, order=order, **ONE_BY_ONE)
    assert total_variation(law, world.probabilities) > 0.01
    entropy = [torch.special.entr(p).sum() for p in (law, world.probabilities)]
    assert entropy[0] < entropy[1], "likely pictures become likelier"


def test_more_steps_come_closer_to_the_truth():
    world = neighbours(2, 2, codes=3)
    distances = [
        total_variation(exact_distribution(world, schedule="linear", steps=steps, order="random"), world.probabilities)
        for steps in (1, 2, 3, 4)
    ]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-12 < 0.3 < distances[0]


@pytest.mark.parametrize("order", ENUMERATED)
def test_a_law_adds_up_to_one_and_keeps_what_is_known(order):
    world = a_world((3, 3, 3))
    law = exact_distribution(world, order=order, steps=2, tokens=[3, 1, 3])
    assert float(law.sum()) == pytest.approx(1)
    assert float(law[:, [0, 2]].sum()) == 0
    if order != "confidence":
        return
    one_by_one = exact_distribution(world, order="random", schedule="linear", steps=2, tokens=[3, 1, 3])
    assert total_variation(one_by_one, world.given([3, 1, 3])) < 1e-12


def test_greedy_codes_leave_one_picture():
    law = exact_distribution(a_world(), order="max_probability", temperature=0.0, **ONE_BY_ONE)
    assert sorted(law.flatten().tolist())[-2:] == [0.0, 1.0]


# --- the decoder against the exact law


@pytest.mark.parametrize("settings", [
    {"schedule": "linear", "steps": 4},
    {"schedule": "linear", "steps": 3, "temperature": 0.7},
    {"schedule": "cosine", "steps": 3, "choice_temperature": 0.8},
])  # fmt: skip
@pytest.mark.parametrize("order", ENUMERATED)
def test_the_decoder_follows_the_exact_law(order, settings):
    world = a_world()
    tokens = decoded(world, 20_000, seeded(1), order=order, **settings)
    assert_follows(tokens, world, exact_distribution(world, order=order, **settings))


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_with_a_generator_per_image_it_does_too(order):
    world = neighbours(2, 2, coupling=0.5)
    generators = [seeded(i) for i in range(3000)]
    law = exact_distribution(world, order=order, **ONE_BY_ONE)
    assert_follows(decoded(world, 3000, generators, order=order, **ONE_BY_ONE), world, law)


def test_the_test_can_tell_one_order_from_another():
    world = a_world()
    tokens = decoded(world, 20_000, seeded(1), order="confidence", **ONE_BY_ONE)
    for other in ("lab", "moment", "random"):
        with pytest.raises(AssertionError):
            assert_follows(tokens, world, exact_distribution(world, order=other, **ONE_BY_ONE))


def test_the_halton_order_is_a_mixture_of_its_beginnings():
    world, order = a_world(), halton_order(2)
    settings = {"schedule": "linear", "steps": 2}
    laws = [exact_distribution(world, order=order[start:] + order[:start], **settings) for start in range(4)]
    tokens = decoded(world, 20_000, seeded(1), order="halton", **settings)
    assert_follows(tokens, world, sum(laws) / 4)


def test_a_hole_is_filled_by_its_law():
    world = a_world((3, 3, 3))
    settings = {"schedule": "linear", "steps": 2, "order": "random"}
    tokens = torch.tensor([[0, 2, 0]]).expand(20_000, -1)
    unknown = torch.tensor([[True, False, True]]).expand(20_000, -1)
    filled = inpaint(world.model(), tokens, unknown, generator=seeded(), **settings)
    assert_follows(filled, world, world.given([3, 2, 3]))


def test_remasking_one_by_one_keeps_the_truth():
    """A token taken back is drawn anew from its exact conditional, which leaves the law as it is."""
    world = a_world()
    settings = {"schedule": "linear", "steps": 4, "order": "random"}
    exact = decoded(world, 20_000, seeded(2), variants.decode, **settings, remask=0.0)
    assert_follows(exact, world, world.probabilities)
    one_shot = total_variation(exact_distribution(world, steps=1), world.probabilities)
    # Where several go back at once they are drawn together, as in any parallel step: close, but not exact.
    again = frequencies(world, decoded(world, 20_000, seeded(2), variants.decode, **settings, remask=1.0))
    assert total_variation(again, world.probabilities) < one_shot / 3


def test_a_round_of_correction_mends_a_one_shot_decoding_and_more_of_them_overdo_it():
    """The least probable token in place is drawn again, which is not Gibbs sampling: likely pictures gain."""
    world = neighbours(2, 2, coupling=1.5)
    laws = [
        frequencies(world, decoded(world, 20_000, seeded(), variants.decode, steps=1, rounds=rounds, redo=0.25))
        for rounds in (0, 1, 10)
    ]
    distances = [total_variation(law, world.probabilities) for law in laws]
    assert distances[1] < distances[0] / 2 and distances[1] < distances[2]
    surprise = [-float((law * world.probabilities.log()).sum()) for law in laws]
    truth = float(torch.special.entr(world.probabilities).sum())
    assert surprise[0] > truth > surprise[2], "too unlikely at first, too likely in the end"


# --- MaskGIT's hidden temperature


@pytest.mark.parametrize("temperature", [4.5 * (1 - step / 8) for step in range(1, 8)])
def test_committed_codes_are_sharpened_to_one_plus_one_over_tau(temperature):
    """With tau = 4.5 (1 - t/8) the exponents are 1.25 1.30 1.36 1.44 1.59 1.89 2.78: from few positions to many."""
    limit = 1 + 1 / temperature
    p = [0.7, 0.3]
    exponents = [hidden_exponent(first_committed(p, n, temperature), p) for n in (1, 2, 8, 32, 128)]
    assert exponents[0] == pytest.approx(1) and exponents == sorted(exponents)
    assert exponents[-1] == pytest.approx(limit, rel=0.01) and exponents[-1] < limit
    three = [0.5, 0.3, 0.2]
    assert hidden_exponent(first_committed(three, 48, temperature), three) == pytest.approx(limit, rel=0.02)


@pytest.mark.parametrize("positions", [2, 3])
def test_the_first_committed_code_is_the_enumerated_one(positions):
    """Against `first` over every draw of codes."""
    p, temperature = [0.5, 0.3, 0.2], 1.3
    right = np.zeros(3)
    for codes in product(range(3), repeat=positions):
        chance = np.prod([p[code] for code in codes])
        for (chosen,), share in first([np.log(p[code]) for code in codes], temperature, 1).items():
            right[codes[chosen]] += chance * share
    assert np.allclose(first_committed(p, positions, temperature), right)


def test_the_decoder_has_the_hidden_temperature():
    """32 positions of one law, the first of them to be committed, many times over."""
    p, n, images = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), 32, 5000
    model = named(lambda tokens: p.log().expand(len(tokens), n, -1), mask_id=3)
    masked = torch.ones(images, n, dtype=torch.bool)
    decoding = DecodeConfig(schedule="linear", steps=n, choice_temperature=1.0 * n / (n - 1))
    states = decode_steps(model, masked.long(), masked, decoding, generator=seeded())
    _, state = next(states), next(states)
    codes = state.tokens[~state.masked]
    assert len(codes) == images
    expected = np.array(first_committed(p.tolist(), n, 1.0)) * images
    assert scipy.stats.chisquare(np.bincount(codes, minlength=3), expected).pvalue > 1e-3
    plain = p.numpy() * images
    assert scipy.stats.chisquare(np.bincount(codes, minlength=3), plain).pvalue < 1e-9


def test_the_exponent_of_a_power_is_found():
    p = [0.5, 0.3, 0.2]
    law = np.array(p) ** 1.7
    assert hidden_exponent((law / law.sum()).tolist(), p) == pytest.approx(1.7)


# --- distances


def test_distances_are_their_closed_forms():
    a, b = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert total_variation(a, b) == 0.5 and total_variation(a, a) == 0
    assert kl(a, b) == pytest.approx(np.log(2)) and kl(b, a) == np.inf and kl(a, a) == 0
    p, q = torch.rand(2, 20, generator=seeded(), dtype=torch.float64).softmax(dim=-1)
    assert kl(p, q) == pytest.approx(scipy.stats.entropy(p, q))


def test_laws_by_steps_begin_at_one_law_and_end_where_the_order_is_deaf_to_the_codes():
    laws = distributions_by_steps(steps=(1, 6))
    for by_order in laws["distances"].values():
        one_shot = [curve[0] for curve in by_order.values()]
        assert one_shot == pytest.approx([one_shot[0]] * len(one_shot)), "at T = 1 no order matters"
    for name in ("total variation from the truth", "KL divergence of the truth"):
        ends = {order: curve[1] for order, curve in laws["distances"][name].items()}
        assert all(ends[order] < 1e-9 for order in ("random", "max_probability", "margin", "entropy"))
        assert ends["confidence"] > 0.01 and ends["moment"] > 0.01
    diversity = laws["distances"]["diversity: nats more than the truth"]
    assert diversity["confidence"][1] < 0 < diversity["confidence"][0]
    for tau, exponent in laws["exponents"]["128 positions"]:
        assert exponent == pytest.approx(1 + 1 / tau, rel=0.03)
