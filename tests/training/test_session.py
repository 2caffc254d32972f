"""What is found in a run's folder is used only where it was made with the same settings, code and data."""

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import pytest
import torch
from torch import nn

from lab5 import checkpoint
from lab5.config import TrainConfig
from lab5.runtime.files import load_meta, load_tensors, save_tensors
from lab5.runtime.folders import data_folder
from lab5.runtime.states import state_files
from lab5.trainer import TrainStep
from lab5.training import session as training
from lab5.training.session import Kind, Training, logged

CONFIG = TrainConfig(steps=6, batch=4, lr=1e-2, warmup=2, amp="off", ema=0.9)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(3, 1))


def load(path: Path) -> nn.Module:
    return checkpoint.with_weights(network, load_tensors(path)[0], path)


def objective(model, draw, generator):
    inputs = torch.randn(4, 1, 1, 1, generator=generator)
    return (model(inputs) - inputs[:, :, 0, 0]).square().mean(), {}


def value_of(model):
    return {"val": model[0].bias.sum().item()}


def small(config=CONFIG, seed=0, goal=objective, check=value_of, best_by="val", **settings) -> Training:
    kind = Kind(
        "net", build=network, objective=lambda: goal,
        save=lambda path, model, **meta: save_tensors(path, model.state_dict(), meta), load=load,
        check=check, best_by=best_by,
    )  # fmt: skip
    return Training(kind, config, {"data": "abcdef"} | settings, seed=seed, device="cpu")


def never(*_):
    raise AssertionError("nothing should be trained")


def begun(steps: int = 3, **changes) -> Training:
    run = small(**changes)
    for step in run:
        if step.step == steps:
            break
    return run


@pytest.mark.parametrize("finished", [True, False], ids=["a network", "a state"])
def test_a_network_made_by_another_version_of_the_code_is_made_again_and_says_so(finished, monkeypatch, capsys):
    first = small().run() if finished else begun()
    monkeypatch.setattr(training, "CODE", training.CODE + 1)
    again = small()
    assert not again.reused and again.folder == first.folder
    assert [step.step for step in again] == [1, 2, 3, 4, 5, 6]
    found = f"code = {training.CODE - 1} there, {training.CODE} here"
    assert capsys.readouterr().err == f"net: begun again, what was in {first.folder.name} has {found}\n"
    assert small().reused and load_meta(again.file)["settings"]["code"] == training.CODE


def test_networks_of_before_there_were_versions_are_of_the_first(monkeypatch):
    monkeypatch.setattr(training, "CODE", 1)
    run = small().run()
    state, meta = load_tensors(run.file)
    del meta["settings"]["code"]
    save_tensors(run.file, state, meta)
    (run.folder / "settings.json").unlink()
    assert small().reused


def test_a_network_of_another_folder_put_here_by_hand_is_not_taken_for_ours(capsys):
    theirs, ours = small(data="other").run(), small().run()
    ours.file.write_bytes(theirs.file.read_bytes())
    again = small()
    assert not again.reused
    with pytest.raises(RuntimeError, match="net is not trained yet"):
        again.model  # noqa: B018
    capsys.readouterr()
    again.run()
    assert "what was in net-" in (said := capsys.readouterr().err) and "has data = other there, abcdef here" in said
    assert load_meta(ours.file)["settings"]["data"] == "abcdef"


def test_a_training_from_the_beginning_says_what_the_one_most_alike_has_otherwise(capsys):
    small(data="another", seed=4).run()
    one = small().run()
    capsys.readouterr()
    small(seed=5).run()
    assert capsys.readouterr().err == f"net: trained anew, {one.folder.name} has seed = 0 there, 5 here\n"
    small().run()
    begun(data="third")
    capsys.readouterr()
    small(data="third").run()
    assert capsys.readouterr().err == "", "who goes on, or finds it done, needs no explanation"


@pytest.mark.parametrize("spoil", [lambda b: b[:100], lambda b: b[:-4] + b"\1\2\3\4"], ids=["cut short", "changed"])
def test_a_damaged_network_is_refused_with_what_to_do(spoil):
    run = small().run()
    run.file.write_bytes(spoil(run.file.read_bytes()))
    with pytest.raises(ValueError, match="net.safetensors .*; remove the file to train it again"):
        small().model  # noqa: B018
    run.file.unlink()
    assert not small().reused and small().run().model


@pytest.mark.parametrize("name", ["history.json", "settings.json"])
def test_a_damaged_record_is_refused_with_what_to_do(name):
    run = begun() if name == "settings.json" else small().run()
    (run.folder / name).write_text('{"half')
    with pytest.raises(ValueError, match=f"{name} is damaged: remove its folder to train again"):
        small().run()


