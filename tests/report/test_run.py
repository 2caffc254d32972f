"""The report: kernels, parameters, failures, numbers and pages, on notebooks that take a second."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from lab5.profiles import configure
from lab5.report import pages
from lab5.report.execute import _KernelStderr
from lab5.report.pages import duration
from lab5.report.run import ReportError, run_report
from lab5.runtime import files as durable
from lab5.runtime.folders import ROOT
from lab5.show.faces import FILE
from lab5.show.notebook import read_metrics, record

PARAMETERS = ("parameters", 'profile = "auto"')


def write(notebooks: Path, name: str, *cells: str | tuple[str, str]) -> None:
    """A notebook with these cells of code, but where a pair says markdown or gives a tag."""
    notebook = nbformat.v4.new_notebook()
    for cell in cells or (PARAMETERS,):
        tag, source = cell if isinstance(cell, tuple) else ("code", cell)
        new_cell = nbformat.v4.new_markdown_cell if tag == "markdown" else nbformat.v4.new_code_cell
        notebook.cells.append(new_cell(source, metadata={"tags": [tag]}))
    notebooks.mkdir(exist_ok=True)
    nbformat.write(notebook, notebooks / f"{name}.ipynb")


def run(notebooks: Path, profile: str = "smoke", **settings) -> Path:
    """The folder of the report, which is beside the notebooks."""
    return run_report(profile, notebooks=notebooks, out=notebooks.parent / "report", pdf=False, **settings).parent


def words(page: Path) -> str:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").get_text()


@pytest.fixture
def notebooks(own_folders) -> Path:
    return own_folders / "notebooks"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Made elsewhere than in the checkout, on a machine where `python3` names a kernel that does not work."""
    folder = tmp_path_factory.mktemp("two")
    write(
        folder / "notebooks", "02_b", ("markdown", "# And then?"), ("parameters", 'profile = "auto"\nrate = 0.5'),
        "from lab5.show.notebook import record\nrecord('study', [{'score': 2.0}])",
        "print(rate / 2)", "print('After the first & <last>')",
    )  # fmt: skip
    write(
        folder / "notebooks", "01_a", ("markdown", "# Is it $x^2$?\n\nExpected time: a second."),
        ("parameters", 'profile = "auto"\nsteps = 4\nweights = "pretrained"\nseed = 0'),
        "import ipywidgets, sys, lab5\nfrom matplotlib.figure import Figure\nfrom lab5.show.notebook import show\n"
        "figure = Figure()\nfigure.subplots().plot([1, 2])\nshow(figure, 'A line that rises', '01_a-line')",
        "print(steps + 1, weights * 2)", "print(sys.executable, lab5.__file__)", "ipywidgets.IntSlider()",
        ("markdown", "## Answer\n\nIt is **squared**."),
    )  # fmt: skip
    spec = folder / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LAB5_FIGURES_DIR", raising=False)
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_PATH"):
            patch.setenv(name, str(folder / "jupyter"))
        return run(folder / "notebooks", parameters={"seed": "3", "steps": "7", "weights": "12", "rate": "3"})


def printed(report: Path, name: str) -> list[str]:
    cells = nbformat.read(report / f"{name}.ipynb", as_version=4).cells
    return [output.text for cell in cells for output in cell.get("outputs", ()) if "text" in output]


def test_a_report_runs_exports_and_measures_in_order_of_names(report):
    metrics = read_metrics(report)
    assert metrics["profile"] == "smoke" and metrics["study"] == [{"score": 2.0}]
    assert list(metrics["seconds"]) == ["01_a", "02_b"]
    assert metrics["total_seconds"] == pytest.approx(sum(metrics["seconds"].values()))
    index, chapter = ((report / name).read_text(encoding="utf-8") for name in ("index.html", "01_a.html"))
    assert "It is <strong>squared</strong>." in index and "After the first &amp; &lt;last&gt;" in index
    assert '<img class="zoom" src="figures/01_a-line.png" alt="A line that rises">' in index
    assert "<math" in chapter and 'alt="A line that rises"' in chapter
    assert 'profile = "smoke"' in words(report / "01_a.html")


