"""What this machine has for the workbook, and what is missing: one line each, before anything long is started.

It knows nothing of what is done with these things, and needs none of them: a package that is missing is a line of
its report, not an error.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

from lab5.config import ROOT, data_folder, pretrained_folder

NETWORKS = ("vqgan", "transformer", "classifier")


class Finding(NamedTuple):
    """One line: `needed` and not `found` is what has to be mended."""

    topic: str
    found: bool
    text: str
    needed: bool = True


def examine() -> bool:
    """Print a line per finding; is everything there that is needed?"""
    findings = []
    for finding in _findings():
        findings.append(finding)
        word = "ok" if finding.found else "MISSING" if finding.needed else "none"
        print(f"{word:<8}{finding.topic:<13}{finding.text}", flush=True)
    return all(finding.found or not finding.needed for finding in findings)


def _findings() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 11), f"{version}, {sys.executable} (3.11 or newer is needed)")
    yield _packages()
    yield _torch()
    yield Finding("memory", True, _memory())
    yield _disk()
    for name in NETWORKS:
        yield _weights(name)
    yield _inception()
    yield _cache()


def _packages() -> Finding:
    """The list in requirements.txt against what is installed."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    missing, other = [], []
    for name, pinned in pins:
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if installed.split("+")[0] != pinned:  # 2.11.0+cpu is a build of 2.11.0
            other.append(f"{name} {installed} instead of {pinned}")
    if missing:
        return Finding("packages", False, f"{', '.join(missing)}: make setup, or pip install -r requirements.txt")
    return Finding("packages", True, f"all {len(pins)}, " + (f"but {', '.join(other)}" if other else "as pinned"))


def _torch() -> Finding:
    try:
        import torch
        import torchvision
    except Exception as error:  # missing, broken, or builds that do not belong together
        return Finding("torch", False, f"torch with torchvision cannot be imported: {error}")
    device, auto = f"{os.cpu_count()} CPU cores and no GPU", "quick"
    if torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory / 2**30
        device, auto = f"{torch.cuda.get_device_name(0)} with {size:.0f} GB", "full"
    versions = f"{torch.__version__} with torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    return Finding("torch", True, f"{versions}; {device}, so profile auto is {auto}")


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") / 2**30
        total, free = (f"{os.sysconf(name) * size:.1f} GB" for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not every system can say
        return "unknown"
    return f"{free} unused of {total}"


def _disk() -> Finding:
    folder = data_folder()
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    if not writable:
        return Finding("disk", False, f"{existing} cannot be written to; LAB5_DATA names another folder than {folder}")
    return Finding("disk", True, f"{shutil.disk_usage(existing).free / 2**30:.1f} GB free for {folder}")


def _weights(name: str) -> Finding:
    file = pretrained_folder() / f"{name}.safetensors"
    if not file.is_file():
        return Finding(name, False, f"no {file}; make pretrained trains it")
    return Finding(name, True, f"{file} ({file.stat().st_size / 2**20:.1f} MB)")


def _inception() -> Finding:
    try:
        from lab5.features import InceptionFeatures

        return Finding("inception", True, f"photographs are scored by {InceptionFeatures().score_name}")
    except FileNotFoundError:
        found = "no weights, so photographs are not scored by FID; LAB5_INCEPTION_WEIGHTS can name the file"
        return Finding("inception", False, found, needed=False)
    except Exception as error:  # other weights, or a package that is missing
        return Finding("inception", False, str(error), needed=False)


def _cache() -> Finding:
    files = [path for path in (data_folder() / "cache").glob("*") if path.is_file()]
    if not files:
        return Finding("datasets", False, f"nothing cached in {data_folder()}; made at first use", needed=False)
    size = sum(path.stat().st_size for path in files) / 2**20
    return Finding("datasets", True, f"{len(files)} cached arrays of images and tokens, {size:.0f} MB")
