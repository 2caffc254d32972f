"""Training, its token cache and a study are killed again and again, at random moments, and end with the same bits."""

import multiprocessing
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from stubs import Blocks, cats, untrained_pair

from lab5.config import DecodeConfig
from lab5.data.dataset import get_dataset
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.runtime.files import load_tensors
from lab5.scoring.scores import Scorer
from lab5.study.run import Plan, run_study
from lab5.training import session as training
from lab5.training.networks import train_transformer, train_vqgan

ROOT = Path(__file__).parents[2]
SIZES = {
    "device": "cpu",
    "data.train": 24, "data.val": 8, "data.test": 8, "transformer.dropout": 0.1, "transformer.hints": 0,
    "stage1.steps": 24, "stage1.batch": 4, "stage1.warmup": 2, "stage1.adversarial": 0.1, "stage1.ema": 0.9,
    "stage2.steps": 80, "stage2.batch": 4, "stage2.warmup": 2, "stage2.schedule": "step", "stage2.decay_every": 4,
}  # fmt: skip


def gate(parent) -> None:
    """What a process does after each step: say that it is made, then wait for leave to make the next."""
    parent.send("a step")
    parent.recv()


def train(folder: str, parent) -> None:
    """Both stages, in a process of its own, with a state after every step."""
    os.environ["LAB5_DATA"] = folder
    torch.set_num_threads(1)
    training.SAVE_EVERY = 0.0
    config = configure("smoke", **SIZES)
    data = get_dataset(config)
    first = train_vqgan(config, data)
    for _ in first:
        gate(parent)
    for _ in train_transformer(config, data, Tokenizer(first.model)):
        gate(parent)


# A server that has imported everything forks each process: a start takes no time, and nothing of the tests is in it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["lab5.training.networks", __name__])


def start(folder: Path, leave: int, work=train):
    """The process, with leave for so many steps, and the pipe to it: it cannot come to its end before it is killed."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=work, args=(str(folder), theirs))
    process.start()
    theirs.close()
    for _ in range(leave):
        ours.send("go on")
    return process, ours


def steps_made(pipe, steps: int) -> list[float]:
    """Wait for so many steps; when each was made."""
    return [(pipe.recv(), time.monotonic())[1] for _ in range(steps)]


def result(folder: Path) -> dict[str, list]:
    """Everything that a run leaves: weights, losses and metrics, tokens; without times and the folder's name."""
    found: dict[str, list] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name == ".lock":  # of a process that was killed when all was done but this; it locks nothing now
            continue
        name = str(file.relative_to(folder))
        if file.suffix == ".safetensors":
            state, meta = load_tensors(file)
            found[name] = [meta, *((key, state[key].numpy().tobytes()) for key in sorted(state))]
        elif file.name == "history.json":
            steps = training._read_json(file)
            found[name] = [(step, loss, lr, metrics) for step, _, loss, lr, _, metrics in steps]
        elif file.suffix == ".npy":
            found[name] = [np.load(file).tobytes()]
        else:
            found[name] = [] if file.suffix == ".npz" else [file.read_bytes()]
    return found


def progress(folder: Path) -> str:
    """The newest state, or the networks that are finished."""
    states = sorted(folder.glob("runs/*/*.state-*"), key=lambda path: path.stat().st_mtime_ns)
    return states[-1].name if states else " ".join(sorted(path.name for path in folder.glob("runs/*/*.safetensors")))


def test_a_training_that_is_killed_at_20_random_moments_ends_with_the_same_weights(tmp_path):
    whole, killed, kills = tmp_path / "whole", tmp_path / "killed", 20
    steps = SIZES["stage1.steps"] + SIZES["stage2.steps"]
    began = time.monotonic()
    process, pipe = start(whole, leave=steps)
    times = steps_made(pipe, steps)
    process.join()
    assert process.exitcode == 0
    before, a_step = times[0] - began, (times[-1] - times[0]) / steps

    moments, places = random.Random(0), set()
    for kill in range(kills):
        leave = moments.randint(1, 3) if kill % 4 else 0
        process, pipe = start(killed, leave)
        steps_made(pipe, leave)
        # At any moment of the step after these, or of what comes before the first: opening, loading, encoding.
        process.join(moments.uniform(0, a_step if leave else before))
        process.kill()
        process.join()
        assert process.exitcode == -9
        places.add(progress(killed))
    assert len(places) > kills / 3, "it was killed in one and the same place"
    process, _ = start(killed, leave=steps)
    process.join()
    assert process.exitcode == 0
    ours, theirs = result(whole), result(killed)
    assert ours.keys() == theirs.keys(), "files are missing, or left over"
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert {Path(name).name for name in ours} >= {"vqgan.safetensors", "transformer.safetensors", "history.json"}


# --- the study --------------------------------------------------------------------------------------------------------


def study(folder: Path, seeds: int):
    """Sixty decodings, of which each is kept when it is done."""
    scorer = Scorer(cats(4, folder.parent / "cache"), Blocks())
    plans = [Plan(replace(DecodeConfig(steps=2), schedule=name), (1, 2)) for name in ("cosine", "linear", "square")]
    return run_study(untrained_pair(), scorer, plans, seeds=seeds, folder=folder)


def decode(folder: str, parent) -> None:
    torch.set_num_threads(1)
    for _ in study(Path(folder), 20):
        gate(parent)


def rows(results) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for result in results for row in result.rows]


def test_a_study_that_is_killed_at_20_random_moments_ends_with_the_same_table(tmp_path):
    moments, counts, folder = random.Random(1), set(), tmp_path / "killed"
    process, pipe = start(tmp_path / "first", 0, decode)  # after which the server has imported everything
    steps_made(pipe, 1)
    process.kill()
    process.join()
    began = time.monotonic()
    process, pipe = start(tmp_path / "whole", 60, decode)
    ends = steps_made(pipe, 60)
    process.join()
    assert process.exitcode == 0
    before, a_decoding = ends[0] - began, (ends[-1] - ends[0]) / 59
    for kill in range(20):
        kept = len(list(folder.glob("*.safetensors")))
        leave = kept + moments.randint(1, 2) if kill % 4 else 0
        process, pipe = start(folder, leave, decode)
        steps_made(pipe, leave)
        process.join(moments.uniform(0, 2 * a_decoding if leave else before))
        process.kill()
        process.join()
        assert process.exitcode == -9
        counts.add(len(list(folder.glob("*.safetensors"))))
    assert len(counts) > 8 and max(counts) < 60
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours, theirs = list(study(folder, 20)), list(study(tmp_path / "whole", 20))
    finally:
        torch.set_num_threads(threads)
    assert rows(ours) == rows(theirs) and len(ours) == 60
    assert all(file.suffix == ".safetensors" for file in folder.iterdir()), "nothing half written is left"
