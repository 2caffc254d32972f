"""The datasets of commands: opened, with a word on what was left out, and what they are large enough for."""

import sys
from collections.abc import Sequence

from lab5.config import Config
from lab5.data import dataset
from lab5.data.dataset import Dataset, unread
from lab5.profiles import configure

# Test images whose truth is known that a notebook needs: 03 has a covariance of them, 04 resamples them, with one seed
# for all studies, and of fewer than six some resample holds one image alone.
NOTEBOOKS = {"03": 2, "04": 6}
STUDY = 8  # the command study needs these, of which hardly any resample holds one alone


def get_dataset(config: Config) -> Dataset:
    """The dataset of a run; stderr has what of its files is not in it, and what looks as if it should not be."""
    data = dataset.get_dataset(config)
    for name, n in unread(data).items():
        print(f"lab5: left out: {n} file{'s' * (n > 1)} {name}", file=sys.stderr)
    if n := data.given.get("like_masks"):
        print(
            f"lab5: {n} of the pictures hold{'s' * (n == 1)} nothing but black and white, as masks do: as masks they "
            "belong into a folder masks/, each with the name of its picture",
            file=sys.stderr,
        )
    return data


def enough_for(data: Dataset) -> list[str]:
    """Which commands can run on it, and what the others need, in a line each."""
    needs = {"report": max(NOTEBOOKS.values()), "study": STUDY}
    lacking = {command: _lacking(data, f"a {command}", n) for command, n in needs.items()}
    able = ["train", "inpaint", *(command for command in needs if not lacking[command])]
    return [f"enough for {', '.join(able)}", *filter(None, lacking.values())]


def check_report(profile: str, path: str, weights: str, only: Sequence[str] | None) -> None:
    """Refuse a dataset on which a report would stop half way. Raises ValueError with the number that is needed."""
    if path == "toycats":
        return
    data = get_dataset(configure(profile, **{"data.path": path}))
    if weights == "pretrained":
        raise ValueError(f"the pretrained pair knows toy cats only: for {data.name} take weights 'trained'")
    run = [n for name, n in NOTEBOOKS.items() if not only or name.startswith(tuple(start[:2] for start in only))]
    if sentence := _lacking(data, "a report", max(run, default=0)):
        raise ValueError(f"{path}: {sentence}")


def check_study(data: Dataset) -> None:
    """Raises ValueError for a dataset with too few test images whose truth is known."""
    if sentence := _lacking(data, "a study", STUDY):
        raise ValueError(f"{data.name}: {sentence}")


def _lacking(data: Dataset, what: str, n: int) -> str:
    """Why there are fewer than n test images to score, and what would help; "" where there are as many."""
    if (known := int(data.whole.sum())) >= n:
        return ""
    own = f": a tenth of {10 * n} pictures, or {n} that have masks and show what these hide"
    text = f"{what} needs at least {n} test images whose truth is known, here are {known}"
    return text + (own if "all" in data.given else "")
