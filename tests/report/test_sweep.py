"""A grid of reports: what is refused, which folders, what waits for what, and the page that compares them."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup

from lab5.cli.main import main
from lab5.report import sweep
from lab5.report.sweep import points, read_grid, run_sweep, write_overview


def test_a_grid_is_read_and_every_combination_has_a_folder(tmp_path):
    grid = read_grid(["seed=0,1", "dataset=/cats/lab 5.zip"])
    assert grid == {"seed": ["0", "1"], "dataset": ["/cats/lab 5.zip"]}
    runs = points(grid, tmp_path)
    assert [run.folder.name for run in runs] == ["seed-0_dataset-lab-5.zip", "seed-1_dataset-lab-5.zip"]
    assert runs[1].parameters == {"seed": "1", "dataset": "/cats/lab 5.zip"}
    assert runs[1].name == "seed 1, dataset lab 5.zip"
    with pytest.raises(ValueError, match="same name"):
        points({"dataset": ["a/cats", "b/cats"]}, tmp_path)


@pytest.mark.parametrize("words", [["seed"], ["=1"], ["seed=1,,2"], ["seed=1,1"], ["seed=1", "seed=2"]])
def test_what_is_no_grid_is_refused(words):
    with pytest.raises(ValueError, match="--grid"):
        read_grid(words)


@pytest.mark.parametrize(
    ("grid", "settings", "words"),
    [
        ({"seed": ["0", "x"]}, {}, "seed.*int.*x"),
        ({"stepz": ["1"]}, {}, "no notebook declares.*stepz"),
        ({"seed": ["0"]}, {"parameters": {"seed": "1"}}, "given twice"),
        ({"seed": ["0"]}, {"jobs": -1}, "--jobs"),
        ({"seed": ["0"]}, {"only": ["07"]}, "07"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(tmp_path, grid, settings, words):
    with pytest.raises(ValueError, match=words):
        run_sweep("smoke", grid, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def fake_metrics(folder: Path, score: float, **more) -> None:
    row = {"score": score, "hole_psnr_db": 20.0, "attribute_accuracy": None, "n": 7}
    metrics = {"seconds": {"03": 61.0}, "total_seconds": 61.0, "inpainting": {"score_name": "toy", "pretrained": row}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics | more))


@pytest.mark.parametrize(("device", "jobs", "at_once"), [("cpu", 0, 3), ("cpu", 1, 1), ("cuda", 0, 1)])
def test_runs_that_share_trained_networks_wait_for_each_other(tmp_path, monkeypatch, device, jobs, at_once):
    going, together = [], threading.Barrier(at_once)

    def report(folder, words, threads, stopping) -> int:
        seed = words[words.index("seed") + 1]
        assert threads == 6 // at_once and seed not in going and len(going) < at_once
        going.append(seed)
        together.wait(600)  # until as many are going
        going.remove(seed)
        fake_metrics(folder, 1.0 + int(seed))
        return 0

    monkeypatch.setattr(sweep, "_report", report)
    monkeypatch.setattr(sweep, "configure", lambda profile: SimpleNamespace(profile=profile, device=device))
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 6)
    grid = {"seed": ["0", "1", "2"], "weights": ["pretrained", "trained"]}
    assert run_sweep("smoke", grid, out=tmp_path, jobs=jobs) == (tmp_path / "sweep.html", [])


def test_the_overview_compares_runs_and_seeds_and_tells_what_failed(tmp_path):
    runs = points({"seed": ["0", "1"], "schedule": ["cosine", "<b>"]}, tmp_path)
    for run, score in zip(runs, (1.0, 2.0, 3.0), strict=False):
        fake_metrics(run.folder, score)
        (run.folder / "index.html").write_text("")
    fake_metrics(runs[3].folder, 4.0, failed={"message": "03 stopped & fell"})
    page = BeautifulSoup(write_overview(tmp_path, runs, {}).read_text(), "html.parser")
    assert [row.find_all("td")[-1].get_text() for row in page.select("tbody tr")] == ["not yet"] * 4
    codes = dict(zip([run.folder for run in runs], (0, 0, 0, 1), strict=True))
    soup = BeautifulSoup(write_overview(tmp_path, runs, codes).read_text(), "html.parser")
    first, over_seeds = ([[cell.get_text() for cell in row.find_all("td")] for row in table.select("tbody tr")]
                         for table in soup.find_all("table"))  # fmt: skip
    assert first == [
        ["0", "cosine", "1", "20", "done after 1 min 1 s"], ["0", "<b>", "2", "20", "done after 1 min 1 s"],
        ["1", "cosine", "3", "20", "done after 1 min 1 s"], ["1", "<b>", "–", "–", "03 stopped & fell"],
    ]  # fmt: skip
    assert over_seeds == [["schedule cosine", "2 ± 1.41", "20 ± 0", "2"], ["schedule <b>", "2", "20", "1"]]
    assert [link["href"] for link in soup.main.find_all("a")] == [f"{run.folder.name}/index.html" for run in runs[:3]]
    assert "toy" in soup.caption.get_text() and "n = 7" in soup.caption.get_text()


def test_a_run_is_the_command_that_one_would_type_and_leaves_a_log(tmp_path, monkeypatch):
    seen, codes = {}, iter([None, 0])  # it is still running at the first look

    class Ended:
        returncode = 0

        def __init__(self, command, **settings):
            seen.update(settings, command=command)
            settings["stdout"].write("done")

        def poll(self) -> int | None:
            return next(codes)

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(Popen=Ended, DEVNULL=None))
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 2)
    fake_metrics(tmp_path / "seed-3", 1.0)
    run_sweep("smoke", {"seed": ["3"]}, out=tmp_path, only=["03"], parameters={"weights": "trained"})
    words = f"report --out {tmp_path / 'seed-3'} --profile smoke -p weights trained -p seed 3 --only 03"
    assert seen["command"] == [sys.executable, "-m", "lab5", *words.split()]
    assert (tmp_path / "seed-3" / "report.log").read_text() == "done" and seen["env"]["OMP_NUM_THREADS"] == "2"


def test_an_interrupt_ends_the_run_and_begins_no_other(tmp_path, monkeypatch):
    started, waiting = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def submit(self, *work) -> Future:
            future = super().submit(*work)
            waiting.set()
            return future

    def start(*_, **settings) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], **settings))
        waiting.wait(600)
        os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(sweep, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
    with pytest.raises(KeyboardInterrupt):
        run_sweep("smoke", {"schedule": ["cosine", "linear", "square"]}, out=tmp_path)
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_the_command_line_prints_the_overview_and_fails_where_a_run_has(tmp_path, monkeypatch, capsys):
    seen = {}

    def fake(profile, grid, **settings):
        seen.update(settings, profile=profile, grid=grid)
        return tmp_path / "sweep.html", ["seed 1: the kernel died"]

    monkeypatch.setattr(sweep, "run_sweep", fake)
    words = ["--profile", "smoke", "--grid", "seed=0,1", "--jobs", "2", "--only", "03", "--out", str(tmp_path)]
    assert main(["report", *words, "-p", "weights", "trained"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'sweep.html'}\n" and "seed 1: the kernel died" in err
    assert seen == {"profile": "smoke", "grid": {"seed": ["0", "1"]}, "out": tmp_path, "only": ["03"],
                    "parameters": {"weights": "trained"}, "jobs": 2}  # fmt: skip
