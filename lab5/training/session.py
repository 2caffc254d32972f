"""One network on its way: trained once, and from then on found on disk.

Everything that a network depends on is in the name of its folder and in its files, so one made with other settings
is never taken for it. A run that was cut short goes on from where it was.
"""

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lab5.config import TrainConfig
from lab5.runtime.files import load_meta, locked, write
from lab5.runtime.folders import data_folder
from lab5.runtime.machine import oom_hint
from lab5.runtime.ranks import here
from lab5.runtime.states import differences, state_files
from lab5.trainer import Objective, TrainStep, fit, section

CHECKS = 10  # looks at validation images in one training
SAVE_EVERY = 120.0  # seconds between states on disk
CODE = 2  # counts up whenever a training would come out differently: those of before are then made again


class Kind(NamedTuple):
    """What is trained, and how it comes from and to disk.

    `check` looks at the network CHECKS times on the way, on images that it does not train on; its numbers join the
    metrics of that step. The network that is best by the metric `best_by`, with a minus before one that should be low,
    is kept in a file of its own.
    """

    name: str
    build: Callable[[], nn.Module]
    objective: Callable[[], Objective]
    save: Callable[..., None]
    load: Callable[[Path], nn.Module]
    check: Callable[[nn.Module], dict[str, float]] = lambda model: {}
    best_by: str = ""


class Training:
    """One network of a run: `for step in training: ...` trains it, then `training.model` is ready.

    If the folder already holds it, nothing is trained: `reused` is True, and `history` is that of the run which
    did. A run that was cut short goes on from its last saved state, and its history with it. What other settings or
    another version of this code have left in the folder is said and made again. One run at a time trains, with however
    many ranks: all of them iterate, and rank 0 alone checks and writes.

    What is handed out in the end is the average of the last weights; the file `best` has what looked best on the way.
    """

    def __init__(self, kind: Kind, config: TrainConfig, settings: dict[str, Any], *, seed: int, device: str):
        name = kind.name
        settings = settings | {"network": name, "training": dataclasses.asdict(config), "seed": seed}
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = data_folder() / "runs" / f"{name}-{digest}"
        self.file, self.best = self.folder / f"{name}.safetensors", self.folder / f"{name}.best.safetensors"
        self._log, self._note = self.folder / "history.json", self.folder / "settings.json"
        self._states = self.folder / f"{name}.state"
        self.name, self.config, self.settings = name, config, json.loads(text) | {"code": CODE}
        self._kind, self._seed, self._device = kind, seed, device
        self.reused = self._finished()
        self.history: list[TrainStep] = []
        self._model: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The network on the way; when it is trained, the one on disk, in evaluation mode."""
        if self._model is None:
            if not self._finished():
                raise RuntimeError(f"the {self.name} is not trained yet: iterate over its training first")
            try:
                self._model = self._kind.load(self.file).to(self._device)
            except ValueError as error:
                raise ValueError(f"{error}; remove the file to train it again") from error
        return self._model

    @property
    def seconds(self) -> float:
        """Time that the steps of `history` took, in however many goes."""
        ends = [step.seconds for step, following in pairwise(self.history) if following.seconds < step.seconds]
        return sum(ends + [step.seconds for step in self.history[-1:]])

    def __len__(self) -> int:
        return self.config.steps

    def __iter__(self) -> Iterator[TrainStep]:
        ranks = here()
        if ranks.first_says(self._finished()):
            self.history = [TrainStep(*row) for row in _read_json(self._log)]
            if ranks.first:
                self._forget_states()  # those of a run that was killed just before it would have
            return
        ranks.share(self.config.accumulate, f"{section(self.config)}.accumulate")
        with locked(self.folder) if ranks.first else nullcontext():
            if ranks.first:
                self._begin()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                self._model = self._kind.build().to(self._device, memory_format=torch.channels_last)
                objective = self._kind.objective()  # a critic's first weights are drawn here
            ranks.from_first(self._model.state_dict().values())  # drawn by another processor they may differ
            self.history = []
            steps = fit(
                self._model, objective, self.config, seed=self._seed, save_to=self._states,
                save_every=SAVE_EVERY, settings=self.settings, history=self.history,
            )  # fmt: skip
            with ranks.signals_wait():
                for step in steps:
                    if ranks.first and step.step % max(1, self.config.steps // CHECKS) == 0:
                        try:
                            with oom_hint(f"{section(self.config)}.batch", self.config.batch):
                                step.metrics.update(self._kind.check(self._model))
                            self._keep_best(step)
                        except BaseException as error:
                            steps.throw(error)  # the run that goes on checks this step
                    yield step
            if ranks.first:
                write(self._log, json.dumps(self.history).encode())
                self._kind.save(self.file, self._model, settings=self.settings)
            ranks.wait()
            self._model = None  # from here on the one on disk, as for whoever finds it there
            if ranks.first:
                self._forget_states()

    def _finished(self) -> bool:
        return self.file.exists() and self._log.exists() and not differences(self._found(), self.settings)

    def _found(self) -> dict[str, Any] | None:
        """The settings of what is in the folder; networks of before they had a version are of the first."""
        if self.file.exists():
            try:
                return {"code": 1} | load_meta(self.file).get("settings", {})
            except ValueError as error:
                raise ValueError(f"{error}; remove the file to train it again") from error
        return _read_json(self._note) if self._note.exists() else None

    def _begin(self) -> None:
        """Say what there is under other settings, in this folder, where it is removed, or in the one most alike."""
        there = self._found()
        if there is not None and (differ := differences(there, self.settings)):
            print(f"{self.name}: begun again, what was in {self.folder.name} has {'; '.join(differ)}", file=sys.stderr)
            self.forget()
        elif there is None:
            notes = [note for note in self.folder.parent.glob(f"{self.name}-*/settings.json") if note != self._note]
            unlike = {note.parent.name: differences(_read_json(note), self.settings, 99) for note in notes}
            if unlike:
                name, differ = min(unlike.items(), key=lambda pair: len(pair[1]))
                more = f"; {len(differ) - 3} more" if len(differ) > 3 else ""
                print(f"{self.name}: trained anew, {name} has {'; '.join(differ[:3])}{more}", file=sys.stderr)
        write(self._note, json.dumps(self.settings, indent=2).encode())

    def _keep_best(self, step: TrainStep) -> None:
        name, sign = self._kind.best_by.removeprefix("-"), -1 if self._kind.best_by.startswith("-") else 1
        if name in step.metrics:
            values = [sign * earlier.metrics[name] for earlier in self.history if name in earlier.metrics]
            if values[-1] > max(values[:-1], default=-math.inf):
                facts = {"step": step.step, "metrics": step.metrics}
                self._kind.save(self.best, self._model, settings=self.settings, **facts)

    def _forget_states(self) -> None:
        for file in state_files(self._states):
            file.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove what is on disk of it, so that it begins anew."""
        for file in (self.file, self.best, self._log, self._note):
            file.unlink(missing_ok=True)
        self._forget_states()
        self.reused, self.history, self._model = False, [], None

    def run(self) -> "Training":
        """Train to the end without looking."""
        for _ in self:
            pass
        return self


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: remove its folder to train again") from error


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
