"""The exact small world: its conditionals by brute force, its laws by other means, and the decoder against them."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations, permutations, product

import numpy as np
import pytest
import scipy.stats
import torch
from stubs import seeded

from lab5.config import DecodeConfig
from lab5.decoder import inpaint
from lab5.gamma import masked_counts
from lab5.samplers import halton_order
from lab5.study import small_world
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
from lab5.variants import decode

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
    axes, result = set(range(world.positions)), torch.ones(())
    for n in axes:
        result = result[..., None] * world.probabilities.sum(dim=list(axes - {n}))
    return result


def decoded(world: World, n: int, generator, **settings) -> torch.Tensor:
    masked = torch.ones(n, world.positions, dtype=torch.bool)
    *_, last = decode(world.model(), masked.long(), masked, DecodeConfig(**settings), generator=generator)
    return last.filled


def assert_follows(tokens: torch.Tensor, law: torch.Tensor) -> None:
    """A chi-square test of the decoded pictures against their law."""
    counts = torch.zeros_like(law).index_put(tuple(tokens.T), torch.ones((), dtype=law.dtype), accumulate=True)
    assert counts[law == 0].sum() == 0
    expected = law[law > 0] * len(tokens)
    assert expected.min() > 5, "too few for a chi-square test"
    assert scipy.stats.chisquare(counts[law > 0], expected).pvalue > 1e-3


# --- the world


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3), (4,)])
def test_the_model_knows_every_conditional(shape):
    world = a_world(shape)
    inputs = list(product(range(world.codes + 1), repeat=world.positions))
    answers = world.model()(torch.tensor(inputs)).exp()
    for tokens, answer in zip(inputs, answers, strict=True):
        for position in range(world.positions):
            assert np.allclose(answer[position], brute_conditional(world, tokens, position), atol=1e-12)


def test_neighbours_like_to_be_equal():
    p = neighbours(2, 2, codes=2, coupling=1.5, favour=0.0).probabilities
    for picture, unequal in {(0, 1, 1, 0): 4, (0, 0, 0, 1): 2, (0, 0, 1, 1): 2, (0, 1, 0, 1): 2}.items():
        assert p[0, 0, 0, 0] / p[picture] == pytest.approx(np.exp(unequal * 1.5))
    p = neighbours(1, 2, codes=3, coupling=0.0, favour=0.6).probabilities
    assert p[0, 1] / p[1, 1] == pytest.approx(np.exp(0.6)) and p[1, 0] / p[1, 1] == pytest.approx(np.exp(0.3))


# --- the law of choosing


@pytest.mark.parametrize("count", range(5))
def test_drawing_without_replacement_is_enumerated_right(count):
    """Against the sum over all orders in which the set can be drawn."""
    scores, noise = [0.3, -1.0, 2.0, 0.0], 0.7
    weights, right = np.exp(np.array(scores) / noise), defaultdict(float)
    for order in permutations(range(4), count):
        left = weights.sum() - np.cumsum([0, *weights[list(order)]])[:count]
        right[tuple(sorted(order))] += np.prod(weights[list(order)] / left)
    assert first(scores, noise, count) == pytest.approx(right)


@pytest.mark.parametrize(("count", "chosen"), [(1, (3,)), (3, (1, 2, 3))])
def test_without_noise_the_highest_are_chosen_and_the_last_of_equal_ones(count, chosen):
    assert first([1.0, 3.0, 2.0, 3.0], 0.0, count) == {chosen: 1.0}


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
    truth = neighbours(2, 2).probabilities
    law = exact_distribution(neighbours(2, 2), order=order, **ONE_BY_ONE)
    assert total_variation(law, truth) > 0.01
    assert torch.special.entr(law).sum() < torch.special.entr(truth).sum(), "likely pictures become likelier"


@pytest.mark.parametrize("order", ENUMERATED)
def test_a_law_adds_up_to_one_and_keeps_what_is_known(order):
    law = exact_distribution(a_world((3, 3, 3)), order=order, steps=2, tokens=[3, 1, 3])
    assert float(law.sum()) == pytest.approx(1) == float(law[:, 1].sum())


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
    assert_follows(tokens, exact_distribution(world, order=order, **settings))


def test_with_a_generator_per_image_it_does_too():
    world = neighbours(2, 2, coupling=0.5)
    tokens = decoded(world, 3000, [seeded(i) for i in range(3000)], **ONE_BY_ONE)
    assert_follows(tokens, exact_distribution(world, **ONE_BY_ONE))


# --- budgets and re-masking against laws that are enumerated here

Step = Callable[[World, tuple[int, ...], np.ndarray], Iterator[tuple[tuple[int, ...], float]]]


def enumerated(world: World, steps: Iterator[Step]) -> torch.Tensor:
    """How pictures are distributed where a step leads from tokens to others, each with its probability."""
    now, done = {(world.mask_id,) * world.positions: 1.0}, defaultdict(float)
    for step in steps:
        following: dict[tuple[int, ...], float] = defaultdict(float)
        for tokens, probability in now.items():
            if world.mask_id not in tokens:
                done[tokens] += probability
                continue
            laws = np.stack([brute_conditional(world, tokens, n) for n in range(world.positions)])
            for after, share in step(world, tokens, laws):
                following[after] += probability * share
        now = following
        if not now:
            break
    law = torch.zeros_like(world.probabilities)
    for tokens, probability in [*done.items(), *now.items()]:
        law[tokens] += probability
    return law


def proposals(world: World, tokens: tuple[int, ...], laws: np.ndarray) -> Iterator[tuple[dict[int, int], float]]:
    """A code for every masked position, each drawn by itself."""
    masked = [n for n, token in enumerate(tokens) if token == world.mask_id]
    for codes in product(range(world.codes), repeat=len(masked)):
        chosen = dict(zip(masked, codes, strict=True))
        yield chosen, float(np.prod([laws[n, code] for n, code in chosen.items()]))


def by_budget(budget: str, limit: float) -> Step:
    def step(world: World, tokens: tuple[int, ...], laws: np.ndarray) -> Iterator[tuple[tuple[int, ...], float]]:
        for chosen, probability in proposals(world, tokens, laws):
            if budget == "entropy":
                entropies = scipy.stats.entropy(laws, axis=1)
                rising = sorted(chosen, key=lambda n: entropies[n])
                bounds = [sum(entropies[rising[:k]]) for k in range(len(rising))]  # the sum less the largest, the last
                safe = [n for n, bound in zip(rising, bounds, strict=True) if bound <= limit]
            else:
                falling = sorted(chosen, key=lambda n: -laws[n, chosen[n]])
                safe = [n for n in falling if laws[n, chosen[n]] >= limit] or falling[:1]
            after = list(tokens)
            for n in safe:
                after[n] = chosen[n]
            yield tuple(after), probability

    return step


@pytest.mark.parametrize("budget, limit", [("entropy", 0.0), ("entropy", 0.65), ("entropy", 9.0), ("threshold", 0.0),
                                           ("threshold", 0.6), ("threshold", 1.0)])  # fmt: skip
def test_budgets_follow_their_exact_law(budget, limit):
    world = a_world()
    law = enumerated(world, iter([by_budget(budget, limit)] * 5))
    pictures = 60_000 if budget == "threshold" else 20_000  # which makes some of them rare
    assert_follows(decoded(world, pictures, seeded(1), budget=budget, limit=limit), law)
    if (budget, limit) == ("entropy", 0.0):
        assert torch.allclose(law, world.probabilities), "one by one, whatever the codes: the truth"


def with_remasking(left: int, eta: float) -> Step:
    """In random order; each generated token goes back with the chance of ReMDM, no more of them than stay masked."""

    def step(world: World, tokens: tuple[int, ...], laws: np.ndarray) -> Iterator[tuple[tuple[int, ...], float]]:
        masked = [n for n, token in enumerate(tokens) if token == world.mask_id]
        generated = [n for n in range(world.positions) if n not in masked]
        chance = eta * min(1.0, left / max(1, len(generated)))
        for number in range(len(generated) + 1):
            drawn = chance**number * (1 - chance) ** (len(generated) - number)
            for hit in combinations(generated, number):
                several = list(combinations(hit, min(left, number)))
                for back in several:
                    staying = list(combinations(masked, left - len(back)))
                    for stays in staying:
                        for chosen, probability in proposals(world, tokens, laws):
                            after = [chosen.get(n, token) for n, token in enumerate(tokens)]
                            for n in (*back, *stays):
                                after[n] = world.mask_id
                            yield tuple(after), drawn / len(several) / len(staying) * probability

    return step


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_remasking_follows_its_exact_law(eta):
    world, settings = a_world(), {"schedule": "linear", "steps": 4, "order": "random"}
    steps = [with_remasking(left, eta) for left in masked_counts("linear", 4, 4)]
    law = enumerated(world, iter(steps))
    assert law.sum().item() == pytest.approx(1)
    assert_follows(decoded(world, 20_000, seeded(1), remask=eta, **settings), law)


@pytest.mark.parametrize("other", ["lab", "moment", "random"])
def test_the_test_can_tell_one_order_from_another(other):
    tokens = decoded(a_world(), 20_000, seeded(1), order="confidence", **ONE_BY_ONE)
    with pytest.raises(AssertionError):
        assert_follows(tokens, exact_distribution(a_world(), order=other, **ONE_BY_ONE))


def test_the_halton_order_is_a_mixture_of_its_beginnings():
    world, order = a_world(), halton_order(2)
    settings = {"schedule": "linear", "steps": 2}
    laws = [exact_distribution(world, order=order[start:] + order[:start], **settings) for start in range(4)]
    tokens = decoded(world, 20_000, seeded(1), order="halton", **settings)
    assert_follows(tokens, sum(laws) / 4)


def test_a_hole_is_filled_by_its_law():
    world, settings = a_world((3, 3, 3)), {"schedule": "linear", "steps": 2, "order": "random"}
    law = world.given([3, 2, 3])
    assert total_variation(exact_distribution(world, tokens=[3, 2, 3], **settings), law) < 1e-12
    tokens = torch.tensor([[0, 2, 0]]).expand(20_000, -1)
    unknown = torch.tensor([[True, False, True]]).expand(20_000, -1)
    assert_follows(inpaint(world.model(), tokens, unknown, generator=seeded(), **settings), law)


# --- MaskGIT's hidden temperature


@pytest.mark.parametrize("step", [1, 4, 7])
def test_committed_codes_are_sharpened_to_one_plus_one_over_tau(step):
    temperature = 4.5 * (1 - step / 8)
    limit = 1 + 1 / temperature
    p = [0.7, 0.3]
    exponents = [hidden_exponent(first_committed(p, n, temperature), p) for n in (1, 2, 8, 32, 128)]
    assert exponents[0] == pytest.approx(1) and exponents == sorted(exponents)
    assert exponents[-1] == pytest.approx(limit, rel=0.01) and exponents[-1] < limit


@pytest.mark.parametrize("positions", [2, 3])
def test_the_first_committed_code_is_the_enumerated_one(positions):
    p, temperature = np.array([0.5, 0.3, 0.2]), 1.3
    right = np.zeros(3)
    for codes in map(list, product(range(3), repeat=positions)):
        for (chosen,), share in first(np.log(p[codes]).tolist(), temperature, 1).items():
            right[codes[chosen]] += p[codes].prod() * share
    assert np.allclose(first_committed(p.tolist(), positions, temperature), right)


# --- distances


def test_distances_are_their_closed_forms():
    a, b = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert total_variation(a, b) == 0.5 and total_variation(a, a) == 0
    assert kl(a, b) == pytest.approx(np.log(2)) and kl(b, a) == np.inf and kl(a, a) == 0


def test_laws_by_steps_begin_at_one_law_and_end_where_the_order_is_deaf_to_the_codes(monkeypatch):
    monkeypatch.setattr(small_world, "neighbours", lambda *shape: neighbours(2, 2))  # a smaller one
    laws = distributions_by_steps(steps=(1, 4))
    variation, divergence, diversity = laws["distances"].values()
    for by_order in (variation, divergence, diversity):
        one_shot = [curve[0] for curve in by_order.values()]
        assert one_shot == pytest.approx([one_shot[0]] * len(one_shot)), "at T = 1 no order matters"
    for by_order in (variation, divergence):
        assert all(by_order[order][1] < 1e-9 for order in ("random", "max_probability", "margin", "entropy"))
        assert by_order["confidence"][1] > 0.01 and by_order["moment"][1] > 0.01
    assert diversity["confidence"][1] < 0 < diversity["confidence"][0]
    for tau, exponent in laws["exponents"]["128 positions"]:
        assert exponent == pytest.approx(1 + 1 / tau, rel=0.03)
