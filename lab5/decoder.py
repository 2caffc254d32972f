"""Iterative parallel decoding: in a few steps, from tokens with a hole to tokens without one.

Every step asks the model about all masked positions at once, proposes a code for each, commits the proposals
of highest score and masks the others again; a schedule or a budget says how many stay masked. Each step is
yielded as data. Source: Chang et al. 2022, "MaskGIT", section 3.2, and the code published with it
(parallel_decode.py), here with the hole in place of the whole image.

It does not know what a token looks like, nor how the model was trained: a model is anything that maps tokens
to logits.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.budgets import BUDGETS, still_masked
from lab5.gamma import masked_counts
from lab5.matmul import fastest_matmul
from lab5.remasking import doubtful, taken_back
from lab5.samplers import CODES, ONCE, ORDERS, Generators, Proposal, lowest, moment_temperature, uniform


class DecodeStep(NamedTuple):
    """The state after `step` steps; step 0 is the input with its hole masked."""

    step: int
    tokens: Int[Tensor, "B N"]  # mask_id where still unknown
    masked: Bool[Tensor, "B N"]  # what is still unknown after this step
    filled: Int[Tensor, "B N"]  # `tokens` with this step's proposals where masked: what a picture shows
    confidence: Float[Tensor, "B N"]  # log-probability of the code committed or proposed, 0 where known


def decode_steps(
    model: Callable[[Tensor], Tensor],
    tokens: Int[Tensor, "B N"],
    unknown: Bool[Tensor, "B N"],
    *,
    schedule: str = "cosine",
    steps: int = 8,
    stop_at: int | None = None,
    codes: str = "sample",
    order: str = "confidence",
    temperature: float = 1.0,
    choice_temperature: float = 4.5,
    rounding: str = "floor",
    prior: Float[Tensor, "B N K"] | None = None,
    mask_id: int | None = None,
    generator: Generators,
    temperature_end: float | None = None,
    choice_temperature_end: float = 0.0,
    count_base: str = "hole",
    budget: str = "schedule",
    limit: float = 0.5,
    remask: float = 0.0,
    rounds: int = 0,
    redo: float = 0.1,
) -> Iterator[DecodeStep]:
    """Yield the T + 1 states of a decoding in T = `steps` steps, each computed when it is asked for.

    Tokens outside `unknown` never change; those inside are ignored, so nothing can leak from them. State 0
    has no proposals yet: its `filled` is its `tokens`, whose mask ids no tokenizer can decode, and its
    confidence is 0. While no image has anything masked, states repeat and the model is not asked.

    schedule, rounding  how many tokens stay masked after each step, per image: see `gamma.masked_count`
    count_base          of the "hole", or of the "current" mask, which compounds: see `gamma.masked_counts`
    steps               T, the steps of the plan
    stop_at             take only this many of them, 1..steps (the lab's "sweet spot"): the last step taken
                        commits all its proposals
    codes, order        which codes are proposed, which positions come first: names in `samplers`
    temperature         of the codes; where `temperature_end` is given it moves linearly, to that at step T
    choice_temperature  of the order: noise on the scores, moving linearly to `choice_temperature_end` at step T
    budget, limit       "schedule", or a name in `budgets`: then a step commits what is safe within `limit`, at least
                        one token an image, in at most T steps, of which the last commits the rest
    remask              eta of ReMDM, 0..1: some generated tokens are masked again (see `remasking.taken_back`) and as
                        many more committed, so that the schedule's counts hold
    rounds, redo        this many states after the T steps: each masks the share `redo` of the hole whose codes the
                        model finds least probable where they stand, and decodes it at once
    prior               log-weights added to the model's logits at every step, such as what the visible pixels of
                        half-hidden tokens say; None for the model alone
    mask_id             the id after the K codes; None takes `model.mask_id`
    generator           one for the batch, or one per image: an image then gets the same noise in any batch

    The model maps tokens (B, N) to logits (B, N, K) or (B, N, K+1) and must be in evaluation mode.
    Raises ValueError for bad input at the call, before any state is asked for, and on the way only for what
    the model returns.
    """
    mask_id = _mask_id(model, mask_id)
    temperature_end = temperature if temperature_end is None else temperature_end
    _check_batch(model, tokens, unknown, prior, mask_id, generator)
    _check_plan(steps, stop_at, rounds, budget, remask)
    _check_range(torch.inf, temperature=temperature, temperature_end=temperature_end, limit=limit,
                 choice_temperature=choice_temperature, choice_temperature_end=choice_temperature_end)  # fmt: skip
    _check_range(1, remask=remask, redo=redo)
    propose, score = _by_name(CODES, codes, "codes"), _by_name(ORDERS, order, "order")
    last = steps if stop_at is None else stop_at
    plan = masked_counts(schedule, steps, unknown.sum(dim=1), rounding, count_base)[:last]
    # Copies, because the states are computed later: the caller may have changed the originals by then.
    tokens, unknown = tokens.long().masked_fill(unknown, mask_id), unknown.clone()

    def propose_at(share: float, tokens: Tensor, *, ask: bool = True) -> tuple[Tensor, Proposal]:
        """The logits, and the proposals at the temperatures that hold after this share of the steps."""
        # Unasked, two codes stand for all: the noise is drawn as ever, and does not depend on the rest of the batch.
        logits = _logits(model, tokens, prior, mask_id) if ask else torch.zeros(*tokens.shape, 2, device=tokens.device)
        at = _annealed(temperature, temperature_end, share)
        choice_at = _annealed(choice_temperature, choice_temperature_end, share)
        log_probabilities = logits.log_softmax(dim=-1)
        return logits, Proposal(log_probabilities, propose(logits, at, generator), unknown, choice_at, at)

    def states(tokens: Tensor) -> Iterator[DecodeStep]:
        masked, none = unknown, torch.zeros_like(unknown)
        log_probability = torch.zeros(tokens.shape, device=tokens.device)
        once = None
        yield DecodeStep(0, tokens, masked, tokens, log_probability)
        for step, left in enumerate(plan, start=1):
            logits, proposal = propose_at(step / steps, tokens, ask=bool(masked.any()))
            if order in ONCE and once is None:
                once = uniform((len(tokens),), generator, tokens.device)
            # Infinity comes last: no noise and no score can bring a committed position back under the mask.
            scores = score(proposal._replace(once=once), generator).masked_fill(~masked, torch.inf)
            if budget != "schedule":
                left = still_masked(budget, proposal, scores, masked, limit) * (step < steps)
            back = taken_back(unknown & ~masked, left, remask, generator) if remask else none
            staying = lowest(scores, left - back.sum(dim=1))
            if order == "moment":
                # Where all are committed none was chosen; MaskGIT, whose law this is, has the model's own there.
                chosen = masked & ~staying & staying.any(dim=1, keepdim=True)
                sharp = propose(logits, moment_temperature(proposal), generator)
                proposal = proposal._replace(codes=torch.where(chosen, sharp, proposal.codes))
            filled = torch.where(masked, proposal.codes, tokens)
            log_probability = torch.where(masked, proposal.log_probability, log_probability)
            masked = staying | back if step < last else none  # wherever the decoding ends, nothing is masked
            tokens = filled.masked_fill(masked, mask_id)
            yield DecodeStep(step, tokens, masked, filled, log_probability)
        for step in range(last + 1, last + rounds + 1):
            if unknown.any():
                log_probabilities = _logits(model, tokens, prior, mask_id).log_softmax(dim=-1)
                again = doubtful(log_probabilities, tokens, unknown, redo)
                _, proposal = propose_at(1.0, tokens.masked_fill(again, mask_id))
                tokens = torch.where(again, proposal.codes, tokens)
                log_probability = torch.where(again, proposal.log_probability, log_probability)
            yield DecodeStep(step, tokens, none, tokens, log_probability)

    return states(tokens)


def inpaint(
    model: Callable[[Tensor], Tensor],
    tokens: Int[Tensor, "B N"],
    unknown: Bool[Tensor, "B N"],
    *,
    generator: Generators,
    **settings: Any,
) -> Int[Tensor, "B N"]:
    """The tokens with the hole filled: the last state of `decode_steps`, which takes the same `settings`."""
    for state in decode_steps(model, tokens, unknown, generator=generator, **settings):
        filled = state.filled
    return filled


def _annealed(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 - share)


def _logits(
    model: Callable[[Tensor], Tensor], tokens: Int[Tensor, "B N"], prior: Float[Tensor, "B N K"] | None, codes: int
) -> Float[Tensor, "B N K"]:
    """Cut to the codes before any softmax, so that the mask id cannot be chosen, in float32, with the prior added."""
    with torch.no_grad(), fastest_matmul(tokens.device):
        logits = model(tokens)
    expected = (*tokens.shape, codes), (*tokens.shape, codes + 1)
    if logits.shape not in expected:
        found = tuple(logits.shape)
        shapes = f"{expected[0]} or {expected[1]}"
        raise ValueError(f"the model must return logits of shape {shapes}, but it returned {found}.")
    logits = logits[..., :codes].float()
    if not logits.logsumexp(dim=-1).isfinite().all():
        raise ValueError("the model must return finite logits, but it returned infinities or not-a-numbers.")
    return logits if prior is None else logits + prior


def _mask_id(model: Callable[[Tensor], Tensor], mask_id: int | None) -> int:
    if mask_id is None:
        mask_id = getattr(model, "mask_id", None)
    if mask_id is None:
        raise ValueError("mask_id must be given, because the model has no attribute mask_id to take it from.")
    return mask_id


def _by_name(table: dict[str, Callable], name: str, what: str) -> Callable:
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}, but it is {name!r}.")
    return table[name]


def _check_plan(steps: int, stop_at: int | None, rounds: int, budget: str, remask: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but it is {steps}.")
    if stop_at is not None and not 1 <= stop_at <= steps:
        raise ValueError(f"stop_at must lie between 1 and the {steps} steps, but it is {stop_at}.")
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, but it is {rounds}.")
    if budget not in ("schedule", *BUDGETS):
        raise ValueError(f"budget must be one of schedule, {', '.join(BUDGETS)}, but it is {budget!r}.")
    if remask and budget != "schedule":
        raise ValueError(f"remask keeps a schedule's counts: it needs the budget 'schedule', but that is {budget!r}.")


def _check_range(most: float, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= most or value == torch.inf:
            found = "finite" if most == torch.inf else f"at most {most}"
            raise ValueError(f"{name} must be at least 0 and {found}, but it is {value}.")


def _check_batch(
    model: Callable[[Tensor], Tensor],
    tokens: Tensor,
    unknown: Tensor,
    prior: Tensor | None,
    mask_id: int,
    generator: Generators,
) -> None:
    if getattr(model, "training", False):
        raise ValueError("the model must be in evaluation mode, but it is training: call model.eval().")
    if tokens.dim() != 2 or unknown.shape != tokens.shape:
        found = f"{tuple(tokens.shape)} and {tuple(unknown.shape)}"
        raise ValueError(f"tokens and unknown must have the same shape (B, N), but they have {found}.")
    if unknown.dtype != torch.bool:
        raise ValueError(f"unknown must be bool, True where a token is missing, but it is {unknown.dtype}.")
    known = tokens[~unknown]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < mask_id:
        span = f"{int(known.min())}..{int(known.max())}"
        raise ValueError(f"known tokens must be codes in 0..{mask_id - 1}, but they span {span}.")
    if not isinstance(generator, torch.Generator) and len(generator) != len(tokens):
        found = f"{len(generator)} generators for {len(tokens)} images"
        raise ValueError(f"generator must be one for the batch or one per image, but there are {found}.")
    if prior is not None and prior.shape != (*tokens.shape, mask_id):
        raise ValueError(f"prior must have shape {(*tokens.shape, mask_id)}, but it has {tuple(prior.shape)}.")
