"""Pictures, masks, folders and command lines as people have them: each is read right, or refused in one sentence."""

import argparse
import io
import sys
from pathlib import Path
from unittest.mock import Mock

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from stubs import encoded, write_files

from lab5 import checkpoint
from lab5.cli import lab_flags
from lab5.cli.arguments import parser
from lab5.cli.main import main
from lab5.cli.train import Networks, learned_from
from lab5.data.archives import SUFFIXES
from lab5.data.dataset import Dataset, open_dataset, open_masked
from lab5.data.toycats import random_holes
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.report.provenance import private_texts, replace_private, without_folder
from lab5.runtime.folders import ROOT, pretrained_folder
from lab5.training import session
from lab5.training.networks import TOYS
from lab5.vqgan import VQGAN

PAIR = ["--vqgan", str(pretrained_folder() / "vqgan.safetensors"),
        "--transformer", str(pretrained_folder() / "transformer.safetensors")]  # fmt: skip


def picture(seed: int, width: int = 96, height: int = 80) -> np.ndarray:
    """Waves of three colours, as bytes (height, width, 3)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [100 * np.sin(x / generator.uniform(5, 14)) * np.cos(y / generator.uniform(5, 14)) for _ in range(3)]
    return (127 + np.stack(waves, -1)).astype(np.uint8)


def known(width: int = 96, height: int = 80) -> np.ndarray:
    """A mask: 255 = known, 0 = missing, a small part."""
    mask = np.full((height, width), 255, np.uint8)
    mask[height // 3 : height // 2, width // 3 : width // 2] = 0
    return mask


def photos(n: int, masks: int = 0, invert: bool = False) -> dict[str, bytes]:
    mask = encoded(Image.fromarray(255 - known() if invert else known()))
    files = {f"cat{i:02d}.png": encoded(Image.fromarray(picture(i))) for i in range(n)}
    return files | {f"masks/cat{i:02d}.png": mask for i in range(masks)}


def opened(folder: Path | str) -> Dataset:
    cache = Path(str(folder).partition(":")[2] or folder).parent / "cache"
    return open_dataset(folder, n_train=99, n_val=9, n_test=9, seed=5, cache=cache)


def said(capsys, *words: str) -> tuple[int, str, str]:
    """The exit code of a command, its stdout and its stderr."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as leaving:
        code = leaving.code
    return code, *capsys.readouterr()


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", sorted(SUFFIXES))
def test_every_ending_is_a_picture(ending, tmp_path):
    """Each is what its format makes of one picture, in lower and upper case, beside others."""
    Image.init()
    kind = {".jfif": "JPEG", ".pnm": "PPM", ".pcx": "PCX", ".apng": "PNG"}.get(ending) or Image.EXTENSION[ending]
    mode = {".pgm": "L", ".pbm": "1"}.get(ending, "RGB")
    content = encoded(Image.fromarray(picture(9)).convert(mode), kind)
    data = opened(write_files(tmp_path / "photos", photos(4) | {f"a{ending}": content, f"b{ending.upper()}": content}))
    assert (data.given["all"], data.given["all.twice"], data.given["masks"]) == (6, 1, 0)
    read = Image.open(io.BytesIO(content)).convert("RGB")
    middle = torch.from_numpy(np.array(read.crop((8, 0, 88, 80)).resize((64, 64), Image.Resampling.LANCZOS)))
    images = torch.cat([data.train, data.val, data.test]).int()
    worst = (images - middle.permute(2, 0, 1))[:, :, 4:60, 4:60].abs().amax((1, 2, 3))  # the filter sees over edges
    assert worst.min() <= 3 and worst.sort().values[1] > 99, "it is that picture, and no other is"


