"""The command inpaint: which files under which names, pasting that says so, and scores for every group of images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab5 import checkpoint
from lab5.cli import inpaint as command
from lab5.cli.inpaint import Job, inpaint
from lab5.cli.train import Networks
from lab5.config import Config, TransformerConfig, VQGANConfig
from lab5.data.dataset import Dataset, token_mask
from lab5.data.toycats import random_holes
from lab5.gamma import masked_count
from lab5.inpainting.fill import inpaint_images
from lab5.inpainting.pair import load_pair
from lab5.profiles import configure
from lab5.scoring.classifier import EncoderFeatures
from lab5.scoring.scores import Scores
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

SETTINGS = {"device": "cpu", "decode.steps": 3, "decode.fill": "grey", "decode.evidence": 0, "decode.passes": 1}
CONFIG = configure("quick", **SETTINGS)
NUMBERS = (3, 12, 40, 105, 746)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Networks:
    """Two small networks that have learned nothing."""
    folder, codes = tmp_path_factory.mktemp("networks"), 12
    shape = VQGANConfig(codes, 4, 8, ((8,), (8,)), (16,), ((16,), (8,), (8,)), groups=0, attention=False)
    transformer = BidirectionalTransformer(TransformerConfig(codes, width=16, layers=1, heads=2, hidden=16))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checkpoint.save_vqgan(folder / "vqgan.safetensors", VQGAN(shape))
        checkpoint.save_transformer(folder / "transformer.safetensors", transformer)
    return Networks(vqgan=folder / "vqgan.safetensors", transformer=folder / "transformer.safetensors")


@pytest.fixture
def data(generator, monkeypatch) -> Dataset:
    """Five test images of noise, of the last of which the truth is unknown, and six for validation."""

    def noise(n: int):
        return torch.randint(256, (n, 3, 64, 64), generator=generator, dtype=torch.uint8)

    data = Dataset(
        "noise", train=noise(4), val=noise(6), test=noise(5), holes=random_holes(1, 5), whole=torch.arange(5) < 4,
        leaked=torch.arange(5) < 2, attributes={}, hidden={}, numbers=NUMBERS,
    )  # fmt: skip
    monkeypatch.setattr(command, "get_dataset", lambda config: data)
    monkeypatch.setattr(command, "get_features", lambda config, tokenizer: EncoderFeatures(tokenizer.vqgan))
    return data


def fill(out: Path, networks: Networks, config: Config = CONFIG, **job) -> None:
    inpaint(config, Job(out, **job), networks)


def read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def frames(picture: torch.Tensor, size: int) -> torch.Tensor:
    """The frames of one row of a picture, of which each has a border of two pixels; one alone has none."""
    if picture.shape[1] == size:
        return picture[None]
    assert picture.shape[1] == size + 4
    count = (picture.shape[2] - 2) // (size + 2)
    return torch.stack([picture[:, 2:-2, 2 + i * (size + 2) :][:, :, :size] for i in range(count)])


# --- files ------------------------------------------------------------------------------------------------------


def test_by_default_there_are_the_results_alone_named_by_number(data, networks, tmp_path):
    fill(tmp_path, networks)
    assert files(tmp_path) == [f"test_results/image_{number:03d}.png" for number in NUMBERS]
    pair = load_pair(CONFIG, networks.vqgan, networks.transformer, "any")
    pictures = inpaint_images(pair, data.masked_test, data.holes, CONFIG.decode, 0)
    for number, picture in zip(NUMBERS, pictures, strict=True):
        assert torch.equal(read(tmp_path / f"test_results/image_{number:03d}.png"), picture)


def test_it_says_where_a_profile_takes_only_the_first_of_the_test_images(data, networks, tmp_path, monkeypatch, capsys):
    fill(tmp_path / "all", networks)
    assert "the first" not in capsys.readouterr().out
    monkeypatch.setattr(command, "get_dataset", lambda config: replace(data, given={"test": 9}))
    fill(tmp_path / "some", networks)
    assert "these are the first 5 of 9 test images: --set data.test=9 takes all" in capsys.readouterr().out


@pytest.mark.parametrize("count, numbers", [(2, (3, 12)), (None, NUMBERS)])
def test_steps_are_drawn_of_the_first_images_or_of_all(data, networks, tmp_path, count, numbers):
    fill(tmp_path, networks, show_steps=count)
    steps = sorted(f"{folder}/test_{number}.png" for folder in ("imga", "mask_scheduling") for number in numbers)
    assert files(tmp_path)[: len(steps)] == steps and len(files(tmp_path)) == len(steps) + 5


@pytest.mark.parametrize("stop_at, passes", [(0, 1), (2, 1), (1, 1), (0, 2)])
def test_the_steps_lead_from_the_masked_input_to_the_result(data, networks, tmp_path, stop_at, passes):
    decode = replace(CONFIG.decode, stop_at=stop_at, passes=passes)
    fill(tmp_path, networks, replace(CONFIG, decode=decode), n=1, show_steps=1)
    last = stop_at or 3
    pictures = frames(read(tmp_path / "imga" / "test_3.png"), 64)
    assert len(pictures) == last + 1 and torch.equal(pictures[0], data.masked_test[0])
    assert torch.equal(pictures[-1], read(tmp_path / "test_results" / "image_003.png"))
    assert (last, passes) != (3, 1) or not torch.equal(pictures[1], pictures[-1])
    masks = frames(read(tmp_path / "mask_scheduling" / "test_3.png"), 16)
    unknown = token_mask(data.holes[0])
    counts = [masked_count("cosine", step, 3, int(unknown.sum())) for step in range(1, last)] + [0]
    assert [int((frame == 0).all(0).sum()) for frame in masks] == counts
    assert all(unknown[(frame[0] == 0).flatten()].all() for frame in masks), "only the hole is ever masked"


def test_a_share_takes_the_first_images(data, networks, tmp_path):
    fill(tmp_path, networks, share=0.5)
    assert files(tmp_path) == ["test_results/image_003.png", "test_results/image_012.png"]


def test_steps_of_an_earlier_run_are_not_overwritten_by_accident(data, networks, tmp_path):
    fill(tmp_path, networks, n=2, show_steps=1)
    before = (tmp_path / "imga" / "test_3.png").read_bytes()
    for file in (tmp_path / "test_results").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="mask_scheduling holds results already.*--overwrite"):
        fill(tmp_path, networks, n=1, seed=5, show_steps=1)
    assert (tmp_path / "imga" / "test_3.png").read_bytes() == before
    fill(tmp_path, networks, n=1, seed=5, show_steps=1, overwrite=True)
    assert (tmp_path / "imga" / "test_3.png").read_bytes() != before
    (tmp_path / "imga" / "notes.txt").write_text("mine")
    fill(tmp_path, networks, n=1, seed=6, overwrite=True)
    assert files(tmp_path) == ["imga/notes.txt", "test_results/image_003.png"], "no steps of another decoding"


def test_a_seed_beyond_what_generators_take_is_refused(data, networks, tmp_path):
    with pytest.raises(ValueError, match="--seed must lie in 0..10{12}, not 20250101120000"):
        fill(tmp_path, networks, seed=20250101120000)
    fill(tmp_path, networks, n=1, seed=10**12)


# --- pasting ----------------------------------------------------------------------------------------------------


def test_pasting_marks_the_folder_the_files_and_the_lines(data, networks, tmp_path, capsys):
    pasting = replace(CONFIG, decode=replace(CONFIG.decode, paste="hard"))
    fill(tmp_path, networks, show_steps=1)
    plain = capsys.readouterr().out
    fill(tmp_path, networks, pasting, show_steps=1, overwrite=True)
    assert "test_results_pasted/image_003.png" in files(tmp_path) and "test_results/image_003.png" in files(tmp_path)
    known = ~data.holes[0].expand(3, -1, -1)
    by_rule, pasted = (read(tmp_path / folder / "image_003.png") for folder in ("test_results", "test_results_pasted"))
    assert torch.equal(pasted[known], data.test[0][known]) and torch.equal(pasted[~known], by_rule[~known])
    assert not torch.equal(by_rule[known], data.test[0][known])
    with Image.open(tmp_path / "test_results_pasted" / "image_003.png") as image:
        assert "known pixels pasted back (hard)" in image.info["Comment"]
    for name in ("test_results/image_003.png", "imga/test_3.png"):
        with Image.open(tmp_path / name) as image:
            assert image.info == {}
    out = capsys.readouterr().out
    assert "known pixels pasted back (hard): not by the lab's rule" in out and "this run, pasted" in out
    assert "pasted" not in plain
    assert torch.equal(frames(read(tmp_path / "imga" / "test_3.png"), 64)[-1], by_rule), "steps are never pasted"


# --- scores -----------------------------------------------------------------------------------------------------


def table(out: str) -> list[list[str]]:
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("images"))
    return [line.split() for line in lines[start:]]


def test_leaked_and_unseen_images_are_scored_apart_each_beside_its_baselines(data, networks, tmp_path, capsys):
    fill(tmp_path, networks)
    head, *rows = table(capsys.readouterr().out)
    assert head == ["images", "method", *Scores._fields]
    groups = {group: [row for row in rows if row[0] == group] for group in ("all", "leaked", "unseen")}
    assert list(groups) == list(dict.fromkeys(row[0] for row in rows))
    for group, n in (("all", "4"), ("leaked", "2"), ("unseen", "2")):
        assert [row[1] for row in groups[group]] == [
            "this", "reconstruction", "do_nothing", "grey_fill", "mean_colour", "telea", "navier_stokes"
        ]  # fmt: skip
        assert {row[-1] for row in groups[group]} == {n}
    floor = groups["all"][1]
    assert "-" in floor, "photographs have no attributes" and float(floor[head.index("token_accuracy")]) > 0


def test_only_images_with_a_known_truth_count(data, networks, tmp_path, capsys):
    fill(tmp_path, networks, n=1)
    assert "no scores" in capsys.readouterr().out


def test_validation_images_are_filled_as_well(data, networks, tmp_path, capsys):
    fill(tmp_path, networks, split="val", show_steps=1)
    assert files(tmp_path) == ["imga/test_0.png", "mask_scheduling/test_0.png"] + [
        f"val_results/image_00{i}.png" for i in range(6)
    ]  # fmt: skip
    holes = random_holes(command.VAL_HOLES, 6)
    masked = frames(read(tmp_path / "imga" / "test_0.png"), 64)[0]
    assert torch.equal(masked, data.val[0].masked_fill(holes[0], 128))
    head, *rows = table(capsys.readouterr().out)
    assert {(row[0], row[-1]) for row in rows} == {("all", "6")}, "none of them was trained on"


# --- the lab's two folders --------------------------------------------------------------------------------------


@pytest.fixture
def folders(data, tmp_path) -> tuple[Path, Path]:
    folders = tmp_path / "masked_image", tmp_path / "mask64"
    for folder in folders:
        folder.mkdir()
    for number, image, hole in zip(NUMBERS, data.masked_test, data.holes, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folders[0] / f"image_{number:03d}.png")
        Image.fromarray(np.where(hole, 0, 255).astype(np.uint8)).save(folders[1] / f"mask_{number:03d}.png")
    return folders


def test_two_folders_give_the_same_pictures_as_the_dataset(data, networks, folders, tmp_path, monkeypatch, capsys):
    fill(tmp_path / "a", networks)
    capsys.readouterr()
    monkeypatch.setattr(command, "get_dataset", None)  # it is not asked for
    fill(tmp_path / "b", networks, folders=folders)
    assert "no scores" in capsys.readouterr().out
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for name in files(tmp_path / "a"):
        assert torch.equal(read(tmp_path / "a" / name), read(tmp_path / "b" / name))


def test_the_labs_folders_are_not_for_the_pair_that_knows_toy_cats(data, folders, tmp_path):
    with pytest.raises(ValueError, match="the pretrained pair knows toy cats only: for masked_image"):
        fill(tmp_path / "out", Networks(), folders=folders)
    assert not (tmp_path / "out").exists()


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, more, sentence", [
    ({"decode.schedule": "sine"}, {}, "decode.schedule must be one of linear, cosine, .* not 'sine'"),
    ({"decode.paste": "soft"}, {}, "decode.paste must be one of none, hard, blurred, poisson, not 'soft'"),
    ({"decode.fill": "black"}, {}, "decode.fill must be one of"),
    ({"decode.budget": "luck"}, {}, "budget must be one of"),
    ({"decode.batch": 0}, {}, "decode.batch must be at least 1, not 0"),
    ({}, {"n": 6}, "--n must lie in 1..5, the number of test images, not 6"),
    ({}, {"n": 7, "split": "val"}, "--n must lie in 1..6, the number of val images, not 7"),
    ({}, {"n": 1, "share": 0.5}, "--n and --partial both say"),
    ({}, {"show_steps": -1}, "--show-steps takes the number of images to show, at least 1, not -1"),
    ({}, {"folders": (Path("masked_image"), None)}, "--test-maskedimage-path and --test-mask-path belong together"),
    ({}, {"folders": (Path("a"), Path("b")), "split": "val"}, "--split val takes its images from --data"),
    ({}, {"folders": (Path("/nowhere/a"), Path("/nowhere/b"))}, "/nowhere/a does not exist"),
])  # fmt: skip
def test_refusals_come_before_anything_is_written(data, networks, tmp_path, settings, more, sentence):
    out = tmp_path / "out"
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        fill(out, networks, configure("quick", **(SETTINGS | settings)), **more)
    assert not out.exists()


def test_settings_that_nobody_has_checked_are_refused_too_before_anything_is_written(data, networks, tmp_path):
    with pytest.raises(ValueError, match="decode.order must be one of confidence, .* not 'luck'"):
        fill(tmp_path / "out", networks, replace(CONFIG, decode=replace(CONFIG.decode, order="luck")))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_written(data, networks, tmp_path):
    other = TransformerConfig(13, width=16, layers=1, heads=2, hidden=16)
    checkpoint.save_transformer(tmp_path / "other", BidirectionalTransformer(other))
    with pytest.raises(ValueError, match="other predicts 13 codes, but .* has 12"):
        fill(tmp_path / "out", networks._replace(transformer=tmp_path / "other"))
    assert not (tmp_path / "out").exists()
