"""What folders of images mean: the lab's dataset, two test folders of the lab's, or pictures of one's own.

Each `read_...` turns files into arrays (images (n,3,64,64) and masks of uint8 and bool), checked and without
duplicates, together with counts of what was given. Every other module sees only these arrays.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lab5.data.archives import GREY, SIZE, Arrays, endings, list_images, read_images, to_rgb

LAB_FOLDERS = ("train", "val", "masked_image", "mask64")
# What stands before a path whose masks are not as the lab's, 255 = known: white is what is missing. The other one says
# that they are, where so much is missing that one would ask.
HOLES = {"white": "white-holes:", "black": "black-holes:"}
MASKS = re.compile(r"masks?(?![a-z])")  # masks, Mask, cat_masks, mask_01; not masked
NEARLY = 48  # grey levels that a JPEG file or a soft brush may be off black and white
FLAT = 4  # standard deviation of a colour that was painted over; JPEG leaves it a little noise


def dataset_root(path: Path) -> Path:
    """`path`, or the folder above it where that has the masks: the lab's cat_face lies beside mask64."""
    beside = path.is_dir() and (path / "masked_image").is_dir() and not (path / "mask64").is_dir()
    above = path.resolve().parent
    return above if beside and (above / "mask64").is_dir() else path


def split_holes(path: str | Path) -> tuple[str, str]:
    """A path, and the colour of holes that is said before it, as a key of HOLES; "" where none is."""
    for colour, before in HOLES.items():
        if str(path).startswith(before):
            return str(path).removeprefix(before), colour
    return str(path), ""


def read_dataset(path: Path, hole: str = "") -> Arrays:
    """The lab's dataset where a folder is called as one of its test folders, pictures of one's own otherwise.

    `hole` is the colour of what is missing in its masks, "black" or "white"; "" is black, but asks where that is odd.
    """
    folders: dict[str, list[str]] = {}
    names, others = list_images(path)
    for name in names:
        folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
    lab = any(PurePosixPath(folder).name in ("masked_image", "mask64") for folder in folders)
    arrays = read_lab(path, folders, hole) if lab else read_own(path, names, hole)
    return arrays | (_counts({f"ending in {endings(others)}": len(others)}) if others else {})


# --- the lab's dataset ------------------------------------------------------------------------------------------


def read_lab(path: Path, folders: dict[str, list[str]], hole: str = "") -> Arrays:
    """Both years' layouts: train, val and masked_image side by side, mask64 beside or above them, at any depth.

    Arrays: `train`, `val` (distinct, nothing of train), `test` (with grey holes), `holes`, `numbers` of the test
    images' files, `original` (for each test image the index of one in train + val that agrees on every known pixel,
    or -1), and `given.*`, counts of files.
    """
    where = _find_lab(path, folders)
    numbered = {kind: _by_number(path, folders[folder]) for kind, folder in where.items()}
    train, val = (_stack(path, [f for _, f in sorted(numbered[split].items())], "RGB") for split in ("train", "val"))
    tests = _read_pairs(path, numbered["masked_image"], path, numbered["mask64"], hole)
    of_train, of_val = _digests(train), _digests(val)
    seen = set(of_train)
    in_train = sum(digest in seen for digest in of_val)
    if in_train == len(of_val):
        raise ValueError(f"every image of val in {path} is in train too ({in_train}): none is left to validate on")
    train, val = train[_first(of_train)], val[_first(of_val, seen)]
    given = {
        "train": len(of_train),
        "train.twice": len(of_train) - len(train),
        "val": len(of_val),
        "val.twice": len(of_val) - in_train - len(val),
        "val.in_train": in_train,
        "test": len(tests["test"]),
        "masks": len(numbered["mask64"]),
    }
    original = find_originals(tests["test"], tests["holes"], np.concatenate([train, val]))
    return tests | {"train": train, "val": val, "original": original} | _counts(given)


