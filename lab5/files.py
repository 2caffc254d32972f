"""A folder or zip of images to arrays: the lab's layouts, or any images; decoded once and kept in a cache file.

Archives are read in memory and never extracted. Whatever is not as it should be is refused by its name.

It knows no splits beyond the lab's folders, no tensors and no model.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

SIZE = 64
GREY = 128  # what the lab's files show inside a hole
LAB_FOLDERS = ("train", "val", "masked_image", "mask64")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CACHE_FORMAT = 2  # counts up whenever the arrays below would come out differently

Arrays = dict[str, np.ndarray]


def list_images(path: Path) -> tuple[list[str], list]:
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


def read_lab(path: Path, names: list[str]) -> Arrays:
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


def read_folder(path: Path, names: list[str]) -> Arrays:
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


def cached(folder: Path, key: list, make: Callable[[], Arrays]) -> Arrays:
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
