"""Pieces of work over processes: each done once, with what is shared, and errors that are not lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lab5.runtime.folders import ROOT
from lab5.runtime.processes import run_parallel


def times(shared: int, item: int) -> tuple[int, int, int]:
    return shared * item, os.getpid(), torch.get_num_threads()


def fail(shared: int, item: int) -> int:
    if item == 2:
        raise ValueError("two is refused")
    return item


def stay(folder: Path, item: int) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


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


def test_an_error_in_a_process_is_raised_here():
    with pytest.raises(ValueError, match="two is refused"):
        list(run_parallel(fail, 0, [1, 2, 3], jobs=2))


def test_a_process_that_dies_is_told_in_one_sentence():
    with pytest.raises(ChildProcessError, match="a worker process died.*run again to go on from what is done"):
        list(run_parallel(die, 0, [1, 2], jobs=2))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes run")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = "import sys; from pathlib import Path\n"
    code += "from lab5.runtime.processes import run_parallel\nfrom tests.runtime.test_processes import stay\n"
    code += "if __name__ == '__main__': list(run_parallel(stay, Path(sys.argv[1]), [1, 2], jobs=2))"
    script = tmp_path / "spreads.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script, tmp_path], env=os.environ | {"PYTHONPATH": str(ROOT)})
    workers: list[int] = []
    while len(workers) < 2:
        assert parent.poll() is None
        time.sleep(0.1)
        workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


def test_less_than_one_job_is_refused():
    with pytest.raises(ValueError, match="jobs must be at least 1, not 0"):
        list(run_parallel(times, 1, [1], jobs=0))
