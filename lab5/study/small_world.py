"""A world so small that everything about it is known: the proof of the decoder, and a lesson about it.

Few positions, few codes, and a probability for every picture: the marginals that a perfect model would predict are
sums, and so is the distribution of what a decoding returns. It shows what the sampler itself does to the
distribution, with no network to blame, and without the decoder, whose results it is there to judge.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lab5.gamma import masked_counts

Distribution = dict[tuple[int, ...], float]
ENUMERATED = ("random", "confidence", "lab", "max_probability", "margin", "entropy", "moment")


class World:
    """N positions with K codes each, and the probability of each of the K^N pictures.

    `probabilities` has an axis of length K per position; it need not sum to 1. All are above zero: after an impossible
    picture there would be no conditionals.
    """

    def __init__(self, probabilities: Float[Tensor, "..."]):
        self.probabilities = probabilities.double() / probabilities.double().sum()
        self.positions, self.codes = probabilities.ndim, len(probabilities)
        self.mask_id = self.codes
        self.pictures = _all_tokens(self.codes, self.positions)

    @cached_property
    def table(self) -> Float[Tensor, "inputs N K"]:
        """The answers to all (K + 1)^N inputs, the last position counting fastest: see `conditionals`."""
        inputs = _all_tokens(self.codes + 1, self.positions)
        clash = (inputs[:, None] != self.pictures) & (inputs[:, None] != self.mask_id)
        elsewhere = clash.sum(dim=2, keepdim=True) - clash.long()
        possible = self.probabilities.flatten()[:, None] * (elsewhere == 0)
        joint = torch.einsum("bsn,snk->bnk", possible, F.one_hot(self.pictures, self.codes).double())
        return joint / joint.sum(dim=-1, keepdim=True)

    def conditionals(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N K"]:
        """The distribution of each position's code, given the codes that are visible at the *other* positions."""
        places = (self.codes + 1) ** torch.arange(self.positions).flip(0)
        return self.table[(tokens * places).sum(dim=1)]

    def model(self) -> Callable[[Tensor], Tensor]:
        """A perfect model of this world: tokens (B, N) to the logarithms of `conditionals`, with its `mask_id`."""

        def perfect(tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N K"]:
            return self.conditionals(tokens).log()

        perfect.mask_id = self.mask_id
        return perfect

    def given(self, tokens: Sequence[int]) -> Float[Tensor, "..."]:
        """The probabilities of the pictures that agree with these tokens, mask_id where unknown."""
        visible = torch.tensor(tokens)
        agree = ((self.pictures == visible) | (visible == self.mask_id)).all(dim=1)
        kept = self.probabilities * agree.view_as(self.probabilities)
        return kept / kept.sum()


def _all_tokens(ids: int, positions: int) -> Int[Tensor, "inputs N"]:
    return torch.cartesian_prod(*[torch.arange(ids)] * positions).view(-1, positions)


def neighbours(rows: int, columns: int, codes: int = 2, coupling: float = 1.0, favour: float = 0.3) -> World:
    """Positions on a grid that like to be as their neighbours are: exp(coupling) for each pair of equal ones.

    Code 0 is `favour` nats more likely than the others at the first position and ever less so further on, so that no
    two positions are alike.
    """
    pictures = _all_tokens(codes, rows * columns).view(-1, rows, columns)
    pairs = (pictures.diff(dim=1) == 0).sum(dim=(1, 2)) + (pictures.diff(dim=2) == 0).sum(dim=(1, 2))
    lean = favour / torch.arange(1, rows * columns + 1)
    energy = coupling * pairs + ((pictures.flatten(1) == 0) * lean).sum(dim=1)
    return World(energy.double().exp().view([codes] * (rows * columns)))


# --- the distribution of a decoding ---------------------------------------------------------------------------------


def exact_distribution(
    world: World,
    *,
    schedule: str = "cosine",
    steps: int = 8,
    order: str | Sequence[int] = "confidence",
    temperature: float = 1.0,
    choice_temperature: float = 4.5,
    tokens: Sequence[int] | None = None,
) -> Float[Tensor, "..."]:
    """How what `decode_steps` returns with these settings and the world's perfect model is distributed, unsampled.

    All codes that can be drawn are enumerated, and all sets of positions that can be chosen: adding Gumbel noise and
    taking the highest is drawing without replacement, whose probabilities are products (Plackett-Luce). `order` is a
    name in ENUMERATED, or the positions themselves, first to last. `tokens` is the picture to begin with, mask_id
    where it is unknown; without it all is. The answer has the shape of the world's probabilities, which a good sampler
    comes close to.
    """
    start = tuple(tokens) if tokens is not None else (world.mask_id,) * world.positions
    distribution: Distribution = {start: 1.0}
    for step, left in enumerate(masked_counts(schedule, steps, start.count(world.mask_id)), start=1):
        after: Distribution = defaultdict(float)
        for before, weight in distribution.items():
            choice_at = choice_temperature * (1 - step / steps)
            for outcome, chance in _one_step(world, before, left, order, temperature, choice_at):
                after[outcome] += weight * chance
        distribution = after
    result = torch.zeros_like(world.probabilities)
    for picture, weight in distribution.items():
        result[picture] = weight
    return result


def _one_step(
    world: World, tokens: tuple[int, ...], left: int, order: str | Sequence[int], at: float, choice_at: float
) -> Iterator[tuple[tuple[int, ...], float]]:
    """What the tokens can become in a step that leaves so many masked, and with which probability."""
    unknown = [n for n, token in enumerate(tokens) if token == world.mask_id]
    distributions = [world.conditionals(torch.tensor([tokens]))[0, n].tolist() for n in unknown]
    # The moment sampler draws at the temperature that choosing after drawing would amount to, if it chooses.
    exponent = _inverse(at) + (_inverse(choice_at) if order == "moment" and left else 0)
    drawn = [_power(p, exponent) for p in distributions]
    for codes in product(range(world.codes), repeat=len(unknown)):
        chance = math.prod(q[code] for q, code in zip(drawn, codes, strict=True))
        if chance == 0:
            continue
        if isinstance(order, str):
            scores, noise = _scores(order, distributions, codes, at, choice_at)
        else:
            scores, noise = [-order.index(n) for n in unknown], 0.0
        for chosen, share in first(scores, noise, len(unknown) - left).items():
            outcome = list(tokens)
            for i in chosen:
                outcome[unknown[i]] = codes[i]
            yield tuple(outcome), chance * share


def _scores(
    order: str, distributions: list[list[float]], codes: Sequence[int], at: float, choice_at: float
) -> tuple[list[float], float]:
    """What the order ranks the positions by, and the temperature of the Gumbel noise on it."""
    of_the_drawn = [p[code] for p, code in zip(distributions, codes, strict=True)]
    match order:
        case "random":
            return [0.0 for _ in distributions], 1.0
        case "confidence":
            return [math.log(p) for p in of_the_drawn], choice_at
        case "lab":
            return of_the_drawn, choice_at
        case "max_probability":
            return [max(p) for p in distributions], 0.0
        case "margin":
            return [sorted(p)[-1] - sorted(p)[-2] for p in distributions], 0.0
        case "entropy":
            return [sum(v * math.log(v) for v in p) for p in distributions], 0.0
    if at == 0 or choice_at == 0:  # moment
        return [math.log(max(p)) for p in distributions], choice_at
    moments = [sum(q * v ** (1 / choice_at) for q, v in zip(_power(p, 1 / at), p, strict=True)) for p in distributions]
    return [math.log(moment) for moment in moments], 1.0


def _inverse(temperature: float) -> float:
    return 1 / temperature if temperature else math.inf


def _power(p: Sequence[float], exponent: float) -> list[float]:
    """p^exponent, normalised; all on the most probable code where the exponent is infinite."""
    if exponent == math.inf:
        return [float(code == p.index(max(p))) for code in range(len(p))]
    powers = [value**exponent for value in p]
    return [value / sum(powers) for value in powers]


def first(scores: Sequence[float], noise: float, count: int) -> dict[tuple[int, ...], float]:
    """Which `count` items have the highest score + noise x Gumbel, and with which probability (Plackett-Luce).

    Without noise the highest, of equal ones the last, as the decoder has it.
    """
    if noise == 0:
        ranked = sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)
        return {tuple(sorted(ranked[:count])): 1.0}
    weights = [math.exp((score - max(scores)) / noise) for score in scores]
    sets: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(count):
        larger: dict[tuple[int, ...], float] = defaultdict(float)
        for chosen, chance in sets.items():
            rest = [i for i in range(len(scores)) if i not in chosen]
            total = sum(weights[i] for i in rest)
            for i in rest:
                larger[tuple(sorted((*chosen, i)))] += chance * weights[i] / total
        sets = larger
    return sets


