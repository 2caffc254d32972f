"""What is needed to make a run again (command, settings, versions, commit), without the paths of this computer."""

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab5.data.layouts import HOLES, split_holes
from lab5.profiles import configure
from lab5.runtime.folders import ROOT

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "papermill", "nbconvert")
SETTINGS = {"seed": "seed", "dataset": "data.path", "schedule": "decode.schedule"}  # of notebooks' parameters


def provenance(profile: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of `config.json`. `parameters` are the notebooks' that were given; of a path only the name is kept.

    Raises ValueError for values that no setting takes.
    """
    config = configure(profile, **{SETTINGS[name]: value for name, value in parameters.items() if name in SETTINGS})
    settings = dataclasses.asdict(config)
    settings["data"]["path"] = without_folder(settings["data"]["path"])
    values = {name: without_folder(value) for name, value in parameters.items()}
    words = [word for name, value in values.items() for word in ("-p", name, str(value))]
    return {
        "command": shlex.join(["python", "-m", "lab5", "report", "--profile", config.profile, *words]),
        **_commit(),
        "parameters": values,
        "config": settings,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _commit() -> dict[str, Any]:
    """The commit of the repository, and whether files differ from it; nothing outside a repository."""
    git = {"cwd": ROOT, "capture_output": True, "text": True, "check": True, "timeout": 20}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], **git).stdout.strip()
        return {"commit": head, "changed": bool(subprocess.run(["git", "status", "--porcelain"], **git).stdout)}
    except (OSError, subprocess.SubprocessError):  # no git, or not a repository
        return {}


def without_folder(value: Any) -> Any:
    """A path's last part: where it lies is nobody's business. Other values as they are."""
    if not isinstance(value, str) or not ("/" in value or "\\" in value):
        return value
    path, hole = split_holes(value)
    return HOLES.get(hole, "") + Path(path).name


def private_texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Texts of this computer that no page should show, with what stands in their place; the longest first."""
    texts = {}
    for value in parameters.values():
        if without_folder(value) != value:
            path = split_holes(value)[0]
            texts |= {text: without_folder(path) for text in (path, str(Path(path).resolve()))}
    home = str(Path.home())
    if len(home) > 1:  # "/" would be found in everything
        texts[f"{home}/"] = "~/"
    return dict(sorted(texts.items(), key=lambda item: -len(item[0])))


def replace_private(text: str, private: Mapping[str, str]) -> str:
    """Replace private texts, as they are and as JSON may write them."""
    for words, instead in private.items():
        for ascii_only in (False, True):
            text = text.replace(*(json.dumps(part, ensure_ascii=ascii_only)[1:-1] for part in (words, instead)))
    return text
