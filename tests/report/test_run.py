"""The report: kernels, parameters, failures, numbers and pages, on notebooks that take a second."""

import dataclasses
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup

from lab5.profiles import configure
from lab5.report.execute import _KernelStderr
from lab5.report.pages import duration
from lab5.report.run import ReportError, run_report
from lab5.runtime import files as durable
from lab5.runtime.folders import ROOT

TITLE = ("markdown", "# Is it $x^2$?\n\nExpected time: a second.")
PARAMETERS = ("parameters", 'profile = "auto"')
FIGURE = (
    "import numpy as np\nfrom matplotlib.figure import Figure\nfrom lab5.show.notebook import record, show\n"
    "figure = Figure()\nfigure.subplots().plot([1, 2])\n"
)


def run(folder: Path, **changes) -> Path:
    return run_report("smoke", notebooks=folder, out=folder.parent / "report", **{"pdf": False} | changes)


def page(folder: Path, name: str) -> str:
    return (folder.parent / "report" / name).read_text(encoding="utf-8")


def test_report_runs_exports_and_measures_in_order_of_names(write_notebook):
    write_notebook(
        "02_b", ("markdown", "# And then?"), PARAMETERS, "from lab5.show.notebook import record",
        "record('study', [{'score': 2.0}])", "print('After the first & <last>')",
    )  # fmt: skip
    folder = write_notebook(
        "01_a", TITLE, PARAMETERS, FIGURE + "show(figure, 'A line that rises', '01_a-line')",
        "record('inpainting', {'score_name': 'toy', 'do_nothing': {'score': 9.0, 'n': 3}})\n"
        "record('inpainting', {'pretrained': {'score': np.float32(1.5), 'n': 3}})",
        ("markdown", "## Answer\n\nIt is **squared**."),
    )  # fmt: skip
    index = run(folder)
    assert index == folder.parent / "report" / "index.html"
    metrics = json.loads(page(folder, "metrics.json"))
    assert metrics["profile"] == "smoke" and metrics["versions"]["torch"] == torch.__version__.split("+")[0]
    assert list(metrics["seconds"]) == ["01_a", "02_b"]
    assert metrics["total_seconds"] == pytest.approx(sum(metrics["seconds"].values()))
    assert metrics["inpainting"] == {
        "score_name": "toy", "do_nothing": {"score": 9.0, "n": 3}, "pretrained": {"score": 1.5, "n": 3},
    }  # fmt: skip
    assert metrics["study"] == [{"score": 2.0}]
    text = index.read_text(encoding="utf-8")
    assert "It is <strong>squared</strong>." in text
    assert "After the first &amp; &lt;last&gt;" in text
    assert text.index("<td>pretrained") < text.index("<td>do nothing"), "the better score comes first"
    assert '<img class="zoom" src="figures/01_a-line.png" alt="A line that rises">' in text
    assert (folder.parent / "report" / "figures" / "01_a-line.png").exists()
    chapter = page(folder, "01_a.html")
    assert "<math" in chapter and 'alt="A line that rises"' in chapter
    assert 'profile = "smoke"' in BeautifulSoup(chapter, "html.parser").get_text()


def test_pages_name_no_host(write_notebook):
    folder = write_notebook("01_a", TITLE, PARAMETERS, "import ipywidgets\nipywidgets.IntSlider()", "print(1)")
    run(folder)
    for name in ("index.html", "01_a.html"):
        text = page(folder, name)
        assert re.findall(r"https?:[^\s<]+|//\w+\.\w+", text) == []
        assert "IntSlider(value" not in text