# --- MaskGIT's hidden temperature -----------------------------------------------------------------------------------


def first_committed(probabilities: Sequence[float], positions: int, choice_temperature: float) -> list[float]:
    """How the code that MaskGIT's order commits first is distributed, of so many independent positions that are alike.

    A code is drawn everywhere, and one position is chosen in proportion to p(code)^(1/choice_temperature): exact, by
    enumeration of how many positions drew each code. With one position nothing is chosen, and it is p; with many
    it tends to p^(1 + 1/choice_temperature) (arXiv 2510.04525).
    """
    weights = _power(probabilities, 1 / choice_temperature)
    distribution = [0.0] * len(probabilities)
    for counts in product(range(positions + 1), repeat=len(probabilities)):
        if sum(counts) != positions:
            continue
        ways = math.lgamma(positions + 1) - sum(math.lgamma(n + 1) for n in counts)
        chance = math.exp(ways + sum(n * math.log(p) for n, p in zip(counts, probabilities, strict=True)))
        total = sum(n * w for n, w in zip(counts, weights, strict=True))
        for code, n in enumerate(counts):
            distribution[code] += chance * n * weights[code] / total
    return distribution


def hidden_exponent(distribution: Sequence[float], probabilities: Sequence[float]) -> float:
    """The exponent e for which `distribution` comes closest to p^e: the slope of log distribution over log p."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (probabilities, distribution))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


# --- distances between distributions --------------------------------------------------------------------------------


def total_variation(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """Half the summed differences: 0 for equal distributions, 1 for distributions with nothing in common."""
    return float((a - b).abs().sum() / 2)


def kl(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> float:
    """Kullback-Leibler divergence of b from a in nats, sum a log(a / b); infinite where b lacks what a has."""
    return max(0.0, float(torch.special.xlogy(a, a / b).sum()))  # equal distributions may miss 0 by a rounding


# --- what a notebook shows ------------------------------------------------------------------------------------------


def distributions_by_steps(steps: Sequence[int] = range(1, 7)) -> dict[str, Any]:
    """Every order's distribution in a world of 2x3 tokens beside the truth, for each T, and the exponents of what
    MaskGIT's order commits first of 2, 8 and 128 positions: the arguments of `sampler_distributions`."""
    world, p = neighbours(2, 3), (0.7, 0.3)
    by_order = {
        order: [exact_distribution(world, steps=T, order=order, schedule="linear") for T in steps]
        for order in ENUMERATED
    }
    measures: dict[str, Callable[[Tensor, Tensor], float]] = {
        "total variation from the truth": total_variation,
        "KL divergence of the truth": kl,
        "diversity: nats more than the truth": lambda true, distribution: _entropy(distribution) - _entropy(true),
    }
    temperatures = [4.5 * part / 8 for part in range(1, 9)]
    return {
        "steps": steps,
        "distances": {
            name: {order: [measure(world.probabilities, one) for one in several] for order, several in by_order.items()}
            for name, measure in measures.items()
        },
        "exponents": {
            f"{n} positions": [(tau, hidden_exponent(first_committed(p, n, tau), p)) for tau in temperatures]
            for n in (2, 8, 128)
        },
    }


def _entropy(distribution: Float[Tensor, "..."]) -> float:
    return float(torch.special.entr(distribution).sum())