def test_pages_name_no_host_and_show_no_remains_of_widgets(report):
    for name in ("index.html", "01_a.html"):
        text = (report / name).read_text(encoding="utf-8")
        assert re.findall(r"https?:[^\s<]+|//\w+\.\w+", text) == []
        assert "IntSlider(value" not in text


def test_a_report_elsewhere_leaves_the_figures_of_the_repository_alone(report):
    assert (report / "figures" / "01_a-line.png").exists()
    assert not (ROOT / "figures" / "01_a-line.png").exists()


def test_the_kernel_is_this_interpreter_and_checkout_whatever_is_called_python3(report):
    assert printed(report, "01_a")[1].split() == [sys.executable, str(ROOT / "lab5" / "__init__.py")]


def test_parameters_reach_the_notebooks_that_declare_them_in_their_type(report):
    assert (printed(report, "01_a")[0], printed(report, "02_b")[0]) == ("8 1212\n", "1.5\n")


def test_a_run_says_what_it_takes_to_make_it_again(report):
    config, metrics = json.loads((report / "config.json").read_text()), read_metrics(report)
    assert config["command"] == "python -m lab5 report --profile smoke -p seed 3 -p steps 7 -p weights 12 -p rate 3.0"
    assert config["parameters"] == {"seed": 3, "steps": 7, "weights": "12", "rate": 3.0}
    assert config["config"] == json.loads(json.dumps(dataclasses.asdict(configure("smoke", seed=3))))
    assert config["versions"] == metrics["versions"]
    assert config["versions"]["torch"] == torch.__version__.split("+")[0]
    assert metrics["repeat"] == {key: config[key] for key in metrics["repeat"]} and "config" in metrics["repeat"]
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert config.get("commit", "") == head.stdout.strip()
    assert 'href="config.json"' in (report / "index.html").read_text(encoding="utf-8")


def test_progress_of_the_kernel_is_shown_while_it_runs_and_left_out_of_the_page(notebooks, capfd):
    write(
        notebooks, "01_a", PARAMETERS,
        "import sys\nfor i in range(3):\n    print(f'\\rtraining {i}', end='', file=sys.stderr, flush=True)\n"
        "print(file=sys.stderr, flush=True)\nprint('be\\ncareful', file=sys.stderr)",
    )  # fmt: skip
    folder, shown = run(notebooks), capfd.readouterr().err
    assert "[1/1] 01_a: " in shown and "100%" in shown and "3/3" in shown
    assert "\rtraining 2" in shown and "be\ncareful\n" in shown
    assert "left" not in shown and "KeyboardInterrupt" not in shown, "the kernel ends without a word"
    output = (folder / "01_a.html").read_text(encoding="utf-8").split("output_stderr")[-1]
    assert "careful" in output and "training" not in output


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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"parameters": {"stepz": "7"}}, "stepz.*steps"),
        ({"parameters": {"steps": "many"}}, "steps.*4.*int.*many"),
        ({"parameters": {"steps": "True"}}, "steps.*4.*int.*True"),
        ({"parameters": {"seed": "-1"}}, "seed must be at least 0"),
        ({"parameters": {"profile": "quick"}}, "what --profile says"),
        ({"only": ["07"]}, "07.*01_a"),
        ({"profile": "medium"}, "medium"),
    ],
)
def test_a_wrong_name_or_value_is_refused_before_anything_runs(notebooks, settings, sentence):
    write(notebooks, "01_a", ("parameters", 'profile = "auto"\nsteps = 4\nseed = 0'))
    with pytest.raises(ValueError, match=sentence):
        run(notebooks, **settings)
    assert not (notebooks.parent / "report").exists()


