"""A line for each thing that a run needs, and a sentence for each that would stop it."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lab5.cli import doctor
from lab5.cli.main import main
from lab5.runtime import machine
from lab5.runtime.folders import ROOT

TOPICS = ["python", "packages", "torch", "device", "memory", "disk", "vqgan", "transformer", "classifier", "dataset",
          "inception", "browser", "cache"]  # fmt: skip


@pytest.fixture
def pretrained(tmp_path, monkeypatch) -> Path:
    """A folder with three networks, which nothing describes."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    for name in ("vqgan", "transformer", "classifier"):
        (folder / f"{name}.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(doctor, "pretrained_folder", lambda: folder)
    return folder


@pytest.fixture
def examine(pretrained, monkeypatch, capsys, tmp_path):
    """`examine("--data", "cats")`: the exit code, what is missing, and the line of each topic.

    On a machine with room, and without a GPU, a browser and Inception.
    """
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    monkeypatch.setattr(machine, "memory_gb", lambda: (6.0, 8.0))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * 2**30))
    monkeypatch.setattr(doctor, "find_browser", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def call(*words: str):
        code = main(["doctor", *words])
        told = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
        assert list(told) == TOPICS
        return code, [topic for topic, line in told.items() if line.startswith("MISSING ")], told

    return call


def test_there_is_a_line_for_everything(examine, own_folders, monkeypatch):
    code, missing, told = examine()
    assert (code, missing) == (0, []) and torch.__version__ in told["torch"] and "report.pdf" in told["browser"]
    assert [topic for topic in TOPICS if told[topic].startswith("none ")] == ["inception", "browser", "cache"]
    (own_folders / "data" / "cache").mkdir(parents=True)
    (own_folders / "data" / "cache" / "a.npz").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(doctor, "find_browser", lambda: "/usr/bin/chromium")
    lines = [line.split(maxsplit=2) for line in examine()[2].values()]
    assert ["ok", "cache", "1 cached arrays of images and tokens, 3 MB"] in lines
    assert ["ok", "browser", "/usr/bin/chromium prints report.pdf"] in lines


def test_a_network_that_is_not_the_one_described_is_missed(examine, pretrained):
    note = {"vqgan": {"sha256": hashlib.sha256(b"weights").hexdigest()}}
    (pretrained / "training.json").write_text(json.dumps(note))
    assert examine()[:2] == (0, [])
    (pretrained / "vqgan.safetensors").write_bytes(b"weight")
    (pretrained / "transformer.safetensors").unlink()
    code, missing, told = examine()
    assert (code, missing) == (1, ["vqgan", "transformer"])
    assert "damaged" in told["vqgan"] and "make pretrained trains it" in told["transformer"]


@pytest.mark.parametrize("memory, disk, expected", [
    ((0.5, 8.0), 9, ["memory"]),
    ((0.0, 0.0), 9, []),  # a system that does not say is no obstacle
    ((2.0, 8.0), 2, []),
    ((8.0, 8.0), 1, ["disk"]),
])  # fmt: skip
def test_too_little_memory_or_disk_would_stop_a_run(memory, disk, expected, examine, monkeypatch):
    monkeypatch.setattr(machine, "memory_gb", lambda: memory)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=disk * 2**30))
    code, missing, told = examine()
    assert (code, missing) == (len(expected), expected)
    assert ("close other programs" in told["memory"]) == ("memory" in missing)
    assert ("LAB5_DATA" in told["disk"]) == ("disk" in missing)


def test_a_data_folder_that_cannot_be_written_is_told(examine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAB5_DATA", str(tmp_path / "file"))
    code, missing, told = examine()
    assert (code, missing) == (1, ["disk"]) and "cannot be written to" in told["disk"]


@pytest.mark.parametrize("kind", ["folder", "zip", "text", "nothing"])
def test_a_dataset_is_a_folder_or_a_zip(tmp_path, kind, examine):
    path = tmp_path / "cats"
    if kind == "folder":
        path.mkdir()
    elif kind == "zip":
        zipfile.ZipFile(path, "w").close()
    elif kind == "text":
        path.write_text("cats")
    code, missing, told = examine("--data", str(path))
    assert (code, missing) == ((0, []) if kind in ("folder", "zip") else (1, ["dataset"]))
    assert str(path) in told["dataset"]


def test_a_gpu_that_cannot_be_used_is_told(examine, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the driver is too old\nfor this")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", broken)
    code, missing, told = examine()
    assert (code, missing) == (1, ["device"]) and "(the driver is too old)" in told["device"]


@pytest.fixture
def environment(monkeypatch):
    """`environment({"torch": "2.6.0"}, absent=[...])`: what seems installed, in other versions and not at all."""

    def set_up(other: dict[str, str], absent: list[str]) -> None:
        real, found = importlib.metadata.version, importlib.metadata.distributions

        def version(name):
            if name in absent:
                raise importlib.metadata.PackageNotFoundError(name)
            return other.get(name) or real(name)

        def distributions():
            for name, number in other.items():
                yield SimpleNamespace(metadata={"Name": name}, version=number)
            yield SimpleNamespace(metadata={"Name": None}, version=None)  # a folder that is left of a broken one
            yield from (one for one in found() if one.metadata["Name"] not in absent)

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "distributions", distributions)

    return set_up