def test_the_kernel_is_this_interpreter_and_checkout_whatever_is_called_python3(write_notebook, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    folder = write_notebook("01_a", PARAMETERS, "import sys, lab5\nprint(sys.executable, lab5.__file__)")
    run(folder)
    executed = nbformat.read(folder.parent / "report" / "01_a.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.split() == [sys.executable, str(ROOT / "lab5" / "__init__.py")]


def test_parameters_reach_the_notebooks_that_declare_them_in_their_type(write_notebook):
    write_notebook("01_a", ("parameters", 'profile = "auto"\nsteps = 4\nweights = "pretrained"'),
                   "print(steps + 1, weights * 2)")  # fmt: skip
    folder = write_notebook("02_b", ("parameters", 'profile = "auto"\nrate = 0.5'), "print(rate / 2)")
    run(folder, parameters={"steps": "7", "weights": "12", "rate": "3"})
    report = folder.parent / "report"
    assert nbformat.read(report / "01_a.ipynb", 4).cells[-1].outputs[0].text == "8 1212\n"
    assert nbformat.read(report / "02_b.ipynb", 4).cells[-1].outputs[0].text == "1.5\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"stepz": "7"}}, "stepz.*steps"),
        ({"parameters": {"steps": "many"}}, "steps.*4.*int.*many"),
        ({"parameters": {"steps": "True"}}, "steps.*4.*int.*True"),
        ({"parameters": {"seed": "-1"}}, "seed must be at least 0"),
        ({"parameters": {"profile": "quick"}}, "what --profile says"),
        ({"only": ["07"]}, "07.*01_a"),
    ],
)
def test_a_wrong_name_or_value_is_refused_before_anything_runs(write_notebook, changes, words):
    folder = write_notebook("01_a", ("parameters", 'profile = "auto"\nsteps = 4\nseed = 0'), "print(steps)")
    with pytest.raises(ValueError, match=words):
        run(folder, **changes)
    assert not (folder.parent / "report").exists()