def _find_lab(path: Path, folders: dict[str, list[str]]) -> dict[str, str]:
    """The paths in the archive of the lab's four folders, of which masked_image tells the rest."""
    tests = [folder for folder in folders if PurePosixPath(folder).name == "masked_image"]
    if len(tests) > 1:
        raise ValueError(f"{path} holds {len(tests)} datasets ({', '.join(tests)}): name the folder of one of them")
    home = PurePosixPath(tests[0] if tests else "masked_image").parent
    where = {kind: str(home / kind) for kind in LAB_FOLDERS}
    if where["mask64"] not in folders:
        where["mask64"] = str(home.parent / "mask64")
    for kind in sorted(where):  # masked_image first: without it the others are looked for in the wrong place
        if where[kind] not in folders:
            raise ValueError(f"{path} has no images in {where[kind]}; the lab's dataset has {', '.join(LAB_FOLDERS)}")
    return where


def read_pairs(masked: Path, masks: Path, hole: str = "") -> Arrays:
    """Two test folders of the lab's as `test`, `holes` and `numbers`; masks of other numbers are left alone."""
    images, stencils = (_by_number(folder, list_images(folder)[0]) for folder in (masked, masks))
    return _read_pairs(masked, images, masks, stencils, hole)


def _read_pairs(
    masked: Path, images: dict[int, str], masks: Path, stencils: dict[int, str], hole: str = ""
) -> Arrays:
    """Masked images and their masks, in the order of their numbers, and checked against each other."""
    if unpaired := sorted(images.keys() - stencils.keys()):
        count = f"{len(unpaired)} masked images" if len(unpaired) > 1 else "1 masked image"
        raise ValueError(f"{masked} has {count} without a mask, the first is number {unpaired[0]}")
    numbers = sorted(images)
    test = _stack(masked, [images[number] for number in numbers], "RGB")
    known = _stack(masks, [stencils[number] for number in numbers], "L")
    if hole == "white":
        known = 255 - known
    for number, picture, mask in zip(numbers, test, known, strict=True):
        _check_mask(f"{stencils[number]} in {masks}", mask)
        grey, missing = (picture == GREY).all(0), mask == 0
        if grey[~missing].all() and not grey[missing].all():
            raise ValueError(
                f"{stencils[number]} in {masks} is inverted: its image is grey where it says known (255) "
                f"and shows something where it says missing (0): --holes {'black' if hole else 'white'} turns it round"
            )
        if not grey[missing].all():
            raise ValueError(f"{images[number]} in {masked} is not grey ({GREY}) where its mask says missing")
    return {"test": test, "holes": known == 0, "numbers": np.array(numbers)}


def _check_mask(what: str, mask: np.ndarray) -> None:
    """A mask has something of both: missing and known."""
    values = np.unique(mask)
    if odd := [int(value) for value in values if value not in (0, 255)]:
        values_there = ", ".join(map(str, odd[:3])) + (", ..." if len(odd) > 3 else "")
        raise ValueError(f"{what} must hold only 0 (missing) and 255 (known), but it holds {values_there}")
    if len(values) == 1:
        raise ValueError(f"{what} says {'that no pixel is missing' if values[0] else 'that every pixel is missing'}")


def _by_number(path: Path, names: list[str]) -> dict[int, str]:
    by_number: dict[int, str] = {}
    for name in names:
        digits = re.search(r"\d+$", PurePosixPath(name).stem)
        if digits is None:
            raise ValueError(f"{name} in {path} needs a number at the end of its name, as in image_00000.png")
        if (number := int(digits[0])) in by_number:
            raise ValueError(f"{by_number[number]} and {name} in {path} have the same number, {number}")
        by_number[number] = name
    return by_number


def _stack(path: Path, names: list[str], mode: str) -> np.ndarray:
    """Images of one mode as (n,3,64,64) for RGB and (n,64,64) for L."""
    arrays = []
    for name, image in read_images(path, names):
        if image.mode != mode or image.size != (SIZE, SIZE):
            kind = f"{image.mode} {image.width}x{image.height}"
            raise ValueError(f"{name} in {path} is {kind}, but must be {mode} {SIZE}x{SIZE} as the lab's are")
        arrays.append(np.asarray(image))
    stacked = np.stack(arrays)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)) if mode == "RGB" else stacked


# --- pictures of one's own --------------------------------------------------------------------------------------


class _Stencil(NamedTuple):
    """A mask of one's own."""

    name: str
    size: tuple[int, int]  # of the file, as its picture's must be
    known: np.ndarray  # (64,64), the share of each pixel that is known