@pytest.mark.parametrize("more, n, endings", [
    (["a.heic"], 1, ".heic"),
    (["a.HEIC", "b.mov", "c.heic", "deep/d.svg"], 4, ".heic, .mov, .svg"),
    (["a.cr2", "readme.txt", ".DS_Store", "labels.csv"], 1, ".cr2"),  # a text is no picture, and none is missed
    (["picture"], 1, "nothing"),
])  # fmt: skip
def test_what_is_left_out_is_counted_in_the_table_and_on_stderr(more, n, endings, tmp_path, capsys):
    folder = write_files(tmp_path / "photos", photos(4) | dict.fromkeys(more, b"x"))
    code, out, err = said(capsys, "data", "--profile", "smoke", str(folder))
    (row,) = [line.partition(endings) for line in out.splitlines() if line.startswith("left out: ending in ")]
    assert code == 0 and row[2].split() == [str(n), "-", "-", "-"]
    assert err == f"lab5: left out: {n} file{'s' * (n > 1)} ending in {endings}\n"
    code, out, err = said(capsys, "fid", str(folder), "toycats-test", "--features", "toy", "--profile", "smoke")
    assert f"left out of {folder}: {n} file{'s' * (n > 1)} ending in {endings}" in err


def test_formats_of_one_folder_are_all_counted(tmp_path, capsys):
    kinds = {"png": 6, "tif": 3, "jfif": 3, "gif": 3, "ppm": 3}
    endings = [ending for ending, n in kinds.items() for _ in range(n)]
    kinds = {"tif": "TIFF", "jfif": "JPEG"}
    files = {
        f"{i:02d}.{ending}": encoded(Image.fromarray(picture(i, 64, 64)), kinds.get(ending, ending))
        for i, ending in enumerate(endings)
    }
    folder = str(write_files(tmp_path / "mixed", files))
    code, out, err = said(capsys, "data", "--profile", "smoke", "--data", folder)
    assert code == 0 and "files given                          18" in out and err == ""
    code, out, err = said(capsys, "fid", folder, "toycats-test", "--features", "toy", "--profile", "smoke")
    assert code == 0 and out.startswith(f"n = 18: {folder}\n")


@pytest.mark.parametrize("name, content, sentence", [
    ("a.gif", encoded(Image.fromarray(picture(8)), "GIF", save_all=True, append_images=[Image.fromarray(picture(9))]),
     "a.gif in .* is not a readable image but an animation"),
    ("a.tif", encoded(Image.fromarray(picture(8)), "TIFF", save_all=True, append_images=[Image.fromarray(picture(9))]),
     "a.tif in .* is an animation of 2 frames"),
    ("a.tif", encoded(Image.fromarray(np.ones((64, 64), np.float32)), "TIFF"), "a.tif in .* has pixels of type F"),
    ("a.tga", b"no picture", "a.tga in .* is not a readable image"),
    ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ""),  # it would be read by another program
])  # fmt: skip
def test_what_is_no_single_picture_of_8_bits_is_named(name, content, sentence, tmp_path):
    folder = write_files(tmp_path / "photos", photos(4) | {name: content})
    if sentence:
        with pytest.raises(ValueError, match=sentence):
            opened(folder)
    else:
        assert opened(folder).given["all"] == 4


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "mask/cat01.png", "Masks/cat01.png", "MASK/cat01.png", "cat_masks/cat01.png", "my masks/cat01.png",
    "masks/CAT01.PNG", "masks/cat01_mask.png", "masks/mask_cat01.png", "masks/mask_001.png", "deep/Mask/cat01-mask.png",
    "cat01_mask.png", "cat01_mask001.png", "mask-cat01.png", "cat01 (mask).png",
])  # fmt: skip
def test_a_mask_is_one_by_the_name_of_its_folder_or_beside_its_picture(name, tmp_path):
    files = photos(12) | {name: encoded(Image.fromarray(known()))}
    data = opened(write_files(tmp_path / "photos", files))
    assert data.given["all"] == 12 and data.given["masks"] == 1 and len(data.test) == 1
    assert 0.02 < float(data.holes.float().mean()) < 0.1 and data.whole.all()


