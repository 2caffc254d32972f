"""The command inpaint: which files under which names, pasting that says so, and scores for every group of images."""

import shutil
from collections.abc import Callable
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

CONFIG = configure(
    "quick", device="cpu", **{"decode.steps": 3, "decode.fill": "grey", "decode.evidence": 0, "decode.passes": 1}
)
NUMBERS = (3, 12, 40, 105, 746)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Networks:
    """Two small networks that have learned nothing."""
    folder, codes = tmp_path_factory.mktemp("networks"), 12
    shape = VQGANConfig(codes, 4, 8, ((8,), (8,)), (16,), ((16,), (8,), (8,)), groups=0, attention=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checkpoint.save_vqgan(folder / "vqgan", VQGAN(shape))
        transformer = BidirectionalTransformer(TransformerConfig(codes, width=16, layers=1, heads=2, hidden=16))
        checkpoint.save_transformer(folder / "transformer", transformer)
    return Networks(vqgan=folder / "vqgan", transformer=folder / "transformer")


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


@pytest.fixture
def fill(data, networks, tmp_path) -> Callable[..., None]:
    """The command, into the folder of the test; words are those of `Job`, or fields of the decoding in `decode`."""

    def run(networks: Networks = networks, config: Config = CONFIG, decode: dict | None = None, **job) -> None:
        config = replace(config, decode=replace(config.decode, **decode or {}))
        inpaint(config, Job(**{"out": tmp_path} | job), networks)

    return run


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
    return picture[:, 2:-2, 2:].unfold(2, size, size + 2).permute(2, 0, 1, 3)


def table(out: str) -> list[list[str]]:
    lines = [line.split() for line in out.splitlines()]
    return lines[[line[0] for line in lines].index("images") :]


def test_by_default_there_are_the_results_alone_named_by_number(fill, data, networks, tmp_path, capsys):
    fill()
    assert files(tmp_path) == [f"test_results/image_{number:03d}.png" for number in NUMBERS]
    pair = load_pair(CONFIG, networks.vqgan, networks.transformer, "any")
    pictures = inpaint_images(pair, data.masked_test, data.holes, CONFIG.decode, 0)
    for number, picture in zip(NUMBERS, pictures, strict=True):
        assert torch.equal(read(tmp_path / f"test_results/image_{number:03d}.png"), picture)
    assert "the first" not in capsys.readouterr().out


def test_a_share_takes_the_first_images_and_it_says_where_a_profile_does(fill, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "get_dataset", lambda config: replace(data, given={"test": 9}))
    fill(share=0.5)
    assert files(tmp_path) == ["test_results/image_003.png", "test_results/image_012.png"]
    assert "the first" not in capsys.readouterr().out
    fill(overwrite=True)
    assert "these are the first 5 of 9 test images: --set data.test=9 takes all" in capsys.readouterr().out


@pytest.mark.parametrize("job, seed", [({}, 3), ({"seed": 5}, 5)])
def test_it_decodes_with_its_seed_and_never_sees_the_truth(job, seed, fill, data, monkeypatch):
    seen, real = [], command.decode_holes
    monkeypatch.setattr(command, "decode_holes", lambda *arguments: seen.extend(arguments) or real(*arguments))
    fill(config=replace(CONFIG, seed=3), n=1, **job)
    assert torch.equal(seen[1], data.masked_test[:1]) and torch.equal(seen[2], data.holes[:1])
    assert seen[3:] == [CONFIG.decode, seed]


@pytest.mark.parametrize("count, numbers", [(2, (3, 12)), (None, NUMBERS)])
def test_steps_are_drawn_of_the_first_images_or_of_all(fill, tmp_path, count, numbers):
    fill(show_steps=count)
    steps = sorted(f"{folder}/test_{number}.png" for folder in ("imga", "mask_scheduling") for number in numbers)
    assert files(tmp_path)[: len(steps)] == steps and len(files(tmp_path)) == len(steps) + 5


@pytest.mark.parametrize("stop_at, passes", [(0, 1), (2, 1), (1, 1), (0, 2)])
def test_the_steps_lead_from_the_masked_input_to_the_result(fill, data, tmp_path, stop_at, passes):
    fill(decode={"stop_at": stop_at, "passes": passes}, n=1, show_steps=1)
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


def test_results_and_steps_of_an_earlier_run_are_replaced_only_when_asked(fill, tmp_path):
    (tmp_path / "test_results").mkdir()
    (tmp_path / "test_results" / "notes.txt").write_text("mine, and no results")
    fill(n=2, show_steps=1)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(ValueError, match="test_results holds results already.*--overwrite"):
        fill(n=1, seed=5)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    shutil.rmtree(tmp_path / "test_results")
    with pytest.raises(ValueError, match="mask_scheduling holds results already.*--overwrite"):
        fill(n=1, seed=5, show_steps=1)
    assert (tmp_path / "imga" / "test_3.png").read_bytes() == before["imga/test_3.png"]
    fill(n=1, seed=5, show_steps=1, overwrite=True)
    assert (tmp_path / "imga" / "test_3.png").read_bytes() != before["imga/test_3.png"]
    (tmp_path / "imga" / "notes.txt").write_text("mine")
    fill(n=1, seed=6, overwrite=True)
    assert files(tmp_path) == ["imga/notes.txt", "test_results/image_003.png"], "no steps of another decoding"


def test_pasting_marks_the_folder_the_files_and_the_lines(fill, data, tmp_path, capsys):
    fill(n=2, show_steps=1)
    assert "pasted" not in capsys.readouterr().out
    fill(decode={"paste": "hard"}, n=2, show_steps=1, overwrite=True)
    out = capsys.readouterr().out
    assert "known pixels pasted back (hard): not by the lab's rule" in out and "this run, pasted" in out
    by_rule, pasted = (read(tmp_path / folder / "image_003.png") for folder in ("test_results", "test_results_pasted"))
    known = ~data.holes[0].expand(3, -1, -1)
    assert torch.equal(pasted[known], data.test[0][known]) and torch.equal(pasted[~known], by_rule[~known])
    assert not torch.equal(by_rule[known], data.test[0][known])
    assert torch.equal(frames(read(tmp_path / "imga" / "test_3.png"), 64)[-1], by_rule), "steps are never pasted"
    comments = {name: Image.open(tmp_path / name).info for name in files(tmp_path) if "_3." in name or "_003." in name}
    marked = comments.pop("test_results_pasted/image_003.png")
    assert "known pixels pasted back (hard)" in marked["Comment"] and list(comments.values()) == [{}] * 3


def test_leaked_and_unseen_images_are_scored_apart_each_beside_its_baselines(fill, capsys):
    fill()
    head, *rows = table(capsys.readouterr().out)
    assert head == ["images", "method", *Scores._fields]
    methods = ["this", "reconstruction", "do_nothing", "grey_fill", "mean_colour", "telea", "navier_stokes"]
    numbers = {"all": "4", "leaked": "2", "unseen": "2"}
    assert [(row[0], row[1], row[-1]) for row in rows] == [(g, m, n) for g, n in numbers.items() for m in methods]
    assert "-" in rows[1], "photographs have no attributes"
    assert float(rows[1][head.index("token_accuracy")]) > 0


def test_of_one_image_with_a_known_truth_there_are_no_scores(fill, capsys):
    fill(n=1, seed=10**12)
    assert "no scores" in capsys.readouterr().out
    fill(n=2, overwrite=True)
    assert {row[-1] for row in table(capsys.readouterr().out)[1:]} == {"2"}


def test_validation_images_are_filled_as_well(fill, data, tmp_path, capsys):
    fill(split="val", show_steps=1)
    steps = ["imga/test_0.png", "mask_scheduling/test_0.png"]
    assert files(tmp_path) == [*steps, *(f"val_results/image_00{i}.png" for i in range(6))]
    masked = frames(read(tmp_path / "imga" / "test_0.png"), 64)[0]
    assert torch.equal(masked, data.val[0].masked_fill(random_holes(command.VAL_HOLES, 6)[0], 128))
    assert {(row[0], row[-1]) for row in table(capsys.readouterr().out)[1:]} == {("all", "6")}, "none was trained on"


@pytest.fixture
def folders(data, tmp_path) -> tuple[Path, Path]:
    """The lab's, of test images and of masks."""
    folders = tmp_path / "masked_image", tmp_path / "mask64"
    for folder in folders:
        folder.mkdir()
    for number, image, hole in zip(NUMBERS, data.masked_test, data.holes, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folders[0] / f"image_{number:03d}.png")
        Image.fromarray(np.where(hole, 0, 255).astype(np.uint8)).save(folders[1] / f"mask_{number:03d}.png")
    return folders


def test_two_folders_give_the_same_pictures_as_the_dataset(fill, folders, tmp_path, monkeypatch, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    fill(out=a)
    capsys.readouterr()
    monkeypatch.setattr(command, "get_dataset", None)  # it is not asked for
    fill(out=b, folders=folders)
    assert "no scores" in capsys.readouterr().out and files(a) == files(b)
    assert all(torch.equal(read(a / name), read(b / name)) for name in files(a))


def test_the_labs_folders_are_not_for_the_pair_that_knows_toy_cats(fill, folders, tmp_path):
    with pytest.raises(ValueError, match="the pretrained pair knows toy cats only: for masked_image"):
        fill(Networks(), out=tmp_path / "out", folders=folders)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job, sentence", [
    ({"n": 6}, "--n must lie in 1..5, the number of test images, not 6"),
    ({"n": 7, "split": "val"}, "--n must lie in 1..6, the number of val images, not 7"),
    ({"n": 1, "share": 0.5}, "--n and --partial both say"),
    ({"seed": 20250101120000}, "--seed must lie in 0..10{12}, not 20250101120000"),
    ({"show_steps": -1}, "--show-steps takes the number of images to show, at least 1, not -1"),
    ({"folders": (Path("masked_image"), None)}, "--test-maskedimage-path and --test-mask-path belong together"),
    ({"folders": (Path("a"), Path("b")), "split": "val"}, "--split val takes its images from --data"),
    ({"folders": (Path("/nowhere/a"), Path("/nowhere/b"))}, "/nowhere/a does not exist"),
])  # fmt: skip
def test_refusals_come_before_anything_is_written(fill, tmp_path, job, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        fill(out=tmp_path / "out", **job)
    assert not (tmp_path / "out").exists()


def test_so_do_those_of_settings_that_nobody_has_checked_and_of_a_checkpoint(fill, networks, tmp_path):
    with pytest.raises(ValueError, match="decode.order must be one of confidence, .* not 'luck'"):
        fill(out=tmp_path / "out", decode={"order": "luck"})
    with pytest.raises(ValueError, match="decode.paste = refined needs a refiner, which these networks come without"):
        fill(out=tmp_path / "out", decode={"paste": "refined"})
    with pytest.raises(ValueError, match="--refiner belongs to the networks of --vqgan and --transformer"):
        fill(Networks(refiner=tmp_path / "refiner"), out=tmp_path / "out")
    other = TransformerConfig(13, width=16, layers=1, heads=2, hidden=16)
    checkpoint.save_transformer(tmp_path / "other", BidirectionalTransformer(other))
    with pytest.raises(ValueError, match="other predicts 13 codes, but .* has 12"):
        fill(networks._replace(transformer=tmp_path / "other"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
