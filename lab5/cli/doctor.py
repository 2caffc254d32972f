"""What this machine has for the workbook, and what is missing: one line each, before anything long is started.

It knows nothing of what is done with these things, and needs none of them: a package that is missing is a line of
its report, not an error.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lab5.config import ROOT, data_folder, pretrained_folder
from lab5.report.pdf import BROWSERS, find_browser
from lab5.runtime.machine import memory, memory_gb

NETWORKS = ("vqgan", "transformer", "classifier")
MEMORY_GB, DISK_GB = 2.0, 2.0  # what a run of profile quick takes, and some room


class Finding(NamedTuple):
    """One line: `needed` and not `found` is what has to be mended."""

    topic: str
    found: bool
    text: str
    needed: bool = True


def examine(dataset: str = "toycats") -> bool:
    """Print a line per finding; is everything there that is needed? `dataset` is one that a run would be given."""
    findings = []
    for finding in _findings(dataset):
        findings.append(finding)
        word = "ok" if finding.found else "MISSING" if finding.needed else "none"
        print(f"{word:<8}{finding.topic:<13}{finding.text}", flush=True)
    return all(finding.found or not finding.needed for finding in findings)


def _findings(dataset: str) -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 11), f"{version}, {sys.executable} (3.11 or newer is needed)")
    yield _packages()
    yield _torch()
    yield _device()
    yield _memory()
    yield _disk()
    for name in NETWORKS:
        yield _weights(name)
    yield _dataset(dataset)
    yield _inception()
    yield _browser()
    yield _cache()


def _packages() -> Finding:
    """The list in requirements.txt against what is installed."""
    pins, installed = _pins(), _installed()
    missing = [name for name in pins if name not in installed]
    # 2.11.0+cpu is a build of 2.11.0
    other = [f"{n} {v} instead of {pins[n]}" for n, v in installed.items() if v.split("+")[0] != pins[n]]
    if missing:
        return Finding("packages", False, f"{', '.join(missing)}: make setup, or pip install -r requirements.txt")
    return Finding("packages", True, f"all {len(pins)}, " + (f"but {', '.join(other)}" if other else "as pinned"))


def _pins() -> dict[str, str]:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def _installed() -> dict[str, str]:
    """The versions of those packages of the list that are here."""
    versions = {}
    for name in _pins():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return versions


def install_missing() -> None:
    """Install the packages of the list that are not here; what is here, if in another version, is left alone.

    For notebooks that are opened elsewhere, such as in Colab, whose own torch will do.
    """
    missing = [f"{name}=={pinned}" for name, pinned in _pins().items() if name not in _installed()]
    if missing:
        print(f"installing {', '.join(missing)}")
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)


def _torch() -> Finding:
    try:
        import torch
        import torchvision
    except Exception as error:  # missing, broken, or builds that do not belong together
        return Finding("torch", False, f"torch with torchvision cannot be imported: {error}")
    versions = f"{torch.__version__} with torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    return Finding("torch", True, versions)


def _device() -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            torch.empty(1, device="cuda")  # a driver that is too old is found out here
            size = torch.cuda.get_device_properties(0).total_memory / 2**30
            name = f"{torch.cuda.get_device_name(0)} with {size:.0f} GB"
            return Finding("device", True, f"{name}, so profile auto is full")
    except ImportError:
        return Finding("device", False, "unknown without torch")
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        return Finding("device", False, f"the GPU cannot be used ({why}); CUDA_VISIBLE_DEVICES='' does without it")
    return Finding("device", True, f"{os.cpu_count()} CPU cores and no GPU, so profile auto is quick")


def _memory() -> Finding:
    free, total = memory_gb()
    if total and free < MEMORY_GB:
        return Finding("memory", False, f"{memory()}; profile quick takes {MEMORY_GB:g} GB: close other programs")
    return Finding("memory", True, memory())


def _disk() -> Finding:
    folder = data_folder()
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    if not writable:
        return Finding("disk", False, f"{existing} cannot be written to; LAB5_DATA names another folder than {folder}")
    free = shutil.disk_usage(existing).free / 2**30
    enough = "" if free >= DISK_GB else f"; a run takes {DISK_GB:g} GB: make room, or name another folder in LAB5_DATA"
    return Finding("disk", not enough, f"{free:.1f} GB free for {folder}{enough}")


def _weights(name: str) -> Finding:
    file, notes = pretrained_folder() / f"{name}.safetensors", pretrained_folder() / "training.json"
    if not file.is_file():
        return Finding(name, False, f"no {file}; make pretrained trains it")
    try:
        expected = json.loads(notes.read_text(encoding="utf-8"))[name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        expected = None  # without the notes any file is taken
    if expected not in (None, hashlib.sha256(file.read_bytes()).hexdigest()):
        return Finding(name, False, f"{file} is damaged: not what training.json describes; git checkout brings it back")
    return Finding(name, True, f"{file} ({file.stat().st_size / 2**20:.1f} MB)")


def _dataset(name: str) -> Finding:
    """Whether a dataset is there; what is in it, `python -m lab5 data` says."""
    if name == "toycats":
        return Finding("dataset", True, "toycats, painted when first used; --data examines another one")
    path = Path(name).expanduser()
    if not path.exists():
        return Finding("dataset", False, f"{name} does not exist; a dataset is a zip or a folder of images")
    if path.is_dir() or zipfile.is_zipfile(path):
        return Finding("dataset", True, f"{name} is there; python -m lab5 data --data {name} says what is in it")
    return Finding("dataset", False, f"{name} is neither a folder nor a zip that can be read")


def _inception() -> Finding:
    try:
        from lab5.fid import InceptionFeatures

        return Finding("inception", True, f"photographs are scored by {InceptionFeatures().score_name}")
    except FileNotFoundError:
        found = "no weights, so photographs are not scored by FID; LAB5_INCEPTION_WEIGHTS can name the file"
        return Finding("inception", False, found, needed=False)
    except Exception as error:  # other weights, or a package that is missing
        return Finding("inception", False, str(error), needed=False)


def _browser() -> Finding:
    if (found := find_browser()) is None:
        without = f"none of {', '.join(BROWSERS[:3])}, so there is no report.pdf; LAB5_BROWSER can name another one"
        return Finding("browser", False, without, needed=False)
    return Finding("browser", True, f"{found} prints report.pdf")


def _cache() -> Finding:
    files = [path for path in (data_folder() / "cache").glob("*") if path.is_file()]
    if not files:
        return Finding("cache", False, f"nothing cached in {data_folder()}; made at first use", needed=False)
    size = sum(path.stat().st_size for path in files) / 2**20
    return Finding("cache", True, f"{len(files)} cached arrays of images and tokens, {size:.0f} MB")
