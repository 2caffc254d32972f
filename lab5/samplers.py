"""The two choices of a decode step: which code to propose at each position, which positions to commit first.

Both are pure functions. One of CODES takes logits to proposed codes. One of ORDERS takes a `Proposal` to a
score per position, and the highest scores are committed first. Another sampler is another function in its
table. Where an order does not look at the proposed codes, the result is distributed as if positions were chosen first
and codes drawn at those alone.

The decoder asks for codes and scores at the M masked positions of a batch, (M,), counted image by image: nothing else
can be committed. All but the orders on a grid serve positions of any shape, (B, N) as well.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lab5.runtime.transfers import Noise, places, sent


class AtMasked(NamedTuple):
    """Noise for masked positions alone; it is drawn for all, so that it does not depend on how many are masked."""

    generator: torch.Generator | Sequence[torch.Generator] | Noise
    masked: Bool[Tensor, "B N"]


# One for the whole batch, or one per image: then an image gets the same noise alone and in any batch.
Generators = torch.Generator | Sequence[torch.Generator] | Noise | AtMasked


class Proposal(NamedTuple):
    """What an order may look at."""

    log_probabilities: Float[Tensor, "*M K"]  # of all codes, at temperature 1
    codes: Int[Tensor, "*M"]  # the code proposed at each position
    unknown: Bool[Tensor, "B N"]  # what was unknown before the first step
    temperature: float  # of the choice of positions, already annealed
    code_temperature: float = 1.0  # that the codes were drawn at
    once: Float[Tensor, "B"] | None = None  # uniform noise, the same at every step; for the orders of ONCE
    masked: Bool[Tensor, "B N"] | None = None  # where the M positions are; None = all of them, (B, N)

    @property
    def log_probability(self) -> Float[Tensor, "*M"]:
        """Of the proposed code."""
        return self.log_probabilities.gather(-1, self.codes[..., None]).squeeze(-1)

    @property
    def entropy(self) -> Float[Tensor, "*M"]:
        """Of the distribution over the codes, in nats."""
        return torch.special.entr(self.log_probabilities.exp()).sum(dim=-1)

    def at_masked(self, values: Shaped[Tensor, "B N"]) -> Shaped[Tensor, "*M"]:
        return values if self.masked is None else values[places(self.masked, count=len(self.codes))]

    def spread(self, values: Shaped[Tensor, "*M"], elsewhere: float) -> Shaped[Tensor, "B N"]:
        """The other way round, with `elsewhere` where nothing is masked."""
        if self.masked is None:
            return values
        return torch.full_like(self.masked, elsewhere, dtype=values.dtype).masked_scatter(self.masked, values)


# --- noise: (shape, whose first axis counts images; generator; device to be used on) -> float64 ---


def uniform(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Float[Tensor, "..."]:
    """Uniform noise in the open interval (0, 1).

    In float64: float32 stops 6e-8 short of 1, which cuts the tail of Gumbel noise at 16.6 and so lowers the
    temperature unnoticed (Zheng et al. 2024, arXiv 2409.02908). Drawn where the generator lives, then moved:
    a CPU generator gives the same noise to every device.
    """
    if isinstance(generator, AtMasked):
        everywhere = uniform(tuple(generator.masked.shape), generator.generator, device)
        return everywhere[places(generator.masked, count=shape[0])]
    if isinstance(generator, Noise):
        draw = generator.take(shape, device)
    elif isinstance(generator, torch.Generator):
        draw = sent(_rand(shape, generator), device)
    else:
        draw = sent(torch.stack([_rand(shape[1:], g) for g in generator]), device)
    return draw.clamp(min=2**-54)  # the generator's interval is [0, 1)


def gumbel(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Float[Tensor, "..."]:
    """Standard Gumbel noise: sorting by log p + noise is drawing without replacement in proportion to p."""
    return -(-uniform(shape, generator, device).log()).log()


def _rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)


# --- codes: (logits in float32, temperature, generator) -> codes ---

COLDEST = 1e-30  # as a divisor of logits: a smaller one overflows float32, and this one draws the best code already


def argmax(logits: Float[Tensor, "*M K"], temperature: float, generator: Generators) -> Int[Tensor, "*M"]:
    """The most probable code, whatever the temperature; draws no noise."""
    return logits.argmax(dim=-1)


def sample(logits: Float[Tensor, "*M K"], temperature: float, generator: Generators) -> Int[Tensor, "*M"]:
    """A code with probability softmax(logits / temperature); temperature 0 is the argmax.

    The first code whose cumulative probability reaches a uniform number: the same distribution as the argmax of
    logits / temperature plus Gumbel noise, with one random number per position instead of K.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits / max(temperature, COLDEST)).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    height = uniform(logits.shape[:-1], generator, logits.device).unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, height).squeeze(-1).clamp(max=logits.shape[-1] - 1)  # where all is NaN


