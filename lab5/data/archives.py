"""Folders and zip archives of images: what is in them, each picture decoded, arrays kept in a cache file.

Archives are read in memory and never extracted. Whatever is not as it should be is refused by its name, and what
is dangerous (names that leave the folder, links, pictures that unpack to gigabytes) before it is read.
"""

import hashlib
import io
import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from lab5.runtime.files import dispensable, replacing

SIZE = 64
GREY = 128  # what the lab's files show inside a hole
# Formats of single pictures that Pillow reads by itself, without another program, by their first bytes and whatever
# the name says: the lab's photographs are JPEG called .png. Two whose first bytes tell nothing go by their names.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "SGI")
BY_NAME = {".tga": "TGA", ".pcx": "PCX"}
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".qoi", ".sgi", *BY_NAME,
}  # fmt: skip
TEXTS = {".txt", ".md", ".csv", ".json", ".yml", ".yaml", ".xml", ".html", ".log", ".ini", ".db", ".py"}  # no pictures
MAX_BYTES = 1 << 28  # of one file in an archive, unpacked
MAX_TOTAL, MAX_RATIO = 1 << 30, 100  # of all together, and how many times the archive: pictures are packed already
MAX_PIXELS = 80_000_000  # of one image; Pillow itself begins to warn a little above
TOO_LARGE = f"is larger than the {MAX_PIXELS // 10**6} million pixels that are read"
CACHE_FORMAT = 4  # counts up whenever the arrays of a dataset would come out differently

Arrays = dict[str, np.ndarray]


# --- what is there ----------------------------------------------------------------------------------------------


def list_images(path: Path) -> tuple[list[str], list[str]]:
    """The images in a folder or zip, by their names in it, and the other files but texts, which are not read.

    Raises ValueError for what is neither, for a zip that is damaged, encrypted or would leave its folder, and where
    there are no images.
    """
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in _walk(path))
        _check_letters(path, names)
    else:
        names = _zip_names(path)
    visible = [name for name in names if not _is_hidden(name)]
    images = [name for name in visible if _is_image(name)]
    if not images:
        archives = [name for name in names if name.lower().endswith(".zip")]
        hint = f"; the archive {archives[0]} in it has to be named itself" if archives else ""
        other = f", but files ending in {endings(visible)}" if visible and not archives else ""
        raise ValueError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))}){other}{hint}")
    return images, [name for name in visible if PurePosixPath(name).suffix.lower() not in SUFFIXES | TEXTS]


def endings(names: Iterable[str]) -> str:
    """The commonest endings of some files: ".heic, .txt"."""
    counts = Counter(ascii(PurePosixPath(name).suffix.lower())[1:-1][:12] or "nothing" for name in names)
    return ", ".join(sorted(ending for ending, _ in counts.most_common(6))) + (", ..." if len(counts) > 6 else "")


def stamp(path: Path) -> list:
    """What changes when a file in the folder, or the zip, does: names, sizes and times."""
    files = _walk(path) if path.is_dir() else [path]
    entries = ((os.path.relpath(file, path), file.stat()) for file in files)
    return [str(path.resolve()), *([name, facts.st_size, facts.st_mtime_ns] for name, facts in entries)]


def _walk(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(f"{folder} may not be read by this user")
    paths, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):  # datasets are often linked, folder by folder
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # it leads back to where one has been
        else:
            seen.add(real)
            paths += [path for path in (Path(place, name) for name in files) if path.is_file()]
    return sorted(paths)


def _check_letters(path: Path, names: list[str]) -> None:
    if odd := [name for name in names if any(character < " " for character in name)]:
        raise ValueError(f"{path} holds the name {odd[0]!r}, with characters that no name should have")