def test_a_notebook_that_fails_stops_the_report_and_keeps_its_page_which_tells_no_folder(notebooks, monkeypatch):
    home, dataset = notebooks.parent / "josé", notebooks.parent / "somewhere" / "cats.zip"
    for folder in (home, dataset.parent):
        folder.mkdir()
    dataset.touch()
    monkeypatch.setenv("HOME", str(home))
    write(
        notebooks, "01_a", ("parameters", 'profile = "auto"\ndataset = "toycats"'),
        "from pathlib import Path\nprint(dataset, Path(dataset).resolve())\nprint(Path.home() / '.cache')",
    )  # fmt: skip
    error = f"# why\nraise ValueError({str(home / 'cats.zip')!r} '\\nis not there')"
    write(notebooks, "02_b", PARAMETERS, "print('so far')", error, "3")
    write(notebooks, "03_c", PARAMETERS, "print('never')")
    with pytest.raises(ReportError) as caught:
        run(notebooks, parameters={"dataset": str(dataset)})
    message, report = str(caught.value), notebooks.parent / "report"
    for part in ("02_b.ipynb", "code cell 4 of 5", "raise ValueError(", "~/cats.zip.", str(report / "02_b.html")):
        assert part in message
    assert "\n" not in message
    index, first, second = (report / name for name in ("index.html", "01_a.html", "02_b.html"))
    assert "cats.zip cats.zip\n~/.cache" in words(first)
    assert "so far" in words(second) and "~/cats.zip" in words(second)
    assert not (report / "03_c.ipynb").exists()
    links = BeautifulSoup(first.read_text(encoding="utf-8"), "html.parser").nav.find_all("a")
    assert [link["href"] for link in links] == ["index.html", "01_a.html", "02_b.html"], "no link leads nowhere"
    metrics = read_metrics(report)
    assert list(metrics["seconds"]) == ["01_a"] and metrics["failed"]["notebook"] == "02_b"
    assert "~/cats.zip" in words(index) and 'href="02_b.html"' in index.read_text(encoding="utf-8")
    for path in (index, first, second, report / "config.json", report / "metrics.json"):
        assert not any(name in path.read_text(encoding="utf-8") for name in ("josé", "jos\\u00e9", "somewhere")), path


def test_a_cell_beyond_its_time_limit_and_a_dead_kernel_are_named(notebooks, monkeypatch):
    monkeypatch.setattr("lab5.report.run.CELL_SECONDS", {"smoke": 1})
    write(notebooks, "01_a", PARAMETERS, "import time\ntime.sleep(600)")
    with pytest.raises(ReportError, match=r"01_a.ipynb.*code cell \d of 3.*longer than 1 s.*01_a.html"):
        run(notebooks)
    assert "sleep" in words(notebooks.parent / "report" / "01_a.html")
    monkeypatch.undo()
    write(notebooks, "01_a", PARAMETERS, "import os\nos._exit(1)")
    with pytest.raises(ReportError, match=r"01_a.ipynb.*code cell 3 of 3.*kernel died.*01_a.html"):
        run(notebooks)


def test_a_kernel_that_does_not_start_is_reported_with_the_page_up_to_there(notebooks, monkeypatch):
    def silent(*_, **__):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr("lab5.report.execute.papermill.execute_notebook", silent)
    write(notebooks, "01_a", PARAMETERS, "print(1)")
    with pytest.raises(ReportError, match="01_a.ipynb did not start: Kernel didn't respond in 60 seconds"):
        run(notebooks)
    assert read_metrics(notebooks.parent / "report")["failed"]["notebook"] == "01_a"
    assert "print" in words(notebooks.parent / "report" / "01_a.html")


