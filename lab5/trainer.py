"""One training loop for both stages, as a generator: the caller owns progress, plots and early stop.

    for step in fit(model, objective, config, seed=0):
        print(step.step, step.loss)

An objective is a callable `(model, step, generator) -> (loss, metrics)`. The generator is seeded anew from
(seed, step), as is torch's own stream for dropout: a step depends on nothing but the weights, the seed and its
number, so a resumed run goes on exactly where it was.

It knows neither images nor tokens, no decoder and no plot.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lab5 import checkpoint
from lab5.config import TrainConfig

Objective = Callable[[nn.Module, int, torch.Generator], tuple[Tensor, dict[str, float]]]


class TrainStep(NamedTuple):
    """One optimiser step, seen from outside."""

    step: int  # 1-based
    steps: int
    loss: float
    lr: float
    seconds: float  # since the loop began, of this process
    metrics: dict[str, float]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of 1-based `step`: constant, linear or cosine decay to 1 %, after a linear warm-up."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = 0.01
    if config.schedule == "warmup_cosine":
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    if config.schedule == "warmup_linear":
        return config.lr * max(floor, 1 - done)
    if config.schedule == "constant":
        return config.lr
    raise ValueError(
        f"unknown learning-rate schedule {config.schedule!r}; there are constant, warmup_cosine and warmup_linear"
    )


def fit(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    *,
    seed: int,
    save_to: Path | None = None,
    save_every: float = 120.0,
) -> Iterator[TrainStep]:
    """Train `model` in place; when the loop ends, or is left early, the averaged weights (EMA) are in it.

    With `save_to` the state is written there every `save_every` seconds and at the end, and a run that finds its
    own file goes on from it. A loss that is not finite stops the run with the step and the learning rate.
    """
    device = next(model.parameters()).device
    optimiser = _optimiser(model, config, device)
    average = AveragedModel(model, multi_avg_fn=_averaging(config)) if config.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    generator = torch.Generator(device="cpu")
    first = 1
    if save_to is not None and save_to.exists():
        first = 1 + _restore(save_to, model, average, optimiser, objective)
    model.train()
    began = last_save = time.monotonic()
    step = first - 1
    try:
        for step in range(first, config.steps + 1):
            lr = learning_rate(config, step)
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.zero_grad(set_to_none=True)
            total, metrics = 0.0, {}
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                for micro in range(config.accumulate):
                    draw = (step - 1) * config.accumulate + micro + 1
                    torch.manual_seed(seed * 1_000_003 + draw)
                    generator.manual_seed(seed * 1_000_003 + draw)
                    with autocast(config.amp, device):
                        loss, metrics = objective(model, draw, generator)
                    scaler.scale(loss / config.accumulate).backward()
                    total += float(loss.detach()) / config.accumulate
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss is {total} at step {step} with a learning rate of {lr:.2g}")
            scaler.unscale_(optimiser)
            if config.clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            scaler.step(optimiser)
            scaler.update()
            if average is not None:
                average.update_parameters(model)
            if save_to is not None and time.monotonic() - last_save > save_every:
                _store(save_to, model, average, optimiser, objective, step)
                last_save = time.monotonic()
            yield TrainStep(step, config.steps, total, lr, time.monotonic() - began, metrics)
    finally:
        if save_to is not None and step >= first:
            _store(save_to, model, average, optimiser, objective, step)
        if average is not None and step >= first:
            model.load_state_dict(average.module.state_dict())
        model.eval()


def autocast(amp: str, device: torch.device):
    """The autocast region of a setting "bf16", "fp16" or "off"."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.bfloat16}
    if amp not in kinds:
        raise ValueError(f"unknown mixed precision {amp!r}; there are bf16, fp16 and off")
    return torch.autocast(device.type, kinds[amp], enabled=amp != "off")


def _optimiser(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; biases, norms and embeddings are not decayed."""
    embedded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    decayed = [p for p in model.parameters() if p.dim() > 1 and id(p) not in embedded]
    kept = [p for p in model.parameters() if p.dim() <= 1 or id(p) in embedded]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=device.type in ("cpu", "cuda"))


def _averaging(config: TrainConfig):
    """Exponential moving average that follows closely while it is young."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        decay = min(config.ema, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    return update


def _store(path: Path, model, average, optimiser, objective, step: int) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.module.state_dict().items()}
    if isinstance(objective, nn.Module):
        tensors |= {f"objective.{k}": v for k, v in objective.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
    checkpoint.save(path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"step": step})


def _restore(path: Path, model, average, optimiser, objective) -> int:
    tensors, meta = checkpoint.load(path)
    parts: dict[str, dict] = {"model": {}, "average": {}, "optimiser": {}, "objective": {}}
    for key, value in tensors.items():
        part, rest = key.split(".", 1)
        parts[part][rest] = value
    model.load_state_dict(parts["model"])
    if average is not None:
        average.module.load_state_dict(parts["average"])
        average.n_averaged.fill_(meta["step"])
    if isinstance(objective, nn.Module):
        objective.load_state_dict(parts["objective"])
    state: dict[int, dict] = {}
    for key, value in parts["optimiser"].items():
        i, name = key.split(".")
        state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(meta["step"])
