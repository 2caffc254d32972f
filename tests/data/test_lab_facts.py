"""What is known of the lab's dataset, found again in its files, where they are present.

They are looked for where LAB5_DATASET says, or in ../shared/lab5_dataset.zip beside this repository. Half of the
masked images may be missing from it: what is said of test images below is about numbers 0 to 373.
"""

import hashlib
import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab5.data import layouts
from lab5.data.dataset import TRAIN_STATS, Dataset, open_dataset, open_masked, summary, token_mask

REAL = Path(os.environ.get("LAB5_DATASET") or Path(__file__).parents[3] / "shared" / "lab5_dataset.zip")
SIZES = {"n_train": 12000, "n_val": 3000, "n_test": 747, "seed": 0}

pytestmark = pytest.mark.skipif(
    not REAL.exists(), reason=f"the lab's dataset is not at {REAL}; LAB5_DATASET names another place"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def dataset(cache) -> Dataset:
    return open_dataset(REAL, **SIZES, cache=cache)


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


def hashes(contents) -> list[bytes]:
    return [hashlib.sha256(content).digest() for content in contents]


# --- what was given, and what is left of it ---------------------------------------------------------------------


def test_the_folders_hold_as_many_files_as_the_lab_says(files, dataset):
    counts = {folder: len(names) for folder, names in files.items()}
    assert counts.pop("masked_image") in (374, 747)
    assert counts == {"train": 12000, "val": 3000, "mask64": 747}
    assert dataset.given["test"] == len(files["masked_image"]) == len(dataset.test)
    assert {name: dataset.given[name] for name in ("train", "val", "masks")} == {
        "train": 12000, "val": 3000, "masks": 747,
    }  # fmt: skip


def test_train_has_8244_distinct_images_and_val_shares_1882_of_3000_with_it(files, dataset):
    train, val = (hashes(files[split].values()) for split in ("train", "val"))
    clean = [digest for digest in val if digest not in set(train)]
    assert len(set(train)) == len(dataset.train) == 8244
    assert len(val) - len(clean) == dataset.given["val.in_train"] == 1882
    assert len(clean) == 1118 and len(set(clean)) == len(dataset.val) == 896
    assert dataset.given["train.twice"] == 12000 - 8244 and dataset.given["val.twice"] == 1118 - 896


def test_no_picture_is_in_train_and_val_or_twice_in_one(dataset):
    train, val = (hashes(image.numpy().tobytes() for image in split) for split in (dataset.train, dataset.val))
    assert len(set(train) | set(val)) == len(train) + len(val) == 8244 + 896


def test_originals_of_test_images_are_found_in_train_and_in_val(dataset):
    """Of all 747 there are 446 in train and 124 in val alone."""
    if len(dataset.test) == 747:
        assert (int(dataset.leaked.sum()), int(dataset.whole.sum())) == (446, 446 + 124)
    else:
        assert (int(dataset.leaked.sum()), int(dataset.whole.sum())) == (221, 221 + 65)
    train = set(hashes(image.numpy().tobytes() for image in dataset.train))
    val = set(hashes(image.numpy().tobytes() for image in dataset.val))
    for image, whole, leaked in zip(dataset.test, dataset.whole, dataset.leaked, strict=True):
        digest = hashlib.sha256(image.numpy().tobytes()).digest()
        assert (digest in train, digest in val) == (bool(leaked), bool(whole & ~leaked))


def test_masked_test_is_the_labs_own_files(files, dataset):
    for number, image in zip(dataset.numbers, dataset.masked_test, strict=True):
        file = np.asarray(Image.open(io.BytesIO(files["masked_image"][f"image_{number:03}.png"])))
        assert np.array_equal(image.permute(1, 2, 0), file)


def test_the_summary_says_so(dataset):
    table = {row["what"]: tuple(row.values())[2:] for row in summary(dataset)}
    n = len(dataset.test)
    assert table["files given"] == (12000, 3000, n)
    assert table["left out: twice"] == (3756, 222, None) and table["left out: also in train"] == (None, 1882, None)
    assert table["images used"] == (8244, 896, n)
    seen, known, unknown = (221, 65, 88) if n == 374 else (446, 124, 177)
    assert table["original among the training images"][2] == seen
    assert (table["original known, not trained on"][2], table["no original known"][2]) == (known, unknown)


def test_the_second_opening_decodes_nothing(dataset, cache, monkeypatch):
    monkeypatch.setattr(layouts, "read_images", lambda *_: pytest.fail("decoded again"))
    again = open_dataset(REAL, **SIZES, cache=cache)
    assert again.fingerprint == dataset.fingerprint


def test_the_test_folders_alone_are_the_same_images(files, dataset, tmp_path):
    for folder in ("masked_image", "mask64"):
        (tmp_path / folder).mkdir()
        for name, content in files[folder].items():
            (tmp_path / folder / name).write_bytes(content)
    images, holes, numbers = open_masked(tmp_path / "masked_image", tmp_path / "mask64")
    assert tuple(numbers) == dataset.numbers
    assert torch.equal(images, dataset.masked_test) and torch.equal(holes, dataset.holes)


# --- pixels and masks -------------------------------------------------------------------------------------------


def test_the_labs_normalisation_is_that_of_its_15000_files(files, dataset):
    """Train and val as they were given, each distinct image counted as often as it occurs; of train alone the
    means differ by 0.0003."""
    times = Counter(hashes([*files["train"].values(), *files["val"].values()]))  # in the order of first appearance
    weight = np.array(list(times.values()), dtype=np.float64)[:, None]
    pixels = torch.cat([dataset.train, dataset.val]).flatten(2).numpy() / np.float32(255)
    mean, square = ((x.mean(2, dtype=np.float64) * weight).sum(0) / weight.sum() for x in (pixels, np.square(pixels)))
    assert weight.sum() == 15000
    assert mean == pytest.approx(TRAIN_STATS.mean, abs=5e-5)
    assert np.sqrt(square - mean**2) == pytest.approx(TRAIN_STATS.std, abs=1e-4)


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


def test_the_labs_rule_holds_on_every_mask(masks):
    """A token is masked if and only if any pixel of its 4x4 block is missing, row by row."""
    for hole in masks:
        pixels, tokens = hole.numpy(), []
        for row in range(0, 64, 4):
            for column in range(0, 64, 4):
                tokens.append(pixels[row : row + 4, column : column + 4].sum() > 0)
        assert token_mask(hole).tolist() == tokens


def test_an_inverted_mask_would_hide_nearly_everything(masks):
    assert 100 * token_mask(~masks).double().mean().item() == pytest.approx(94.5, abs=0.05)
