"""What is known of the lab's dataset, found again in its files, where they are present.

They are looked for where LAB5_DATASET says, or in ../shared/lab5_dataset.zip beside this repository. Half of the
masked images may be missing from it: what is said of test images below is about numbers 0 to 373.
"""

import hashlib
import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab5.data.dataset import TRAIN_STATS, Dataset, open_dataset, token_mask

REAL = Path(os.environ.get("LAB5_DATASET") or Path(__file__).parents[3] / "shared" / "lab5_dataset.zip")
SIZES = {"n_train": 12000, "n_val": 3000, "n_test": 747, "seed": 0}

pytestmark = pytest.mark.skipif(
    not REAL.exists(), reason=f"the lab's dataset is not at {REAL}; LAB5_DATASET names another place"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return open_dataset(REAL, **SIZES, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def files() -> dict[str, dict[str, bytes]]:
    """Folder -> name -> the file as it is, read without this package."""
    found: dict[str, dict[str, bytes]] = {}
    if REAL.is_dir():
        entries = [(path.parent.name, path.name, path.read_bytes) for path in sorted(REAL.rglob("*.png"))]
    else:
        archive = zipfile.ZipFile(REAL)
        names = [Path(name) for name in sorted(archive.namelist()) if name.endswith(".png")]
        entries = [(name.parent.name, name.name, lambda name=name: archive.read(name.as_posix())) for name in names]
    for folder, name, read in entries:
        found.setdefault(folder, {})[name] = read()
    return found


@pytest.fixture(scope="module")
def masks(files) -> torch.Tensor:
    """All the masks, (747,64,64), True = missing."""
    grey = [np.asarray(Image.open(io.BytesIO(content))) for content in files["mask64"].values()]
    return torch.from_numpy(np.stack(grey) == 0)


def hashes(contents: Iterable[bytes]) -> list[bytes]:
    return [hashlib.sha256(content).digest() for content in contents]


def of_images(images: torch.Tensor) -> list[bytes]:
    return hashes(image.numpy().tobytes() for image in images)


# --- what was given, and what is left of it ---------------------------------------------------------------------


def test_the_folders_hold_as_many_files_as_the_lab_says(files, dataset):
    counts = {folder: len(names) for folder, names in files.items()}
    assert dataset.given["test"] == len(dataset.test) == counts.pop("masked_image") and len(dataset.test) in (374, 747)
    assert counts == {"train": 12000, "val": 3000, "mask64": 747}
    assert (dataset.given["train"], dataset.given["val"], dataset.given["masks"]) == (12000, 3000, 747)


def test_train_has_8244_distinct_images_and_val_shares_1882_of_3000_with_it(files, dataset):
    train, val = set(hashes(files["train"].values())), hashes(files["val"].values())
    clean = [digest for digest in val if digest not in train]
    assert len(train) == len(dataset.train) == 8244
    assert len(val) - len(clean) == dataset.given["val.in_train"] == 1882
    assert len(clean) == 1118 and len(set(clean)) == len(dataset.val) == 896
    assert dataset.given["train.twice"] == 12000 - 8244 and dataset.given["val.twice"] == 1118 - 896


def test_no_picture_is_in_train_and_val_or_twice_in_one_and_originals_are_found_in_both(dataset):
    """Of all 747 test images there are 446 in train and 124 in val alone."""
    train, val, test = (of_images(split) for split in (dataset.train, dataset.val, dataset.test))
    seen, known = set(train), set(train + val)
    assert len(known) == len(train) + len(val) == 8244 + 896
    expected = (446, 446 + 124) if len(dataset.test) == 747 else (221, 221 + 65)
    assert (int(dataset.leaked.sum()), int(dataset.whole.sum())) == expected
    assert [digest in seen for digest in test] == dataset.leaked.tolist()
    assert [digest in known for digest in test] == dataset.whole.tolist()


def test_masked_test_is_the_labs_own_files(files, dataset):
    for number, image in zip(dataset.numbers, dataset.masked_test, strict=True):
        file = np.asarray(Image.open(io.BytesIO(files["masked_image"][f"image_{number:03}.png"])))
        assert np.array_equal(image.permute(1, 2, 0), file)


# --- pixels and masks -------------------------------------------------------------------------------------------


def test_the_labs_normalisation_is_that_of_its_15000_files(files, dataset):
    """Train and val as they were given, each distinct image counted as often as it occurs; of train alone the
    means differ by 0.0003."""
    times = Counter(hashes([*files["train"].values(), *files["val"].values()]))  # in the order of first appearance
    weights = torch.tensor(list(times.values())).double() / 15000
    moments = torch.zeros(2, 3, dtype=torch.float64)
    for image, weight in zip(torch.cat([dataset.train, dataset.val]), weights, strict=True):
        pixels = image.flatten(1).double() / 255
        moments += weight * torch.stack([pixels.mean(1), pixels.square().mean(1)])
    mean, square = moments
    assert weights.sum().item() == pytest.approx(1)
    assert mean.tolist() == pytest.approx(TRAIN_STATS.mean, abs=5e-5)
    assert (square - mean**2).sqrt().tolist() == pytest.approx(TRAIN_STATS.std, abs=1e-4)


def test_missing_pixels(masks):
    share = 100 * masks.double().mean((1, 2))
    found = [round(value.item(), 1) for value in (share.mean(), share.min(), share.max())]
    assert found == [20.8, 9.7, 29.9]


def test_masked_tokens(masks):
    tokens = token_mask(masks).sum(1).double()
    assert tokens.mean().item() == pytest.approx(85.0, abs=0.05)
    assert (tokens.min().item(), tokens.max().item()) == (31, 139)
    percentiles = np.percentile(tokens, [5, 25, 50, 75, 95])
    assert percentiles.round().tolist() == [52, 70, 85, 98, 119]


def test_an_inverted_mask_would_hide_nearly_everything(masks):
    assert 100 * token_mask(~masks).double().mean().item() == pytest.approx(94.5, abs=0.05)