def read_own(path: Path, names: list[str], hole: str = "") -> Arrays:
    """Pictures of any size: the largest square from the middle of each, resized to 64x64.

    A picture with a mask (cat.jpg and masks/cat.png or cat_mask.png, of its size, 255 = known, 0 = missing) becomes a
    test image with that hole. Where it shows one flat colour under the hole, what belongs there counts as unknown;
    otherwise the picture is taken for the truth.

    Arrays: `images` (distinct, in the order of their hashes, none a test image), `given.*` (counts of files) and,
    with masks, `test`, `holes` and `whole`.
    """
    names, masks = _part_masks(names)
    stencils = _read_stencils(path, masks, names, hole)
    squares, tests, like_masks = [], [], 0
    for name, image in read_images(path, names):
        upright = to_rgb(f"{name} in {path}", _upright(image))
        square = _square(upright, Image.Resampling.LANCZOS).transpose(2, 0, 1)
        if stencil := stencils.get(name):
            tests.append((square, *_with_hole(f"{name} in {path}", upright, stencil)))
        else:
            squares.append(square)
            like_masks += _black_and_white(np.asarray(upright)) is not None
    digests = _digests(squares)
    order = sorted(_first(digests), key=lambda place: digests[place])  # a split does not depend on the files' names
    images = np.stack([squares[place] for place in order]) if order else np.empty((0, 3, SIZE, SIZE), np.uint8)
    given = {"all": len(names), "all.twice": len(squares) - len(images), "masks": len(tests)}
    if 0 < like_masks < len(squares):
        given["like_masks"] = like_masks
    if not tests:
        if len(images) < 3:
            raise ValueError(f"{path} holds {len(images)} distinct images; train, val and test need at least 3")
        return {"images": images} | _counts(given)
    as_others, test, holes, whole = (np.stack(column) for column in zip(*tests, strict=True))
    originals = np.unique(find_originals(as_others, holes, images))
    images = np.delete(images, originals[originals >= 0], axis=0)
    if len(images) < 2:
        every = "" if squares else "every picture has a mask: "
        beside = f"{len(images)} distinct images beside the test images; at least 2 are needed to train and validate on"
        raise ValueError(f"{every}{path} holds {beside}")
    given["all.in_test"] = len(squares) - given["all.twice"] - len(images)
    return {"images": images, "test": test, "holes": holes, "whole": whole} | _counts(given)


def _part_masks(names: list[str]) -> tuple[list[str], list[str]]:
    """Pictures, and masks: what lies in a folder called so, and what is called as a picture beside it and so."""
    stems = {f"{(path := PurePosixPath(name)).parent}/{path.stem}".lower() for name in names}
    pictures, masks = [], []
    for name in names:
        path = PurePosixPath(name)
        is_mask = any(MASKS.search(part.lower()) for part in path.parent.parts)
        is_mask |= bool(bare := _without_mask(path.stem)) and f"{path.parent}/{bare}".lower() in stems
        (masks if is_mask else pictures).append(name)
    return pictures, masks


def _without_mask(stem: str) -> str:
    """What a name is without the word mask, as cat of cat_mask, mask-cat and cat_mask001; "" for one without it."""
    stem = stem.lower()
    bare = re.sub(r"[ _.()-]*masks?[ _.()-]*\d*$|^masks?[ _.()-]*", "", stem, count=1)
    return "" if bare == stem else bare


def _read_stencils(path: Path, masks: list[str], pictures: list[str], hole: str) -> dict[str, _Stencil]:
    """By the names of the pictures; every mask has one picture."""
    stencils: dict[str, _Stencil] = {}
    missing = []
    partner = _partners(pictures)
    for name, image in read_images(path, masks):
        picture = partner(PurePosixPath(name).stem)
        if picture is None or picture in stencils:
            stem = PurePosixPath(name).stem
            raise ValueError(f"{name} in {path} needs one picture called {stem}, and that picture one mask")
        known = _black_and_white(grey := np.asarray(to_rgb(f"{name} in {path}", image).convert("L")))
        if known is None:
            _check_mask(f"{name} in {path}", grey)  # which says what else it holds, or that it holds one of them alone
        if hole == "white":
            known = ~known
        missing.append(1 - known.mean())
        # In floats, so that one missing pixel among a thousand is not rounded away.
        share = _square(Image.fromarray(known.astype(np.float32)), Image.Resampling.BOX)
        stencils[picture] = _Stencil(name, image.size, share)
    if not hole and missing and np.mean(missing) > 0.5:
        raise ValueError(
            f"are the masks in {path} inverted? They hide {np.mean(missing):.0%} of their pictures, if 255 (white) is "
            "known and 0 (black) missing: --holes white says that white is missing, --holes black that it is so"
        )
    return stencils


