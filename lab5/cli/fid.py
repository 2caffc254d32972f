"""The command `fid`: two sets of images, or statistics of sets, to the distance between them.

A set is a folder, the lab's ground-truth csv, an npz of statistics, or the toy cats' test images. Features of the
reference are kept in the cache, by the content of its images and of the network: the second comparison with it
needs no look at it.
"""

import hashlib
import re
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lab5.config import Config
from lab5.data.archives import SIZE, cached, endings, list_images, read_images, to_rgb
from lab5.data.dataset import get_dataset
from lab5.fid import feature_stats, frechet_distance, frechet_distance_from_stats, kid
from lab5.runtime.files import replacing, weights_hash
from lab5.runtime.folders import data_folder
from lab5.scoring.classifier import ToyFeatures, load_classifier
from lab5.scoring.imagenet import ImageNetFeatures
from lab5.scoring.inception import InceptionFeatures
from lab5.scoring.intervals import with_spread

TOYCATS_TEST = "toycats-test"
CSV_VALUES = SIZE * SIZE * 3

Network = InceptionFeatures | ImageNetFeatures | ToyFeatures


class ImageSet(NamedTuple):
    """One side of a comparison: its images, or only the mean and covariance of their features."""

    name: str
    n: int | None  # None where a file of statistics does not say
    images: UInt8[Tensor, "n 3 H W"] | None = None
    stats: tuple[Float[Tensor, " F"], Float[Tensor, "F F"]] | None = None
    keys: tuple[str, ...] = ()  # of each image: the number that its file's name ends in, or that name; a row's number


class Sides(NamedTuple):
    """What is compared: two sets, or the one whose statistics are saved."""

    names: list[str]
    paired: bool | None = False  # image i of one was made from image i of the other; None = where the names allow
    n: int | None = None  # only the first n images of each


