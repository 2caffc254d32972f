"""Images and holes: opening a dataset, pixels to token masks, normalisation.

`open_dataset` gives the same `Dataset` for the toy cats, for the lab's zip or folder and for any folder of
images. No picture occurs twice in train and val together, so a validation loss is one on unseen images; the
lab's files as given share 1882 of 3000 validation images with train. Decoding thousands of files happens once:
the arrays are kept as a cache file. Archives are read in memory and never extracted.

It knows no model. Images are uint8 RGB until `normalise`; True in a hole or a mask is always "missing".
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from lab5 import painter, toycats

SIZE, BLOCK, GRID = 64, 4, 16  # pixels of an image, of a token and tokens of an image, each along a side
GREY = 128  # what the lab's files show inside a hole
LAB_FOLDERS = ("train", "val", "masked_image", "mask64")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CACHE_FORMAT = 1  # counts up whenever the arrays below would come out differently

Arrays = dict[str, np.ndarray]


# --- pixels -----------------------------------------------------------------------------------------------------


class Stats(NamedTuple):
    """Mean and standard deviation of red, green and blue, of images in [0,1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The lab normalises its training images by one pair, and its test images and every output by another. They
# differ by about 1 % of a standard deviation. Whoever wants the lab's own tokens of a test image passes
# TEST_STATS; everything else uses one pair, so that denormalise undoes normalise.
TRAIN_STATS = Stats((0.4816, 0.4324, 0.3845), (0.2602, 0.2518, 0.2537))
TEST_STATS = Stats((0.4868, 0.4341, 0.3844), (0.2620, 0.2527, 0.2543))


def normalise(
    images: UInt8[Tensor, "*B 3 H W"] | Float[Tensor, "*B 3 H W"], stats: Stats = TRAIN_STATS
) -> Float[Tensor, "*B 3 H W"]:
    """Bytes, or floats in [0,1], to the units of the VQGAN: (image - mean) / std, per channel."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    elif images.numel() and (images.min() < 0 or images.max() > 1):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images to normalise must be bytes or in [0,1]; found {low:.3g} to {high:.3g}")
    mean, std = (images.new_tensor(values)[:, None, None] for values in stats)
    return (images - mean) / std


def denormalise(images: Float[Tensor, "*B 3 H W"], stats: Stats = TRAIN_STATS) -> Float[Tensor, "*B 3 H W"]:
    """The VQGAN's units back to [0,1]; what lies outside is clamped."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in stats)
    return (images * std + mean).clamp(0, 1)


def token_mask(hole: Bool[Tensor, "*B 64 64"]) -> Bool[Tensor, "*B 256"]:
    """The tokens, row by row, of which any pixel is missing: a token is its 4x4 block."""
    if hole.dtype != torch.bool or hole.shape[-2:] != (SIZE, SIZE):
        raise ValueError(f"a hole must be bool (...,64,64), True = missing; found {hole.dtype} {tuple(hole.shape)}")
    return hole.unflatten(-1, (GRID, BLOCK)).unflatten(-3, (GRID, BLOCK)).any(-1).any(-2).flatten(-2)


def pixel_mask(unknown: Bool[Tensor, "*B 256"]) -> Bool[Tensor, "*B 64 64"]:
    """The pixels that tokens cover: `token_mask` undone, up to whole blocks."""
    grid = unknown.unflatten(-1, (GRID, GRID))
    return grid.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)


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

    @property
    def masked_test(self) -> UInt8[Tensor, "n_test 3 64 64"]:
        """The test images with grey holes, as the lab hands them out."""
        return self.test.masked_fill(self.holes[:, None], GREY)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any pixel; names what is computed from the images, such as their tokens."""
        digest = hashlib.sha256()
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), Tensor):
                digest.update(f"{field.name} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().numpy())
        return digest.hexdigest()[:16]


def open_dataset(path: str | Path, *, n_train: int, n_val: int, n_test: int, seed: int, cache: Path) -> Dataset:
    """At most `n_train`, `n_val` and `n_test` images of "toycats", the lab's zip or folder, or a folder of images.

    `seed` draws the toy cats, and the holes where a dataset brings none. `cache` is a folder for decoded arrays.
    Raises FileNotFoundError for a missing path and ValueError for files that are not what they should be.
    """
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    if small := [f"n_{split} = {n}" for split, n in sizes.items() if n < 1]:
        raise ValueError(f"a dataset needs at least one image per split; found {', '.join(small)}")
    if str(path) == "toycats":
        return _open_toycats(sizes, seed, cache)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a dataset is toycats, the lab's zip or folder, or any images")
    (names, stamp), name = _list(path), path.resolve().stem
    if any(PurePosixPath(file).parent.name in ("masked_image", "mask64") for file in names):
        return _open_lab(name, _cached(cache, [name, "lab", stamp], lambda: _read_lab(path, names)), sizes)
    return _open_folder(name, _cached(cache, [name, "any", stamp], lambda: _read_folder(path, names)), sizes, seed)


def _open_toycats(sizes: dict[str, int], seed: int, cache: Path) -> Dataset:
    def render() -> Arrays:
        arrays: Arrays = {"holes": toycats.random_holes(4 * seed + 3, sizes["test"]).numpy()}
        for i, (split, n) in enumerate(sizes.items()):  # 4 * seed + i: no two splits of any two seeds share one
            cats = toycats.render(4 * seed + i, n)
            arrays[split] = cats.images.numpy()
            arrays |= {f"{split}.{name}": classes.numpy() for name, classes in cats.attributes.items()}
        hidden = toycats.hidden_attributes(torch.from_numpy(arrays["holes"]), cats.pose)  # of test, the last split
        return arrays | {f"hidden.{name}": value.numpy() for name, value in hidden.items()}

    sources = b"".join(Path(module.__file__).read_bytes() for module in (painter, toycats))
    cached = _cached(cache, ["toycats", sizes, seed, hashlib.sha256(sources).hexdigest()], render)
    arrays = {name: torch.from_numpy(array) for name, array in cached.items()}
    attributes = {split: {name: arrays[f"{split}.{name}"] for name in toycats.ATTRIBUTES} for split in sizes}
    hidden = {name.removeprefix("hidden."): array for name, array in arrays.items() if name.startswith("hidden.")}
    images, everything = [arrays[split] for split in sizes], torch.ones(sizes["test"], dtype=torch.bool)
    return Dataset("toycats", *images, arrays["holes"], everything, ~everything, attributes, hidden)


def _open_lab(name: str, arrays: Arrays, sizes: dict[str, int]) -> Dataset:
    train, val = (torch.from_numpy(arrays[key]) for key in ("train", "val"))
    test, holes, original = (torch.from_numpy(arrays[key][: sizes["test"]]) for key in ("test", "holes", "original"))
    whole, train_kept = original >= 0, train[: sizes["train"]]
    test[whole] = torch.cat([train, val])[original[whole]]
    leaked = whole & (original < len(train_kept))
    return Dataset(name, train_kept, val[: sizes["val"]], test, holes, whole, leaked, {}, {})


def _open_folder(name: str, arrays: Arrays, sizes: dict[str, int], seed: int) -> Dataset:
    images = torch.from_numpy(arrays["images"])  # distinct, in the order of their hashes: as good as shuffled
    tenth = max(1, len(images) // 10)
    n_val, n_test = min(sizes["val"], tenth), min(sizes["test"], tenth)
    val, test, train = images[:n_val], images[tenth : tenth + n_test], images[2 * tenth :][: sizes["train"]]
    whole = torch.ones(n_test, dtype=torch.bool)
    return Dataset(name, train, val, test, toycats.random_holes(4 * seed + 3, n_test), whole, ~whole, {}, {})


# --- files ------------------------------------------------------------------------------------------------------


def _list(path: Path) -> tuple[list[str], list]:
    """The images in a folder or zip, by their names in it, and what changes when they do."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        names = [file.relative_to(path).as_posix() for file in files]
    elif zipfile.is_zipfile(path):
        files = [path]
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    else:
        raise ValueError(f"{path} is neither a folder nor a zip archive")
    names = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES and not _is_hidden(name)]
    if not names:
        raise ValueError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return names, [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _is_hidden(name: str) -> bool:
    """Finder's and other programs' droppings."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _read(path: Path, names: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Every named image, decoded."""
    with nullcontext() if path.is_dir() else zipfile.ZipFile(path) as archive:
        for name in names:
            try:
                image = Image.open(io.BytesIO(archive.read(name) if archive else (path / name).read_bytes()))
                image.load()
            except Exception as error:  # damaged archives and images fail in many ways
                raise ValueError(f"{name} in {path} is not a readable image") from error
            yield name, image


def _read_lab(path: Path, names: list[str]) -> Arrays:
    """The lab's layouts (LAB_CONTRACT section 1), wherever in the archive the four folders are."""
    numbered = {folder: _by_number(path, folder, names) for folder in LAB_FOLDERS}
    if unpaired := sorted(numbered["masked_image"].keys() - numbered["mask64"].keys()):
        raise ValueError(f"{path} has {len(unpaired)} masked images without a mask, the first is number {unpaired[0]}")
    numbers = sorted(numbered["masked_image"])
    train, val = (_stack(path, [f for _, f in sorted(numbered[s].items())], "RGB") for s in ("train", "val"))
    test = _stack(path, [numbered["masked_image"][number] for number in numbers], "RGB")
    masks = _stack(path, [numbered["mask64"][number] for number in numbers], "L")
    for i, number in enumerate(numbers):
        if not np.isin(masks[i], (0, 255)).all():
            raise ValueError(f"{numbered['mask64'][number]} must hold only 0 (missing) and 255 (known)")
        if (test[i][:, masks[i] == 0] != GREY).any():
            raise ValueError(f"{numbered['masked_image'][number]} is not grey ({GREY}) where its mask says missing")
    seen: set[bytes] = set()
    train, val, holes = _distinct(train, seen), _distinct(val, seen), masks == 0
    original = _find_originals(test, holes, np.concatenate([train, val]))
    return {"train": train, "val": val, "test": test, "holes": holes, "original": original}


def _by_number(path: Path, folder: str, names: list[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in names:
        if PurePosixPath(name).parent.name == folder:
            number = re.search(r"(\d+)$", PurePosixPath(name).stem)
            if number is None or int(number[1]) in found:
                raise ValueError(f"{name} in {path} needs a number of its own at the end of its name")
            found[int(number[1])] = name
    if not found:
        raise ValueError(f"{path} has no images in a folder {folder}; the lab's dataset has {', '.join(LAB_FOLDERS)}")
    return found


def _stack(path: Path, names: list[str], mode: str) -> np.ndarray:
    """Images of one mode as (n,3,64,64) for RGB and (n,64,64) for L."""
    arrays = []
    for name, image in _read(path, names):
        if image.mode != mode or image.size != (SIZE, SIZE):
            found = f"{image.mode} {image.width}x{image.height}"
            raise ValueError(f"{name} in {path} is {found}, but must be {mode} {SIZE}x{SIZE} as the lab's are")
        arrays.append(np.asarray(image))
    stacked = np.stack(arrays)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)) if mode == "RGB" else stacked


def _read_folder(path: Path, names: list[str]) -> Arrays:
    """Any images: the largest square from the middle of each, resized."""
    squares = []
    for _, image in _read(path, names):
        upright = ImageOps.exif_transpose(image).convert("RGB")
        squares.append(np.asarray(ImageOps.fit(upright, (SIZE, SIZE), Image.Resampling.LANCZOS)))
    images = _distinct(np.ascontiguousarray(np.stack(squares).transpose(0, 3, 1, 2)), set())
    if len(images) < 3:
        raise ValueError(f"{path} holds {len(images)} distinct images; train, val and test need at least 3")
    order = sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).digest())
    return {"images": images[order]}


