"""What this machine has for the workbook, and what is missing: one line each, before anything long is started.

It needs none of the things that it looks for: a package that is missing is a line of its report, not an error.
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
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lab5.report.pdf import BROWSERS, find_browser
from lab5.runtime import machine
from lab5.runtime.folders import ROOT, data_folder, is_checkout, pretrained_folder

# Builds of OpenCV other than the one that is asked for: each is imported as cv2, and would be overwritten.
OTHER_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
MEMORY_GB, DISK_GB = 2.0, 2.0  # what a run of profile quick takes, and some room


class Finding(NamedTuple):
    """One line: `needed` and not `ok` is what has to be mended."""

    topic: str
    ok: bool
    text: str
    needed: bool = True


def examine(dataset: str = "toycats") -> bool:
    """Print a line per finding; is everything there that is needed? `dataset` is one that a run would be given."""
    missing = False
    for finding in _findings(dataset):
        word = "ok" if finding.ok else "MISSING" if finding.needed else "none"
        print(f"{word:<8}{finding.topic:<13}{finding.text}", flush=True)
        missing |= word == "MISSING"
    return not missing


def _findings(dataset: str) -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 11), f"{version}, {sys.executable} (3.11 or newer is needed)")
    yield _packages()
    yield _torch()
    yield _device()
    yield _memory()
    yield _disk()
    for name in ("vqgan", "transformer", "classifier"):
        yield _weights(name)
    yield _dataset(dataset)
    yield _inception()
    yield _browser()
    yield _cache()


# --- packages -------------------------------------------------------------------------------------------------------


def _packages() -> Finding:
    """What is installed, against requirements.txt in a checkout, and in an installed lab5 against what it requires."""
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if is_checkout() else _required()
    if not (needed := _by_name(pinned)):
        return Finding("packages", True, "unknown: there is no checkout, and lab5 is not installed")
    installed = _installed(needed)
    if missing := [name for name in needed if name not in installed]:
        wanted = " ".join(f"'{needed[name]}'" for name in missing)
        command = "make setup, or pip install -r requirements.txt" if is_checkout() else f"pip install {wanted}"
        return Finding("packages", False, f"{', '.join(missing)}: {command}")
    other = [f"{name} {version} instead of {needed[name]}" for name, version in installed.items()
             if not _fits(version, needed[name])]  # fmt: skip
    wanted = "as pinned" if is_checkout() else "as lab5 requires"
    return Finding("packages", True, f"all {len(needed)}, " + (f"but {', '.join(other)}" if other else wanted))


def _required(extra: str = "") -> list[str]:
    """What lab5 declares to need, or what one of its extras adds; [] for one that is neither checkout nor installed."""
    if is_checkout():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return project["optional-dependencies"][extra] if extra else project["dependencies"]
    try:
        declared = [line.partition(";") for line in importlib.metadata.requires("lab5") or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [line for line, _, marker in declared if (f'extra == "{extra}"' in marker if extra else not marker)]


def _by_name(lines: list[str]) -> dict[str, str]:
    """Lines such as `numpy==2.4.6` under the names of their packages; comments are left out."""
    return {name[1]: line.strip() for line in lines if (name := re.match(r"([A-Za-z0-9][\w.-]*)\s*[=>]=", line))}


def _installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are here."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return versions


def _fits(version: str, requirement: str) -> bool:
    """Whether `2.4.6` is what `numpy==2.4.6` or `numpy>=2` asks for; 2.11.0+cu130 is a build of 2.11.0."""
    installed, wanted = ([int(n) for n in re.findall(r"\d+", text.split("+")[0])]
                    for text in (version, re.split("[=>]=", requirement)[1]))  # fmt: skip
    return installed >= wanted if ">=" in requirement else installed == wanted


def install_missing() -> None:
    """Install those packages that notebooks need and that are not here. What is here is left as it is, in any version.

    For notebooks that are opened elsewhere, such as in Colab, whose own torch will do. Where what is missing does not
    go with what is here, nothing is installed: ImportError names the two.
    """
    widgets = {name: line for name, line in _by_name(_required("notebooks")).items() if name == "ipywidgets"}
    needed = _by_name(_required()) | widgets  # the other packages of that extra run the kernel that this is called in
    installed = _installed(needed)
    if _installed(OTHER_OPENCV):
        needed.pop("opencv-python-headless", None)
    if not (missing := [line for name, line in needed.items() if name not in installed]):
        return
    print(f"installing {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        as_it_is, log = Path(folder) / "constraints.txt", Path(folder) / "log.txt"
        as_it_is.write_text("".join(f"{name}=={version}\n" for name, version in _everything().items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--constraint", str(as_it_is), "--log", str(log), *missing]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError:
            setup = "make setup, in the project's folder, makes" if is_checkout() else "python -m venv makes"
            raise ImportError(
                f"{', '.join(missing)} cannot be installed beside what is here ({_why(log)}), and nothing that is here "
                f"is replaced: {setup} an environment of its own"
            ) from None  # what pip had to say is in the sentence


def _everything() -> dict[str, str]:
    """Every installed package with its version; of two with one name, the one that is imported, which comes first."""
    packages = [(package.metadata["Name"], package.version) for package in importlib.metadata.distributions()]
    return {name: version for name, version in reversed(packages) if name and re.match(r"\d[\w.!+-]*$", version or "")}


def _why(log: Path) -> str:
    """The reason in a log of pip's: which package wants what of which there is another version, or the last error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    lines = [re.sub(r"^\d{4}-\S+ ", "", line).strip() for line in lines]  # each begins with the time
    reasons = {line: None for line in lines if " depends on " in line}
    for line in lines:
        if (wanted := re.match(r"The user requested \(constraint\) ([\w.-]+)", line)) and _installed([wanted[1]]):
            reasons[f"{wanted[1]} {importlib.metadata.version(wanted[1])} is here"] = None
    errors = [line.removeprefix("ERROR: ").rstrip(".") for line in lines if line.startswith("ERROR: ")]
    return ", and ".join(reasons) or "".join(errors[-1:]) or "pip gave no reason"


