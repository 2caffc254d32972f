"""Mistakes in decoding and encoding, written as public solutions of the lab make them, with checks and effects.

A decoding is here a function (model, tokens, unknown, *, generator, schedule, steps, stop_at) that returns the tokens
to be shown after each step. As in `lab5.pitfalls.training`, a check takes the mistake or the package's own.

`lab5.pitfalls.catalogue` says which mistake is where from, and puts the pairs together.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional as F

from lab5.checkpoint import load_vqgan
from lab5.config import DecodeConfig
from lab5.data.dataset import BLOCK, GRID, token_mask
from lab5.data.holes import fill_holes, rings
from lab5.data.toycats import random_holes, render
from lab5.decoder import decode_steps
from lab5.gamma import gamma, masked_count
from lab5.inpainting.tokenizer import Tokenizer
from lab5.pitfalls.training import K, N, seeded
from lab5.runtime.folders import pretrained_folder
from lab5.samplers import Proposal, gumbel

Decoding = Callable[..., list[Tensor]]
GREY_CODE, STEPS, HOLE = 7, 10, 85  # what the encoder makes of grey; T; the tokens of a middling hole


def package(
    model: Any, tokens: Tensor, unknown: Tensor, *, generator: torch.Generator,
    schedule: str = "cosine", steps: int = STEPS, stop_at: int | None = None,
) -> list[Tensor]:  # fmt: skip
    """The package's own."""
    decoding = DecodeConfig(codes="argmax", schedule=schedule, steps=steps, stop_at=stop_at or 0)
    states = decode_steps(model, tokens, unknown, decoding, generator=generator)
    return [state.filled for state in states][1:]


class Change(NamedTuple):
    """What a solution does otherwise.

    `keep` makes the tokens of the next step. It is given the codes proposed now, the tokens of this step, those of the
    start, and the masks before and after.
    """

    keep: Callable[..., Tensor]
    mask_id_too: bool = False  # the mask id is among the classes
    of_current: bool = False  # the schedule's shares are of what is masked at the moment: they compound


def lab_loop(
    model: Any, tokens: Tensor, unknown: Tensor, *, generator: torch.Generator,
    schedule: str = "cosine", steps: int = STEPS, stop_at: int | None = None, change: Change,
) -> list[Tensor]:  # fmt: skip
    """The lab's loop, with the lines left open that a `change` names."""
    states, current, masked, codes = [], tokens, unknown, model.mask_id
    for step in range(steps):
        if step == stop_at:
            break
        log_p = model(current.masked_fill(masked, codes))[..., : codes + change.mask_id_too].log_softmax(-1)
        confidence, proposed = log_p.max(-1)
        confidence = confidence + 4.5 * (1 - (step + 1) / steps) * gumbel(confidence.shape, generator, tokens.device)
        rank = confidence.masked_fill(~masked, torch.inf).argsort(1).argsort(1)
        base = masked if change.of_current else unknown
        after = rank < masked_count(schedule, step + 1, steps, base.sum(1))[:, None]
        current = change.keep(proposed.clamp(max=codes - 1), current, tokens, masked, after)
        states.append(current)
        masked = after
    return states


def in_the_mask(proposed: Tensor, current: Tensor, original: Tensor, masked: Tensor, after: Tensor) -> Tensor:
    """How it should be: proposals where the mask was, everything else as it has become."""
    return torch.where(masked, proposed, current)


class Oracle:
    """In the place of the transformer: certain of the true codes, and keeps what it was shown."""

    def __init__(self, truth: Tensor):
        self.truth, self.mask_id, self.inputs = truth, K, []

    def __call__(self, tokens: Tensor) -> Tensor:
        self.inputs.append(tokens.clone())
        return 20.0 * F.one_hot(self.truth, K + 1).float()


class Forgetful(Oracle):
    """Repeats what it is shown, but for another twentieth of the positions in each call."""

    def __call__(self, tokens: Tensor) -> Tensor:
        slip = (torch.arange(N) - len(self.inputs)) % 20 == 0
        self.inputs.append(tokens.clone())
        return 20.0 * F.one_hot((tokens + slip) % K, K + 1).float()


class LovesTheMaskId(Oracle):
    """Knows the true codes, but finds the mask id more likely yet."""

    def __call__(self, tokens: Tensor) -> Tensor:
        logits = super().__call__(tokens)
        logits[..., K] = 21.0
        return logits


def a_hole() -> tuple[Tensor, Tensor, Tensor]:
    """True tokens; tokens whose hole was encoded as grey; which are unknown."""
    truth = torch.randint(GREY_CODE + 1, K, (1, N), generator=seeded(1))
    unknown = torch.rand(1, N, generator=seeded(2)).argsort(1).argsort(1) < HOLE
    return truth, truth.masked_fill(unknown, GREY_CODE), unknown


