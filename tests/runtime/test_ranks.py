"""Two processes train as one does: the same batches and weights, and they end together, whatever ends one of them."""

import os
import re
import signal
import socket
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path

import pytest
import torch
from stubs import started

from lab5 import checkpoint, trainer
from lab5.cli import main as cli
from lab5.objectives import MVTMObjective
from lab5.profiles import configure
from lab5.runtime import ranks
from lab5.runtime.files import load_tensors
from lab5.runtime.processes import run_parallel
from lab5.runtime.ranks import Ranks, here
from lab5.training import session
from lab5.vqgan import VQGAN

SIZES = {
    "device": "cpu", "data.train": 24, "data.val": 8, "data.test": 8, "transformer.dropout": 0.1,
    "stage1.steps": 12, "stage1.batch": 4, "stage1.warmup": 2, "stage1.accumulate": 2, "stage1.autoencoder_share": 0.3,
    "stage1.code_decay": 0.3,  # so that codes die within these steps
    "stage2.steps": 8, "stage2.batch": 4, "stage2.warmup": 2, "stage2.accumulate": 2,
}  # fmt: skip
TRAIN = ["train", "--stage", "transformer", "--profile", "smoke"]
TRAIN += chain.from_iterable(("--set", f"{name}={value}") for name, value in SIZES.items())
SECONDS = 120  # in which all has ended, on a machine that is busy with other things


def as_rank(rank: int, world: int, port: int, work, args) -> None:
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, cli._terminate)
    sys.exit(work(*args))


def in_two(work, *args) -> list[int]:
    """The exit codes of two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [started(as_rank, rank, 2, port, work, args) for rank in range(2)]
    for process in processes:
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail("a rank has not ended")
    return [process.exitcode for process in processes]


def command(folders: list[Path], words: list[str], trouble: str = "", draw: int = 0) -> int:
    """A command with a folder of its own, and trouble in one batch; what it says is in out-RANK and err-RANK there."""
    rank = int(os.environ.get("RANK", 0))
    os.environ["LAB5_DATA"] = str(folders[rank])
    folders[rank].mkdir(exist_ok=True)
    session.SAVE_EVERY = -1.0  # a state after every step
    if rank > 0:
        session.locked = session.write = trainer.save_state = None  # who is not the first needs none of them
    whole = MVTMObjective.__call__

    def troubled(self, model, number, generator):
        if number == draw and trouble.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[trouble])
        loss, metrics = whole(self, model, number, generator)
        return loss * (float(trouble) if number == draw and trouble == "nan" else 1), metrics

    MVTMObjective.__call__ = troubled
    with (folders[rank] / f"out-{rank}").open("w") as out, (folders[rank] / f"err-{rank}").open("w") as err:
        with redirect_stdout(out), redirect_stderr(err):
            return cli.main(words)


def said(folder: Path, rank: int) -> list[str]:
    """The complaints of a rank."""
    lines = re.split(r"[\r\n]+", (folder / f"err-{rank}").read_text())
    return [line for line in lines if line.startswith("lab5:")]


def trained(folder: Path, name: str):
    """The weights, and what was said of every step."""
    (file,) = folder.glob(f"runs/{name}-*/{name}.safetensors")
    history = session._read_json(file.with_name("history.json"))
    return load_tensors(file)[0], [(loss, lr, *metrics.values()) for _, _, loss, lr, _, metrics in history]


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("runs/*/*.state-*"))


def assert_alike(ours: Path, theirs: Path, name: str) -> None:
    (weights, history), (expected, expected_history) = trained(ours, name), trained(theirs, name)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    for step, other in zip(history, expected_history, strict=True):
        assert step == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory) -> list[str]:
    """Words that name a stage one, which is not trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VQGAN(configure("smoke").vqgan)
        torch.nn.init.normal_(model.codebook.embedding.weight)
    checkpoint.save_vqgan(file := tmp_path_factory.mktemp("vqgan") / "vqgan.safetensors", model)
    return ["--vqgan", str(file)]


@pytest.fixture(scope="module")
def alone(vqgan, tmp_path_factory) -> Path:
    """The folder of one process that has trained stage two."""
    folder = tmp_path_factory.mktemp("alone")
    process = started(command, [folder], TRAIN + vqgan)
    process.join()
    assert process.exitcode == 0
    return folder


# --- the same as in one process ---------------------------------------------------------------------------------------