def top_k(
    logits: Float[Tensor, "*M K"], temperature: float, generator: Generators, share: float = 0.1
) -> Int[Tensor, "*M"]:
    """Sample among the most probable tenth of the codes (the share of lucidrains' muse-maskgit-pytorch)."""
    best = logits.topk(math.ceil(share * logits.shape[-1])).values
    return sample(logits.masked_fill(logits < best[..., -1:], -math.inf), temperature, generator)


def nucleus(
    logits: Float[Tensor, "*M K"], temperature: float, generator: Generators, mass: float = 0.9
) -> Int[Tensor, "*M"]:
    """Sample among the fewest codes that hold the share `mass` of the probability (Holtzman et al. 2020)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    ranked, ids = (logits / max(temperature, COLDEST)).sort(dim=-1, descending=True)
    probabilities = ranked.softmax(dim=-1)
    ahead = probabilities.cumsum(dim=-1) - probabilities
    rank = sample(ranked.masked_fill(ahead >= mass, -math.inf), 1.0, generator)
    return ids.gather(-1, rank.unsqueeze(-1)).squeeze(-1)


CODES: dict[str, Callable[[Tensor, float, Generators], Tensor]] = {
    "argmax": argmax,
    "sample": sample,
    "top_k": top_k,
    "nucleus": nucleus,
}

# --- orders: (proposal, generator) -> scores, all below infinity, the highest committed first ---


def confidence(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """MaskGIT's own (parallel_decode.py): log-probability of the proposed code, plus Gumbel noise.

    Choosing after drawing is a temperature in disguise: where few of many alike positions are committed, their codes
    follow p^(1 + 1/temperature) (Hayakawa et al. 2025, arXiv 2510.04525; `lab5.study.small_world` has it exactly).
    """
    score = proposal.log_probability
    return score + proposal.temperature * gumbel(score.shape, generator, score.device)


def lab(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """The lab reports' variant: noise added to the probability, which it drowns until the last steps."""
    score = proposal.log_probability.exp()
    return score + proposal.temperature * gumbel(score.shape, generator, score.device)


