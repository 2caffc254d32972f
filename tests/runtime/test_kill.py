"""Training, its token cache and a study are killed again and again, at random moments, and end with the same bits."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from stubs import PROCESSES, Blocks, cats, started, untrained_pair

from lab5.config import DecodeConfig
from lab5.data.dataset import get_dataset
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.runtime.files import load_tensors
from lab5.scoring.scores import Scorer
from lab5.study.run import Plan, run_study
from lab5.training import session as training
from lab5.training.networks import train_transformer, train_vqgan

SIZES = {
    "device": "cpu",
    "data.train": 24, "data.val": 8, "data.test": 8, "transformer.dropout": 0.1, "transformer.hints": 0,
    "stage1.steps": 24, "stage1.batch": 4, "stage1.warmup": 2, "stage1.adversarial": 0.1, "stage1.ema": 0.9,
    "stage2.steps": 40, "stage2.batch": 4, "stage2.warmup": 2, "stage2.schedule": "step", "stage2.decay_every": 4,
}  # fmt: skip
STEPS = SIZES["stage1.steps"] + SIZES["stage2.steps"]  # more than all processes together have leave to make
KILLS = 20


def gate(parent) -> None:
    """What a process does after each step: say that it is made, then wait for leave to make the next."""
    parent.send("a step")
    parent.recv()


def train(folder: str, parent) -> None:
    """Both stages, in a process of its own, with a state after every step."""
    os.environ["LAB5_DATA"] = folder
    torch.set_num_threads(1)
    training.SAVE_EVERY = -1.0
    config = configure("smoke", **SIZES)
    data = get_dataset(config)
    first = train_vqgan(config, data)
    for _ in first:
        gate(parent)
    for _ in train_transformer(config, data, Tokenizer(first.model)):
        gate(parent)


def start(work, folder: Path, leave: int):
    """The process, with leave for so many steps, and the pipe to it."""
    ours, theirs = PROCESSES.Pipe()
    process = started(work, str(folder), theirs)
    theirs.close()
    for _ in range(leave):
        ours.send("go on")
    return process, ours


def whole(work, folder: Path, steps: int) -> tuple[float, float]:
    """All steps, of which so many are left; the seconds before the first, and those of a step."""
    started(str).join()  # after which the server has imported everything
    began = time.monotonic()
    process, pipe = start(work, folder, steps)
    pipe.recv()
    first = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return first - began, (time.monotonic() - first) / steps


def kill(work, folder: Path, leave: int, seconds: float) -> None:
    """So many steps, and then killed: in a later one, which it has no leave to end, or before the first."""
    process, pipe = start(work, folder, leave)
    for _ in range(leave):
        pipe.recv()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def result(folder: Path) -> dict[str, list]:
    """Everything that a run leaves: weights, losses and metrics, tokens; without times and the folder's name."""
    found: dict[str, list] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            state, meta = load_tensors(file)
            found[name] = [meta, *((key, state[key].numpy().tobytes()) for key in sorted(state))]
        elif file.name == "history.json":
            steps = training._read_json(file)
            found[name] = [(step, loss, lr, metrics) for step, _, loss, lr, _, metrics in steps]
        elif file.suffix == ".npy":
            found[name] = [np.load(file).tobytes()]
        elif file.name != ".lock":  # of a process that was killed when all was done but this; it locks nothing now
            found[name] = [] if file.suffix == ".npz" else [file.read_bytes()]
    return found


def progress(folder: Path) -> str:
    """The newest state, or the networks that are finished."""
    states = sorted(folder.glob("runs/*/*.state-*"), key=lambda path: path.stat().st_mtime_ns)
    return states[-1].name if states else " ".join(sorted(path.name for path in folder.glob("runs/*/*.safetensors")))


def test_a_training_that_is_killed_at_20_random_moments_ends_with_the_same_weights(tmp_path):
    before, a_step = whole(train, tmp_path / "whole", STEPS)
    moments, places, folder = random.Random(0), set(), tmp_path / "killed"
    for number in range(KILLS):
        leave = moments.randint(1, 3) if number % 4 else 0
        kill(train, folder, leave, moments.uniform(0, a_step if leave else before))
        places.add(progress(folder))
    assert len(places) > KILLS / 3, "it was killed in one and the same place"
    whole(train, folder, STEPS)
    ours, theirs = result(tmp_path / "whole"), result(folder)
    assert ours.keys() == theirs.keys(), "files are missing, or left over"
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert {Path(name).name for name in ours} >= {"vqgan.safetensors", "transformer.safetensors", "history.json"}


# --- the study --------------------------------------------------------------------------------------------------------


def study(folder: Path):
    """Sixty decodings, of which each is kept when it is done."""
    scorer = Scorer(cats(4, folder.parent / "cache"), Blocks())
    plans = [Plan(replace(DecodeConfig(steps=2), schedule=name), (1, 2)) for name in ("cosine", "linear", "square")]
    return run_study(untrained_pair(), scorer, plans, seeds=20, folder=folder)


def decode(folder: str, parent) -> None:
    torch.set_num_threads(1)
    for _ in study(Path(folder)):
        gate(parent)


def rows(results) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for result in results for row in result.rows]


def test_a_study_that_is_killed_at_20_random_moments_ends_with_the_same_table(tmp_path):
    before, a_decoding = whole(decode, tmp_path / "whole", 60)
    moments, counts, folder = random.Random(1), [0], tmp_path / "killed"
    for number in range(KILLS):
        leave = counts[-1] + moments.randint(1, 2) if number % 4 else 0
        kill(decode, folder, leave, moments.uniform(0, 2 * a_decoding if leave else before))
        counts.append(len(list(folder.glob("*.safetensors"))))
    assert len(set(counts)) > 8 and max(counts) < 60
    whole(decode, folder, 60)
    ours, theirs = rows(study(tmp_path / "whole")), rows(study(folder))
    assert ours == theirs and len(ours) == 2 * 60
    assert all(file.suffix == ".safetensors" for file in folder.iterdir()), "nothing half written is left"
