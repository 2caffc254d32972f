"""What a transformer's probabilities are worth, on images whose hidden tokens are known.

Bits per token say how well it predicts, in one shot or in the order of a decoding; calibration says whether its
confidence can be believed; the disagreement of several decodings says how much of a hole it leaves to chance.

A model is anything that maps tokens to logits, with an attribute `mask_id`.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.decoder import Model, ask
from lab5.gamma import masked_counts
from lab5.samplers import ONCE, ORDERS, Generators, Proposal, lowest, uniform

# --- bits ----------------------------------------------------------------------------------------------------------


def bits_per_token(
    model: Model, tokens: Int[Tensor, "B N"], unknown: Bool[Tensor, "B N"], *, generator: Generators, **settings: Any
) -> float:
    """The mean over all hidden tokens of the batch of their `code_lengths`, which takes the same `settings`."""
    return float(code_lengths(model, tokens, unknown, generator=generator, **settings).sum() / unknown.sum())


def code_lengths(
    model: Model,
    tokens: Int[Tensor, "B N"],
    unknown: Bool[Tensor, "B N"],
    *,
    schedule: str = "cosine",
    steps: int = 1,
    order: str = "random",
    generator: Generators,
) -> Float[Tensor, " B"]:
    """How many bits the model needs to tell each image's hidden tokens: -log2 of the probability of the truth.

    The tokens are revealed in `steps` steps, as many in each as the schedule says (`gamma.masked_count`). A step costs
    the bits of what it reveals, as if those tokens were independent given all that was visible before it, which is
    what a decoding assumes. steps = 1 is the one-shot code length. With a step for each token it is the chain rule,
    the model's exact code length in this order: all orders would agree if its conditionals were those of one joint.

    `order` is a name in `samplers.ORDERS`, with the model's most probable codes as proposals and without noise on the
    scores, so that "confidence" reveals first what the model is surest of, right or wrong. No order sees the truth;
    otherwise the order itself would tell something for free.

    `tokens` hold the truth where `unknown`, and what the model may see elsewhere, all of them codes. The answer is in
    float64, 0 for an image that hides nothing.
    """
    tokens, masked = tokens.long(), unknown
    once = uniform((len(tokens),), generator, tokens.device) if order in ONCE else None
    nats = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    for left in masked_counts(schedule, steps, unknown.sum(dim=1)):
        if not masked.any():
            break
        log_p = ask(model, tokens.masked_fill(masked, model.mask_id)).log_softmax(dim=-1)
        proposal = Proposal(log_p, log_p.argmax(dim=-1), unknown, temperature=0.0, once=once)
        scores = ORDERS[order](proposal, generator).masked_fill(~masked, torch.inf)
        staying = lowest(scores, left)
        true = log_p.gather(-1, tokens[..., None]).squeeze(-1).double()
        nats -= true.masked_fill(~masked | staying, 0)
        masked = staying
    return nats.sum(dim=1) / math.log(2)


def hidden_predictions(
    model: Model, tokens: Int[Tensor, "B N"], unknown: Bool[Tensor, "B N"]
) -> tuple[Float[Tensor, "M K"], Int[Tensor, " M"]]:
    """One shot: the log-probabilities of the K codes at the M hidden tokens of the batch, and the true codes there.

    Those of several batches, put one after the other, are what `calibration` takes.
    """
    log_p = ask(model, tokens.long().masked_fill(unknown, model.mask_id)).log_softmax(dim=-1)
    return log_p[unknown], tokens[unknown].long()


# --- calibration ---------------------------------------------------------------------------------------------------


class Bin(NamedTuple):
    """Predictions whose confidence lies in (low, high]."""

    low: float
    high: float
    confidence: float  # their mean probability of the top code
    accuracy: float  # how often the top code is the true one
    n: int


def calibration(log_probabilities: Float[Tensor, "M K"], true: Int[Tensor, " M"], bins: int = 10) -> list[Bin]:
    """The reliability diagram of the top code (Guo et al. 2017, section 2): bins of equal width, empty ones left out.

    A calibrated model is right in a share `confidence` of each bin.
    """
    top = log_probabilities.max(dim=1)
    confidence, right = top.values.double().exp(), (top.indices == true).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return [
        Bin(b / bins, (b + 1) / bins, float(confidence[here].mean()), float(right[here].mean()), int(here.sum()))
        for b in range(bins)
        if (here := place == b).any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean gap of accuracy and confidence, weighted by n (Guo et al. 2017, eq. 3).

    Few predictions in a bin have a gap by chance alone, so that the error of a calibrated model is above 0.
    """
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / sum(b.n for b in bins)


# --- diversity between seeds ---------------------------------------------------------------------------------------


def disagreement(tokens: Int[Tensor, "S n N"], unknown: Bool[Tensor, "n N"]) -> float:
    """The share of the hidden tokens in which two decodings differ, the mean over all pairs of the S >= 2 seeds."""
    hidden = tokens[:, unknown]
    shares = [(a != b).double().mean() for a, b in combinations(hidden, 2)]
    return float(torch.stack(shares).mean())