@pytest.mark.parametrize("written", ["history.json", "net.safetensors"])
def test_a_run_that_is_killed_between_its_last_files_ends_as_if_it_had_not_been(written):
    whole = small().run()
    files, trained = {path.name: path.read_bytes() for path in whole.folder.iterdir()}, whole.model.state_dict()
    whole.forget()
    begun(6)  # all steps made, of the last files only one written
    (whole.folder / written).write_bytes(files[written])
    again = small()
    assert not again.reused and list(again) == []
    assert {path.name for path in whole.folder.iterdir()} == set(files)
    torch.testing.assert_close(again.model.state_dict(), trained, rtol=0, atol=0)


def test_states_left_by_a_run_that_was_killed_at_its_very_end_are_removed():
    whole = begun(6)
    states = {path: path.read_bytes() for path in state_files(whole.folder / "net.state")}
    small().run()
    for path, content in states.items():
        path.write_bytes(content)
    assert small().run().reused and not state_files(whole.folder / "net.state")


def test_two_runs_on_one_folder_do_not_mix():
    first = iter(small())
    next(first)
    with pytest.raises(OSError, match=r"runs/net-\w+ is in use by process \d+ on .* \(this one: leave its loop first"):
        small().run()
    assert len(list(first)) == 5 and small().reused and not (small().folder / ".lock").exists()


def test_a_loss_that_is_no_number_keeps_the_states_and_the_folder_usable(monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)  # at every step, also where the clock has not moved

    def breaks(model, draw, generator):
        loss, metrics = objective(model, draw, generator)
        return loss * (float("nan") if draw == 4 else 1), metrics

    with pytest.raises(FloatingPointError, match="the loss is nan at step 4 with a learning rate of "):
        small(goal=breaks).run()
    assert [path.name for path in state_files(small().folder / "net.state")] == ["net.state-3", "net.state-2"]
    assert [step.step for step in small()] == [4, 5, 6]


@pytest.mark.parametrize("where", ["in the step", "in its check"])
def test_a_check_that_a_signal_prevents_is_made_by_the_run_that_goes_on(where):
    whole = [step.metrics for step in small(data="whole").run().history]
    calls = []

    def signalled(place):
        calls.extend([place] * (place == where))
        if calls == 3 * [place]:
            signal.raise_signal(signal.SIGINT)

    def goal(*arguments):
        signalled("in the step")
        return objective(*arguments)

    def check(model):
        signalled("in its check")
        return value_of(model)

    with pytest.raises(KeyboardInterrupt):
        small(goal=goal, check=check).run()
    run = small()
    assert [step.step for step in run] == [3, 4, 5, 6]
    assert [step.metrics for step in run.history] == whole and all("val" in metrics for metrics in whole)


def test_a_gpu_that_is_full_in_a_check_is_told_with_the_setting_to_lower(monkeypatch):
    monkeypatch.setattr("lab5.runtime.machine.machine", lambda device: "a GPU")

    def full(model):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(MemoryError, match="lower train.batch, which is 4"):
        small(check=full).run()


@pytest.mark.parametrize(("best_by", "step"), [("val", 2), ("-val", 5)])
def test_the_network_that_is_best_on_the_way_is_kept_as_it_was_then(best_by, step):
    values, weights = iter([20.0, 23.0, 21.0, 23.0, 19.0, 19.0]), {}
    run = small(check=lambda model: {"val": next(values)}, best_by=best_by)
    for made in run:
        weights[made.step] = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    torch.testing.assert_close(load(run.best).state_dict(), weights[step], rtol=0, atol=0)
    meta = load_meta(run.best)
    assert (meta["step"], meta["metrics"], meta["settings"]) == (step, run.history[step - 1].metrics, run.settings)


def test_the_settings_are_on_disk_beside_the_network():
    run = begun()
    assert json.loads((run.folder / "settings.json").read_text()) == run.settings
    assert run.folder.parent == data_folder() / "runs"


def test_seconds_add_up_over_the_goes_of_a_run():
    run = small()
    assert run.seconds == 0
    run.history = [TrainStep(i, 5, 1.0, 0.1, seconds, {}) for i, seconds in enumerate((1.0, 2.5, 0.5, 1.0, 4.0), 1)]
    assert run.seconds == 2.5 + 4.0


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_logged_steps_are_the_same_steps_and_written_as_they_come(monkeypatch, tmp_path):
    writers = MagicMock()
    writer = writers.return_value.__enter__.return_value
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writers))
    steps = [TrainStep(n, 3, 4.0 / n, 0.1 * n, 1.0, {"accuracy": n / 3}) for n in (1, 2, 3)]
    seen = []
    for step in logged(iter(steps), tmp_path):
        seen.append(step)
        assert writer.add_scalar.call_count == 3 * len(seen)
    assert seen == steps and writers.call_args == call(tmp_path) and writers.return_value.__exit__.called
    second = [call("loss", 2.0, 2), call("learning_rate", 0.2, 2), call("accuracy", 2 / 3, 2)]
    assert writer.add_scalar.call_args_list[3:6] == second


def test_without_tensorboard_logging_is_refused_before_a_step_is_made(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        logged(small(goal=never), tmp_path / "log")
    assert list(tmp_path.iterdir()) == []
