"""Filling holes: one by one with a picture at every step, and in batches with a picture at the end.

Both sides take the likeliest codes, the surest first, without noise: their results can then be compared token by
token.
"""

import torch
from torch import Tensor

from bench import naive
from bench.cost import inpainting_flops
from bench.measure import interleaved, peak_memory, timed, waiting
from bench.plans import Plan
from bench.rows import Figure, Parity, Ratio, compared
from bench.training import networks
from lab5.config import DecodeConfig
from lab5.data.dataset import token_mask
from lab5.data.holes import fill_holes
from lab5.data.toycats import random_holes, render
from lab5.inpainting.fill import decode_holes, inpaint_images, to_pictures
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.trainer import autocast

GOALS = {"off": 3.0, "bf16": 5.0}


def run(plan: Plan, device: torch.device, amp: str, peak: float) -> list[Ratio | Figure]:
    """`amp` is that of lab5's transformer: "off" or "bf16"."""
    vqgan, slow, fast = networks(plan, device)
    slow.eval(), fast.eval()
    pair = Pair(Tokenizer(vqgan), fast, "random")
    plain = networks(plan, device)[0]  # the tokenizer has laid out the other one for speed
    n = plan.decode_images
    images, holes = render(8, n).images, random_holes(8, n)
    grey, unknown = fill_holes(images, holes, "grey"), token_mask(holes).to(device)
    decode = DecodeConfig(steps=plan.decode_steps, codes="argmax", choice_temperature=0.0, batch=min(n, 128))
    wait, turn = waiting(device), iter(range(10**9))

    def naive_images() -> list[Tensor]:
        chosen = [next(turn) % n for _ in range(plan.naive_images)]
        return [naive.inpaint(slow, plain, grey[i], unknown[i], plan.decode_steps)[0][-1] for i in chosen]

    def lab5_images() -> Tensor:
        with autocast(amp, device):
            return inpaint_images(pair, images, holes, decode, 0)

    parity = check(plan, pair, slow, plain, (images, holes, grey, unknown), decode, amp)
    memory = []
    for work in (naive_images, lab5_images):  # they warm up here
        with peak_memory(device) as used:
            work()
        memory.append(used.bytes)
    times = interleaved(
        naive_images, lab5_images, plan.decode_rounds, units=(plan.naive_images, n), warm_up=False, wait=wait,
    )  # fmt: skip
    flops = inpainting_flops(plan.transformer, plan.vqgan, plan.decode_steps)
    row = compared(
        f"inpainting at T = {plan.decode_steps}, {'float32' if amp == 'off' else amp}", "image", times, parity,
        GOALS[amp], flops=flops, peak=peak, memory=tuple(memory),
        note=f"one by one with a picture at every step, against {n} at a time with one picture",
    )  # fmt: skip
    every = timed(lambda: pictures_of_every_step(pair, images, holes, decode), wait=wait) / n
    return [
        row,
        Figure("inpainting", 1 / times.lab5, "images/s"),
        Figure("inpainting of 747 images, at this rate", 747 * times.lab5, "s"),
        Figure("inpainting with the picture of every step, on request", 1 / every, "images/s"),
    ]


def pictures_of_every_step(pair: Pair, images: Tensor, holes: Tensor, decode: DecodeConfig) -> list[Tensor]:
    states = decode_holes(pair, images, holes, decode, 0)
    return [to_pictures(pair.tokenizer, state.filled, images, holes, decode) for state in states if state.step]


def check(
    plan: Plan, pair: Pair, slow: naive.Transformer, plain, data: tuple[Tensor, ...], decode: DecodeConfig, amp: str
) -> Parity:
    """In float32 the logits of one pass; in bf16 the share of tokens that come out differently."""
    images, holes, grey, unknown = (part[:1] for part in data)
    device = unknown.device
    with torch.no_grad(), autocast(amp, device):
        tokens = plain.encode(naive.normalise(grey).to(device)).masked_fill(unknown, slow.mask_id)
        logits = pair.transformer(tokens).float()
    if amp == "off":
        with torch.no_grad():
            expected = slow(tokens)
        return Parity("logits", float((logits - expected).abs().max()), 1e-4)
    expected = naive.inpaint(slow, plain, grey[0], unknown[0], plan.decode_steps)[1]
    with autocast(amp, device):
        *_, last = decode_holes(pair, images, holes, decode, 0)
    return Parity("share of other tokens", float((last.filled[0] != expected).float().mean()), 0.1)
