"""A sentence for each thing that would stop a run. What the command prints as a whole is in test_main."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab5.cli import doctor
from lab5.runtime import machine
from lab5.runtime.folders import ROOT


def finding(topic: str, dataset: str = "toycats") -> doctor.Finding:
    return next(found for found in doctor._findings(dataset) if found.topic == topic)


def test_a_network_that_is_not_the_one_described_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "pretrained_folder", lambda: tmp_path)
    (tmp_path / "vqgan.safetensors").write_bytes(b"weights")
    assert doctor._weights("vqgan").ok, "without notes any file is taken"
    note = {"vqgan": {"sha256": hashlib.sha256(b"weights").hexdigest()}}
    (tmp_path / "training.json").write_text(json.dumps(note))
    assert doctor._weights("vqgan").ok
    (tmp_path / "vqgan.safetensors").write_bytes(b"weight")
    assert not doctor._weights("vqgan").ok and "damaged" in doctor._weights("vqgan").text


def test_too_little_memory_or_disk_would_stop_a_run(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    monkeypatch.setattr(machine, "memory_gb", lambda: (0.5, 8.0))
    assert not doctor._memory().ok and doctor._memory().needed and "close other programs" in doctor._memory().text
    monkeypatch.setattr(machine, "memory_gb", lambda: (0.0, 0.0))
    assert doctor._memory().ok, "a system that does not say is no obstacle"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert not doctor._disk().ok and "LAB5_DATA" in doctor._disk().text


@pytest.mark.parametrize("kind", ["folder", "zip", "text", "nothing"])
def test_a_dataset_is_a_folder_or_a_zip(tmp_path, kind):
    path = tmp_path / "cats"
    if kind == "folder":
        path.mkdir()
    elif kind == "zip":
        zipfile.ZipFile(path, "w").close()
    elif kind == "text":
        path.write_text("cats")
    found = doctor._dataset(str(path))
    assert found.ok == (kind in ("folder", "zip")) and str(path) in found.text and found.needed


def test_a_browser_is_welcome_and_not_needed(monkeypatch):
    monkeypatch.setattr(doctor, "find_browser", lambda: None)
    assert not doctor._browser().ok and not doctor._browser().needed and "report.pdf" in doctor._browser().text
    monkeypatch.setattr(doctor, "find_browser", lambda: "/usr/bin/chromium")
    assert doctor._browser().text.startswith("/usr/bin/chromium")


def test_a_gpu_that_cannot_be_used_is_told(monkeypatch):
    import torch

    def broken(*_, **__):
        raise RuntimeError("the driver is too old\nfor this")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", broken)
    found = doctor._device()
    assert not found.ok and found.needed and "(the driver is too old)" in found.text


# --- packages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    """`environment({"torch": "2.6.0"}, absent=[...])`: what seems installed, in other versions and not at all."""

    def set_up(other: dict[str, str], absent: list[str]) -> None:
        real, found = doctor.importlib.metadata.version, doctor.importlib.metadata.distributions

        def version(name):
            if name in absent:
                raise doctor.importlib.metadata.PackageNotFoundError(name)
            return other.get(name) or real(name)

        def distributions():
            for name, number in other.items():
                yield SimpleNamespace(metadata={"Name": name}, version=number)
            yield SimpleNamespace(metadata={"Name": None}, version=None)  # a folder that is left of a broken one
            yield from (one for one in found() if one.metadata["Name"] not in absent)

        monkeypatch.setattr(doctor.importlib.metadata, "version", version)
        monkeypatch.setattr(doctor.importlib.metadata, "distributions", distributions)

    return set_up


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
    assert {"torch==2.6.0+cu124", "numpy==1.26.4"} <= set(kept) and "torch==2.11.0+cu130" not in kept
    names = [line.split("==")[0] for line in kept]
    assert len(set(names)) == len(names) > 50 and not {"safetensors", "ipywidgets"} & set(names)


def test_where_all_is_here_in_whatever_version_pip_is_not_asked(environment, monkeypatch):
    environment({"torch": "2.6.0", "opencv-python": "4.9.0"}, absent=["opencv-python-headless"])
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))
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
])  # fmt: skip
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


def test_an_installed_package_knows_what_it_needs_without_a_checkout(environment, monkeypatch, tmp_path):
    required = ["numpy>=1.0", "scipy>=999", "no-such-thing>=1.2", "torch==2.11.0", 'papermill>=1; extra == "notebooks"']
    monkeypatch.setattr(doctor, "is_checkout", lambda: False)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: required)
    found = doctor._packages()
    assert not found.ok and found.text == "no-such-thing: pip install 'no-such-thing>=1.2'"
    required.pop(2)
    found = doctor._packages()
    assert found.ok and found.text.startswith("all 3, but scipy ") and found.text.endswith(" instead of scipy>=999")
    assert "numpy" not in found.text and "torch" not in found.text

    def unknown(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", unknown)
    assert doctor._packages().ok and "not installed" in doctor._packages().text
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))
    doctor.install_missing()


@pytest.mark.parametrize("version, requirement, fits", [
    ("2.11.0+cu130", "torch==2.11.0", True), ("2.11.1", "torch==2.11.0", False),
    ("2.10", "numpy>=2.4.6", True), ("2.4", "numpy>=2.4.6", False), ("5.0.0.93", "opencv>=5.0.0.93", True),
])  # fmt: skip
def test_versions_are_compared_as_numbers(version, requirement, fits):
    assert doctor._fits(version, requirement) == fits


def test_doctor_needs_none_of_what_it_looks_for(tmp_path):
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
    assert len(lines) == 13 and lines["vqgan"].startswith("ok")
