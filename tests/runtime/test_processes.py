"""Pieces of work over processes: each done once, with what is shared, and errors that are not lost."""

import multiprocessing
import os
import resource
import time
from pathlib import Path

import pytest
import torch
from stubs import PROCESSES, started

from lab5.runtime.processes import run_parallel, visible_cards


def times(shared: int, item: int) -> tuple[int, int, int]:
    return shared * item, os.getpid(), torch.get_num_threads()


def fail(shared: int, item: int) -> int:
    if item == 2:
        raise ValueError("two is refused")
    return item


def stay(folder: Path, item: int) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(3600)


def tensors(shared: dict[str, torch.Tensor], item: int) -> dict[str, torch.Tensor]:
    return {name: tensor + item for name, tensor in shared.items()}


def die(shared: int, item: int) -> int:
    os._exit(1)


def test_in_one_process_items_come_in_order_and_one_at_a_time():
    running = run_parallel(times, 10, [3, 1, 2])
    assert [(number, result[0]) for number, result in running] == [(0, 30), (1, 10), (2, 20)]
    lazy = run_parallel(fail, 0, [1, 2])
    assert next(lazy) == (0, 1)
    with pytest.raises(ValueError, match="two is refused"):
        next(lazy)


def test_several_processes_share_the_items_and_the_threads():
    found = dict(run_parallel(times, 10, list(range(6)), jobs=2))
    assert {number: result[0] for number, result in found.items()} == {n: 10 * n for n in range(6)}
    processes = {result[1] for result in found.values()}
    assert len(processes) <= 2 and os.getpid() not in processes
    assert all(result[2] == max(1, torch.get_num_threads() // 2) for result in found.values())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
def test_tensors_go_to_and_fro_without_a_file_for_each():
    """A login shell allows 1024 open files, which the results of a study would fill."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 60, hard))
    try:
        results = dict(run_parallel(tensors, {f"{i}": torch.ones(9) for i in range(30)}, list(range(30)), jobs=2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(results) == 30 and all(torch.equal(results[n]["29"], torch.full((9,), 1.0 + n)) for n in results)


@pytest.mark.parametrize(("work", "error", "says"), [
    (fail, ValueError, "two is refused"),
    (die, ChildProcessError, "a worker process died.*run again to go on from what is done"),
])  # fmt: skip
def test_an_error_in_a_process_and_its_death_are_told_here(work, error, says, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: PROCESSES)  # as fresh, and sooner there
    with pytest.raises(error, match=says):
        list(run_parallel(work, 0, [1, 2, 3], jobs=2))


def spread(folder: Path) -> None:
    list(run_parallel(stay, folder, [1, 2], jobs=2))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes run")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    parent = started(spread, tmp_path)
    while len(workers := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.is_alive()
        time.sleep(0.05)
    parent.kill()
    parent.join()
    end = time.monotonic() + 600
    while any(map(is_running, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


def test_less_than_one_job_is_refused():
    with pytest.raises(ValueError, match="jobs must be at least 1, not 0"):
        list(run_parallel(times, 1, [1], jobs=0))


def cards(shared: Path, item: int) -> str:
    """The GPUs of a worker, which goes on when the other has one of the items too."""
    (shared / f"{item}").touch()
    while not all((shared / name).exists() for name in "01"):
        time.sleep(0.01)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_workers_take_the_gpus_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert visible_cards() == ["5", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert {named for _, named in run_parallel(cards, tmp_path, [0, 1], jobs=2)} == {"0,1,2", "1,2,0"}
