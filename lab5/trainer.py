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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lab5 import checkpoint
from lab5.config import TrainConfig

LR_SCHEDULES = ("constant", "warmup_cosine", "warmup_linear", "multi_step", "step", "plateau")
OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}

Objective = Callable[[nn.Module, int, torch.Generator], tuple[Tensor, dict[str, float]]]


class TrainStep(NamedTuple):
    """One optimiser step, seen from outside."""

    step: int  # 1-based
    steps: int
    loss: float
    lr: float
    seconds: float  # since the loop began, of this process
    metrics: dict[str, float]


class Plateau(NamedTuple):
    """What the schedule "plateau" remembers of the losses so far: numbers alone, which a file can hold."""

    decays: int = 0  # windows that brought no new low
    lowest: float = math.inf  # mean loss of the best window
    total: float = 0.0  # of the losses in the window of the moment

    def after(self, step: int, loss: float, every: int) -> "Plateau":
        """With one step's loss more; a window ends at every multiple of `every` steps."""
        total = self.total + loss
        if step % every:
            return self._replace(total=total)
        mean = total / every
        return Plateau(self.decays + (mean >= self.lowest), min(mean, self.lowest))


def learning_rate(config: TrainConfig, step: int, decays: int = 0) -> float:
    """Learning rate of 1-based `step`, after a linear warm-up of `config.warmup` steps; 0 for none.

    constant                      stays
    warmup_cosine, warmup_linear  falls to 1 %, as half a cosine or in a line
    multi_step                    times `config.decay` after each of the steps `config.milestones`
    step                          times `config.decay` after every `config.decay_every` steps behind the warm-up
    plateau                       times `config.decay` when the mean loss of `config.decay_every` steps is no lower
                                  than the lowest so far, which `decays` counts. It is the training loss: a run needs
                                  nothing but its own steps, and resumes exactly

    Raises ValueError for an unknown schedule and for milestones and intervals that lie outside the training.
    """
    _check_schedule(config)
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "multi_step":
        decays = sum(step > milestone for milestone in config.milestones)
    if config.schedule == "step":
        decays = (step - config.warmup - 1) // config.decay_every
    if config.schedule in ("multi_step", "step", "plateau"):
        return config.lr * config.decay**decays
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = 0.01
    if config.schedule == "warmup_cosine":
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    if config.schedule == "warmup_linear":
        return config.lr * max(floor, 1 - done)
    return config.lr


def learning_rates(config: TrainConfig) -> list[float]:
    """Those of all steps, for a plot. Raises ValueError for "plateau", whose rates only a run can tell."""
    if config.schedule == "plateau":
        raise ValueError("the learning rates of 'plateau' follow the losses: only the steps of a run have them")
    return [learning_rate(config, step) for step in range(1, config.steps + 1)]


