"""A step of training: the naive way encodes its images first, lab5 reads their tokens from a cache.

The same recipe on both sides: loss, masks, dropout, gradient clipping, AdamW. Attention's own dropout keeps both from
the fused kernel on a CPU; what a step costs without it is told beside, for that is another recipe.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from bench import naive
from bench.cost import training_flops
from bench.measure import interleaved, peak_memory, timed, waiting
from bench.plans import Plan
from bench.rows import Figure, Parity, Ratio, compared
from lab5.config import Stage2Config
from lab5.data.toycats import render
from lab5.masking import mvtm_mask
from lab5.objectives import MVTMObjective, masked_cross_entropy
from lab5.trainer import fit
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

MASKING = "cosine"
GOALS = {"off": 2.5, "bf16": 4.5}  # times as fast as the naive way


def networks(plan: Plan, device: torch.device) -> tuple[VQGAN, naive.Transformer, BidirectionalTransformer]:
    """Random weights, the two transformers' the same."""
    torch.manual_seed(0)
    vqgan = VQGAN(plan.vqgan).eval().requires_grad_(False)
    fast = BidirectionalTransformer(plan.transformer, generator=torch.Generator().manual_seed(0))
    slow = naive.Transformer(plan.transformer)
    slow.load_state_dict(fast.state_dict())
    return vqgan.to(device), slow.to(device), fast.to(device)


def run(plan: Plan, device: torch.device, amp: str, peak: float) -> list[Ratio | Figure]:
    """`amp` is that of lab5's side: "off" or "bf16"; the naive way is always in float32."""
    vqgan, slow, fast = networks(plan, device)
    images = render(7, plan.train_batch).images
    parity = check(vqgan, slow, fast, images)
    config = Stage2Config(
        steps=10**9, batch=plan.train_batch, masking=MASKING, warmup=0, schedule="constant", ema=0.0, amp=amp,
    )  # fmt: skip
    with torch.no_grad():
        tokens = vqgan.encode(naive.normalise(images).to(device)).cpu()
    optimiser = torch.optim.AdamW(decayed(slow, config.weight_decay), config.lr, betas=config.betas)
    generator, wait = torch.Generator().manual_seed(0), waiting(device)

    def naive_step() -> None:
        masked = mvtm_mask(tokens, MASKING, generator, None).to(device)
        naive.train_step(slow, vqgan, images, masked, optimiser, config.clip)

    slow.train()
    steps = fit(fast, MVTMObjective(tokens, config, seed=0), config, seed=0)

    def lab5_step() -> None:
        next(steps)

    memory = []
    for step in (naive_step, lab5_step):  # they warm up here
        with peak_memory(device) as used:
            step()
        memory.append(used.bytes)
    times = interleaved(naive_step, lab5_step, plan.train_rounds, units=(len(images),) * 2, warm_up=False, wait=wait)
    predicted = 256 * float(mvtm_mask(tokens[:1].expand(4096, -1), MASKING, generator, None).float().mean())
    flops = training_flops(plan.transformer, predicted)
    row = compared(
        f"training step, {'float32' if amp == 'off' else amp}", "image", times, parity, GOALS[amp],
        flops=flops, peak=peak, memory=tuple(memory), note=f"batch {plan.train_batch}, the same recipe on both sides",
    )  # fmt: skip
    steps.close()
    figures = [Figure("training", 1 / times.lab5, "images/s"), without_attention_dropout(plan, device, tokens, config)]
    return [row, *figures, *([compiled(plan, device, tokens, config)] if device.type == "cuda" else [])]


def check(vqgan: VQGAN, slow: naive.Transformer, fast: BidirectionalTransformer, images: Tensor) -> Parity:
    """Loss and gradients of both sides without dropout, whose draws differ."""
    images, device = images[:2], next(fast.parameters()).device
    with torch.no_grad():
        tokens = vqgan.encode(naive.normalise(images).to(device))
    masked = mvtm_mask(tokens.cpu(), MASKING, torch.Generator().manual_seed(1), None).to(device)
    losses = naive.loss_of(slow.eval(), vqgan, images, masked), masked_cross_entropy(fast.eval(), tokens, masked)[0]
    for loss in losses:
        loss.backward()
    pairs = zip(gradients(slow), gradients(fast), strict=True)
    apart = max(float((a - b).norm() / a.norm().clamp(min=1e-9)) for a, b in pairs)
    ours, theirs = (loss.item() for loss in losses)
    apart = max(apart, abs(ours - theirs) / ours)
    for model in (slow, fast):
        model.zero_grad(set_to_none=True)
    return Parity("loss and gradients in float32, relative", apart, 1e-4)


def gradients(model: nn.Module) -> list[Tensor]:
    """All of them, by name; those of the keys' biases left out, which are nothing but rounding around 0."""
    named = sorted(model.named_parameters())
    return [p.grad for name, p in named if not name.endswith("key.bias")]


def decayed(model: nn.Module, decay: float) -> list[dict]:
    """Only the weights of linear maps are decayed, as in the recipe."""
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    chosen, others = ([p for p in model.parameters() if (id(p) in linear) == which] for which in (True, False))
    return [{"params": chosen, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def without_attention_dropout(plan: Plan, device: torch.device, tokens: Tensor, config: Stage2Config) -> Figure:
    """What `transformer.attention_dropout=0` brings, which lets the fused kernel in on a CPU."""
    plan = replace(plan, transformer=replace(plan.transformer, attention_dropout=0.0))
    speed = images_per_second(plan, device, tokens, config)
    return Figure("training with transformer.attention_dropout = 0", speed, "images/s", "another recipe")


def compiled(plan: Plan, device: torch.device, tokens: Tensor, config: Stage2Config) -> Figure:
    """What `stage2.compile` brings on a GPU."""
    speed = images_per_second(plan, device, tokens, replace(config, compile=True))
    return Figure("training with stage2.compile", speed, "images/s", "the same recipe")


def images_per_second(plan: Plan, device: torch.device, tokens: Tensor, config: Stage2Config) -> float:
    """Of lab5 alone: the faster of two steps."""
    steps = fit(networks(plan, device)[2], MVTMObjective(tokens, config, seed=0), config, seed=0)
    next(steps)
    seconds = min(timed(lambda: next(steps), wait=waiting(device)) for _ in range(2))
    steps.close()
    return len(tokens) / seconds