def _partners(pictures: list[str]) -> Callable[[str], str | None]:
    """What finds the one picture that a mask belongs to, by the mask's name; None for none or several.

    They share their names, or do so without the word mask, or the last number, as image_007 and mask_007 do.
    """
    by_key: dict[tuple[str, str], list[str]] = {}
    for name in pictures:
        stem = PurePosixPath(name).stem
        number = re.search(r"\d+$", stem)
        for kind, key in (("exact", stem), ("name", stem.lower()), ("number", number and str(int(number[0])))):
            if key:
                by_key.setdefault((kind, key), []).append(name)

    def find(stem: str) -> str | None:
        number = re.fullmatch(r"masks?[ _.()-]*(\d+)", stem.lower())
        keys = [("exact", stem), ("name", stem.lower()), ("name", _without_mask(stem))]
        keys += [("number", str(int(number[1])))] if number else []
        found = next((by_key[key] for key in keys if key in by_key), [])
        return found[0] if len(found) == 1 else None

    return find


def _black_and_white(picture: np.ndarray) -> np.ndarray | None:
    """Where a picture (H,W) or (H,W,3) is white, if it holds nothing but black and white, and both, as masks do.

    JPEG and soft brushes leave greys at the edges; of 0 and 1 alone 1 is white.
    """
    grey = picture if picture.ndim == 2 else picture.max(2)
    if picture.ndim == 3 and (grey - picture.min(2) > NEARLY).any():
        return None  # a colour
    if grey.max() == 1:
        return grey > 0 if grey.min() == 0 else None
    between = (grey > NEARLY) & (grey < 255 - NEARLY)
    white = grey > 127
    return white if between.mean() < 0.1 and white.any() and not white.all() else None


def _with_hole(what: str, picture: Image.Image, stencil: _Stencil) -> tuple[np.ndarray, np.ndarray, bool]:
    """A picture as (3,64,64), its hole, and whether something is to be seen there.

    Resized by plain averages: no known pixel is mixed from missing ones.
    """
    if picture.size != stencil.size:
        (w, h), (mask_w, mask_h) = picture.size, stencil.size
        raise ValueError(f"{what} is {w}x{h}, but its mask {stencil.name} is {mask_w}x{mask_h}")
    square = _square(picture, Image.Resampling.BOX).transpose(2, 0, 1)
    under = square[:, stencil.known < 1e-4]  # (3, pixels)
    hole = stencil.known < 1 - 1e-4
    if hole.all() or not hole.any():
        raise ValueError(f"{what}: of the square in its middle {stencil.name} says that all is missing, or nothing")
    return square, hole, under.size > 0 and bool((under.std(1) > FLAT).any())


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held, where the photograph says it legibly."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data fail in many ways, and the pixels are fine
        return image


def _square(image: Image.Image, resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(ImageOps.fit(image, (SIZE, SIZE), resampling))


# --- one and the same -------------------------------------------------------------------------------------------


def _digests(images: Iterable[np.ndarray]) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def _first(digests: list[bytes], taken: Iterable[bytes] = ()) -> list[int]:
    """The places of those that are not in `taken`, each once, in order."""
    places = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    return sorted(place for digest, place in places.items() if digest not in taken)


def find_originals(masked: np.ndarray, holes: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """For each masked image the index of the first original that agrees on every known pixel, or -1."""
    flat, places = originals.reshape(len(originals), 3, SIZE * SIZE), np.full(len(masked), -1)  # there may be none
    for i, (image, hole) in enumerate(zip(masked.reshape(len(masked), 3, -1), holes, strict=True)):
        known = np.flatnonzero(~hole)
        probe = known[:: max(1, len(known) // 8)]  # a few pixels rule almost every original out
        candidates = np.flatnonzero((flat[:, :, probe] == image[:, probe]).all((1, 2)))
        agree = (flat[candidates][:, :, known] == image[:, known]).all((1, 2))
        places[i] = candidates[agree][0] if agree.any() else -1
    return places


def _counts(given: dict[str, int]) -> Arrays:
    return {f"given.{name}": np.array(count) for name, count in given.items()}