# --- the machine ----------------------------------------------------------------------------------------------------


def _torch() -> Finding:
    try:
        import torch
        import torchvision
    except Exception as error:  # missing, broken, or builds that do not belong together
        return Finding("torch", False, f"torch with torchvision cannot be imported: {error}")
    text = f"{torch.__version__} with torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    return Finding("torch", True, text)


def _device() -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            torch.empty(1, device="cuda")  # a driver that is too old is found out here
            size = torch.cuda.get_device_properties(0).total_memory / 2**30
            text = f"{torch.cuda.get_device_name(0)} with {size:.0f} GB, so profile auto is gpu"
            return Finding("device", True, text)
    except ImportError:
        return Finding("device", False, "unknown without torch")
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        return Finding("device", False, f"the GPU cannot be used ({why}); CUDA_VISIBLE_DEVICES='' does without it")
    return Finding("device", True, f"{os.cpu_count()} CPU cores and no GPU, so profile auto is quick")


def _memory() -> Finding:
    free, total = machine.memory_gb()
    if total and free < MEMORY_GB:
        text = f"{machine.memory()}; profile quick takes {MEMORY_GB:g} GB: close other programs"
        return Finding("memory", False, text)
    return Finding("memory", True, machine.memory())


def _disk() -> Finding:
    folder = data_folder()
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Finding("disk", False, f"{existing} cannot be written to; LAB5_DATA names another folder than {folder}")
    free = shutil.disk_usage(existing).free / 2**30
    advice = f"; a run takes {DISK_GB:g} GB: make room, or name another folder in LAB5_DATA" if free < DISK_GB else ""
    return Finding("disk", not advice, f"{free:.1f} GB free for {folder}{advice}")


# --- files ----------------------------------------------------------------------------------------------------------


def _weights(name: str) -> Finding:
    file, notes = pretrained_folder() / f"{name}.safetensors", pretrained_folder() / "training.json"
    again = "git checkout brings it back" if is_checkout() else "install lab5 again"
    if not file.is_file():
        return Finding(name, False, f"no {file}; {'make pretrained trains it' if is_checkout() else again}")
    try:
        expected = json.loads(notes.read_text(encoding="utf-8"))[name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        expected = None  # without the notes any file is taken
    if expected not in (None, hashlib.sha256(file.read_bytes()).hexdigest()):
        return Finding(name, False, f"{file} is damaged: not what training.json describes; {again}")
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
        from lab5.scoring.inception import InceptionFeatures

        return Finding("inception", True, f"photographs are scored by {InceptionFeatures().score_name}")
    except FileNotFoundError:
        text = "no weights, so photographs are scored on ImageNet features, not by FID: LAB5_INCEPTION_WEIGHTS"
        return Finding("inception", False, text, needed=False)
    except Exception as error:  # other weights, or a package that is missing
        return Finding("inception", False, str(error), needed=False)


def _browser() -> Finding:
    if (browser := find_browser()) is None:
        text = f"none of {', '.join(BROWSERS[:3])}, so there is no report.pdf; LAB5_BROWSER can name another one"
        return Finding("browser", False, text, needed=False)
    return Finding("browser", True, f"{browser} prints report.pdf")


def _cache() -> Finding:
    files = [path for path in (data_folder() / "cache").glob("*") if path.is_file()]
    if not files:
        return Finding("cache", False, f"nothing cached in {data_folder()}; made at first use", needed=False)
    size = sum(path.stat().st_size for path in files) / 2**20
    return Finding("cache", True, f"{len(files)} cached arrays of images and tokens, {size:.0f} MB")
