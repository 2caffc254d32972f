"""What is needed to make a run again: command, settings, versions, the commit of this repository.

It does not run anything.
"""

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab5.config import ROOT
from lab5.profiles import configure

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "papermill", "nbconvert")
SETTINGS = {"seed": "seed", "dataset": "data.path", "schedule": "decode.schedule"}  # of notebooks' parameters


def provenance(profile: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in `config.json`. `parameters` are the notebooks' that were given; of a path only the name is told.

    Raises ValueError for values that no setting takes.
    """
    config = configure(profile, **{SETTINGS[name]: value for name, value in parameters.items() if name in SETTINGS})
    settings = dataclasses.asdict(config)
    settings["data"]["path"] = without_folder(settings["data"]["path"])
    told = {name: without_folder(value) for name, value in parameters.items()}
    words = [word for name, value in told.items() for word in ("-p", name, str(value))]
    return {
        "command": shlex.join(["python", "-m", "lab5", "report", "--profile", config.profile, *words]),
        **commit(),
        "parameters": told,
        "config": settings,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> dict[str, Any]:
    """The commit of the repository, and whether files differ from it; nothing outside a repository."""
    try:
        return {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, or not a repository
        return {}


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def without_folder(value: Any) -> Any:
    """A path's last part: where it lies is nobody's business. Other values as they are."""
    return Path(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else value


def private(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Texts of this computer that a page should not show, with what it shows instead; the longest first."""
    told = {}
    for value in parameters.values():
        if isinstance(value, str) and without_folder(value) != value:
            told |= {text: without_folder(value) for text in (value, str(Path(value).resolve()))}
    home = str(Path.home())
    if len(home) > 1:  # "/" would be found in everything
        told |= {f"{home}/": "~/"}
    return dict(sorted(told.items(), key=lambda item: -len(item[0])))


def without(text: str, private: Mapping[str, str]) -> str:
    """The text with what is shown instead of `private` texts, as they are and as JSON may write them."""
    for words, shown in private.items():
        for ascii_only in (False, True):
            text = text.replace(*(json.dumps(part, ensure_ascii=ascii_only)[1:-1] for part in (words, shown)))
    return text
