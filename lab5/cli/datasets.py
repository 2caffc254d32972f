"""The datasets of commands: opened, with a word on what was left out, and what they are large enough for."""

import math
import sys
from collections.abc import Sequence
from itertools import count

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


def enough_for(config: Config, data: Dataset) -> list[str]:
    """Which commands can run on it in this profile, and what the others need, in a line each."""
    training = _to_train(config, data)
    lacking = {"train": training, "inpaint": training}
    for command, n in {"report": max(NOTEBOOKS.values()), "study": STUDY}.items():
        lacking[command] = " and ".join(filter(None, [training, _to_score(data, n)]))
    able = ", ".join(command for command, needs in lacking.items() if not needs)
    lines = [f"profile {config.profile}: enough for {able or 'none of the commands'}"]
    for needs in dict.fromkeys(filter(None, lacking.values())):
        lines.append(f"for {' or '.join(command for command in lacking if lacking[command] == needs)} take {needs}")
    return lines


def check_training(config: Config, data: Dataset, stage: str = "all") -> None:
    """Raises ValueError, with the number that is needed, where some batch is larger than the images to train on."""
    if lacking := _to_train(config, data, stage):
        raise ValueError(f"training on {data.name} in profile {config.profile} needs {lacking}")


def check_report(profile: str, path: str, weights: str, only: Sequence[str] | None) -> None:
    """Refuse a dataset on which a report would stop half way. Raises ValueError with the number that is needed."""
    if path == "toycats":
        return
    config = configure(profile, **{"data.path": path})
    data = get_dataset(config)
    if weights == "pretrained":
        raise ValueError(f"the pretrained pair knows toy cats only: for {data.name} take weights 'trained'")
    run = [n for name, n in NOTEBOOKS.items() if not only or name.startswith(tuple(start[:2] for start in only))]
    if lacking := " and ".join(filter(None, [_to_train(config, data), _to_score(data, max(run, default=0))])):
        raise ValueError(f"a report on {data.name} in profile {config.profile} needs {lacking}")


def check_study(data: Dataset) -> None:
    """Raises ValueError for a dataset with too few test images whose truth is known."""
    if lacking := _to_score(data, STUDY):
        raise ValueError(f"a study of {data.name} needs {lacking}")


def _to_train(config: Config, data: Dataset, stage: str = "all") -> str:
    """What a training needs, which takes batches of images, or of them and their mirror images; "" if it is there."""
    first = 0 if config.stage1.file else config.stage1.batch
    needed = max(first, 0 if stage == "vqgan" else math.ceil(config.stage2.batch / 2))
    if (there := len(data.train)) >= needed:
        return ""
    masks = data.given.get("masks", 0)
    pictures = next(n for n in count(needed) if n - (1 if masks else 2) * max(1, n // 10) >= needed)
    own = f" of {pictures} distinct pictures{' without a mask' if masks else ''}"
    return f"at least {needed} training images{own if 'all' in data.given else ''}, where there are {there}"


def _to_score(data: Dataset, n: int) -> str:
    """What scores of n test images need; "" if it is there."""
    if (known := int(data.whole.sum())) >= n:
        return ""
    own = f" (a tenth of {10 * n} distinct pictures, or {n} that have masks and show what these hide)"
    return f"at least {n} test images whose truth is known{own if 'all' in data.given else ''}, where there are {known}"