@pytest.fixture
def pip_fails(monkeypatch):
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))


def test_missing_packages_are_told_and_the_rest_goes_on_without_them(examine, environment, monkeypatch):
    environment({"scipy": "0.0.1"}, absent=["safetensors"])
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it could not be imported
    code, missing, told = examine()
    assert (code, missing) == (1, ["packages", "torch"]) and "safetensors: make setup" in told["packages"]
    assert "scipy 0.0.1 instead" not in told["packages"], "what is missing comes first"


def test_what_is_missing_is_installed_and_pip_is_told_to_keep_the_rest(environment, monkeypatch):
    environment({"torch": "2.6.0+cu124", "numpy": "1.26.4"}, absent=["safetensors", "ipywidgets", "papermill"])
    asked = []

    def run(command, check):
        constraints = command[command.index("--constraint") + 1]
        asked.append((command[-2:], Path(constraints).read_text().splitlines()))

    monkeypatch.setattr(doctor.subprocess, "run", run)
    doctor.install_missing()
    ((missing, kept),) = asked
    assert missing == ["safetensors>=0.8.0", "ipywidgets>=8.1.9"], "papermill is not needed in a kernel"
    assert {"torch==2.6.0+cu124", "numpy==1.26.4"} <= set(kept)
    names = [line.split("==")[0] for line in kept]
    assert len(set(names)) == len(names) > 50 and not {"safetensors", "ipywidgets"} & set(names)


def test_where_all_is_here_in_whatever_version_pip_is_not_asked(environment, pip_fails):
    environment({"torch": "2.6.0", "opencv-python": "4.9.0"}, absent=["opencv-python-headless"])
    doctor.install_missing()


LOG = """2026-01-02T03:04:05,678 ERROR: Cannot install torchvision==0.26.0 because these versions have conflicts.
2026-01-02T03:04:05,678
2026-01-02T03:04:05,678 The conflict is caused by:
2026-01-02T03:04:05,678     torchvision 0.26.0 depends on torch==2.11.0
2026-01-02T03:04:05,678     The user requested (constraint) torch<3,==2.6.0
2026-01-02T03:04:05,678 ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/
"""


@pytest.mark.parametrize("log, why", [
    (LOG, "(torchvision 0.26.0 depends on torch==2.11.0, and torch 2.6.0 is here)"),
    ("2026-01-02T03:04:05,678 ERROR: No matching distribution found for torchvision\n", "(No matching distribution f"),
    ("", "(pip gave no reason)"),
], ids=["conflict", "error", "silence"])  # fmt: skip
def test_what_does_not_go_with_what_is_here_is_refused_in_one_sentence(environment, monkeypatch, log, why):
    environment({"torch": "2.6.0"}, absent=["torchvision"])

    def run(command, check):
        Path(command[command.index("--log") + 1]).write_text(log)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    with pytest.raises(ImportError) as refused:
        doctor.install_missing()
    sentence = str(refused.value)
    assert sentence.startswith("torchvision==0.26.0 cannot be installed beside what is here") and why in sentence
    assert "make setup" in sentence and "\n" not in sentence


def test_an_installed_package_knows_what_it_needs_without_a_checkout(
    examine, environment, pip_fails, monkeypatch, tmp_path
):
    environment({"torch": "2.11.0+cu130", "pandas": "2.11.1", "numpy": "2.10", "scipy": "2.4"}, absent=["none-such"])
    needed = ["torch==2.11.0", "pandas==2.11.0", "numpy>=2.4.6", "scipy>=2.4.6", 'papermill>=1; extra == "notebooks"']
    required = [*needed, "none-such>=1.2"]
    monkeypatch.setattr(doctor, "is_checkout", lambda: False)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    code, missing, told = examine()
    assert (code, missing) == (1, ["packages"])
    assert told["packages"].endswith(" none-such: pip install 'none-such>=1.2'")
    required.pop()
    other = "pandas 2.11.1 instead of pandas==2.11.0, scipy 2.4 instead of scipy>=2.4.6"
    assert examine()[2]["packages"].endswith(f" all 4, but {other}"), "versions are compared as numbers"

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    code, missing, told = examine()
    assert code == 0 and "not installed" in told["packages"]
    doctor.install_missing()


def test_doctor_needs_none_of_what_it_looks_for():
    """In a process of its own, in which nothing but Python's own modules can be imported."""
    code = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | {"lab5"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
from lab5.cli.main import main
sys.exit(main(["doctor"]))
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1 and told.stderr == ""
    lines = {line.split()[1]: line for line in told.stdout.splitlines()}
    assert lines["torch"].startswith("MISSING") and "No module named 'torch'" in lines["torch"]
    assert list(lines) == TOPICS and lines["vqgan"].startswith("ok")
