"""Decoders beyond the lesson: loops of their own on the steps of `lab5.decoder`, chosen by the settings.

follow_budget     a step commits as many tokens as are safe together, in as many steps as that takes
follow_remasking  a step also takes some generated tokens back, to be decoded once more
correct           after the last step, rounds that decode the least probable tokens anew

What was known from the start is never touched.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5 import decoder
from lab5.config import DecodeConfig
from lab5.decoder import DecodeStep, Model
from lab5.gamma import ROUND_OFF
from lab5.runtime.transfers import fetched, places
from lab5.samplers import CODES, AtMasked, Generators, Proposal, lowest, uniform


def decode(
    model: Model,
    tokens: Int[Tensor, "B N"],
    unknown: Bool[Tensor, "B N"],
    decoding: DecodeConfig,
    *,
    generator: Generators,
    prior: Float[Tensor, "B N K"] | None = None,
) -> Iterator[DecodeStep]:
    """`decoder.decode_steps` under any settings: its states, and one more for each of `decoding.rounds`."""
    state = decoder.begin(model, tokens, unknown, decoding, generator, prior)
    follow = decoder.follow_schedule
    if decoding.budget != "schedule":
        follow = follow_budget
    elif decoding.remask:
        follow = follow_remasking
    states = follow(model, state, decoding, generator, prior)
    return correct(model, states, decoding, generator, prior) if decoding.rounds else states


# --- budgets --------------------------------------------------------------------------------------------------------


def follow_budget(
    model: Model, state: DecodeStep, decoding: DecodeConfig, generator: Generators, prior: Tensor | None
) -> Iterator[DecodeStep]:
    """States until nothing is masked: `decoding.steps` is no cap, and the order is the budget's own, without noise.

    Each step commits at least one token of each image; one that is done early repeats.
    """
    order, safe = BUDGETS[decoding.budget]
    decoding = replace(decoding, order=order, choice_temperature=0.0, choice_temperature_end=0.0)
    masked = int(state.masked.sum())
    yield state
    while masked:
        logits, finite = decoder.answer(model, state.tokens, prior, places(state.masked, count=masked))
        proposal = decoder.propose(logits, state, decoding, generator)
        scores = decoder.rank(proposal, state, decoding, generator)
        left = (state.masked.sum(dim=1) - safe(proposal, state.masked, decoding.limit).clamp(min=1)).clamp(min=0)
        state = decoder.commit(logits, proposal, state, lowest(scores, left), decoding, generator)
        left_in_all, finite = fetched(state.masked.sum(), finite)  # all that a step waits for
        decoder.check_finite(finite)
        masked = int(left_in_all)
        yield state


# (proposal, what is masked, limit) -> how many of the first may be committed, in the order that BUDGETS has beside it


def entropy(proposal: Proposal, masked: Bool[Tensor, "B N"], limit: float) -> Int[Tensor, "B"]:
    """While the sum of the entropies is within `limit` nats of their largest (EB-Sampler, arXiv 2505.24857).

    sum H - max H bounds the joint mutual information, which drawing the codes independently ignores.
    """
    rising = proposal.spread(proposal.entropy.double(), torch.inf).masked_fill(~masked, torch.inf).sort(dim=1).values
    return (rising.cumsum(dim=1) - rising <= limit).sum(dim=1)  # inf - inf is within no limit


def threshold(proposal: Proposal, masked: Bool[Tensor, "B N"], limit: float) -> Int[Tensor, "B"]:
    """All proposed codes of probability `limit` or more (Fast-dLLM, arXiv 2505.22618)."""
    return (proposal.spread(proposal.log_probability.exp() >= limit, False) & masked).sum(dim=1)


Safe = Callable[[Proposal, Tensor, float], Tensor]
BUDGETS: dict[str, tuple[str, Safe]] = {"entropy": ("entropy", entropy), "threshold": ("confidence", threshold)}


# --- re-masking -----------------------------------------------------------------------------------------------------


def follow_remasking(
    model: Model, state: DecodeStep, decoding: DecodeConfig, generator: Generators, prior: Tensor | None
) -> Iterator[DecodeStep]:
    """As many more are committed as are taken back, so that the schedule's counts hold."""
    steps = decoder.plan(decoding, state)
    yield state
    for masked, left in steps:
        logits = decoder.code_logits(model, state, prior, masked)
        proposal = decoder.propose(logits, state, decoding, generator)
        scores = decoder.rank(proposal, state, decoding, generator)
        back = taken_back(state.unknown & ~state.masked, left, decoding.remask, generator)
        state = decoder.commit(logits, proposal, state, lowest(scores, left - back.sum(dim=1)), decoding, generator)
        state = state._replace(tokens=state.tokens.masked_fill(back, logits.shape[-1]), masked=state.masked | back)
        yield (state := decoder.ended(state, decoding))


