"""How lab5's speed and memory grow: with the batch, the steps, the size of the sets, the threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from bench import cost
from bench.measure import copy_bandwidth, timed, waiting
from bench.plans import Plan
from bench.rows import Figure
from bench.scoring import made_up_features
from bench.training import MASKING, networks
from lab5.decoder import inpaint
from lab5.fid import frechet_distance
from lab5.objectives import masked_cross_entropy, mvtm_loss
from lab5.profiles import PROFILES
from lab5.trainer import autocast
from lab5.transformer import BidirectionalTransformer

SMALL_GPU = 8 << 30  # bytes


def run(plan: Plan, device: torch.device, amp: str, peak: float) -> list[Figure]:
    model = networks(plan, device)[2]
    figures = [*by_batch(plan, model, amp, peak), *by_steps(plan, model, amp), *by_set(plan)]
    return figures + (list(by_threads(plan, model)) if device.type == "cpu" else [])


def by_batch(plan: Plan, model: BidirectionalTransformer, amp: str, peak: float) -> Iterator[Figure]:
    """Forward and backward, without the optimiser, whose share falls with the batch."""
    device = next(model.parameters()).device
    model.train()
    for batch in plan.batches:
        tokens = torch.randint(plan.transformer.codes, (batch, 256), generator=torch.Generator().manual_seed(batch))
        tokens, generator = tokens.to(device), torch.Generator().manual_seed(0)

        def work(tokens=tokens, generator=generator) -> None:
            model.zero_grad(set_to_none=True)
            with autocast(amp, device):
                loss = mvtm_loss(model, tokens, masking=MASKING, generator=generator)
            loss.backward()

        work()
        speed = batch / min(timed(work, wait=waiting(device)) for _ in range(2))
        share = f"{speed * cost.training_flops(plan.transformer) / peak:.0%} of peak" if peak else ""
        yield Figure(f"forward and backward, batch {batch}", speed, "images/s", share)
    model.zero_grad(set_to_none=True)


def by_steps(plan: Plan, model: BidirectionalTransformer, amp: str) -> Iterator[Figure]:
    device = next(model.parameters()).device
    model.eval()
    tokens = torch.zeros(2, 256, dtype=torch.int64, device=device)
    unknown = torch.arange(256, device=device).expand(2, -1) < 85  # as many as are missing in the mean
    for steps in plan.steps:

        def work(steps=steps) -> None:
            with autocast(amp, device):
                inpaint(model, tokens, unknown, steps=steps, generator=torch.Generator().manual_seed(0))

        work()
        yield Figure(f"decoding of tokens, T = {steps}", timed(work, wait=waiting(device)) / 2, "s per image")


def by_set(plan: Plan) -> Iterator[Figure]:
    for n in plan.sets:
        a, b = (made_up_features(n, plan.features, seed) for seed in (1, 2))
        seconds = min(timed(lambda a=a, b=b: frechet_distance(a, b)) for _ in range(2))
        yield Figure(f"Frechet distance, n = {n}, F = {plan.features}", seconds, "s")


def by_threads(plan: Plan, model: BidirectionalTransformer) -> Iterator[Figure]:
    tokens = torch.zeros(plan.batches[-1], 256, dtype=torch.int64)
    for n in range(1, torch.get_num_threads() + 1):
        with threads(n), torch.no_grad():
            model(tokens)
            speed = len(tokens) / min(timed(lambda: model(tokens)) for _ in range(2))
        yield Figure(f"forward with {n} thread{'s' * (n > 1)}", speed, "images/s")


@contextmanager
def threads(n: int) -> Iterator[None]:
    """So many threads for torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the cost model on this machine ---------------------------------------------------------------------------------


def cost_model(plan: Plan, device: torch.device, peak: float) -> list[Figure]:
    """Operations, bytes, the floors that they give here, and what fits into a small GPU."""
    shape, bandwidth = plan.transformer, copy_bandwidth(device)
    encode, decode = cost.vqgan_flops(plan.vqgan)
    train = cost.training_cost(shape, plan.train_batch)
    token_steps = cost.decoding_cost(shape, plan.decode_images, plan.decode_steps)
    fill = cost.inpainting_flops(shape, plan.vqgan, plan.decode_steps)
    fixed, kept = cost.fixed_memory(shape), {amp: kept_per_image(plan, device, amp) for amp in ("off", "bf16")}
    figures = [
        Figure("transformer, one pass", cost.transformer_flops(shape) / 1e9, "GFLOP per image"),
        Figure("training step", train.flops / 1e9, "GFLOP per image"),
        Figure("VQGAN, encoding", encode / 1e9, "GFLOP per image"),
        Figure("VQGAN, decoding", decode / 1e9, "GFLOP per image"),
        Figure(f"inpainting at T = {plan.decode_steps}", fill / 1e9, "GFLOP per image"),
        Figure("training step, weights and moments", train.bytes / 2**20, "MiB per image", f"batch {plan.train_batch}"),
        Figure("measured bandwidth of a copy", bandwidth / 1e9, "GB/s"),
        Figure("floor of a training step", train.seconds(peak, bandwidth), "s per image"),
        Figure("floor of decoding tokens", token_steps.seconds(peak, bandwidth), "s per image"),
        Figure("floor of inpainting, by its operations", fill / peak, "s per image"),
        Figure("memory of a training whatever the batch", fixed / 2**20, "MiB"),
    ]
    for amp, size in kept.items():
        name = "float32" if amp == "off" else amp
        fits = cost.largest_batch(SMALL_GPU, fixed, size)
        figures.append(Figure(f"kept for backward with the fused kernel, {name}", size / 2**20, "MiB per image"))
        figures.append(Figure(f"largest batch in 8 GB, {name}", fits, "images", "by these two numbers"))
    for name in ("quick", "cats-cpu", "gpu", "full"):
        parts = cost.profile_flops(PROFILES[name])
        note = ", ".join(f"{part} {flops / 1e12:.0f}" for part, flops in parts.items()) + " TFLOP"
        figures.append(Figure(f"floor of profile {name}, by its operations", sum(parts.values()) / peak, "s", note))
    return figures


def kept_per_image(plan: Plan, device: torch.device, amp: str) -> float:
    """Of two images less one: what the weights' copies in another precision take is the same for all.

    With the fused kernel, as on a GPU: a CPU that drops attention weights keeps them too, at the lab's size twice as
    much.
    """
    shape = replace(plan.transformer, attention_dropout=0.0)
    model, kept = networks(replace(plan, transformer=shape), device)[2].train(), []
    for batch in (1, 2):
        tokens = torch.zeros(batch, 256, dtype=torch.int64, device=device)
        masked = torch.ones_like(tokens, dtype=torch.bool)
        with autocast(amp, device):
            kept.append(cost.kept_for_backward(model, lambda t=tokens, m=masked: masked_cross_entropy(model, t, m)[0]))
    return kept[1] - kept[0]