@pytest.mark.parametrize("name", [
    "masked/cat01.png", "unmasked cats/dog.png", "damask.png", "mask.png", "a/cat01_mask.png",
])  # fmt: skip
def test_other_names_are_pictures(name, tmp_path):
    data = opened(write_files(tmp_path / "photos", photos(12) | {name: encoded(Image.fromarray(picture(50)))}))
    assert data.given == {"all": 13, "all.twice": 0, "masks": 0}


SOFT = Image.fromarray(known(192, 160)).resize((96, 80))  # greys along the edge


@pytest.mark.parametrize("content", [
    encoded(Image.fromarray(known()), "JPEG", quality=60),
    encoded(Image.fromarray(known()).convert("RGB")),
    encoded(Image.fromarray(known()).convert("RGBA")),
    encoded(Image.fromarray(known()).convert("1"), "TIFF"),
    encoded(Image.fromarray(known()).convert("P"), "GIF"),
    encoded(Image.fromarray(known() // 255)),
    encoded(SOFT),
], ids=["jpeg", "rgb", "rgba", "1 bit", "palette", "0 and 1", "soft"])  # fmt: skip
def test_a_mask_is_black_and_white_however_it_is_stored(content, tmp_path):
    plain, other = (opened(write_files(tmp_path / name / "photos", photos(8) | {"masks/cat01.png": mask}))
                    for name, mask in {"a": encoded(Image.fromarray(known())), "b": content}.items())  # fmt: skip
    assert (plain.holes ^ other.holes).float().mean() < 0.01 and plain.whole.all() and other.whole.all()


def test_black_and_white_pictures_among_others_are_noticed(tmp_path, capsys):
    files = photos(12) | {f"stencils/{i}.png": encoded(Image.fromarray(np.roll(known(), i, 1))) for i in range(3)}
    code, out, err = said(capsys, "data", "--profile", "smoke", str(write_files(tmp_path / "photos", files)))
    assert code == 0 and err.startswith("lab5: 3 of the pictures hold nothing but black and white, as masks do")
    drawings = {f"{i}.png": encoded(Image.fromarray(np.roll(known(), i, 1))) for i in range(12)}
    assert said(capsys, "data", "--profile", "smoke", str(write_files(tmp_path / "drawings", drawings)))[2] == ""


def test_masks_that_hide_more_than_half_ask_and_the_option_answers(tmp_path, capsys):
    black, white = (write_files(tmp_path / name, photos(12, 4, name == "white")) for name in ("black", "white"))
    right = opened(black)
    code, out, err = said(capsys, "data", "--profile", "smoke", "--data", str(white))
    assert (code, out) == (2, "") and "inverted? They hide 97%" in err and "--holes white" in err
    assert "255 (white) is known and 0 (black) missing" in err and len(err.splitlines()) == 1
    code, out, err = said(capsys, "data", "--profile", "smoke", "--data", str(white), "--holes", "white")
    assert (code, err) == (0, "") and "missing pixels (%), mean              -      -    -   3.491" in out
    assert torch.equal(opened(f"white-holes:{white}").holes, right.holes), "as a notebook says it"
    taken = opened(f"black-holes:{white}")
    assert taken.holes.float().mean() > 0.9 and torch.equal(opened(f"black-holes:{black}").holes, right.holes)
    assert without_folder(f"white-holes:{white}") == "white-holes:white"
    private = private_texts({"dataset": f"white-holes:{white}"})
    assert replace_private(f"read from {white}, white-holes:{white}", private) == "read from white, white-holes:white"


def test_the_labs_masks_can_be_turned_round_too(tmp_path):
    image = picture(1, 64, 64)
    image[known(64, 64) == 0] = 128
    files = {"masked_image/image_001.png": image, "mask64/mask_001.png": 255 - known(64, 64)}
    write_files(tmp_path, {name: encoded(Image.fromarray(array)) for name, array in files.items()})
    with pytest.raises(ValueError, match="mask_001.png in .* is inverted: .* --holes white turns it round"):
        open_masked(tmp_path / "masked_image", tmp_path / "mask64")
    _, holes, _ = open_masked(tmp_path / "masked_image", f"white-holes:{tmp_path / 'mask64'}")
    assert torch.equal(holes[0], torch.from_numpy(known(64, 64) == 0))


def test_the_polarity_is_said_where_one_looks(capsys):
    for command in ("data", "train", "inpaint", "study"):
        assert "255 = known" in " ".join(said(capsys, command, "--help")[1].split())
    assert "255 = known, 0 = missing" in (ROOT / "README.md").read_text()
    assert said(capsys, "data", "--holes", "white")[0] == 2, "toy cats have no masks that could be meant"


# --- small folders ------------------------------------------------------------------------------------------------

# Pictures, masks, and for which commands they are enough, or what is said of them.
SIZES = [
    (0, 0, "holds no images"),
    (1, 0, "holds 1 distinct images; .* at least 3"),
    (1, 1, "every picture has a mask: .* at least 2"),
    (2, 0, "holds 2 distinct images; .* at least 3"),
    (2, 2, "every picture has a mask"),
    (3, 2, "holds 1 distinct images beside the test images; at least 2"),
    (9, 0, []),
    (9, 9, "every picture has a mask"),
    (10, 0, ["train", "inpaint"]),
    (10, 10, "every picture has a mask"),
    (14, 0, ["train", "inpaint"]),
    (14, 6, []),
    (15, 6, ["train", "inpaint", "report"]),
    (17, 8, ["train", "inpaint", "report", "study"]),
    (29, 0, ["train", "inpaint"]),
    (29, 29, "every picture has a mask"),
    (45, 0, ["train", "inpaint"]),
    (60, 0, ["train", "inpaint", "report"]),
    (60, 60, "every picture has a mask"),
    (80, 0, ["train", "inpaint", "report", "study"]),
]


@pytest.mark.parametrize("n, masks, expected", SIZES)
def test_data_says_what_a_folder_is_enough_for_and_no_command_begins_without(
    n, masks, expected, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "photos"
    folder.mkdir()
    write_files(folder, photos(n, masks))
    monkeypatch.setattr("lab5.report.run.run_report", run := Mock(return_value="index.html"))
    monkeypatch.setattr(session, "fit", Mock(side_effect=ValueError("training begins")))
    words = ["--profile", "smoke", "--data", str(folder), "--out", str(tmp_path / "out")]
    code, out, err = said(capsys, "data", *words[:4])
    if isinstance(expected, str):
        assert code == 2 and out == "" and len(err.splitlines()) == 1
        with pytest.raises(ValueError, match=expected):
            raise ValueError(err)
        expected = []
    else:
        enough = next(line for line in out.splitlines() if line.startswith("profile smoke: enough for "))
        assert code == 0 and enough == f"profile smoke: enough for {', '.join(expected) or 'none of the commands'}"
    for command in ("train", "inpaint", "report"):
        line = words[:4] if command == "train" else words
        line = [command, *line, *(["--weights", "trained"] if command == "inpaint" else [])]
        code, _, err = said(capsys, *line)
        begun = run.called if command == "report" else "training begins" in err
        assert begun == (command in expected), (command, err)
        assert begun or code == 2 and any(character.isdigit() for character in err.replace(str(folder), ""))


@pytest.mark.slow
@pytest.mark.parametrize("n, masks", [(60, 0), (15, 6)])
def test_a_report_on_the_smallest_folders_that_are_enough_goes_to_its_end(n, masks, tmp_path, capsys):
    folder = write_files(tmp_path / "photos", photos(n, masks))
    assert main(["report", "--profile", "smoke", "--data", str(folder), "--out", str(tmp_path / "report")]) == 0


# --- which networks fill which pictures ---------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Photographs, and the lab's two test folders with some of them."""
    folder = write_files(tmp_path / "photos", photos(20, 2))
    for i in range(4):
        image = picture(i, 64, 64)
        image[known(64, 64) == 0] = 128
        write_files(tmp_path, {f"masked_image/image_{i:03d}.png": encoded(Image.fromarray(image)),
                               f"mask64/mask_{i:03d}.png": encoded(Image.fromarray(known(64, 64)))})  # fmt: skip
    return folder


FOLDERS = "--test-maskedimage-path masked_image --test-mask-path mask64"


@pytest.mark.parametrize("line", [
    f"inpaint {FOLDERS}",
    f"inpaint {FOLDERS} --weights trained",
    f"inpaint {FOLDERS} PAIR",
    f"inpaint {FOLDERS} --data photos --weights trained --set stage1.file=VQGAN --set vqgan.codes=512 "
    "--set transformer.codes=512",
    "inpaint --data photos",
    "inpaint --data photos --split val",
    "inpaint --data photos PAIR",
    "inpaint --data photos COPIES",
    "study --data many",
    "report --data many -p weights pretrained",
])  # fmt: skip
def test_photographs_are_never_filled_by_networks_of_toy_cats(line, photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "many", photos(80))
    monkeypatch.setattr(session, "fit", Mock(side_effect=AssertionError("nothing should be trained")))
    for name, file in zip(("v.safetensors", "t.safetensors"), PAIR[1::2], strict=True):
        (tmp_path / name).write_bytes(Path(file).read_bytes())
    words = line.replace("PAIR", " ".join(PAIR)).replace("=VQGAN", f"={PAIR[1]}")
    words = words.replace("COPIES", "--vqgan v.safetensors --transformer t.safetensors").split()
    out = ["--out", "there"] if words[0] != "study" else []
    code, printed, err = said(capsys, *words, *out, "--profile", "smoke")
    assert code == 2 and printed == "" and "pair knows toy cats only" in err and not (tmp_path / "there").exists()
    assert words[0] == "report" or "--data" in err and "--vqgan and --transformer" in err


def test_the_first_line_says_what_the_networks_were_trained_on(tmp_path, capsys):
    code, out, _ = said(capsys, "inpaint", "--profile", "smoke", "--n", "2", "--out", str(tmp_path), *PAIR)
    assert code == 0 and ", trained on toycats, seed 0" in out.splitlines()[0]
    code, out, _ = said(capsys, "inpaint", "--profile", "smoke", "--n", "2", "--out", str(tmp_path / "val"),
                        "--split", "val")  # fmt: skip
    assert code == 0 and ", trained on toycats, seed 0" in out.splitlines()[0]


def test_files_say_what_their_network_has_learned_from(tmp_path):
    config = configure("smoke", device="cpu", **{"data.path": "photos"})
    for name, meta in {"own": {"dataset": "the images of photos"}, "older": {}}.items():
        checkpoint.save_vqgan(tmp_path / name, VQGAN(config.vqgan), **meta)
    own, older = (Networks(vqgan=tmp_path / name, transformer=Path(PAIR[3])) for name in ("own", "older"))
    assert learned_from(config, own) == ["the images of photos", TOYS] and learned_from(config, older) == [TOYS]
    assert learned_from(config, Networks()) == [TOYS]
    assert learned_from(config, Networks("trained")) == ["the images of photos"]


# --- caches -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> str:
    """A data folder that can neither be made nor written to; chmod would not stop root."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LAB5_DATA", str(tmp_path / "file" / "data"))
    return str(tmp_path / "file" / "data")


@pytest.mark.parametrize("line", [
    "fid a b --features toy",
    "data photos",
    "data toycats",
    "inpaint --n 2 --out there",
])  # fmt: skip
def test_a_cache_that_cannot_be_written_costs_a_line_and_not_the_result(line, nowhere, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, first in (("a", 0), ("b", 100), ("photos", 200)):
        pictures = [Image.fromarray(picture(first + i, 64, 64)) for i in range(20)]
        write_files(tmp_path / folder, {f"{i}.png": encoded(one) for i, one in enumerate(pictures)})
    code, out, err = said(capsys, *line.split(), "--profile", "smoke")
    (warning,) = [line for line in err.splitlines() if line.startswith("lab5: ")]
    assert code == 0 and out and nowhere in warning and "LAB5_DATA can name another folder" in warning


def test_tokens_that_cannot_be_kept_are_the_same(nowhere, tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer(VQGAN(configure("smoke", device="cpu").vqgan))
    images = torch.from_numpy(np.stack([picture(i, 64, 64).transpose(2, 0, 1) for i in range(3)]))
    kept = tokenizer.cached(images, tmp_path / "cache", "train")
    lost = tokenizer.cached(images, Path(nowhere) / "cache", "train")
    assert torch.equal(kept, lost) and lost.dtype == kept.dtype


# --- command lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [
    ["data", "--data", ""], ["data", "--data", "  "], ["data", "--data="], ["data", ""],
    ["data", "--set", "data.path="], ["data", "--set", "data.path= "],
    ["fid", "", "b"], ["fid", "a", "\t"], ["inpaint", "--out", ""],
    ["inpaint", "--vqgan", "", "--transformer", " "], ["report", "--data", ""], ["report", "-p", "dataset", ""],
    ["train", "--train_d_path", ""], ["report", "--grid", "dataset="], ["export", "vqgan", "", "x.pt"], [""],
])  # fmt: skip
def test_empty_words_are_refused(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, *words)
    assert code == 2 and out == "" and err.startswith("lab5: ") and len(err.splitlines()) == 1
    assert "empty" in err or "--grid takes" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [
    ["bogus"], ["inpaint", "--bogus"], ["inpaint", "--n", "many"], ["train", "--stage", "third"],
    ["study", "--grid"], ["report", "--grid", "x" * 5000], ["data", "y/" * 3000], ["fid", "a\nb\n\nc", "d"],
    ["data", "--set", "z" * 4000 + "=1"], ["data", "--profile", "p" * 9000], ["inpaint", "--n", "1" * 3000],
    ["fid", "--predicted-path"], ["export", "q" * 2000],
    ["data", "\udce9t\udce9"], [],
])  # fmt: skip
def test_a_message_is_at_most_three_lines_whatever_the_input(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, *words)
    assert code == 2 and out == "" and 1 <= len(err.splitlines()) <= 3 and len(err) < 700


@pytest.mark.parametrize("line, name, value", [
    ("train --e 3", "epochs", 3),
    ("train --epoch 3", "epochs", 3),
    ("train --learning 1e-3", "stage2.lr", 1e-3),
    ("train --accum 4", "stage2.accumulate", 4),
    ("train --batch 4", "stage2.batch", 4),
    ("train --p 0.5", "partial", 0.5),
    ("train --dev cpu", "device", "cpu"),
    ("train --num 4", "num_workers", 4),
    ("train --val there/val", "val_d_path", Path("there/val")),
    ("train --Mask a.yml", "MaskGitConfig", Path("a.yml")),
    ("inpaint --part 0.5", "partial", 0.5),
    ("inpaint --load a.pt", "transformer", Path("a.pt")),
    ("inpaint --sweet 4", "decode.stop_at", 4),
    ("inpaint --total 8", "decode.steps", 8),
    ("inpaint --mask linear", "decode.schedule", "linear"),
    ("inpaint --test-masked there", "test_maskedimage_path", Path("there")),
    ("inpaint --num_w 4", "num_workers", 4),
    ("fid --pred a", "predicted_path", "a"),
    ("fid --gt b", "gtcsv_path", "b"),
    ("fid --num-w=8", "num_workers", 8),
    ("fid --d cpu", "device", "cpu"),
])  # fmt: skip
def test_the_labs_flags_may_be_shortened_as_its_own_scripts_allow(line, name, value):
    if line == "fid --d cpu":
        with pytest.raises(SystemExit):  # in the lab too: --device, --dims
            parser().parse_args(line.split())
    else:
        assert vars(parser().parse_args(line.split()))[name] == value


def taken(line: str) -> tuple[argparse.Namespace, list[str]]:
    args = parser().parse_args(line.split())
    return args, lab_flags.take_defaults(args)


@pytest.mark.parametrize("root, masks", [
    ("", ""), ("cat_face/", ""), ("lab5_dataset/", "lab5_dataset/"), ("lab3_dataset/cat_face/", "lab3_dataset/"),
])  # fmt: skip
def test_what_the_labs_scripts_take_unasked_is_taken_and_said(root, masks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in ("inpaint --load-transformer-ckpt-path a.pt", "train --epochs 3", "fid --predicted-path results"):
        assert taken(line)[1] == [], "nothing is here"
    for folder in ("train", "val", "masked_image"):
        Path(root, folder).mkdir(parents=True)
    Path(masks, "mask64").mkdir()
    Path("config").mkdir()
    Path("config/MaskGit.yml").write_text("model_param: {}")
    Path("test_gt.csv").write_text("")
    args, notes = taken("inpaint --load-transformer-ckpt-path a.pt --sweet-spot 8 --total-iter 8")
    assert (args.test_maskedimage_path, args.test_mask_path) == (Path(root, "masked_image"), Path(masks, "mask64"))
    assert args.MaskGitConfig == Path("config/MaskGit.yml") and len(notes) == 3
    args, notes = taken("train --epochs 3 --learning-rate 1e-4")
    assert args.train_d_path == Path(root, "train") and len(notes) == 2
    args, notes = taken("fid --predicted-path results --device cpu")
    assert lab_flags.fid_sets(args) == (["results", "test_gt.csv"], None) and len(notes) == 1
    for line in ("inpaint", "inpaint --total-iter 8", "inpaint --transformer a.pt --data photos", "train",
                 "train --stage all", "train --epochs 3 --data toycats", "fid a b", "fid a",
                 "fid --predicted-path a --gtcsv-path b", "fid --predicted-path a --save-stats s.npz"):  # fmt: skip
        assert taken(line)[1] == [], "what is not the lab's command, or says it all, stays as it is"


def test_the_scoring_command_of_every_readme_works_as_it_is_typed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = [picture(i, 64, 64) for i in range(6)]
    results = {f"image_{i:03d}.png": encoded(Image.fromarray(one)) for i, one in enumerate(pictures)}
    write_files(tmp_path / "results", results)
    line = "fid --predicted-path results --device cpu --features toy --profile smoke".split()
    code, out, err = said(capsys, *line)
    assert code == 2 and "fid compares two sets: give FIRST and SECOND" in err
    rows = [range(12288), *(p.ravel() for p in pictures)]
    Path("test_gt.csv").write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    code, out, err = said(capsys, *line)
    assert code == 0 and "= 0.0000" in out and "image by image (paired)" in out
    assert "--gtcsv-path test_gt.csv is taken" in err


# --- environments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_that_does_not_find_the_package_says_how_papermill_does(path, monkeypatch):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if "install_missing" in cell.source]
    monkeypatch.setitem(sys.modules, "lab5.cli.doctor", None)  # as if it could not be imported
    with pytest.raises(ModuleNotFoundError) as refused:
        exec(cells[0], {})
    sentence = str(refused.value)
    assert "--cwd" in sentence and "\n" not in sentence and refused.value.__suppress_context__


def test_drawn_holes_stay_within_what_is_taken_without_a_question():
    """Otherwise a dataset written from them would ask."""
    assert random_holes(0, 200).float().mean() < 0.5
