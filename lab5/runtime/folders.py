"""Where things are: the checkout, what runs keep, the committed weights."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or where the package is installed


def data_folder() -> Path:
    """Datasets, caches and runs: LAB5_DATA names it; else `data/` of the checkout, or a cache in the home folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lab5"
    return Path(os.environ.get("LAB5_DATA") or (ROOT / "data" if is_checkout() else home))


def pretrained_folder() -> Path:
    """The committed weights for the embedded dataset, which an installed package has within itself."""
    return ROOT / "data" / "pretrained" if is_checkout() else ROOT / "lab5" / "pretrained"


def is_checkout() -> bool:
    """Whether the package lies in a clone of its repository, with the notebooks beside it."""
    return (ROOT / "notebooks").is_dir() and (ROOT / "pyproject.toml").is_file()