def _check_schedule(config: TrainConfig) -> None:
    name = config.schedule
    if name not in LR_SCHEDULES:
        raise ValueError(f"unknown learning-rate schedule {name!r}; there are {', '.join(LR_SCHEDULES)}")
    rising = sorted({m for m in config.milestones if config.warmup < m <= config.steps})
    if name == "multi_step" and rising != list(config.milestones):
        expected = f"rise from {config.warmup + 1}, behind the warm-up, to {config.steps}, the last step"
        raise ValueError(f"milestones must {expected}; found {config.milestones}")
    if name in ("step", "plateau") and not 1 <= config.decay_every <= config.steps:
        raise ValueError(f"decay_every must lie in 1..{config.steps}, the number of steps; found {config.decay_every}")
    if name in ("multi_step", "step", "plateau") and not 0 < config.decay < 1:
        raise ValueError(f"decay must lie between 0 and 1, both excluded; found {config.decay}")


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
    own file goes on from it. An error or an interrupt within a step leaves the last file as it is.
    Raises FloatingPointError, with the step and the learning rate, for a loss or gradient that is not finite.
    """
    device = next(model.parameters()).device
    optimiser = _optimiser(model, config, device)
    average = AveragedModel(model, multi_avg_fn=_averaging(config)) if config.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    generator = torch.Generator(device="cpu")
    done, plateau = 0, Plateau()
    if save_to is not None and save_to.exists():
        done, plateau = _restore(save_to, model, average, optimiser, scaler, objective)
    first = 1 + done
    model.train()
    began = last_save = time.monotonic()
    step = done
    try:
        for step in range(first, config.steps + 1):
            lr = learning_rate(config, step, plateau.decays)
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
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
            if not math.isfinite(norm) and not scaler.is_enabled():  # a scaler skips such a step by itself
                raise FloatingPointError(f"the gradient is {norm} at step {step} with a learning rate of {lr:.2g}")
            scaler.step(optimiser)
            scaler.update()
            if average is not None:
                average.update_parameters(model)
            if config.schedule == "plateau":
                plateau = plateau.after(step, total, config.decay_every)
            done = step
            if save_to is not None and time.monotonic() - last_save > save_every:
                _store(save_to, model, average, optimiser, scaler, objective, step, plateau)
                last_save = time.monotonic()
            yield TrainStep(step, config.steps, total, lr, time.monotonic() - began, metrics)
    finally:
        if save_to is not None and done == step >= first:  # else an error has left a step half done
            _store(save_to, model, average, optimiser, scaler, objective, step, plateau)
        if average is not None:
            model.load_state_dict(average.module.state_dict())
        model.eval()


def logged(steps: Iterable[TrainStep], folder: Path) -> Iterator[TrainStep]:
    """The same steps, each of them also written to `folder`, for `tensorboard --logdir FOLDER` to show.

    `for step in logged(training, folder)`: loss, learning rate and metrics, against the step. Weights & Biases takes
    them over where `wandb.init(mode="offline", sync_tensorboard=True)` stands before the loop. Raises
    ModuleNotFoundError at the call, before any step is made, where the package tensorboard is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # here alone: nothing else needs it
    except ImportError as error:
        raise ModuleNotFoundError("writing for TensorBoard needs its package: pip install tensorboard") from error

    def written() -> Iterator[TrainStep]:
        with SummaryWriter(folder) as writer:
            for step in steps:
                for name, value in {"loss": step.loss, "learning_rate": step.lr, **step.metrics}.items():
                    writer.add_scalar(name, value, step.step)
                yield step

    return written()


def autocast(amp: str, device: torch.device):
    """The autocast region of a setting "bf16", "fp16" or "off"."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.bfloat16}
    if amp not in kinds:
        raise ValueError(f"unknown mixed precision {amp!r}; there are bf16, fp16 and off")
    return torch.autocast(device.type, kinds[amp], enabled=amp != "off")


def _optimiser(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """A name in OPTIMISERS; biases, norms and embeddings are not decayed, which leaves the weights of linear maps.

    AdamW shrinks the weights themselves; Adam adds the decay to the gradients, where it is scaled as they are.
    """
    if config.optimiser not in OPTIMISERS:
        raise ValueError(f"unknown optimiser {config.optimiser!r}; there are {', '.join(OPTIMISERS)}")
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    decayed = [p for p in model.parameters() if id(p) in linear]
    kept = [p for p in model.parameters() if id(p) not in linear]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    build = OPTIMISERS[config.optimiser]
    return build(groups, lr=config.lr, betas=config.betas, fused=device.type in ("cpu", "cuda"))


def _averaging(config: TrainConfig):
    """Exponential moving average that follows closely while it is young."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        decay = min(config.ema, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    return update


def _store(path: Path, model, average, optimiser, scaler, objective, step: int, plateau: Plateau) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.module.state_dict().items()}
    if isinstance(objective, nn.Module):
        tensors |= {f"objective.{k}": v for k, v in objective.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
    checkpoint.save(path, tensors, {"step": step, "scaler": scaler.state_dict(), "plateau": plateau})


def _restore(path: Path, model, average, optimiser, scaler, objective) -> tuple[int, Plateau]:
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
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict] = {}
    for key, value in parts["optimiser"].items():
        i, name = key.split(".")
        if value.dim():  # the fused AdamW reads memory as it lies: moments need the layout of their weights
            value = torch.empty_like(parameters[int(i)]).copy_(value)
        state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    if meta.get("scaler"):  # there is one with fp16 only
        scaler.load_state_dict(meta["scaler"])
    return int(meta["step"]), Plateau(*meta.get("plateau", ()))