def test_an_unknown_profile_and_a_folder_without_notebooks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="medium"):
        run_report("medium", notebooks=tmp_path, out=tmp_path / "report")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        run_report("smoke", notebooks=tmp_path, out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_notebook_that_fails_stops_the_report_and_keeps_its_page(write_notebook):
    write_notebook("01_a", PARAMETERS, "print('fine')")
    write_notebook("02_b", PARAMETERS, "print('so far')", "# why\nraise ValueError('no cats here\\nat all')", "3")
    folder = write_notebook("03_c", PARAMETERS, "print('never')")
    with pytest.raises(ReportError) as caught:
        run(folder)
    message, report = str(caught.value), folder.parent / "report"
    assert "\n" not in message
    for part in ("02_b.ipynb", "code cell 4 of 5", "raise ValueError(", "no cats here", str(report / "02_b.html")):
        assert part in message
    assert "so far" in page(folder, "02_b.html") and "no cats here" in page(folder, "02_b.html")
    assert not (report / "03_c.ipynb").exists()
    links = BeautifulSoup(page(folder, "01_a.html"), "html.parser").nav.find_all("a")
    assert [link["href"] for link in links] == ["index.html", "01_a.html", "02_b.html"], "no link leads nowhere"
    metrics = json.loads(page(folder, "metrics.json"))
    assert list(metrics["seconds"]) == ["01_a"] and metrics["failed"]["notebook"] == "02_b"
    assert "no cats here" in page(folder, "index.html") and 'href="02_b.html"' in page(folder, "index.html")


def test_a_cell_beyond_its_time_limit_and_a_dead_kernel_are_named(write_notebook, monkeypatch):
    monkeypatch.setattr("lab5.report.run.CELL_SECONDS", {"smoke": 2})
    folder = write_notebook("01_a", PARAMETERS, "import time\ntime.sleep(60)")
    with pytest.raises(ReportError, match=r"01_a.ipynb.*code cell 3 of 3.*longer than 2 s.*01_a.html"):
        run(folder)
    assert "sleep" in page(folder, "01_a.html")
    folder = write_notebook("01_a", PARAMETERS, "import os\nos._exit(1)")
    with pytest.raises(ReportError, match=r"01_a.ipynb.*code cell 3 of 3.*kernel died.*01_a.html"):
        run(folder)


def test_one_notebook_can_be_run_again_and_the_rest_of_the_report_stays(write_notebook):
    cell = "from lab5.show.notebook import record\nrecord(%r, {'value': %d})"
    write_notebook("01_a", PARAMETERS, cell % ("a", 1))
    folder = write_notebook("02_b", PARAMETERS, cell % ("b", 1))
    run(folder)
    first = json.loads(page(folder, "metrics.json"))
    write_notebook("02_b", PARAMETERS, cell % ("b", 2))
    run(folder, only=["02"])
    again = json.loads(page(folder, "metrics.json"))
    assert again["a"] == {"value": 1} and again["b"] == {"value": 2}
    assert again["seconds"]["01_a"] == first["seconds"]["01_a"]
    with pytest.raises(ValueError, match="smoke.*quick"):
        run_report("quick", notebooks=folder, out=folder.parent / "report", only=["02"])
    write_notebook("01_a", PARAMETERS, cell % ("a", 3))
    run(folder, only=["01", "02"])
    assert json.loads(page(folder, "metrics.json"))["a"] == {"value": 3}, "and so can two of them"
    write_notebook("02_b", PARAMETERS, "print(2)")
    run(folder)
    assert "b" not in json.loads(page(folder, "metrics.json")), "a whole run starts from an empty sheet"


def test_parts_of_other_runs_do_not_come_together(write_notebook):
    for name, cells in {"01_a": "\nseed = 0", "02_b": "", "03_c": "\nseed = 0\nweights = 'ours'"}.items():
        folder = write_notebook(name, ("parameters", f'profile = "auto"{cells}'), "print('ran')")
    run(folder, only=["01", "02"], parameters={"seed": "3"})
    with pytest.raises(ValueError, match="report holds a run with seed = 3, .* with seed = 0: give the same"):
        run(folder, only=["03"])
    run(folder, only=["02"])  # which has no seed
    run(folder, only=["03"], parameters={"seed": "3", "weights": "theirs"})
    config = json.loads(page(folder, "config.json"))
    assert config["parameters"] == {"seed": 3, "weights": "theirs"}
    assert "-p seed 3 -p weights theirs" in config["command"]
    run(folder)
    assert json.loads(page(folder, "config.json"))["parameters"] == {}


def test_a_parameter_of_another_notebook_is_no_mistake(write_notebook):
    write_notebook("01_a", PARAMETERS, "print(1)")
    folder = write_notebook("02_b", ("parameters", 'profile = "auto"\nweights = "ours"'), "print(weights)")
    run(folder, only=["01"], parameters={"weights": "theirs"})
    assert json.loads(page(folder, "config.json"))["parameters"] == {}


def test_what_is_left_of_an_earlier_run_is_not_shown_as_this_ones(write_notebook):
    write_notebook("01_a", PARAMETERS, "print(1)")
    folder = write_notebook("03_inpainting", PARAMETERS, FIGURE + "show(figure, 'dots', '03_inpainting-cover')")
    run(folder)
    report = folder.parent / "report"
    (report / "report.pdf").write_text("printed")
    (report / "02_mine.html").write_text("a page of somebody else's")
    assert "03_inpainting-cover.png" in page(folder, "index.html")
    write_notebook("01_a", PARAMETERS, "1 / 0")
    with pytest.raises(ReportError):
        run(folder)
    assert "figures/03_inpainting" not in page(folder, "index.html")
    assert "03_inpainting.html" not in page(folder, "index.html")
    assert sorted(path.name for path in report.glob("*.html")) == ["01_a.html", "02_mine.html", "index.html"]
    assert "03_inpainting" not in page(folder, "01_a.html") and not (report / "report.pdf").exists()


def test_a_failure_does_not_tell_where_files_lie(write_notebook, tmp_path, monkeypatch):
    home = tmp_path / "josé"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    folder = write_notebook("01_a", PARAMETERS, f"print({str(home / 'x')!r})\nopen({str(home / 'cats.zip')!r})")
    with pytest.raises(ReportError, match="~/cats.zip"):
        run(folder)
    for name in ("01_a.html", "index.html", "metrics.json"):
        assert "josé" not in page(folder, name) and "jos\\u00e9" not in page(folder, name), name


def test_a_kernel_that_does_not_start_is_reported_with_the_page_up_to_there(write_notebook, monkeypatch):
    def silent(*_, **__):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr("lab5.report.execute.papermill.execute_notebook", silent)
    folder = write_notebook("01_a", PARAMETERS, "print(1)")
    with pytest.raises(ReportError, match="01_a.ipynb did not start: Kernel didn't respond in 60 seconds"):
        run(folder)
    assert json.loads(page(folder, "metrics.json"))["failed"]["notebook"] == "01_a"
    assert "print" in page(folder, "01_a.html")


def test_a_folder_that_cannot_be_written_is_one_sentence(write_notebook, monkeypatch):
    folder = write_notebook("01_a", PARAMETERS, "print(1)")
    (folder.parent / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written.*file/report.*another folder"):
        run_report("smoke", notebooks=folder, out=folder.parent / "file" / "report")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lab5.runtime.files.os.replace", full)
    with pytest.raises(ReportError, match="No space left"):
        run(folder)
    assert not list((folder.parent / "report").glob("*metrics*")), "nothing half-written stays"


def test_a_second_report_into_the_same_folder_is_refused_and_the_first_is_not_touched(write_notebook):
    folder = write_notebook("01_a", PARAMETERS, "print(1)")
    run(folder)
    before = {path: path.read_bytes() for path in (folder.parent / "report").glob("*.*")}
    with durable.locked(folder.parent / "report"), pytest.raises(ReportError, match=r"report is in use by process \d+"):
        run(folder)
    assert {path: path.read_bytes() for path in before} == before
    run(folder)


def test_progress_of_the_kernel_is_shown_while_it_runs_and_left_out_of_the_page(write_notebook, capfd):
    bar = (
        "import sys, time\nfor i in range(3):\n    print(f'\\rtraining {i}', end='', file=sys.stderr, flush=True)"
        "\n    time.sleep(.4)\nprint(file=sys.stderr, flush=True)\ntime.sleep(.4)\n"
        "print('be\\ncareful', file=sys.stderr)"
    )
    folder = write_notebook("01_a", PARAMETERS, bar)
    run(folder)
    printed = capfd.readouterr().err
    assert "[1/1] 01_a: " in printed and "100%" in printed and "3/3" in printed
    assert "\rtraining 2" in printed and "be\ncareful\n" in printed
    assert "left" not in printed and "KeyboardInterrupt" not in printed, "the kernel ends without a word"
    output = page(folder, "01_a.html").split("output_stderr")[-1]
    assert "careful" in output and "training" not in output
    run(folder)
    assert re.search(r"\[1/1\] 01_a, about \d+ s left: ", capfd.readouterr().err), "as long as the earlier run took"


def test_a_terminal_shows_the_bar_of_the_kernel_in_a_line_without_remains(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    kernel = _KernelStderr()
    for text in ("\r 50%", "\r100%", "\n", "careful\n"):
        kernel.write(text)
    assert terminal.getvalue() == "\r\x1b[K 50%\r\x1b[K100%\ncareful\n"


def test_durations_read_well():
    assert [duration(s) for s in (0.4, 59.4, 60, 75, 3600, 7260)] == [
        "0 s", "59 s", "1 min 0 s", "1 min 15 s", "1 h 0 min", "2 h 1 min",
    ]  # fmt: skip


def test_a_run_says_what_it_takes_to_make_it_again(write_notebook):
    cells = ("parameters", 'profile = "auto"\nseed = 0\ndataset = "toycats"')
    folder = write_notebook("01_a", ("markdown", "# Is it?"), cells, "print(seed)")
    run(folder, parameters={"seed": "3"})
    config = json.loads(page(folder, "config.json"))
    assert config["command"] == "python -m lab5 report --profile smoke -p seed 3"
    assert config["config"] == json.loads(json.dumps(dataclasses.asdict(configure("smoke", seed=3))))
    assert config["versions"]["torch"] == torch.__version__.split("+")[0] and config["parameters"] == {"seed": 3}
    metrics = json.loads(page(folder, "metrics.json"))
    assert metrics["repeat"] == {key: config[key] for key in metrics["repeat"]} and "config" in metrics["repeat"]
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert config.get("commit", "") == head.stdout.strip()
    assert 'href="config.json"' in page(folder, "index.html")


def test_no_page_tells_where_this_computer_keeps_its_files(write_notebook, tmp_path):
    dataset = tmp_path / "somewhere" / "cats.zip"
    dataset.parent.mkdir()
    dataset.touch()
    cells = ("parameters", 'profile = "auto"\ndataset = "toycats"')
    show_path = "import pathlib\nprint(dataset, pathlib.Path(dataset).resolve())\nprint(pathlib.Path.home() / '.cache')"
    folder = write_notebook("01_a", ("markdown", "# Is it?"), cells, show_path)
    run(folder, parameters={"dataset": str(dataset)})
    for name in ("index.html", "01_a.html", "config.json", "metrics.json"):
        text = BeautifulSoup(page(folder, name), "html.parser").get_text()
        assert "somewhere" not in text and str(Path.home() / ".cache") not in text
    assert "cats.zip cats.zip" in page(folder, "01_a.html") and "~/.cache" in page(folder, "01_a.html")


def test_a_report_elsewhere_leaves_the_figures_of_the_repository_alone(write_notebook, tmp_path, monkeypatch):
    monkeypatch.delenv("LAB5_FIGURES_DIR")
    notebooks = write_notebook("01_a", TITLE, PARAMETERS, FIGURE + "show(figure, 'dots', '01_a-cover')")
    out = tmp_path / "elsewhere"
    run_report("smoke", notebooks=notebooks, out=out, pdf=False)
    assert (out / "figures" / "01_a-cover.png").exists()
    assert not (ROOT / "figures" / "01_a-cover.png").exists()
    assert 'src="figures/01_a-cover.png"' in (out / "index.html").read_text()