def test_a_folder_that_cannot_be_written_is_one_sentence_and_so_is_one_without_notebooks(notebooks, monkeypatch):
    with pytest.raises(FileNotFoundError, match=str(notebooks)):
        run(notebooks)
    assert not (notebooks.parent / "report").exists()
    write(notebooks, "01_a")
    (notebooks / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written.*file/report.*another folder"):
        run_report("smoke", notebooks=notebooks, out=notebooks / "file" / "report")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lab5.runtime.files.os.replace", full)
    with pytest.raises(ReportError, match="No space left"):
        run(notebooks)
    assert not list((notebooks.parent / "report").glob("*metrics*")), "nothing half-written stays"


@pytest.fixture
def labels(monkeypatch, own_folders) -> list[str]:
    """Notebooks run without a kernel, and this is what each run began with.

    Each records how many have run and keeps a figure; one with `1 / 0` stops.
    """
    told = []

    def execute(path, folder, parameters, *, environment, limit, label) -> str:
        told.append(label)
        shutil.copy(path, folder)
        record(path.stem, [len(told)])
        (own_folders / "figures").mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(own_folders / "figures" / f"{path.stem}-cover.png")
        return "It fell." if "1 / 0" in path.read_text() else ""

    monkeypatch.setattr("lab5.report.run.execute", execute)
    return told


def test_one_notebook_can_be_run_again_and_the_rest_of_the_report_stays(notebooks, labels):
    write(notebooks, "01_a")
    write(notebooks, "02_b")
    report = run(notebooks)
    metrics = read_metrics(report)
    metrics["seconds"] = {"01_a": 75.0, "02_b": 5.0}
    (report / "metrics.json").write_text(json.dumps(metrics | {"mine": 1}))
    run(notebooks, only=["02"])
    assert labels[2] == "[1/1] 02_b, about 5 s left", "as long as it took before"
    again = read_metrics(report)
    assert (again["01_a"], again["02_b"], again["mine"]) == ([1], [3], 1)
    assert again["seconds"]["01_a"] == 75.0 and again["total_seconds"] >= 75.0
    with pytest.raises(ValueError, match="smoke.*quick"):
        run(notebooks, profile="quick", only=["02"])
    run(notebooks, only=["01", "02"])
    assert read_metrics(report)["01_a"] == [4], "and so can two of them"
    run(notebooks)
    assert "mine" not in read_metrics(report), "a whole run starts from an empty sheet"


def test_parts_of_other_runs_do_not_come_together(notebooks, labels):
    def parameters() -> dict:
        return json.loads((notebooks.parent / "report" / "config.json").read_text())["parameters"]

    for name, more in {"01_a": "\nseed = 0", "02_b": "", "03_c": "\nseed = 0\nweights = 'ours'"}.items():
        write(notebooks, name, ("parameters", f'profile = "auto"{more}'))
    run(notebooks, only=["01", "02"], parameters={"seed": "3", "weights": "theirs"})
    assert parameters() == {"seed": 3}, "that of another notebook is no mistake"
    with pytest.raises(ValueError, match="report holds a run with seed = 3, .* with seed = 0: give the same"):
        run(notebooks, only=["03"])
    run(notebooks, only=["02"])  # which has no seed
    report = run(notebooks, only=["03"], parameters={"seed": "3", "weights": "theirs"})
    assert parameters() == {"seed": 3, "weights": "theirs"}
    assert "-p seed 3 -p weights theirs" in (report / "config.json").read_text()
    run(notebooks)
    assert parameters() == {}


def test_what_is_left_of_an_earlier_run_is_not_shown_as_this_ones(notebooks, labels):
    write(notebooks, "01_a")
    write(notebooks, "03_inpainting")
    report = run(notebooks)
    index = report / "index.html"
    (report / "report.pdf").write_text("printed")
    (report / "02_mine.html").write_text("a page of somebody else's")
    assert "03_inpainting-cover.png" in index.read_text(encoding="utf-8")
    write(notebooks, "01_a", PARAMETERS, "1 / 0")
    with pytest.raises(ReportError, match="It fell. The page up to there is .*01_a.html"):
        run(notebooks)
    for text in (index.read_text(encoding="utf-8"), (report / "01_a.html").read_text(encoding="utf-8")):
        assert "figures/03_inpainting" not in text and "03_inpainting.html" not in text
    assert sorted(path.name for path in report.glob("*.html")) == ["01_a.html", "02_mine.html", "index.html"]
    assert not (report / "report.pdf").exists()


def test_faces_of_an_earlier_run_go_when_their_notebook_is_run_again_and_not_before(notebooks, labels):
    write(notebooks, "01_a")
    write(notebooks, "03_inpainting")
    report = run(notebooks)
    kept = [report / name for name in (FILE, *pages.FACES)]
    for path in kept:
        path.write_text("{}")
    run(notebooks, only=["01"])
    assert all(path.exists() for path in kept)
    run(notebooks, only=["03"])
    assert not any(path.exists() for path in kept)


def test_a_second_report_into_the_same_folder_is_refused_and_the_first_is_not_touched(notebooks, labels):
    write(notebooks, "01_a")
    report = run(notebooks)
    before = {path: path.read_bytes() for path in report.glob("*.*")}
    with durable.locked(report), pytest.raises(ReportError, match=r"report is in use by process \d+"):
        run(notebooks)
    assert {path: path.read_bytes() for path in before} == before
    run(notebooks)