def run(decode: Decoding, model: type[Oracle] = Oracle, **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What a decoding of the hole shows after each step, and what the model was shown before it."""
    truth, tokens, unknown = a_hole()
    oracle = model(truth)
    return decode(oracle, tokens, unknown, generator=seeded(), steps=STEPS, **settings), oracle.inputs


# --- 1, 2, 3, 13: what is kept of the model's answer ----------------------------------------------------------------


def grey_where_committed(proposed: Tensor, current: Tensor, original: Tensor, masked: Tensor, after: Tensor) -> Tensor:
    """The mask has shrunk: what was committed is outside it, and put back to what the encoder made of grey."""
    return torch.where(after, proposed, original)


def from_the_start(proposed: Tensor, current: Tensor, original: Tensor, masked: Tensor, after: Tensor) -> Tensor:
    """Every step goes out from the tokens of the start: only what this one proposes is new."""
    return torch.where(masked, proposed, original)


def everywhere(proposed: Tensor, current: Tensor, original: Tensor, masked: Tensor, after: Tensor) -> Tensor:
    """The answer is taken also where the token was known."""
    return proposed


shrinking_mask = partial(lab_loop, change=Change(grey_where_committed))
original_tokens = partial(lab_loop, change=Change(from_the_start))
nothing_restored = partial(lab_loop, change=Change(everywhere))
mask_id_as_a_class = partial(lab_loop, change=Change(in_the_mask, mask_id_too=True))
compounding_count = partial(lab_loop, change=Change(in_the_mask, of_current=True))


def right_in_hole(decode: Decoding, model: type[Oracle] = Oracle) -> list[int]:
    """How many of the hole's tokens are right, were the decoding to stop after t = 1 .. T steps."""
    truth, _, unknown = a_hole()
    return [int((tokens == truth)[unknown].sum()) for tokens in run(decode, model)[0]]


def check_committed_stay(decode: Decoding) -> None:
    right = right_in_hole(decode)
    assert min(right) == HOLE, f"of {HOLE} tokens that the model knows, only these are right after t = 1 .. T: {right}"


def check_steps_build_on_steps(decode: Decoding) -> None:
    _, _, unknown = a_hole()
    grey = [int((tokens == GREY_CODE)[unknown].sum()) for tokens in run(decode)[1]]
    assert not any(grey), f"what a step commits must be there in the next, but the model is shown grey: {grey} tokens"


def known_changed(decode: Decoding) -> list[float]:
    """The share of known tokens that are others after t = 1 .. T steps."""
    _, original, unknown = a_hole()
    return [float((tokens != original)[~unknown].float().mean()) for tokens in run(decode, Forgetful)[0]]


def check_known_stay(decode: Decoding) -> None:
    changed = known_changed(decode)[-1]
    assert changed == 0, f"known tokens must stay as they are, but {changed:.0%} of them are redrawn"


def check_mask_id_is_no_class(decode: Decoding) -> None:
    right = right_in_hole(decode, LovesTheMaskId)[-1]
    assert right == HOLE, f"the mask id is no code: {HOLE - right} of {HOLE} tokens are painted with code {K - 1}"


# --- 10: the order --------------------------------------------------------------------------------------------------


def rank_correlation(order: Callable[..., Tensor], temperature: float) -> float:
    """Spearman's, of the scores and the probabilities, which are spread as a trained model's: more low than high."""
    p = torch.rand(64, N, generator=seeded(), dtype=torch.float64) ** 1.5
    codes = torch.zeros(p.shape, dtype=torch.int64)
    scores = order(Proposal(torch.stack([p, 1 - p], -1).log(), codes, p >= 0, temperature), seeded(1))
    return sum(scipy.stats.spearmanr(*pair).statistic for pair in zip(scores, p, strict=True)) / len(p)


def check_order(order: Callable[..., Tensor]) -> None:
    correlation = rank_correlation(order, 4.5)
    assert correlation > 0.12, f"likely tokens must tend to come first, but the rank correlation is {correlation:.2f}"


# --- 11, 12: how many stay masked -----------------------------------------------------------------------------------


def package_counts(schedule: str, steps: int, at_start: int) -> list[int]:
    return [masked_count(schedule, step, steps, at_start) for step in range(1, steps + 1)]


def of_the_current_mask(schedule: str, steps: int, at_start: int) -> list[int]:
    """gamma of what is masked now, which is a share of a share."""
    counts = [at_start]
    for step in range(1, steps + 1):
        counts.append(math.floor(gamma(schedule, step / steps) * counts[-1]))
    return counts[1:]


def from_step_zero(schedule: str, steps: int, at_start: int) -> list[int]:
    """t / T with t counted from 0 never comes to 1."""
    return [math.floor(gamma(schedule, step / steps) * at_start) for step in range(steps)]


def ceil_of_a_float(schedule: str, steps: int, at_start: int) -> list[int]:
    """Of cosine, whatever is asked for: cos(pi/2) is 6e-17, and a sixteenth digit rounded up is a whole token."""
    return [math.ceil(math.cos(math.pi * (step / steps) / 2) * at_start) for step in range(1, steps + 1)]


def floor_division(schedule: str, steps: int, at_start: int) -> list[int]:
    """Of stair, whatever is asked for: 1.0 // 0.1 is 9.0, and the last stair is missing."""
    return [math.floor((1 - step / steps // 0.1 * 0.1) * at_start) for step in range(1, steps + 1)]


def check_counts(counts: Callable[[str, int, int], list[int]]) -> None:
    masked, expected = counts("cosine", STEPS, HOLE), [83, 80, 75, 68, 60, 49, 38, 26, 13, 0]
    assert masked == expected, f"of {HOLE} tokens, {expected} must stay masked, but {masked} do"


def check_nothing_left(counts: Callable[[str, int, int], list[int]]) -> None:
    left = {schedule: counts(schedule, STEPS, HOLE)[-1] for schedule in ("cosine", "stair")}
    assert not any(left.values()), f"the last step must leave nothing masked, but it leaves {left}"


# --- 14, 15: settings that say nothing ------------------------------------------------------------------------------

silent_sweet_spot = partial(lab_loop, change=Change(in_the_mask))


def deaf_to_schedule(*arguments: Any, schedule: str, **settings: Any) -> list[Tensor]:
    """The flag is parsed, and the model was built with another one."""
    return lab_loop(*arguments, schedule="cosine", change=Change(in_the_mask), **settings)


def check_sweet_spot(decode: Decoding) -> None:
    for stop_at in (STEPS + 1, -1):
        try:
            taken = len(run(decode, stop_at=stop_at)[0])
        except ValueError:
            continue
        raise AssertionError(f"a stop after {stop_at} of {STEPS} steps must be refused, but {taken} steps were taken")


def masks_shown(decode: Decoding, schedule: str) -> list[int]:
    """How many tokens are masked when the model is asked."""
    return [int((tokens == K).sum()) for tokens in run(decode, schedule=schedule)[1]]


def check_schedule_arrives(decode: Decoding) -> None:
    for schedule in ("cosine", "linear", "square"):
        masked, expected = masks_shown(decode, schedule), [HOLE, *package_counts(schedule, STEPS, HOLE)][:-1]
        assert masked == expected, f"{schedule} must show the model {expected} masked tokens, but it is shown {masked}"


# --- 18: the encoder ------------------------------------------------------------------------------------------------


def encode_grey(tokenizer: Tokenizer, images: Tensor, holes: Tensor) -> Tensor:
    """The lab's: convolutions carry the grey across the edge of the hole."""
    return tokenizer.encode(fill_holes(images, holes, "grey"))


def encode_smooth(tokenizer: Tokenizer, images: Tensor, holes: Tensor) -> Tensor:
    """The package's recommendation: a smooth fill goes on where the picture ends."""
    return tokenizer.encode(fill_holes(images, holes, "navier_stokes"))


@cache
def cats() -> tuple[Tokenizer, Tensor, Tensor]:
    """The committed tokenizer, and images and holes that it has not seen."""
    vqgan = load_vqgan(pretrained_folder() / "vqgan.safetensors")
    return Tokenizer(vqgan), render(7_000_000, 16).images, random_holes(7_000_000, 16)


def leak(encode: Callable[..., Tensor]) -> tuple[float, float]:
    """Of known tokens that touch the hole: the share that changes with what is in it, and their pixels' PSNR in dB."""
    tokenizer, images, holes = cats()
    whole, unknown = tokenizer.encode(images), token_mask(holes)
    tokens = torch.where(unknown, whole, encode(tokenizer, images, holes))
    near = rings(unknown) == 1
    pixels = near.view(-1, 1, GRID, GRID).repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3).expand_as(images)
    error = (tokenizer.decode(tokens).float() - images)[pixels] / 255
    return float((tokens != whole)[near].float().mean()), float(-10 * error.square().mean().log10())


def check_leak(encode: Callable[..., Tensor]) -> None:
    changed, grey = leak(encode)[0], leak(encode_grey)[0]
    assert changed < 0.6 * grey, f"{changed:.0%} of known tokens at the hole change with what fills it; grey {grey:.0%}"


def leak_effect() -> str:
    ways = {"grey": encode_grey, "Navier-Stokes": encode_smooth, "no hole": lambda t, images, holes: t.encode(images)}
    leaks = {name: leak(encode) for name, encode in ways.items()}
    numbers = ", ".join(f"{name} {changed:.0%} and {psnr:.1f} dB" for name, (changed, psnr) in leaks.items())
    return f"known tokens at the hole that change, and PSNR of their pixels: {numbers}"