def random(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """Any position as well as any other: the order of plain masked diffusion models."""
    return uniform(proposal.codes.shape, generator, proposal.codes.device)


def max_probability(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """Where some code is likely, proposed or not (`sample` of nintendops' latent-code-inpainting, CVPR 2024)."""
    return proposal.log_probabilities.amax(dim=-1)


def margin(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """Where the best code is far ahead of the second (probability margin of Kim et al. 2025, arXiv 2502.06768)."""
    best, second = proposal.log_probabilities.exp().topk(2).values.unbind(-1)
    return best - second


def entropy(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """Where the distribution over the codes is sharpest: minus its entropy in nats."""
    return -proposal.entropy


def moment(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """The moment sampler: drawn without replacement in proportion to sum_v p(v)^(1 + 1/temperature).

    MaskGIT's distribution for few of many positions, the position chosen before its code (Hayakawa et al. 2025, arXiv
    2510.04525): the codes of the chosen ones are then drawn at `moment_temperature`, which the decoder sees to. In
    general the sum is of q(v) p(v)^(1/temperature), q = softmax(logits / code temperature) drawing the codes.
    """
    log_p, tau = proposal.log_probabilities, proposal.temperature
    if tau == 0 or proposal.code_temperature == 0:
        score = log_p.amax(dim=-1)
    else:
        tau = max(tau, COLDEST)
        log_q = (log_p / max(proposal.code_temperature, COLDEST)).log_softmax(dim=-1)
        score = tau * (log_q + log_p / tau).logsumexp(dim=-1)
    return score + tau * gumbel(score.shape, generator, score.device)


def moment_temperature(proposal: Proposal) -> float:
    """Of the codes under the moment sampler: their exponent is the sum of both temperatures' inverses."""
    codes, choice = proposal.code_temperature, proposal.temperature
    return codes * choice / (codes + choice) if codes else 0.0


def rings(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """From the rim of the hole inwards, ring by ring, in random order within a ring; needs a square grid.

    A ring is made of the positions at the same distance from the known ones, diagonal steps counting one.
    Raises ValueError where the positions do not form a square.
    """
    images, positions = proposal.unknown.shape
    side = _side(positions, "rings")
    known = (~proposal.unknown).view(images, 1, side, side).double()
    distance = torch.zeros_like(known)
    for _ in range(side):
        distance += 1 - known
        known = F.max_pool2d(known, kernel_size=3, stride=1, padding=1)
    return random(proposal, generator) - proposal.at_masked(distance.view(images, positions))


def halton(proposal: Proposal, generator: Generators) -> Float[Tensor, "*M"]:
    """Spread evenly over the grid: a 2-D Halton sequence, begun anywhere (Besnier et al. 2025, arXiv 2503.17076).

    Each image begins at a point of its own and goes on past the end at the beginning, as with `randomize` in the
    code published with the paper. Known positions are passed over. Raises ValueError where the positions do not
    form a square.
    """
    images, positions = proposal.unknown.shape
    order = halton_order(_side(positions, "halton"))
    once = uniform((images,), generator, proposal.codes.device) if proposal.once is None else proposal.once
    rank = sent(torch.tensor(order).argsort(), once.device)
    return -proposal.at_masked((rank + (once[:, None] * positions).long()) % positions).double()


@cache
def halton_order(side: int) -> tuple[int, ...]:
    """The positions of a side x side grid as the Halton points (bases 2 for rows, 3 for columns) first visit them."""
    order: dict[int, None] = {}
    point = 0
    while len(order) < side**2:
        point += 1
        row, column = (_cell(point, base, side) for base in (2, 3))
        order[row * side + column] = None
    return tuple(order)


def _cell(point: int, base: int, side: int) -> int:
    """The radical inverse of `point` (van der Corput: 6 = 110 in base 2 is 0.011 = 3/8), times `side`, rounded down."""
    mirrored, scale = 0, 1
    while point:
        point, digit = divmod(point, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * side // scale


def _side(positions: int, order: str) -> int:
    side = math.isqrt(positions)
    if side**2 != positions:
        raise ValueError(f"the order {order!r} needs a square grid of positions, but there are {positions}.")
    return side


ORDERS: dict[str, Callable[[Proposal, Generators], Tensor]] = {
    "confidence": confidence,
    "lab": lab,
    "random": random,
    "max_probability": max_probability,
    "margin": margin,
    "entropy": entropy,
    "rings": rings,
    "moment": moment,
    "halton": halton,
}
ONCE = {"halton"}  # orders that draw noise once per decoding, for `Proposal.once`


def lowest(scores: Float[Tensor, "B N"], count: Int[Tensor, "B"]) -> Bool[Tensor, "B N"]:
    """True at the `count` lowest scores of each image; of equal scores, at the first ones."""
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return rank < count.unsqueeze(1)
