"""A training's states on disk: the last few, whole and checked; a damaged one gives way to the one before.

All that changes while training is in a state. What is drawn at random in a step follows from the seed and the number
of the step, which are in it too: the order of the images, masks, flips and dropout.
"""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lab5.runtime.files import load_tensors, save_tensors

KEPT = 2  # the newest, and one to fall back on
FACTS = "facts"  # a tensor of bytes

_ABSENT = "nothing"


class Parts(NamedTuple):
    """All that changes while training."""

    model: nn.Module
    average: nn.Module | None
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective: Any  # its own state too, where it is a module


def save_state(path: Path, step: int, parts: Parts, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the state after `step`, and JSON-able facts, to `<path>-<step>`; then remove all but the last KEPT.

    The facts are a tensor of bytes: among them is the whole history, and a header of more than 100 MB is refused.

    Raises OSError where it cannot be written: those before it are still there.
    """
    tensors = {f"model.{k}": v for k, v in parts.model.state_dict().items()}
    if parts.average is not None:
        tensors |= {f"average.{k}": v for k, v in parts.average.state_dict().items()}
    if isinstance(parts.objective, nn.Module):
        tensors |= {f"objective.{k}": v for k, v in parts.objective.state_dict().items()}
    for i, state in parts.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
    tensors[FACTS] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    meta = {"step": step, "settings": settings, "scaler": parts.scaler.state_dict()}
    newest = path.with_name(f"{path.name}-{step}")
    save_tensors(newest, tensors, meta)
    files = state_files(path)
    at = files.index(newest)  # those of later steps were damaged, or training would have gone on from them
    for old in files[:at] + files[at + KEPT :]:
        old.unlink(missing_ok=True)


def load_state(path: Path, parts: Parts, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Put the newest state that is whole into the parts and return its facts, or None where there is none.

    A damaged one is warned of. Raises ValueError, with what differs, where a state belongs to other settings.
    """
    files = state_files(path)
    for file, before in zip(files, [*files[1:], None], strict=False):
        try:
            tensors, meta = load_tensors(file)
        except ValueError as error:
            instead = f"going on from {before.name}" if before else "beginning at the first step"
            warnings.warn(f"{error}; {instead}", stacklevel=2)
            continue
        if differ := differences(meta.get("settings", {}), settings):
            others = "; ".join(differ)
            raise ValueError(f"{file} is the state of another training, with {others}: remove it or name another file")
        facts = json.loads(tensors.pop(FACTS).numpy().tobytes()) if FACTS in tensors else {}
        _fill(parts, tensors, meta)
        return meta | facts  # those of earlier versions are in the header
    return None


def state_files(path: Path) -> list[Path]:
    """All states of one training, the newest first."""
    pattern = re.compile(rf"{re.escape(path.name)}-(\d+)")
    steps = {file: int(match[1]) for file in path.parent.glob("*") if (match := pattern.fullmatch(file.name))}
    return sorted(steps, key=steps.get, reverse=True)


def _fill(parts: Parts, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    model, average, optimiser, scaler, objective = parts
    of: dict[str, dict] = {"model": {}, "average": {}, "optimiser": {}, "objective": {}}
    for key, value in tensors.items():
        part, rest = key.split(".", 1)
        of[part][rest] = value
    model.load_state_dict(of["model"])
    if average is not None:
        average.load_state_dict(of["average"])
    if isinstance(objective, nn.Module):
        objective.load_state_dict(of["objective"])
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict] = {}
    for key, value in of["optimiser"].items():
        i, name = key.split(".")
        if value.dim():  # the fused AdamW reads memory as it lies: moments need the layout of their weights
            value = torch.empty_like(parameters[int(i)]).copy_(value)
        state.setdefault(int(i), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    if meta["scaler"]:  # there is one with fp16 only
        scaler.load_state_dict(meta["scaler"])


def differences(there: Any, here: Any, limit: int = 4) -> list[str]:
    """The fields in which two nested settings differ: "training.lr = 0.1 there, 0.2 here"; at most `limit` of them."""
    theirs, ours = _flat(there), _flat(here)
    differ = [name for name in {**ours, **theirs} if theirs.get(name, _ABSENT) != ours.get(name, _ABSENT)]
    lines = [f"{name} = {theirs.get(name, _ABSENT)} there, {ours.get(name, _ABSENT)} here" for name in differ[:limit]]
    return lines + [f"{len(differ) - limit} more"] * (len(differ) > limit)


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """The single values under their full names; a tuple is the list that JSON makes of it."""
    if isinstance(settings, Mapping):
        parts = (_flat(value, f"{name}.{key}" if name else str(key)) for key, value in settings.items())
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(settings, list | tuple):
        return {name: [_flat(value).get("", value) for value in settings]}
    return {name: settings}
