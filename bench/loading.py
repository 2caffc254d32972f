"""Training images from the second epoch on: opened file by file, and from the arrays that lab5 keeps."""

import tempfile
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bench import naive
from bench.measure import interleaved, timed
from bench.plans import Plan
from bench.rows import Figure, Parity, Ratio, compared
from lab5.data.dataset import TRAIN_STATS, normalise, open_dataset
from lab5.data.toycats import render

BATCH = 10  # the lab's


def run(plan: Plan, data: Path | None) -> list[Ratio | Figure]:
    """Of the lab's dataset at `data`, or of as many files made for it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files, source = unpacked(data, folder / "files") if data else generated(plan.files, folder / "files")
        files = files[: plan.files]

        def opened() -> Tensor:
            sizes = {"n_train": plan.files, "n_val": 1, "n_test": 1}
            return open_dataset(data or folder / "files", **sizes, seed=0, cache=folder / "cache").train

        first = timed(opened)
        train = opened()
        found = timed(opened)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))

        def naive_epoch() -> None:
            for _ in naive.load([files[i % len(files)] for i in order.tolist()], BATCH):
                pass

        def lab5_epoch() -> None:
            for chosen in order.split(BATCH):
                normalise(train.index_select(0, chosen))

        times = interleaved(naive_epoch, lab5_epoch, plan.load_rounds, units=(len(train),) * 2)
        row = compared(
            f"loading training images, {source}", "image", times, check(files, train), 10.0,
            note=f"{len(files)} files, {len(train)} distinct images; from the second epoch on",
        )  # fmt: skip
    return [
        row,
        Figure("loading", 1 / times.lab5, "images/s"),
        Figure("first opening of the dataset, all splits decoded and compared", first, "s"),
        Figure("every later opening", found, "s"),
    ]


def check(files: list[Path], train: Tensor) -> Parity:
    """The first file that is a training image: what both sides make of it. Some are in other splits, or come twice."""
    mean, std = (torch.tensor(values)[:, None, None] for values in TRAIN_STATS)
    for image in naive.load(files[:200], 1):
        same = (train == ((image * std + mean) * 255).round().to(torch.uint8)).flatten(1).all(1)
        if same.any():
            return Parity("normalised image", float((normalise(train[same][:1]) - image).abs().max()), 1e-5)
    return Parity("no file's image was found among the arrays", float("inf"), 1e-5)


def unpacked(data: Path, folder: Path) -> tuple[list[Path], str]:
    """The files of the train split, from a folder or a zip."""
    if data.is_file():
        with zipfile.ZipFile(data) as archive:
            names = [name for name in archive.namelist() if "/train/" in f"/{name}" and not name.endswith("/")]
            archive.extractall(folder, names)
        data = folder
    files = sorted(file for file in data.rglob("train/*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ValueError(f"{data} holds no folder train with images: --data takes the lab's dataset")
    return files, "the lab's train split"


def generated(n: int, folder: Path) -> tuple[list[Path], str]:
    """As many distinct images as JPEG files, which the lab's are too."""
    folder.mkdir(parents=True)
    images = (image for start in range(0, n, 1000) for image in render(start, min(1000, n - start)).images)
    files = [folder / f"image_{i:05d}.jpg" for i in range(n)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, quality=95)
    return files, "generated files"
