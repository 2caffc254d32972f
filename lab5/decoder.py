"""Iterative parallel decoding: in a few steps, from tokens with a hole to tokens without one.

Every step asks the model about all masked positions at once, proposes a code for each, commits the proposals
of highest score and masks the others again; the schedule says how many stay masked. Each step is
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

from lab5.gamma import masked_count
from lab5.samplers import CODES, ORDERS, Generators, Proposal


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
) -> Iterator[DecodeStep]:
    """Yield the T + 1 states of a decoding in T = `steps` steps, each computed when it is asked for.

    Tokens outside `unknown` never change; those inside are ignored, so nothing can leak from them. State 0
    has no proposals yet: its `filled` is its `tokens`, whose mask ids no tokenizer can decode, and its
    confidence is 0.

    schedule, rounding  how many tokens stay masked after each step, per image: see `gamma.masked_count`
    steps               T, the steps of the plan
    stop_at             take only this many of them, 1..steps (the lab's "sweet spot"): the last step taken
                        commits all its proposals
    codes, order        which codes are proposed, which positions come first: names in `samplers`
    temperature         of the codes
    choice_temperature  of the order: noise on the scores, falling linearly to 0 at step T
    prior               log-weights added to the model's logits at every step, such as what the visible pixels of
                        half-hidden tokens say; None for the model alone
    mask_id             the id after the K codes; None takes `model.mask_id`
    generator           one for the batch, or one per image: an image then gets the same noise in any batch

    The model maps tokens (B, N) to logits (B, N, K) or (B, N, K+1) and must be in evaluation mode.
    Raises ValueError for bad input at the call, before any state is asked for, and on the way only for what
    the model returns.
    """
    mask_id = _mask_id(model, mask_id)
    _check_batch(model, tokens, unknown, mask_id, generator)
    _check_plan(steps, stop_at, temperature, choice_temperature)
    if prior is not None and prior.shape != (*tokens.shape, mask_id):
        raise ValueError(f"prior must have shape {(*tokens.shape, mask_id)}, but it has {tuple(prior.shape)}.")
    propose, score = _by_name(CODES, codes, "codes"), _by_name(ORDERS, order, "order")
    last = steps if stop_at is None else stop_at
    at_start = unknown.sum(dim=1)
    counts = [masked_count(schedule, step, steps, at_start, rounding) for step in range(1, last + 1)]
    counts[-1] = torch.zeros_like(at_start)  # wherever the decoding ends, it ends with nothing masked

    def states(tokens: Tensor, unknown: Tensor) -> Iterator[DecodeStep]:
        masked = unknown
        log_probability = torch.zeros(tokens.shape, device=tokens.device)
        yield DecodeStep(0, tokens, masked, tokens, log_probability)
        for step, count in enumerate(counts, start=1):
            logits = _logits(model, tokens, mask_id)
            logits = logits if prior is None else logits + prior
            proposal = Proposal(
                log_probabilities=logits.log_softmax(dim=-1),
                codes=propose(logits, temperature, generator),
                unknown=unknown,
                temperature=choice_temperature * (1 - step / steps),
            )
            filled = torch.where(masked, proposal.codes, tokens)
            log_probability = torch.where(masked, proposal.log_probability, log_probability)
            # Infinity comes last: no noise and no score can bring a committed position back under the mask.
            scores = score(proposal, generator).masked_fill(~masked, torch.inf)
            masked = _lowest(scores, count)
            tokens = filled.masked_fill(masked, mask_id)
            yield DecodeStep(step, tokens, masked, filled, log_probability)

    # Copies, because the states are computed later: the caller may have changed the originals by then.
    return states(tokens.long().masked_fill(unknown, mask_id), unknown.clone())


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


def _lowest(scores: Float[Tensor, "B N"], count: Int[Tensor, "B"]) -> Bool[Tensor, "B N"]:
    """True at the `count` lowest scores of each image; of equal scores, at the first ones."""
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return rank < count.unsqueeze(1)


def _logits(
    model: Callable[[Tensor], Tensor], tokens: Int[Tensor, "B N"], codes: int
) -> Float[Tensor, "B N K"]:
    """Cut to the codes before any softmax, so that the mask id cannot be chosen, and in float32."""
    with torch.no_grad():
        logits = model(tokens)
    expected = (*tokens.shape, codes), (*tokens.shape, codes + 1)
    if logits.shape not in expected:
        found = tuple(logits.shape)
        shapes = f"{expected[0]} or {expected[1]}"
        raise ValueError(f"the model must return logits of shape {shapes}, but it returned {found}.")
    logits = logits[..., :codes].float()
    if not logits.logsumexp(dim=-1).isfinite().all():
        raise ValueError("the model must return finite logits, but it returned infinities or not-a-numbers.")
    return logits


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


def _check_plan(steps: int, stop_at: int | None, temperature: float, choice_temperature: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but it is {steps}.")
    if stop_at is not None and not 1 <= stop_at <= steps:
        raise ValueError(f"stop_at must lie between 1 and the {steps} steps, but it is {stop_at}.")
    for name, value in (("temperature", temperature), ("choice_temperature", choice_temperature)):
        if not 0 <= value < torch.inf:
            raise ValueError(f"{name} must be at least 0 and finite, but it is {value}.")


def _check_batch(
    model: Callable[[Tensor], Tensor], tokens: Tensor, unknown: Tensor, mask_id: int, generator: Generators
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
