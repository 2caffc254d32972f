"""Iterative parallel decoding: in a few steps, from tokens with a hole to tokens without one.

Every step asks the model about all masked positions at once, proposes a code for each, commits the proposals of
highest score and masks the others again; a schedule says how many stay masked. Source: Chang et al. 2022, "MaskGIT",
section 3.2, and the code published with it (parallel_decode.py), here with the hole in place of the whole image.

A model is anything that maps tokens to logits. `lab5.variants` has loops that go beyond this one.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.config import DecodeConfig, check, check_decoding
from lab5.gamma import masked_counts
from lab5.runtime.machine import fast_float32
from lab5.runtime.transfers import Places, places, sent
from lab5.samplers import CODES, ONCE, ORDERS, AtMasked, Generators, Proposal, lowest, moment_temperature, uniform

Model = Callable[[Tensor], Tensor]
OF_IMAGES = {"fill", "hints", "evidence", "passes", "paste", "dilate", "batch", "amp"}  # settings of a pair


class DecodeStep(NamedTuple):
    """The state after `step` steps; step 0 is the input with its hole masked."""

    step: int
    tokens: Int[Tensor, "B N"]  # mask_id where still unknown
    masked: Bool[Tensor, "B N"]  # what is still unknown after this step
    filled: Int[Tensor, "B N"]  # `tokens` with this step's proposals where masked: what a picture shows
    confidence: Float[Tensor, "B N"]  # log-probability of the code committed or proposed, 0 where known
    unknown: Bool[Tensor, "B N"]  # the hole, at every step
    once: Float[Tensor, "B"] | None = None  # noise that an order draws at its first step and keeps


def decode_steps(
    model: Model,
    tokens: Int[Tensor, "B N"],
    unknown: Bool[Tensor, "B N"],
    decoding: DecodeConfig = DecodeConfig(),  # noqa: B008, it is frozen
    *,
    generator: Generators,
    prior: Float[Tensor, "B N K"] | None = None,
) -> Iterator[DecodeStep]:
    """Yield the T + 1 states of a decoding in T = `decoding.steps` steps, each computed when it is asked for.

    Tokens outside `unknown` never change; those inside are ignored, so nothing can leak from them. State 0 has no
    proposals yet: its `filled` is its `tokens`, whose mask ids no tokenizer can decode. While no image has anything
    masked, states repeat and the model is not asked. With `decoding.stop_at` (the lab's "sweet spot") the loop ends
    after so many steps, and the last one taken commits all its proposals.

    model      tokens (B, N) to logits (B, N, K) or (B, N, K+1), in evaluation mode, with an attribute `mask_id` = K
    decoding   schedule, steps, codes, order, temperatures: the fields of DecodeConfig say what each means
    generator  one for the batch, or one per image: an image then gets the same noise in any batch
    prior      log-weights added to the logits at every step, such as what the visible pixels of half-hidden tokens say

    Raises ValueError for bad input at the call, before any state is asked for, and on the way only for what the model
    returns.
    """
    if decoding.budget != "schedule" or decoding.remask or decoding.rounds:
        raise ValueError("decode_steps follows a schedule alone: lab5.variants.decode has budgets, remask and rounds.")
    state = begin(model, tokens, unknown, decoding, generator, prior)
    return follow_schedule(model, state, decoding, generator, prior)


def follow_schedule(
    model: Model, state: DecodeStep, decoding: DecodeConfig, generator: Generators, prior: Tensor | None
) -> Iterator[DecodeStep]:
    """The loop: ask the model, take a step, until the plan is done."""
    steps = plan(decoding, state)  # M, (B,) for each; try another schedule and look at these
    yield state
    for masked, left in steps:
        logits = code_logits(model, state, prior, masked)  # (B, N) -> (M, K), at the M masked positions
        state = decode_step(logits, state, left, decoding, generator)
        yield (state := ended(state, decoding))


def decode_step(
    logits: Float[Tensor, "M K"],
    state: DecodeStep,
    left: Int[Tensor, "B"],
    decoding: DecodeConfig,
    generator: Generators,
) -> DecodeStep:
    """One step: propose a code for all that is masked, commit the surest, mask `left` positions of each image again."""
    proposal = propose(logits, state, decoding, generator)
    scores = rank(proposal, state, decoding, generator)  # (B, N), the highest committed first
    return commit(logits, proposal, state, lowest(scores, left), decoding, generator)


def plan(decoding: DecodeConfig, state: DecodeStep) -> list[tuple[int, Int[Tensor, "B"]]]:
    """For each step that is taken, M = how many tokens are masked before it in all, and how many of each image stay
    masked after it: γ(t/T) of the hole. Made on the CPU before the first step, so that no step waits for a GPU."""
    hole = state.unknown.sum(dim=1).cpu()
    counts = masked_counts(decoding.schedule, decoding.steps, hole, decoding.rounding)
    counts = torch.stack([hole, *counts[: decoding.stop_at or decoding.steps]])  # (steps + 1, B)
    return list(zip(counts.sum(dim=1).tolist(), sent(counts, state.unknown.device)[1:], strict=False))


def propose(logits: Float[Tensor, "M K"], state: DecodeStep, decoding: DecodeConfig, generator: Generators) -> Proposal:
    """A code for every masked position, and what an order may look at, at the temperatures of the next step."""
    share = min(1.0, (state.step + 1) / decoding.steps)  # a budget may take more steps
    temperature, choice_temperature = temperatures(decoding, share)
    codes = CODES[decoding.codes](logits, temperature, AtMasked(generator, state.masked))  # (M, K) -> (M,)
    once = state.once
    if decoding.order in ONCE and once is None:
        once = uniform((len(state.tokens),), generator, codes.device)
    log_p = logits.log_softmax(dim=-1)
    return Proposal(log_p, codes, state.unknown, choice_temperature, temperature, once, state.masked)


def rank(proposal: Proposal, state: DecodeStep, decoding: DecodeConfig, generator: Generators) -> Float[Tensor, "B N"]:
    """The order's scores, the highest committed first; infinite where nothing is masked, so that no noise and no
    score can bring a committed position back under the mask."""
    return proposal.spread(ORDERS[decoding.order](proposal, AtMasked(generator, state.masked)), torch.inf)


def commit(
    logits: Float[Tensor, "M K"],
    proposal: Proposal,
    state: DecodeStep,
    staying: Bool[Tensor, "B N"],
    decoding: DecodeConfig,
    generator: Generators,
) -> DecodeStep:
    """The state in which all proposals are kept but those at the positions that stay masked."""
    if decoding.order == "moment":
        # A step that commits everything selects nothing: its codes keep the model's own distribution, as in MaskGIT.
        chosen = proposal.at_masked(~staying & staying.any(dim=1, keepdim=True))
        sharp = CODES[decoding.codes](logits, moment_temperature(proposal), AtMasked(generator, state.masked))
        proposal = proposal._replace(codes=torch.where(chosen, sharp, proposal.codes))
    filled = state.tokens.masked_scatter(state.masked, proposal.codes)
    confidence = state.confidence.masked_scatter(state.masked, proposal.log_probability)
    mask_id = logits.shape[-1]  # the id after the K codes
    tokens = filled.masked_fill(staying, mask_id)
    return DecodeStep(state.step + 1, tokens, staying, filled, confidence, state.unknown, proposal.once)


def ended(state: DecodeStep, decoding: DecodeConfig) -> DecodeStep:
    """The same state; after the last step that is taken, with nothing masked."""
    if state.step < (decoding.stop_at or decoding.steps):
        return state
    return state._replace(tokens=state.filled, masked=torch.zeros_like(state.masked))


def temperatures(decoding: DecodeConfig, share: float) -> tuple[float, float]:
    """Of the codes and of the order, after this share of the steps."""
    end = decoding.temperature if decoding.temperature_end < 0 else decoding.temperature_end
    choice_end, left = decoding.choice_temperature_end, 1 - share
    choice_temperature = choice_end + (decoding.choice_temperature - choice_end) * left
    return end + (decoding.temperature - end) * left, choice_temperature


def inpaint(
    model: Model,
    tokens: Int[Tensor, "B N"],
    unknown: Bool[Tensor, "B N"],
    *,
    generator: Generators,
    prior: Float[Tensor, "B N K"] | None = None,
    **settings: Any,
) -> Int[Tensor, "B N"]:
    """The tokens with the hole filled: the last state of `decode_steps` under these `settings` of DecodeConfig.

    Raises TypeError for a setting that there is not or that concerns images, and as `decode_steps` does.
    """
    if of_images := OF_IMAGES & settings.keys():
        raise TypeError(f"inpaint has tokens only; lab5.inpaint_images takes {', '.join(sorted(of_images))}")
    decoding = DecodeConfig(**settings | {"stop_at": settings.get("stop_at") or 0})  # None means all steps too
    for state in decode_steps(model, tokens, unknown, decoding, generator=generator, prior=prior):
        filled = state.filled
    return filled


def begin(
    model: Model, tokens: Tensor, unknown: Tensor, decoding: DecodeConfig, generator: Generators, prior: Tensor | None
) -> DecodeStep:
    """State 0. Raises ValueError for settings that there are not and for input that does not fit."""
    check(decoding, "decode")
    check_decoding(decoding)
    mask_id = _mask_id(model)
    _check_batch(model, tokens, unknown, prior, mask_id, generator)
    # Copies, because the states are computed later: the caller may have changed the originals by then.
    tokens, unknown = tokens.long().masked_fill(unknown, mask_id), unknown.clone()
    return DecodeStep(0, tokens, unknown, tokens, torch.zeros(tokens.shape, device=tokens.device), unknown)


def code_logits(
    model: Model, state: DecodeStep, prior: Float[Tensor, "B N K"] | None, masked: int
) -> Float[Tensor, "M K"]:
    """The model's answer at the M = `masked` positions; where nothing is masked any more it is not asked."""
    if masked:
        return ask(model, state.tokens, prior, places(state.masked, count=masked))
    return torch.zeros(0, _mask_id(model), device=state.tokens.device)


def ask(
    model: Model, tokens: Int[Tensor, "B N"], prior: Tensor | None = None, where: Places | None = None
) -> Float[Tensor, "*M K"]:
    """The logits of `answer`. Raises ValueError for infinities and not-a-numbers."""
    logits, finite = answer(model, tokens, prior, where)
    check_finite(finite)
    return logits


def check_finite(finite: Bool[Tensor, ""] | float) -> None:
    if not finite:
        raise ValueError("the model must return finite logits, but it returned infinities or not-a-numbers.")


def answer(
    model: Model, tokens: Int[Tensor, "B N"], prior: Tensor | None, where: Places | None
) -> tuple[Float[Tensor, "*M K"], Bool[Tensor, ""]]:
    """Logits of the codes alone, in float32 with the prior added, at all positions or at those of `where`; cut before
    any softmax, so that the mask id cannot be chosen. And whether they are finite: to look at that, a GPU is waited
    for. Raises ValueError for other shapes."""
    codes, at_once = _mask_id(model), where is not None and getattr(model, "takes_where", False)
    with torch.no_grad(), fast_float32(tokens.device):
        logits = model(tokens, where) if at_once else model(tokens)
    expected = (*tokens.shape, codes), (*tokens.shape, codes + 1)
    if not at_once and logits.shape not in expected:
        shapes = f"{expected[0]} or {expected[1]}"
        raise ValueError(f"the model must return logits of shape {shapes}, but it returned {tuple(logits.shape)}.")
    if where is not None:
        logits, prior = logits if at_once else logits[where], None if prior is None else prior[where]
    logits = logits[..., :codes].float()
    return logits if prior is None else logits + prior, logits.logsumexp(dim=-1).isfinite().all()


def _mask_id(model: Model) -> int:
    mask_id = getattr(model, "mask_id", None)
    if mask_id is None:
        raise ValueError("the model needs an attribute mask_id, the id after its K codes, but it has none.")
    return mask_id


def _check_batch(
    model: Model, tokens: Tensor, unknown: Tensor, prior: Tensor | None, mask_id: int, generator: Generators
) -> None:
    if getattr(model, "training", False):
        raise ValueError("the model must be in evaluation mode, but it is training: call model.eval().")
    if tokens.dim() != 2 or unknown.shape != tokens.shape:
        shapes = f"{tuple(tokens.shape)} and {tuple(unknown.shape)}"
        raise ValueError(f"tokens and unknown must have the same shape (B, N), but they have {shapes}.")
    if unknown.dtype != torch.bool:
        raise ValueError(f"unknown must be bool, True where a token is missing, but it is {unknown.dtype}.")
    known = tokens[~unknown]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < mask_id:
        span = f"{int(known.min())}..{int(known.max())}"
        raise ValueError(f"known tokens must be codes in 0..{mask_id - 1}, but they span {span}.")
    if not isinstance(generator, torch.Generator) and len(generator) != len(tokens):
        counts = f"{len(generator)} generators for {len(tokens)} images"
        raise ValueError(f"generator must be one for the batch or one per image, but there are {counts}.")
    if prior is not None and prior.shape != (*tokens.shape, mask_id):
        raise ValueError(f"prior must have shape {(*tokens.shape, mask_id)}, but it has {tuple(prior.shape)}.")
