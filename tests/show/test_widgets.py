"""Watching a training: what comes back, curves on the way, an interrupt, a GPU that is full."""

import os
import signal
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from lab5.config import TrainConfig
from lab5.runtime import machine as memory
from lab5.show import notebook as widgets
from lab5.show.notebook import watch
from lab5.trainer import TrainStep
from lab5.training.session import Training


class Steps:
    """A training of four steps, of which each may do something."""

    name, config, history = "vqgan", TrainConfig(steps=4, batch=12, lr=1.0), None

    def __init__(self, during=lambda step: None):
        self.during, self.closed = during, False

    def __len__(self):
        return 4

    def __iter__(self):
        try:
            for step in range(1, 5):
                self.during(step)
                yield TrainStep(step, 4, 1 / step, 0.1, 0.0, {})
        finally:
            self.closed = True


def test_all_steps_come_back_or_the_history_of_what_was_trained_before():
    assert [step.step for step in watch(Steps())] == [1, 2, 3, 4]
    done = Steps()
    done.history = [TrainStep(9, 9, 0.0, 0.0, 0.0, {})]
    assert watch(done) == done.history


def test_curves_are_drawn_on_the_way_where_somebody_watches(monkeypatch):
    shown = []

    class Handle:
        def update(self, what):
            shown.append(what)

    monkeypatch.setattr(widgets, "is_live", lambda: True)
    monkeypatch.setattr(widgets, "display", lambda *_, **__: Handle())
    watch(Steps(), lambda steps: Figure(figsize=(len(steps), 1)), every=-1.0)
    assert [figure.get_figwidth() for figure in shown[:-1]] == [1, 2, 3, 4]
    assert not isinstance(shown[-1], Figure), "the notebook shows the final one"
    shown.clear()
    monkeypatch.setattr(widgets, "is_live", lambda: False)
    watch(Steps(), lambda steps: pytest.fail("nobody watches"), every=-1.0)
    assert shown == []


def test_an_interrupt_ends_the_loop_and_not_the_cell(capsys):
    steps = Steps(lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None)
    assert [step.step for step in watch(steps)] == [1, 2]
    assert steps.closed and "vqgan is kept" in capsys.readouterr().out


def test_an_interrupted_training_keeps_its_network_and_goes_on_where_it_was(own_folders):
    def training() -> Training:
        def objective(model, step, generator):
            if step == 3 and not (own_folders / "once").exists():
                (own_folders / "once").touch()
                os.kill(os.getpid(), signal.SIGINT)
            return (model.weight - 1).square().mean(), {}

        return Training(
            "toy", TrainConfig(steps=6, batch=1, lr=0.1, ema=0.0, amp="off", warmup=0), {},
            build=lambda: torch.nn.Linear(2, 2), objective=lambda: objective,
            save=lambda path, model, **meta: torch.save(model.state_dict(), path),
            load=lambda path: torch.nn.Linear(2, 2), seed=0, device="cpu",
        )  # fmt: skip

    cut = training()
    assert [step.step for step in watch(cut)] == [1, 2, 3], "the step of the moment is finished"
    kept = cut.model.weight.detach().clone()
    again = training()
    running = iter(again)
    assert next(running).step == 4, "nothing that was trained is lost"
    assert not torch.equal(again.model.weight, kept)
    running.close()


def test_a_full_gpu_is_told_with_the_setting_to_lower(monkeypatch):
    monkeypatch.setattr(memory, "machine", lambda device: "a GPU, 0.1 of 8.0 GB memory free")
    with pytest.raises(MemoryError, match=r"0.1 of 8.0 GB.*lower stage1.batch, which is 12.*: 6}\), or both$"):
        with memory.naming("stage1.batch", 12, ", or both"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="else"), memory.naming("stage1.batch", 12):
        raise RuntimeError("something else")


def test_the_machine_is_a_line_with_memory_in_it(monkeypatch):
    line = memory.machine("cpu")
    assert line.startswith(f"cpu with {os.cpu_count()} cores, ")
    free, total = memory.memory_gb()
    if Path("/proc/meminfo").exists():
        assert 0 < free < total and f"of {total:.1f} GB" in line
    monkeypatch.delattr(os, "sysconf")
    assert memory.machine("cpu").endswith("memory unknown")