def test_both_stages_are_those_of_one_process_with_as_many_batches_in_a_step(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    process = started(command, [one], TRAIN)
    assert in_two(command, [two, two], TRAIN) == [0, 0]
    process.join()
    for name in ("vqgan", "transformer"):
        assert_alike(two, one, name)
    assert len(list(two.glob("cache/tokens-train-*"))) == 2 and not list(two.glob("**/*.part"))
    assert len((two / "out-0").read_text().splitlines()) == 4, "the networks, and what they reach"
    assert (two / "out-1").read_text() == (two / "err-1").read_text() == "", "rank 0 alone prints"


def test_a_run_of_two_ranks_that_is_stopped_twice_goes_on_as_two_and_then_as_one(alone, vqgan, tmp_path):
    """Signals come to one rank, in the midst of a step; both have its whole state after it, and end."""
    both = [tmp_path, tmp_path]
    assert in_two(command, both, TRAIN + vqgan, "SIGINT", 6) == [130, 130]  # to rank 1, in the third step
    assert states(tmp_path) == ["transformer.state-2", "transformer.state-3"]
    assert "interrupted; given again" in said(tmp_path, 0)[-1] and said(tmp_path, 1) == []
    assert in_two(command, both, TRAIN + vqgan, "SIGTERM", 9) == [143, 143]  # to rank 0, in the fifth
    assert states(tmp_path) == ["transformer.state-4", "transformer.state-5"]
    process = started(command, both, TRAIN + vqgan)
    process.join()
    assert process.exitcode == 0
    assert_alike(tmp_path, alone, "transformer")


def test_draws_are_numbered_in_rounds_and_those_of_all_ranks_are_those_of_one():
    for step in (1, 2, 7):
        by_rank = [Ranks(rank, 3).draws(step, 6) for rank in range(3)]
        assert by_rank[1] == [((step - 1) * 2 + micro) * 3 + 1 + 1 for micro in (0, 1)]
        assert sorted(chain(*by_rank)) == Ranks().draws(step, 6) == list(range(6 * step - 5, 6 * step + 1))
        assert [[one.is_last(draw, 6) for draw in one.draws(step, 6)] for one in (Ranks(0, 3), Ranks(2, 3))] == [
            [False, True], [False, True]]  # fmt: skip
    with pytest.raises(ValueError, match="stage2.accumulate = 3, .* cannot be dealt out to 2 ranks: make it"):
        Ranks(0, 2).share(3, "stage2.accumulate")


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_rank_that_is_killed_ends_the_others_with_one_sentence(vqgan, tmp_path):
    assert in_two(command, [tmp_path] * 2, TRAIN + vqgan, "SIGKILL", 6) == [2, -signal.SIGKILL]
    (sentence,) = [line for line in said(tmp_path, 0) if "stand for" not in line]
    assert sentence.startswith("lab5: another rank has ended, or cannot be reached any more, and so does this one: ")
    assert states(tmp_path) == ["transformer.state-1", "transformer.state-2"]


def test_a_loss_that_is_no_number_on_one_rank_ends_all_in_its_step(vqgan, tmp_path):
    assert in_two(command, [tmp_path] * 2, TRAIN + vqgan, "nan", 6) == [2, 2]
    assert said(tmp_path, 0)[-1].startswith("lab5: the loss is nan at step 3 ") and said(tmp_path, 1) == []
    assert states(tmp_path) == ["transformer.state-1", "transformer.state-2"]


def test_ranks_that_do_not_see_one_folder_are_refused(vqgan, tmp_path):
    folders = [tmp_path / "here", tmp_path / "there"]
    assert in_two(command, folders, TRAIN + vqgan) == [2, 2]
    (sentence,) = said(folders[1], 1)
    assert sentence.startswith(f"lab5: rank 1: {folders[1]} is not the folder that rank 0 writes to: LAB5_DATA has to")
    assert not list(tmp_path.glob("*/.ranks-*")) and not list(tmp_path.glob("*/runs"))


@pytest.mark.parametrize(("words", "sentence"), [
    (TRAIN + ["--set", "stage2.accumulate=1"], "stage2.accumulate = 1, the batches in a step, cannot be dealt"),
    (TRAIN + ["--set", "stage1.adversarial=0.1"], "stage1.adversarial trains a critic batch after batch"),
], ids=["batches", "critic"])  # fmt: skip
def test_what_several_ranks_cannot_do_is_refused_before_anything_is_trained(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(ranks, "_here", Ranks(0, 2))
    monkeypatch.setattr(Ranks, "wait", lambda self: None)
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(f"lab5: {sentence}")


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("words", "environment", "sentence"), [
    ("settings", {"RANK": "0"}, "RANK=0 without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: torchrun"),
    ("train", {"WORLD_SIZE": "2"}, "the environment has WORLD_SIZE=2 without RANK, LOCAL_RANK, "),
    ("train", TORCHRUN | {"MASTER_PORT": ""}, "without MASTER_PORT: torchrun sets them all"),
    ("train", TORCHRUN | {"RANK": "2"}, "RANK=2, which must be below WORLD_SIZE=2"),
    ("train", TORCHRUN | {"RANK": "-1"}, "RANK=-1, which is no whole number"),
    ("train", TORCHRUN | {"LOCAL_RANK": "first"}, "LOCAL_RANK=first, which is no whole number"),
    ("settings", TORCHRUN, "settings runs in one process: torchrun is for train and study"),
    ("study --jobs 2", TORCHRUN, "--jobs 2 is for one process, and there are 2, which share the work as jobs do"),
])  # fmt: skip
def test_an_environment_that_makes_no_sense_is_refused(words, environment, sentence, monkeypatch, capsys):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_two_ranks_of_a_machine_never_share_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    Ranks(3, 4, 1).check_device("cuda")
    Ranks(3, 4, 3).check_device("cpu")
    Ranks().check_device("cuda:1")
    with pytest.raises(ValueError, match="device = cuda:1 is one GPU, and there are 4 ranks"):
        Ranks(3, 4, 1).check_device("cuda:1")
    with pytest.raises(ValueError, match="LOCAL_RANK = 2 needs a GPU of its own, and this machine has 2"):
        Ranks(2, 4, 2).check_device("cuda")


# --- what they tell each other ----------------------------------------------------------------------------------------


def note(folder: Path, item: int) -> str:
    """Which rank has done the item; who comes later finds it."""
    assert here().world == 1, "each is done by a rank alone"
    file = folder / f"item-{item}"
    if not file.exists():
        with file.open("x") as new:
            new.write(os.environ["RANK"])
    return file.read_text()


def talk(folder: Path) -> None:
    os.environ["LAB5_DATA"], ranks.BUCKET = str(folder), 8
    rank = int(os.environ["RANK"])
    with ranks.joined():
        this = here()
        numbers = torch.arange(24.0).view(2, 3, 2, 2)
        ours = [torch.full((3, 2), 1.0 + rank), numbers.to(memory_format=torch.channels_last),
                torch.tensor(rank), torch.full((5,), 10.0 * rank)]  # fmt: skip
        layout = ours[1].stride()
        this.sum_(ours)
        assert torch.equal(ours[0], torch.full((3, 2), 3.0)) and torch.equal(ours[3], torch.full((5,), 10.0))
        assert torch.equal(ours[1], 2 * numbers) and ours[1].stride() == layout
        assert ours[2].item() == 1 and ours[2].dtype == torch.int64
        weight = torch.nn.Parameter(torch.tensor([float(rank), 5.0]))
        this.from_last([weight])
        assert weight.tolist() == [1.0, 5.0]
        this.from_first([ours[2].fill_(rank + 7)])
        assert ours[2].item() == 7
        assert this.last_says({"a": rank + 0.5, "b": 2}) == {"a": 1.5, "b": 2.0} and not this.first_says(rank == 1)
        with this.in_turn():
            (folder / f"turn-{rank}").touch()
            assert here().world == 1 and (folder / "turn-0").exists()
        this.wait()
        works = list(run_parallel(note, folder, range(7)))
        assert works == [(item, (folder / f"item-{item}").read_text()) for item in range(7)]
    assert here().world == 1


def test_ranks_tell_each_other_numbers_and_tensors_and_share_works(tmp_path):
    assert in_two(talk, tmp_path) == [0, 0]
    assert {path.read_text() for path in tmp_path.glob("item-*")} <= {"0", "1"}


def test_one_process_is_a_world_in_which_nothing_has_to_be_told():
    one = Ranks()
    assert (one.rank, one.world, one.first, one.share(3)) == (0, 1, True, 3)
    assert one.gather(1, 2.5) == [[1, 2.5]] and one.agree(7) == 7 and one.last_says({"a": 1}) == {"a": 1}
    one.sum_([tensor := torch.ones(2)])
    assert tensor.tolist() == [1, 1]
