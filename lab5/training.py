"""One network on its way: trained once, and from then on found on disk.

Everything that a network depends on is in the name of its folder, so one made with other settings is never taken
for it. A run that was cut short goes on from where it was.

It does not know which networks there are, what they learn or how a step is made.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lab5.config import TrainConfig, data_folder
from lab5.trainer import Objective, TrainStep, fit

CHECKS = 10  # looks at validation images in one training


class Training:
    """One network of a run: `for step in training: ...` trains it, then `training.model` is ready.

    If the folder already holds it, nothing is trained: `reused` is True, and `history` is that of the run which
    did. A run that was cut short goes on from its last saved state, and its history with it. `check` looks at the
    network CHECKS times on the way, on images that it does not train on; what it finds joins the metrics of that
    step.
    """

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        settings: dict[str, Any],
        *,
        build: Callable[[], nn.Module],
        objective: Callable[[], Objective],
        save: Callable[..., None],
        load: Callable[[Path], nn.Module],
        seed: int,
        device: str,
        check: Callable[[nn.Module], dict[str, float]] = lambda model: {},
    ):
        settings = settings | {"network": name, "training": config.as_dict(), "seed": seed}
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = data_folder() / "runs" / f"{name}-{digest}"
        self.file, self._log = self.folder / f"{name}.safetensors", self.folder / "history.json"
        self.name, self.config, self.settings = name, config, json.loads(text)
        self._build, self._objective, self._save, self._load = build, objective, save, load
        self._seed, self._device, self._check = seed, device, check
        self.reused = self._finished()
        self.history: list[TrainStep] = []
        self._model: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The network on the way; when it is trained, the one on disk, in evaluation mode."""
        if self._model is None:
            if not self._finished():
                raise RuntimeError(f"the {self.name} is not trained yet: iterate over its training first")
            self._model = self._load(self.file).to(self._device)
        return self._model

    @property
    def seconds(self) -> float:
        """Time that the steps of `history` took, in however many goes."""
        ends = [step.seconds for step, following in pairwise(self.history) if following.seconds < step.seconds]
        return sum(ends + [step.seconds for step in self.history[-1:]])

    def __len__(self) -> int:
        return self.config.steps

    def __iter__(self) -> Iterator[TrainStep]:
        if self._log.exists():
            self.history = [TrainStep(*row) for row in json.loads(self._log.read_text(encoding="utf-8"))]
        if self._finished():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._model = self._build().to(self._device, memory_format=torch.channels_last)
        state = self.folder / f"{self.name}.state"
        try:
            for step in fit(self._model, self._objective(), self.config, seed=self._seed, save_to=state):
                if step.step % max(1, self.config.steps // CHECKS) == 0:
                    step.metrics.update(self._check(self._model))
                while self.history and self.history[-1].step >= step.step:
                    self.history.pop()  # later than the state that the run went on from
                self.history.append(step)
                yield step
        finally:
            self._write_log()
        self._save(self.file, self._model, settings=self.settings)
        self._model = None  # from here on the one on disk, as for whoever finds it there
        state.unlink(missing_ok=True)

    def _finished(self) -> bool:
        return self.file.exists() and self._log.exists()

    def _write_log(self) -> None:
        part = self._log.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(self.history), encoding="utf-8")
        part.replace(self._log)

    def run(self) -> "Training":
        """Train to the end without looking."""
        for _ in self:
            pass
        return self


class Given:
    """A network that somebody else has trained, behind the face of a `Training` that is done."""

    reused, seconds = True, 0.0

    def __init__(self, name: str, file: Path, model: nn.Module):
        self.name, self.file, self.model = name, file, model
        self.history: list[TrainStep] = []

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[TrainStep]:
        return iter(())

    def run(self) -> "Given":
        return self
