"""Tables, and pictures in the lab's layout that appear whole or not at all."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.utils import save_image

from lab5.cli.tables import Picture, draw_masks, draw_steps, print_settings, print_table, to_image, write_pictures
from lab5.config import all_settings
from lab5.profiles import configure


@pytest.mark.parametrize("kind", [list, lambda rows: pd.DataFrame(rows).astype({"n": "Int64"})], ids=["rows", "frame"])
def test_a_table_has_texts_to_the_left_numbers_to_the_right_and_dashes(kind, capsys):
    rows = [("a", 21.23456, 5), ("longer", None, 12), ("b", 1.0, None)]
    print_table(kind([dict(zip(("name", "psnr", "n"), row, strict=True)) for row in rows]))
    lines = ["name      psnr   n", "a       21.235   5", "longer       -  12", "b        1.000   -"]
    assert capsys.readouterr().out.splitlines() == lines


def test_every_setting_is_a_line_with_its_value_its_meaning_and_what_it_may_be(capsys):
    config = configure("smoke", device="cpu", **{"decode.steps": 3})
    print_settings(config)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" = ")[0] for line in lines] == list(all_settings(config))
    by_name = dict(line.split(" = ", 1) for line in lines)
    assert by_name["decode.steps"].split(maxsplit=1) == ["3", "T, the steps of the plan (at least 1)"]
    assert by_name["decode.codes"].endswith("how codes are proposed (argmax, sample, top_k, nucleus)")
    assert by_name["device"].split(maxsplit=1) == ["cpu", "what computes: cpu, cuda, cuda:1"], "any"


def test_masks_are_drawn_as_the_lab_saves_them(tmp_path, generator):
    masked = torch.rand(12, 256, generator=generator) < 0.3
    labs = torch.ones(12, 3, 16, 16)  # as its inpainting.py draws: ones, and zeros where a token is masked
    for step, row in enumerate(masked):
        places = torch.nonzero(row.view(1, 16, 16))
        labs[step, :, places[:, 1], places[:, 2]] = 0
    save_image(labs, tmp_path / "lab.png", nrow=10)
    assert np.array_equal(draw_masks(masked), Image.open(tmp_path / "lab.png"))


def test_steps_are_drawn_as_the_lab_saves_them(tmp_path, generator):
    pictures = torch.randint(256, (9, 3, 64, 64), generator=generator, dtype=torch.uint8)
    save_image(pictures / 255, tmp_path / "lab.png", nrow=7)
    assert np.array_equal(draw_steps(pictures[0], pictures[1:]), Image.open(tmp_path / "lab.png"))


def picture(name: str, value: int, comment: str = "") -> Picture:
    return Picture(name, to_image(torch.full((3, 4, 4), value, dtype=torch.uint8)), comment)


def seen(file: Path) -> tuple:
    """Its first pixel and the texts in it."""
    with Image.open(file) as image:
        return image.getpixel((0, 0)), image.info


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_pictures_take_the_place_of_earlier_ones_and_of_nothing_else(tmp_path):
    write_pictures(tmp_path, [picture("test_results/image_000.png", 1), picture("imga/test_0.png", 2)])
    (tmp_path / "test_results" / "notes.txt").write_text("mine")
    write_pictures(tmp_path, [picture("test_results/image_007.png", 3, "pasted"), picture("new/test_0.png", 4)])
    assert files(tmp_path) == [
        "imga/test_0.png", "new/test_0.png", "test_results/image_007.png", "test_results/notes.txt"
    ]  # fmt: skip
    assert seen(tmp_path / "test_results" / "image_007.png") == ((3, 3, 3), {"Comment": "pasted"})
    assert seen(tmp_path / "new" / "test_0.png") == ((4, 4, 4), {}), "a comment is in the file that it belongs to"


def test_a_failure_half_way_leaves_everything_as_it_was(tmp_path):
    write_pictures(tmp_path, [picture("a/image_0.png", 1)])

    def broken():
        yield picture("a/image_0.png", 9)
        yield picture("b/test_0.png", 9)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_pictures(tmp_path, broken())
    assert files(tmp_path) == ["a/image_0.png"] and [path.name for path in tmp_path.iterdir()] == ["a"]
    assert seen(tmp_path / "a" / "image_0.png") == ((1, 1, 1), {})
