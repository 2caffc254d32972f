"""Images and holes: opening a dataset, pixels to token masks, normalisation.

`open_dataset` gives the same `Dataset` for the toy cats, for the lab's zip or folder and for any folder of
images; `summary` says in one table what became of the files. No picture occurs twice in train and val together, so
a validation loss is one on unseen images; the lab's files as given share 1882 of 3000 validation images with train.

Images are uint8 RGB until `normalise`; True in a hole or a mask always means "missing".
"""

import hashlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lab5.config import Config
from lab5.data import toycats
from lab5.data.archives import GREY, SIZE, Arrays, cached, stamp
from lab5.data.layouts import dataset_root, read_dataset, read_pairs, split_holes
from lab5.runtime.folders import data_folder

BLOCK, GRID = 4, 16  # pixels of a token and tokens of an image, each along a side
SPLIT_SEEDS = (0, 1000, 2000, 3000)  # of train, val, test and holes, to which the dataset's seed is added


# --- pixels -----------------------------------------------------------------------------------------------------


class Stats(NamedTuple):
    """Mean and standard deviation of red, green and blue, of images in [0,1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The lab normalises its training images by this pair, and its test images and every output by another, about 1 % of a
# standard deviation away. One for all, so that denormalise undoes normalise.
TRAIN_STATS = Stats((0.4816, 0.4324, 0.3845), (0.2602, 0.2518, 0.2537))


def normalise(images: UInt8[Tensor, "*B 3 H W"] | Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Bytes, or floats in [0,1], to the units of the VQGAN: (image - mean) / std, per channel."""
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    elif images.numel() and (images.min() < 0 or images.max() > 1):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images to normalise must be bytes or in [0,1]; found {low:.3g} to {high:.3g}")
    mean, std = channel_stats(images)
    return (images - mean).div_(std)


