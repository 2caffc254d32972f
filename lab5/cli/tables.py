"""What the command line hands over: tables on stdout, and pictures in files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import make_grid

from lab5.config import Config, all_settings, allowed, meanings

MASKS_A_ROW, STEPS_A_ROW = 10, 7  # as in the lab's pictures

# --- tables -----------------------------------------------------------------------------------------------------


def print_table(rows: pd.DataFrame | list[dict[str, Any]]) -> None:
    """A column per key of the first row; texts to the left, numbers to the right, floats with three decimals."""
    if isinstance(rows, pd.DataFrame):
        rows = rows.to_dict("records")
    cells = [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(list(rows[0]), *cells, strict=True)]
    left = [isinstance(value, str) for value in rows[0].values()]
    for line in [list(rows[0]), *cells]:
        padded = (c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(line, widths, left, strict=True))
        print("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_settings(config: Config) -> None:
    """Every setting: its value in `config`, what it means, and the values that it may have."""
    values = all_settings(config)
    for name, field in meanings().items():
        limits = allowed(field)
        print(f"{f'{name} = {values[name]}':<36} {field.metadata['about']}{limits and f' ({limits})'}")


# --- pictures ---------------------------------------------------------------------------------------------------


def to_image(picture: UInt8[Tensor, "3 H W"]) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def draw_masks(masked: Bool[Tensor, "t 256"]) -> Image.Image:
    """The lab's mask_scheduling: a frame of 16x16 per step, 10 a row, black = still masked."""
    frames = (~masked).to(torch.uint8).mul(255).view(-1, 1, 16, 16).expand(-1, 3, -1, -1)
    return to_image(make_grid(frames, nrow=MASKS_A_ROW))


def draw_steps(masked_input: UInt8[Tensor, "3 64 64"], pictures: UInt8[Tensor, "t 3 64 64"]) -> Image.Image:
    """The lab's imga: the input with its grey hole, then the picture of every step, 7 a row."""
    return to_image(make_grid(torch.cat([masked_input[None], pictures]), nrow=STEPS_A_ROW))


def existing(out: Path, folders: Iterable[str]) -> Path | None:
    """The first of these folders in `out` that holds pictures of an earlier run."""
    return next((out / folder for folder in folders if any((out / folder).glob("*_*.png"))), None)


def remove_pictures(out: Path, folders: Iterable[str]) -> None:
    """What `existing` finds, and folders that are empty without it."""
    for folder in folders:
        for picture in (out / folder).glob("*_*.png"):
            picture.unlink()
        if (out / folder).is_dir() and not any((out / folder).iterdir()):
            (out / folder).rmdir()


class Picture(NamedTuple):
    """A file to be, such as "test_results/image_000.png"; its comment goes into it as text beside the pixels."""

    name: str
    image: Image.Image
    comment: str = ""


def write_pictures(out: Path, pictures: Iterable[Picture]) -> None:
    """All pictures, in place of earlier ones in their folders, once they are on disk. Files named otherwise stay."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".pictures-") as part:
        for picture in pictures:
            file, text = Path(part) / picture.name, PngInfo()
            file.parent.mkdir(exist_ok=True)
            if picture.comment:
                text.add_text("Comment", picture.comment)
            picture.image.save(file, pnginfo=text)
        for folder in sorted(Path(part).iterdir()):
            files, target = sorted(folder.iterdir()), out / folder.name
            target.mkdir(exist_ok=True)
            for old in target.glob(f"{files[0].name.partition('_')[0]}_*.png"):
                old.unlink()
            for file in files:
                os.replace(file, target / file.name)
