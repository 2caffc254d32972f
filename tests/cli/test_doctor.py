"""A sentence for each thing that would stop a run. What the command prints as a whole is in test_main."""

import hashlib
import json
import shutil
import zipfile

import pytest

from lab5.cli import doctor


def finding(topic: str, dataset: str = "toycats") -> doctor.Finding:
    return next(found for found in doctor._findings(dataset) if found.topic == topic)


def test_a_network_that_is_not_the_one_described_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "pretrained_folder", lambda: tmp_path)
    (tmp_path / "vqgan.safetensors").write_bytes(b"weights")
    assert doctor._weights("vqgan").found, "without notes any file is taken"
    note = {"vqgan": {"sha256": hashlib.sha256(b"weights").hexdigest()}}
    (tmp_path / "training.json").write_text(json.dumps(note))
    assert doctor._weights("vqgan").found
    (tmp_path / "vqgan.safetensors").write_bytes(b"weight")
    assert not doctor._weights("vqgan").found and "damaged" in doctor._weights("vqgan").text


def test_too_little_memory_or_disk_would_stop_a_run(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "memory_gb", lambda: (0.5, 8.0))
    assert not doctor._memory().found and doctor._memory().needed and "close other programs" in doctor._memory().text
    monkeypatch.setattr(doctor, "memory_gb", lambda: (0.0, 0.0))
    assert doctor._memory().found, "a system that does not say is no obstacle"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert not doctor._disk().found and "LAB5_DATA" in doctor._disk().text


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
    assert found.found == (kind in ("folder", "zip")) and str(path) in found.text and found.needed


def test_a_browser_is_welcome_and_not_needed(monkeypatch):
    monkeypatch.setattr(doctor, "find_browser", lambda: None)
    assert not doctor._browser().found and not doctor._browser().needed and "report.pdf" in doctor._browser().text
    monkeypatch.setattr(doctor, "find_browser", lambda: "/usr/bin/chromium")
    assert doctor._browser().text.startswith("/usr/bin/chromium")


def test_a_gpu_that_cannot_be_used_is_told(monkeypatch):
    import torch

    def broken(*_, **__):
        raise RuntimeError("the driver is too old\nfor this")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", broken)
    found = doctor._device()
    assert not found.found and found.needed and "(the driver is too old)" in found.text


def test_what_is_missing_is_installed_as_pinned_and_other_versions_stay(monkeypatch):
    real, asked = doctor.importlib.metadata.version, []

    def version(name):
        if name in ("safetensors", "jaxtyping"):
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setattr(doctor.subprocess, "run", lambda command, check: asked.append(command[-2:]))
    doctor.install_missing()
    pins = doctor._pins()
    assert asked == [[f"{name}=={pins[name]}" for name in ("safetensors", "jaxtyping")]]
    assert "torch 1.0 instead" not in doctor._packages().text and "safetensors" in doctor._packages().text