def _distinct(images: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """The images whose content is not in `seen`, each once, in order; `seen` grows by them."""
    keep = []
    for i, image in enumerate(images):
        if (digest := hashlib.sha256(image.tobytes()).digest()) not in seen:
            seen.add(digest)
            keep.append(i)
    return images[keep]


def _find_originals(masked: np.ndarray, holes: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """For each masked image the index of the first original that agrees on every known pixel, or -1."""
    flat, found = originals.reshape(len(originals), 3, -1), np.full(len(masked), -1)
    for i, (image, hole) in enumerate(zip(masked.reshape(len(masked), 3, -1), holes, strict=True)):
        known = np.flatnonzero(~hole)
        probe = known[:: max(1, len(known) // 8)]  # a few pixels rule almost every original out
        candidates = np.flatnonzero((flat[:, :, probe] == image[:, probe]).all((1, 2)))
        agree = (flat[candidates][:, :, known] == image[:, known]).all((1, 2))
        found[i] = candidates[agree][0] if agree.any() else -1
    return found


def _cached(folder: Path, key: list, make: Callable[[], Arrays]) -> Arrays:
    """What `make` returns, kept in a file named by `key`; a damaged file is made again."""
    digest = hashlib.sha256(json.dumps([CACHE_FORMAT, *key]).encode()).hexdigest()
    file = Path(folder) / f"{key[0]}-{digest[:16]}.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        arrays = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            np.savez(out, **arrays)
        part.replace(file)  # a reader sees the whole file or none
    finally:
        part.unlink(missing_ok=True)
    return arrays