def denormalise(images: Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """The VQGAN's units back to [0,1]; what lies outside is clamped."""
    mean, std = channel_stats(images)
    return (images * std + mean).clamp(0, 1)


def channel_stats(like: Tensor) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """TRAIN_STATS where `like` is and of its type, written there number by number: a GPU is sent nothing."""
    mean, std = (torch.stack([like.new_full((1, 1), value) for value in values]) for values in TRAIN_STATS)
    return mean, std


def token_mask(hole: Bool[Tensor, "*B 64 64"]) -> Bool[Tensor, "*B 256"]:
    """The tokens, row by row, of which any pixel is missing: a token is its 4x4 block."""
    if hole.dtype != torch.bool or hole.shape[-2:] != (SIZE, SIZE):
        raise ValueError(f"a hole must be bool (...,64,64), True = missing; found {hole.dtype} {tuple(hole.shape)}")
    return hole.unflatten(-1, (GRID, BLOCK)).unflatten(-3, (GRID, BLOCK)).any(-1).any(-2).flatten(-2)


# --- datasets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and the holes of the test images. A model may look at `masked_test`, and never at `test`.

    Of the lab's test images only the outside of the hole is known; for many the original turns up in train or
    val and is then put into `test`. Where `whole` is False, `test` is grey inside the hole and no ground truth.
    """

    name: str
    train: UInt8[Tensor, "n_train 3 64 64"]
    val: UInt8[Tensor, "n_val 3 64 64"]
    test: UInt8[Tensor, "n_test 3 64 64"]
    holes: Bool[Tensor, "n_test 64 64"]
    whole: Bool[Tensor, " n_test"]  # the test image is known under its hole too
    leaked: Bool[Tensor, " n_test"]  # it is among the training images
    attributes: dict[str, dict[str, Tensor]]  # split -> attribute -> classes (n,); {} for photographs
    hidden: dict[str, Tensor]  # attribute -> bool (n_test,), True where its place is under the hole; {} likewise
    numbers: tuple[int, ...] = ()  # of the test images in the names of their files; 0..n_test-1 where those have none
    given: dict[str, int] = field(default_factory=dict)  # counts of files before anything was left out

    @property
    def masked_test(self) -> UInt8[Tensor, "n_test 3 64 64"]:
        """The test images with grey holes, as the lab hands them out."""
        return self.test.masked_fill(self.holes[:, None], GREY)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any pixel; names what is computed from the images, such as their tokens."""
        digest = hashlib.sha256()
        for name in (part.name for part in fields(self)):
            if isinstance(value := getattr(self, name), Tensor):
                digest.update(f"{name} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().numpy())
        return digest.hexdigest()[:16]


def open_dataset(path: str | Path, *, n_train: int, n_val: int, n_test: int, seed: int, cache: Path) -> Dataset:
    """At most `n_train`, `n_val` and `n_test` images of "toycats", the lab's zip or folder, or a folder of images.

    `seed` draws the toy cats, and the holes where a dataset brings none. `cache` is a folder for decoded arrays.
    "white-holes:" before a path says that white is what is missing in its masks.
    Raises FileNotFoundError for a missing path and ValueError for files that are not what they should be.
    """
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    if small := [f"n_{split} = {n}" for split, n in sizes.items() if n < 1]:
        raise ValueError(f"a dataset needs at least one image per split; found {', '.join(small)}")
    if str(path) == "toycats":
        return _open_toycats(sizes, seed, cache)
    text, hole = split_holes(path)
    if not text.strip():
        raise ValueError("the path of a dataset is empty; a dataset is toycats, the lab's zip or folder, or any images")
    path = Path(text).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a dataset is toycats, the lab's zip or folder, or any images")
    path = dataset_root(path)
    name = path.resolve().stem
    arrays = cached(cache, [name, stamp(path), *([hole] if hole else [])], lambda: read_dataset(path, hole))
    return _open_lab(name, arrays, sizes) if "train" in arrays else _open_own(name, arrays, sizes, seed)


def _open_toycats(sizes: dict[str, int], seed: int, cache: Path) -> Dataset:
    if not 0 <= seed < 1000:
        raise ValueError(f"the seed of the toy cats must lie in 0..999, so that no two splits share one; found {seed}")

    def render() -> Arrays:
        arrays: Arrays = {"holes": toycats.random_holes(SPLIT_SEEDS[3] + seed, sizes["test"]).numpy()}
        for (split, n), first in zip(sizes.items(), SPLIT_SEEDS, strict=False):
            cats = toycats.render(first + seed, n)
            arrays[split] = cats.images.numpy()
            arrays |= {f"{split}.{name}": classes.numpy() for name, classes in cats.attributes.items()}
        hidden = toycats.hidden_attributes(torch.from_numpy(arrays["holes"]), cats.pose)  # of test, the last split
        return arrays | {f"hidden.{name}": value.numpy() for name, value in hidden.items()}

    rendered = cached(cache, ["toycats", sizes, seed, toycats.VERSION], render)
    arrays = {name: torch.from_numpy(array) for name, array in rendered.items()}
    attributes = {split: {name: arrays[f"{split}.{name}"] for name in toycats.ATTRIBUTES} for split in sizes}
    hidden = {name.removeprefix("hidden."): array for name, array in arrays.items() if name.startswith("hidden.")}
    images, all_of_them = [arrays[split] for split in sizes], torch.ones(sizes["test"], dtype=torch.bool)
    numbers = tuple(range(sizes["test"]))
    return Dataset(
        "toycats", *images, arrays["holes"], all_of_them, ~all_of_them, attributes, hidden, numbers, dict(sizes)
    )


def _open_lab(name: str, arrays: Arrays, sizes: dict[str, int]) -> Dataset:
    train, val = (torch.from_numpy(arrays[split]) for split in ("train", "val"))
    test, holes, original, numbers = (
        torch.from_numpy(arrays[key][: sizes["test"]]) for key in ("test", "holes", "original", "numbers")
    )
    whole, in_train, kept = original >= 0, (original >= 0) & (original < len(train)), train[: sizes["train"]]
    test[in_train], test[whole & ~in_train] = train[original[in_train]], val[original[whole & ~in_train] - len(train)]
    leaked, numbers = whole & (original < len(kept)), tuple(numbers.tolist())
    return Dataset(name, kept, val[: sizes["val"]], test, holes, whole, leaked, {}, {}, numbers, _given(arrays))


def _open_own(name: str, arrays: Arrays, sizes: dict[str, int], seed: int) -> Dataset:
    images = torch.from_numpy(arrays["images"])  # distinct, in the order of their hashes: as good as shuffled
    tenth = max(1, len(images) // 10)
    val, rest = images[:tenth][: sizes["val"]], images[tenth:]
    if "test" in arrays:
        test, holes, whole = (torch.from_numpy(arrays[key][: sizes["test"]]) for key in ("test", "holes", "whole"))
    else:
        test, rest = rest[:tenth][: sizes["test"]], rest[tenth:]
        holes = toycats.random_holes(SPLIT_SEEDS[3] + seed, len(test))
        whole = torch.ones(len(test), dtype=torch.bool)
    train, leaked, numbers = rest[: sizes["train"]], torch.zeros(len(test), dtype=torch.bool), tuple(range(len(test)))
    return Dataset(name, train, val, test, holes, whole, leaked, {}, {}, numbers, _given(arrays))


def _given(arrays: Arrays) -> dict[str, int]:
    return {name.removeprefix("given."): int(count) for name, count in arrays.items() if name.startswith("given.")}


def open_masked(
    masked: str | Path, masks: str | Path
) -> tuple[UInt8[Tensor, "n 3 64 64"], Bool[Tensor, "n 64 64"], list[int]]:
    """Two test folders of the lab's, masked_image and mask64: images with grey holes, the holes, the files' numbers.

    Paired by number and in its order; masks without an image are left out. Checked as in the lab's dataset.
    Raises FileNotFoundError for a missing folder, ValueError for files that are not what they should be.
    """
    masks, hole = split_holes(masks)
    for folder in (masked, masks):
        if not Path(folder).exists():
            raise FileNotFoundError(f"{folder} does not exist; the lab's test images are two folders, images and masks")
    arrays = read_pairs(Path(masked), Path(masks), hole)
    return torch.from_numpy(arrays["test"]), torch.from_numpy(arrays["holes"]), arrays["numbers"].tolist()


def summary(dataset: Dataset) -> list[dict[str, Any]]:
    """One table of what became of the files: a row per fact, a column per split and one for all; None where none is.

    Of the test images it says how many a model has seen in training, how many have a known original all the same,
    and how large their holes are.
    """
    used = {"train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test)}
    rows = [_count("files given", dataset.given)]
    for reason, why in {"twice": "twice", "in_train": "also in train", "in_test": "also a test image"}.items():
        if any(name.endswith(f".{reason}") for name in dataset.given):
            rows.append(_count(f"left out: {why}", dataset.given, f".{reason}"))
    splits = dict.fromkeys(("train", "val", "test"))
    rows += [{"what": f"left out: {name}", "all": n} | splits for name, n in unread(dataset).items()]
    rows.append(_count("images used", used))
    of_test: dict[str, float] = {
        "original among the training images": int(dataset.leaked.sum()),
        "original known, not trained on": int((dataset.whole & ~dataset.leaked).sum()),
        "no original known": int((~dataset.whole).sum()),
    }
    pixels, tokens = 100 * dataset.holes.double().mean((1, 2)), token_mask(dataset.holes).sum(1).double()
    for what, sizes in (("missing pixels (%)", pixels), ("masked tokens of 256", tokens)):
        ends = {"mean": sizes.mean(), "least": sizes.min(), "most": sizes.max()}
        of_test |= {f"{what}, {end}": value.item() for end, value in ends.items()}
    return rows + [{"what": what, "all": None} | splits | {"test": n} for what, n in of_test.items()]


def unread(dataset: Dataset) -> dict[str, int]:
    """How many files were left out because they are no pictures that are read, under "ending in .heic, .mov"."""
    return {name: n for name, n in dataset.given.items() if name.startswith("ending in ")}


def _count(what: str, counts: dict[str, int], suffix: str = "") -> dict[str, Any]:
    """A row of `summary`: the splits' counts and their sum, or the one of all where no split is known yet."""
    splits = {split: counts.get(split + suffix) for split in ("train", "val", "test")}
    total = counts.get(f"all{suffix}", sum(n or 0 for n in splits.values()))
    return {"what": what, "all": total} | splits


def get_dataset(config: Config) -> Dataset:
    """The dataset of a run, rendered or decoded once and cached."""
    data = config.data
    sizes = {"n_train": data.train, "n_val": data.val, "n_test": data.test}
    return open_dataset(data.path, **sizes, seed=data.seed, cache=data_folder() / "cache")
