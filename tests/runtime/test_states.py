"""A state is found again, a damaged one gives way, a foreign one is refused with what differs."""

import json
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from torch import nn

from lab5.config import Stage1Config, TrainConfig
from lab5.runtime.files import load_tensors, save_tensors
from lab5.runtime.states import differences, state_files
from lab5.trainer import fit

CONFIG = TrainConfig(steps=8, batch=4, lr=1e-2, warmup=2, amp="off", ema=0.9)


def network(width=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 2))


def objective(model, draw, generator):
    inputs = torch.randn(4, 5, generator=generator)
    return (model(inputs) - inputs[:, :2]).square().mean(), {"draw": float(draw)}


def run(path, stop=None, model=None, config=CONFIG, goal=objective, seed=0, **options):
    """Train up to a step, or to the end, saving after every one; the steps that were made, and the network."""
    model, steps = model or network(), []
    for step in fit(model, goal, config, seed=seed, save_to=path, save_every=-1.0, **options):
        steps.append(step.step)
        if step.step == stop:
            break
    return steps, model


def without_times(history):
    return [step._replace(seconds=0.0) for step in history]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.state"


@pytest.fixture(scope="module")
def straight():
    """The network of a run without interruption, its steps without their times."""
    history, model = [], network()
    list(fit(model, objective, CONFIG, seed=0, history=history))
    return model, without_times(history)


def names(path):
    return [file.name for file in state_files(path)]


def test_the_newest_come_first_and_other_files_are_none_of_them(path):
    for name in ("net.state-9", "net.state-10", "net.state-100", "net.state", "net.state-x", "other.state-11",
                 ".net.state-12.host.1.part"):  # fmt: skip
        (path.parent / name).write_bytes(b"")
    assert names(path) == ["net.state-100", "net.state-10", "net.state-9"]
    assert state_files(path.parent / "no such folder" / "net.state") == []


@pytest.mark.parametrize("spoil", [
    lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole[:-4] + b"\1\2\3\4", lambda whole: b"else" * 99,
], ids=["empty", "cut short", "four bytes changed", "something else"])  # fmt: skip
def test_a_damaged_newest_state_gives_way_to_the_one_before_and_says_so(spoil, path, straight):
    run(path, stop=5)
    assert names(path) == ["net.state-5", "net.state-4"]
    newest, history = state_files(path)[0], []
    newest.write_bytes(spoil(newest.read_bytes()))
    with pytest.warns(UserWarning, match="net.state-5 (was damaged|is truncated).*; going on from net.state-4$"):
        steps, model = run(path, history=history)
    assert steps == [5, 6, 7, 8] and same(model, straight[0])
    assert without_times(history) == straight[1], "losses and all"


def test_without_any_whole_state_a_run_begins_at_the_first_step_and_says_so(path, straight):
    run(path, stop=6)
    for file in state_files(path):
        file.write_bytes(b"")
    with pytest.warns(UserWarning) as said:
        assert run(path, stop=3)[0] == [1, 2, 3]
    assert [str(warning.message).rpartition("; ")[2] for warning in said] == [
        "going on from net.state-5", "beginning at the first step"]  # fmt: skip
    assert names(path) == ["net.state-3", "net.state-2"], "and not the damaged ones of later steps"
    steps, model = run(path)
    assert steps == [4, 5, 6, 7, 8] and same(model, straight[0])


def test_the_history_of_the_runs_before_is_that_of_the_state(path, straight):
    run(path, stop=3)
    history = [straight[1][7]]  # what the caller had
    run(path, stop=6, history=history)
    run(path, history=history)
    assert without_times(history) == straight[1]
    assert history[2].metrics == {"draw": 3.0}


def test_a_history_of_any_length_can_be_written(path):
    """A header of safetensors ends at 100 MB, which 890,000 steps would fill."""
    headers = []
    for steps in (8, 80):
        file = path.with_name(f"{steps}")
        list(fit(network(), objective, replace(CONFIG, steps=steps), seed=0, save_to=file))
        headers.append(int.from_bytes(state_files(file)[0].read_bytes()[:8], "little"))
    assert headers[1] < headers[0] + 100


def test_a_state_of_before_with_its_history_in_the_header_is_gone_on_from(path, straight):
    run(path, stop=5)
    for file in state_files(path):
        tensors, meta = load_tensors(file)
        facts = json.loads(tensors.pop("facts").numpy().tobytes())
        save_tensors(file, tensors, meta | facts)
    history = []
    steps, model = run(path, history=history)
    assert steps == [6, 7, 8] and same(model, straight[0]) and without_times(history) == straight[1]


def test_what_a_caller_adds_to_a_step_is_in_the_state(path):
    for step in fit(network(), objective, CONFIG, seed=0, save_to=path, save_every=1e9):
        step.metrics["seen"] = float(step.step)
        if step.step == 4:
            break
    history = []
    run(path, history=history)
    assert [step.metrics.get("seen") for step in history] == [1.0, 2.0, 3.0, 4.0, None, None, None, None]