def _zip_names(path: Path) -> list[str]:
    """The files in an archive, none of which may be anything but a file inside it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # damaged archives fail in many ways
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ValueError(f"{path} is a zip archive that was damaged or cut short: copy it again") from error
        raise ValueError(f"{path} is neither a folder nor a zip archive") from error
    _check_letters(path, [entry.filename for entry in entries])
    for entry in entries:
        name = entry.filename
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
            raise ValueError(f"{path} holds the path {name!r}, which leads out of the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"{name} in {path} is a symbolic link; an archive has to hold the files themselves")
        if entry.flag_bits & 1:
            raise ValueError(f"{name} in {path} is encrypted: unpack the archive and name the folder")
        if entry.file_size > MAX_BYTES and _is_image(name):
            unpacked = f"{entry.file_size // 10**6} MB, more than the {MAX_BYTES // 10**6} MB that are read"
            raise ValueError(f"{name} in {path} unpacks to {unpacked}")
    total, stored = sum(entry.file_size for entry in entries if _is_image(entry.filename)), path.stat().st_size
    if total > MAX_TOTAL and total > MAX_RATIO * stored:
        unpacked = f"{total // 10**6} MB, {total // stored} times what the archive takes"
        raise ValueError(f"the pictures in {path} unpack to {unpacked}")
    names = [entry.filename for entry in entries if not entry.filename.endswith("/")]  # is_dir() fails on an empty one
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise ValueError(f"{path} holds {name} {times} times; which one is meant cannot be told")
    return names


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    """Finder's and other programs' droppings."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


# --- what it shows ----------------------------------------------------------------------------------------------


def read_images(path: Path, names: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Every named image of a folder or zip, decoded. Raises ValueError for the first that is no single picture."""
    with nullcontext() if path.is_dir() else zipfile.ZipFile(path) as archive:
        for name in names:
            content, cause = b"-", None
            try:
                content = archive.read(name) if archive else (path / name).read_bytes()
                named = BY_NAME.get(PurePosixPath(name).suffix.lower())
                image = Image.open(io.BytesIO(content), formats=FORMATS + ((named,) if named else ()))
                if image.width * image.height > MAX_PIXELS:
                    problem = TOO_LARGE
                # A JPEG file may carry a second view of its picture, as phones write them (MPO): the first is taken.
                elif image.format == "GIF" and image.is_animated:  # to count its frames, all would be decoded
                    problem = "is not a readable image but an animation"
                elif image.format not in ("MPO", "GIF") and (frames := getattr(image, "n_frames", 1)) > 1:
                    problem = f"is an animation of {frames} frames, not one picture"
                else:
                    problem = ""
                    image.load()
            except Image.DecompressionBombError as error:
                problem, cause = TOO_LARGE, error
            except Exception as error:  # damaged archives and images fail in many ways
                problem, cause = "is not a readable image" if content else "is an empty file", error
            if problem:
                raise ValueError(f"{name} in {path} {problem}") from cause
            yield name, image


def to_rgb(what: str, image: Image.Image) -> Image.Image:
    """An image that `read_images` gave, in 8 bits a colour; `what` names it in the ValueError where it has more."""
    try:
        if not image.mode.startswith(("I", "F")):
            return image.convert("RGB")
    except ValueError:  # colours that Pillow has no way from
        pass
    raise ValueError(f"{what} has pixels of type {image.mode}; save it with 8 bits per channel")


# --- the cache --------------------------------------------------------------------------------------------------


def cached(folder: Path, key: list, make: Callable[[], Arrays]) -> Arrays:
    """What `make` returns, kept in a file named by `key` if it can be; a damaged file is made again."""
    digest = hashlib.sha256(json.dumps([CACHE_FORMAT, *key]).encode()).hexdigest()
    file = Path(folder) / f"{key[0]}-{digest[:16]}.npz"
    if (arrays := read_cached(file)) is not None:
        return arrays
    arrays = make()
    with dispensable(file), replacing(file) as out:
        np.savez(out, **arrays)
    return arrays


def read_cached(file: Path) -> Arrays | None:
    """What a cache file holds, or None where there is none, or a damaged one."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception:  # damaged archives and arrays fail in many ways
        return None