def taken_back(
    generated: Bool[Tensor, "B N"], left: Int[Tensor, "B"], eta: float, generator: Generators
) -> Bool[Tensor, "B N"]:
    """Each generated token with probability eta · min(1, (1 - alpha_s) / alpha_t), so never with more than eta.

    ReMDM (Wang et al. 2025, arXiv 2503.00307), its strategy "rescale", where alpha_t is the share generated before the
    step and 1 - alpha_s the share masked after it; here both are counted, so that the schedule's counts hold. Never
    more than `left`, the number of tokens that the plan has masked after the step.
    """
    chance = eta * (left / generated.sum(dim=1).clamp(min=1)).clamp(max=1)
    draw = uniform(tuple(generated.shape), generator, generated.device).masked_fill(~generated, torch.inf)
    return (draw < chance.unsqueeze(1)) & lowest(draw, left)


# --- correcting rounds ----------------------------------------------------------------------------------------------


def correct(
    model: Model, states: Iterator[DecodeStep], decoding: DecodeConfig, generator: Generators, prior: Tensor | None
) -> Iterator[DecodeStep]:
    """The states, then `decoding.rounds` more: each masks the doubtful share of the hole and decodes it at once."""
    state = next(states)
    count = int(doubtful_count(state.unknown, decoding.redo).sum())  # here, so that no round waits for it
    yield state
    for state in states:
        yield state
    final_temperature = decoder.temperatures(decoding, 1.0)[0]
    for _ in range(decoding.rounds):
        tokens, confidence = state.tokens, state.confidence
        if count:
            seen, finite = decoder.answer(model, tokens, prior, None)
            again = doubtful(seen.log_softmax(dim=-1), tokens, state.unknown, decoding.redo)
            asked = tokens.masked_fill(again, seen.shape[-1])
            logits, also_finite = decoder.answer(model, asked, prior, places(again, count=count))
            decoder.check_finite(finite & also_finite)
            codes = CODES[decoding.codes](logits, final_temperature, AtMasked(generator, again))
            redone = logits.log_softmax(dim=-1).gather(-1, codes[..., None]).squeeze(-1)
            tokens, confidence = tokens.masked_scatter(again, codes), confidence.masked_scatter(again, redone)
        state = state._replace(step=state.step + 1, tokens=tokens, filled=tokens, confidence=confidence)
        yield state


def doubtful(
    log_probabilities: Float[Tensor, "B N K"], tokens: Int[Tensor, "B N"], generated: Bool[Tensor, "B N"], share: float
) -> Bool[Tensor, "B N"]:
    """The share whose codes are least probable to a model that sees them, rounded up.

    What the self-planning of P2 (Peng et al. 2025, arXiv 2502.03540) takes back during the decoding. It repairs
    improbable samples and, repeated, costs diversity. A model trained on masked tokens is not calibrated on those seen.
    """
    probability = log_probabilities.gather(-1, tokens[..., None]).squeeze(-1).masked_fill(~generated, torch.inf)
    return lowest(probability, doubtful_count(generated, share))


def doubtful_count(generated: Bool[Tensor, "B N"], share: float) -> Int[Tensor, "B"]:
    return (share * generated.sum(dim=1).double() - ROUND_OFF).ceil().long()