@pytest.mark.parametrize(("change", "found"), [
    ({"config": replace(CONFIG, lr=0.02)}, r"training\.lr = 0\.01 there, 0\.02 here"),
    ({"config": replace(CONFIG, steps=9, betas=(0.9, 0.95))},
     r"training\.steps = 8 there, 9 here; training\.betas = \[0\.9, 0\.99\] there, \[0\.9, 0\.95\] here"),
    ({"config": replace(CONFIG, optimiser="adam")}, "training.optimiser = adamw there, adam here"),
    ({"seed": 1}, "seed = 0 there, 1 here"),
    ({"model": network(7)}, "parameters = 50 there, 58 here"),
    ({"settings": {"data": "fedcba"}}, "data = abcdef there, fedcba here"),
    ({"settings": {"data": "abcdef", "code": 2}}, "code = nothing there, 2 here"),
], ids=["rate", "two fields", "optimiser", "seed", "size", "data", "code"])  # fmt: skip
def test_a_state_of_another_training_is_refused_with_what_differs(change, found, path):
    own = {"settings": {"data": "abcdef"}}
    run(path, stop=3, **own)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(ValueError, match=f"net.state-3 is the state of another training, with {found}: remove it"):
        run(path, **own | change)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_only_so_many_differences_are_told():
    there, here = {str(i): i for i in range(9)}, {str(i): i + 1 for i in range(9)}
    assert differences(there, here, limit=2) == ["0 = 0 there, 1 here", "1 = 1 there, 2 here", "7 more"]
    assert differences({"a": {"b": (1, (2,))}}, {"a": {"b": [1, [2]]}}) == [], "as it comes back from JSON"
    assert differences({"a": 1}, {"b": 1}) == ["b = nothing there, 1 here", "a = 1 there, nothing here"]


# --- signals and faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_that_is_interrupted_is_ended_and_saved(number, path, straight):
    def goal(model, draw, generator):
        if draw == 5:
            signal.raise_signal(number)
        return objective(model, draw, generator)

    before = signal.signal(number, signal.default_int_handler)
    steps = []
    try:
        with pytest.raises(KeyboardInterrupt):
            for step in fit(network(), goal, CONFIG, seed=0, save_to=path, save_every=1e9):
                steps.append(step.step)
    finally:
        signal.signal(number, before)
    assert steps == [1, 2, 3, 4] and names(path) == ["net.state-5"], "the fifth was made, and is not lost"
    steps, _ = run(path, stop=7)
    assert steps == [5, 6, 7], "and nobody has seen it yet"
    steps, model = run(path)
    assert steps == [8] and same(model, straight[0])


def test_a_step_whose_caller_failed_is_handed_out_again(path, straight):
    """As a training's check that is interrupted: `throw` says that the step was not dealt with."""
    steps = fit(network(), objective, CONFIG, seed=0, save_to=path, save_every=1e9)
    for step in steps:
        if step.step == 5:
            with pytest.raises(KeyboardInterrupt):
                steps.throw(KeyboardInterrupt())
    steps, model = run(path)
    assert steps == [5, 6, 7, 8] and same(model, straight[0])


def test_an_interrupt_between_steps_saves_the_last_one(path, straight):
    with pytest.raises(KeyboardInterrupt):
        for step in fit(network(), objective, CONFIG, seed=0, save_to=path, save_every=1e9):
            if step.step == 5:
                raise KeyboardInterrupt
    assert names(path) == ["net.state-5"]
    assert same(run(path)[1], straight[0])


def test_a_full_disk_stops_the_run_and_leaves_the_states_before(disk_of, path, straight):
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(OSError, match="net.state-4 could not be written and is as it was before"))
        for step in fit(network(), objective, CONFIG, seed=0, save_to=path, save_every=-1.0):
            if step.step == 4:
                stack.enter_context(disk_of(1000))
    assert names(path) == ["net.state-3", "net.state-2"]
    assert len(list(path.parent.iterdir())) == 2, "nothing half written"
    steps, model = run(path)
    assert steps == [4, 5, 6, 7, 8] and same(model, straight[0]), "with room again it goes on"


@pytest.mark.parametrize("where", ["the loss", "the optimiser"])
def test_a_gpu_without_enough_memory_is_told_with_the_setting_to_lower(where, path, monkeypatch):
    monkeypatch.setattr("lab5.runtime.machine.machine", lambda device: "a GPU")
    calls, real = [], torch.optim.AdamW.step

    def full(*_):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total ...")

    def goal(model, draw, generator):
        if where == "the loss":
            full()
        return objective(model, draw, generator)

    if where == "the optimiser":
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: full() or real(*args))
    config = Stage1Config(steps=8, batch=32, warmup=0, amp="off")
    with pytest.raises(MemoryError, match=r"lower stage1\.batch, which is 32, .* stage1\.accumulate = 2") as refused:
        run(path, goal=goal, config=config)
    assert "\n" not in str(refused.value)
    assert names(path) == ["net.state-3", "net.state-2"]


def test_a_clock_that_jumps_changes_nothing(path, monkeypatch):
    """The wall clock is set back by a day and forward by a year in the midst of a run."""
    jumps, history = cycle([1e9, 1e9 - 86_400, 1e9 + 3e7]), []
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    run(path, history=history)
    seconds = [0.0, *(step.seconds for step in history)]
    assert len(seconds) == 9 and seconds == sorted(seconds)