def fid(
    sides: Sides, config: Config, *, features: str = "inception", weights: Path | None = None, download: bool = False,
    batch: int | None = None, save_stats: Path | None = None,
) -> None:  # fmt: skip
    """Print the Fréchet distance and the KID of two sets, the second being the reference, or save its statistics.

    The toy test images are cut to the number of the other set; other sets of unequal numbers are refused, because the
    distance grows as n falls.
    """
    if save_stats is not None and (save_stats.suffix != ".npz" or save_stats.exists()):
        problem = "is there already" if save_stats.exists() else "ends otherwise"
        raise ValueError(f"--save-stats writes a new file that ends in .npz, but {save_stats} {problem}")
    for flag, value in (("--n", sides.n), ("--batch-size", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, not {value}")
    sets, paired = [_cut(_open(name, config), sides.n) for name in sides.names], False
    if len(sets) == 2:
        sets = _equal(*sets)
        sets[0], paired = _in_the_same_order(*sets, sides.paired)
    if save_stats is not None and sets[-1].images is None:
        raise ValueError(f"--save-stats needs images, but {sets[-1].name} is a file of statistics itself")
    network = None
    if any(side.images is not None for side in sets):
        _check_images(sets, features)
        network = open_network(features, weights, download).to(config.device)
    found = [side.stats or _features(side, network, batch, config.device if side is sets[-1] else "") for side in sets]
    if len(sets) == 2:
        _print_distance(sets, found, network, paired)
    if save_stats is not None:
        mean, covariance = feature_stats(found[-1])
        with replacing(save_stats) as file:
            np.savez(file, mu=mean.numpy(), sigma=covariance.numpy(), n=len(found[-1]))
        print(f"{save_stats}: mu, sigma and n = {sets[-1].n} of {sets[-1].name}, {network.score_name}")


def open_network(features: str, weights: Path | None = None, download: bool = False) -> Network:
    """The network of --features. Raises FileNotFoundError, ImportError or ValueError where it cannot be had."""
    if features == "inception":
        try:
            return InceptionFeatures(weights, download=download)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; --features imagenet needs no download, and is not FID") from error
    if weights is not None or download:
        raise ValueError(f"--weights and --download are for --features inception; those of {features} are installed")
    return load_classifier() if features == "toy" else ImageNetFeatures(int(features == "imagenet-lite1"))


# --- the numbers ------------------------------------------------------------------------------------------------


def _print_distance(sets: list[ImageSet], features: list, network: Network | None, paired: bool) -> None:
    """`features` holds those of each set, or their statistics."""
    if any(isinstance(x, tuple) for x in features):
        features = [x if isinstance(x, tuple) else feature_stats(x) for x in features]
        counts = [len(mean) for mean, _ in features]
        if counts[0] != counts[1]:
            raise ValueError(
                f"{sets[0].name} has {counts[0]} features and {sets[1].name} has {counts[1]}: two networks made them"
            )
    for side in sets:
        print(f"n = {'unknown' if side.n is None else side.n}: {side.name}")
    if network is None:
        name = "Frechet distance on the features of both files"
    else:
        print(f"features: {type(network).__name__}, weights {_weights_hash(network)[:12]}")
        name = network.score_name
    if isinstance(features[0], tuple):
        print(f"{name} = {frechet_distance_from_stats(*features[0], *features[1]):.4f}")
        print("KID needs the images of both sets")
        return
    value, spread = with_spread(partial(kid, paired=paired), *features, generator=torch.Generator().manual_seed(0))
    kind = "image by image (paired)" if paired else "of independent sets; --paired is for results and their originals"
    print(f"{name} = {frechet_distance(*features):.4f}")
    print(f"KID = {value:.6f} ± {spread:.6f} (SD owed to the choice of the images), {kind}")


def _features(side: ImageSet, network: Network, batch: int | None, device: str) -> Float[Tensor, "n F"]:
    """Features of a set of images; with the name of the device they are kept, and found while all is the same."""
    computed = False

    def compute() -> dict[str, np.ndarray]:
        nonlocal computed
        computed = True
        sizes = {} if batch is None else {"batch": batch}
        return {"features": network.features(side.images.float() / 255, **sizes).numpy()}

    if not device:
        return torch.from_numpy(compute()["features"])
    images = hashlib.sha256(str(tuple(side.images.shape)).encode())
    images.update(side.images.contiguous().numpy())
    key = ["features", images.hexdigest(), _weights_hash(network), device]
    key += [network.version] if isinstance(network, ImageNetFeatures) else []
    features = torch.from_numpy(cached(data_folder() / "cache", key, compute)["features"])
    if not computed:
        print(f"features of {side.name}: found on disk", file=sys.stderr)
    return features


def _weights_hash(network: Network) -> str:
    """Of Inception and the ImageNet network, that of the file, which is not changed by folding."""
    return weights_hash(network) if isinstance(network, ToyFeatures) else network.weights_hash


# --- the sets ---------------------------------------------------------------------------------------------------


def _open(name: str, config: Config) -> ImageSet:
    path = Path(name)
    if name == TOYCATS_TEST:
        images = get_dataset(config).test
    elif path.is_dir():
        images, keys = _folder_images(path)
        return ImageSet(name, len(images), images, keys=keys)
    elif not path.is_file():
        raise FileNotFoundError(
            f"{path} is no folder and no file; a set is a folder of images, the lab's csv, an npz of statistics, or "
            f"{TOYCATS_TEST}"
        )
    elif path.suffix.lower() == ".csv":
        images = _csv_images(path)
    elif path.suffix.lower() == ".npz":
        return _read_stats(path)
    else:
        raise ValueError(f"{path} is no set: files must be the lab's .csv or an .npz of statistics")
    return ImageSet(name, len(images), images, keys=tuple(map(str, range(len(images)))))


def _cut(side: ImageSet, n: int | None) -> ImageSet:
    if side.images is None or n is None:
        return side
    return side._replace(n=len(side.images[:n]), images=side.images[:n], keys=side.keys[:n])


def _equal(first: ImageSet, second: ImageSet) -> list[ImageSet]:
    """Both sets with as many images, as far as that is known."""
    if first.name == TOYCATS_TEST:
        first = _cut(first, second.n)
    if second.name == TOYCATS_TEST:
        second = _cut(second, first.n)
    if None not in (first.n, second.n) and first.n != second.n:
        raise ValueError(
            f"{first.name} has {first.n} images and {second.name} has {second.n}, but the distance grows as n falls: "
            "compare equal numbers, such as the first ones of each with --n"
        )
    return [first, second]


def _in_the_same_order(first: ImageSet, second: ImageSet, paired: bool | None) -> tuple[ImageSet, bool]:
    """The first set in the order of the second, and whether the two are compared image by image.

    Raises ValueError where that is asked for and the names do not allow it.
    """
    if paired is False:
        return first, False
    place, apart = {key: i for i, key in enumerate(first.keys)}, sorted({*first.keys} ^ {*second.keys})
    images = first.images is not None and second.images is not None
    if images and not apart and len(place) == len(first.keys):
        return first._replace(images=first.images[[place[key] for key in second.keys]], keys=second.keys), True
    if paired:
        problem = f"{apart[0]} is in one of them alone" if apart else "a number is there twice"
        problem = problem if images else "one of them has statistics alone"
        raise ValueError(f"--paired needs images of the same numbers in {first.name} and {second.name}, but {problem}")
    return first, False


def _check_images(sets: list[ImageSet], features: str) -> None:
    for name, _, images, *_ in sets:
        if images is not None and len(images) < 4:
            raise ValueError(f"a set needs at least 4 images, found {len(images)} in {name}")
        if images is not None and features == "toy" and images.shape[2:] != (SIZE, SIZE):
            raise ValueError("toy features are those of 64x64 images; other sizes need inception or imagenet")


def _folder_images(folder: Path) -> tuple[UInt8[Tensor, "n 3 H W"], tuple[str, ...]]:
    """All images of a folder, in the order of their names, and the number that each name ends in, or else the name."""
    images, keys = [], []
    names, others = list_images(folder)
    if others:
        n = f"{len(others)} file{'s' * (len(others) > 1)}"
        print(f"lab5: left out of {folder}: {n} ending in {endings(others)}", file=sys.stderr)
    for name, image in read_images(folder, names):
        number = re.search(r"\d+$", Path(name).stem)
        keys.append(str(int(number[0])) if number else Path(name).stem)
        images.append(np.asarray(to_rgb(f"{name} in {folder}", image)))
    if len(sizes := {f"{image.shape[1]}x{image.shape[0]}" for image in images}) > 1:
        raise ValueError(f"{folder} holds images of several sizes ({', '.join(sorted(sizes))}); a set needs one size")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), tuple(keys)


def _csv_images(path: Path) -> UInt8[Tensor, "n 3 64 64"]:
    """The lab's ground truth: a header row, then per image a row of 12288 values 0..255, in H, W, C order."""
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline()
            rows = [np.asarray(line.split(","), dtype=np.float32) for line in file if line.strip()]
    except ValueError as error:  # a UnicodeDecodeError is one
        raise ValueError(f"{path} is not the lab's csv of images: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no images: there is no row after the header")
    for number, row in enumerate(rows, start=2):
        if len(row) != CSV_VALUES:
            raise ValueError(f"{path} must have {CSV_VALUES} values a row; row {number} has {len(row)}")
    table = np.stack(rows)
    if not (np.isfinite(table).all() and (table == table.round()).all() and 0 <= table.min() <= table.max() <= 255):
        raise ValueError(f"{path} must hold whole numbers from 0 to 255, as pixels are")
    if _is_image_row(header):
        raise ValueError(f"{path} has no header: its first row is an image already, and would be lost")
    return torch.from_numpy(table.astype(np.uint8).reshape(-1, SIZE, SIZE, 3)).permute(0, 3, 1, 2).contiguous()


def _is_image_row(line: str) -> bool:
    """Whether a first row is 12288 pixels; a header may be numbers too, but then it counts to 12287."""
    try:
        values = [float(value) for value in line.split(",")]
    except ValueError:
        return False
    return len(values) == CSV_VALUES and all(0 <= value <= 255 for value in values)


def _read_stats(path: Path) -> ImageSet:
    """mu and sigma as pytorch-fid writes them, and n where the file has it."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = dict(arrays)
    except Exception as error:  # whatever NumPy, zip and zlib say of a damaged file, and of one that is a bare array
        raise ValueError(f"{path} is not a readable npz of statistics") from error
    if not {"mu", "sigma"} <= content.keys():
        raise ValueError(f"{path} must hold mu and sigma, found {', '.join(content) or 'nothing'}")
    mean, covariance, n = content["mu"], content["sigma"], content.get("n", np.array(0))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or n.shape or n.dtype.kind not in "iu":
        shapes = f"mu {mean.shape}, sigma {covariance.shape}, n {n.shape} {n.dtype}"
        raise ValueError(f"{path} must hold mu (F,), sigma (F,F) and perhaps a whole number n; found {shapes}")
    if {mean.dtype.kind, covariance.dtype.kind} != {"f"} or not np.isfinite(covariance.sum() + mean.sum()):
        raise ValueError(f"{path} must hold finite floats, found NaN, infinity or {mean.dtype} and {covariance.dtype}")
    stats = torch.from_numpy(mean).double(), torch.from_numpy(covariance).double()
    return ImageSet(str(path), int(n) or None, stats=stats)
