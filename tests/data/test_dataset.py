"""Pixels, splits and originals, on small datasets written here. What is refused: test_malformed.py."""

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stubs import encoded, png, write_files, zipped

from lab5.data import layouts, toycats
from lab5.data.dataset import (
    TRAIN_STATS,
    Dataset,
    denormalise,
    normalise,
    open_dataset,
    open_masked,
    summary,
    token_mask,
)

SIZES = {"n_train": 100, "n_val": 100, "n_test": 100, "seed": 5}
TOYS = {"n_train": 3, "n_val": 2, "n_test": 2, "seed": 1}


def hashes(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def as_zip(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return write_files(tmp_path, {"cats.zip": zipped(files.items())}) / "cats.zip"


def as_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return write_files(tmp_path / "photos", files)


def opened(tmp_path: Path, files: dict[str, bytes], pack=as_folder, **sizes: int) -> Dataset:
    return open_dataset(pack(tmp_path, files), cache=tmp_path / "cache", **SIZES | sizes)


# --- pixels -----------------------------------------------------------------------------------------------------


def test_one_missing_pixel_masks_exactly_its_token():
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[7, 60] = True
    assert token_mask(hole).nonzero().tolist() == [[16 * 1 + 15]]


def test_normalise_is_torchvisions_and_denormalise_undoes_it_and_clamps():
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    expected = functional.normalize(images / 255, *TRAIN_STATS)
    torch.testing.assert_close(normalise(images), expected)
    torch.testing.assert_close(normalise(images / 255), expected)
    assert torch.equal((denormalise(normalise(images)) * 255).round().byte(), images)
    beyond = torch.tensor([-9.0, 9.0]).expand(3, 1, 2)
    assert denormalise(beyond).unique(dim=0).tolist() == [[[0, 1]]]


# --- toy cats ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Dataset:
    cache = tmp_path_factory.mktemp("cache")
    return open_dataset("toycats", n_train=40, n_val=12, n_test=8, seed=5, cache=cache)


def test_toycats_fill_the_sizes_asked_for_and_attributes_belong_to_their_images(toys):
    assert (len(toys.train), len(toys.val), len(toys.test), len(toys.holes)) == (40, 12, 8, 8)
    assert toys.train.dtype == torch.uint8 and toys.holes.dtype == torch.bool
    assert toys.whole.all() and not toys.leaked.any() and toys.numbers == tuple(range(8))
    for split, seed, n in (("train", 5, 40), ("val", 1005, 12), ("test", 2005, 8)):
        cats = toycats.render(seed, n)
        assert torch.equal(cats.images, getattr(toys, split))
        assert toys.attributes[split].keys() == toycats.ATTRIBUTES.keys()
        assert all(torch.equal(classes, cats.attributes[name]) for name, classes in toys.attributes[split].items())


def test_masked_test_shows_grey_in_the_hole_and_the_image_outside(toys):
    masked, hole = toys.masked_test, toys.holes[:, None].expand_as(toys.test)
    assert masked[hole].eq(128).all() and torch.equal(masked[~hole], toys.test[~hole])


def test_toycats_splits_share_no_image_within_or_across_seeds(toys, tmp_path):
    other = open_dataset("toycats", n_train=40, n_val=12, n_test=8, seed=6, cache=tmp_path)
    splits = [hashes(images) for d in (toys, other) for images in (d.train, d.val, d.test)]
    assert len(set.union(*splits)) == sum(len(images) for images in splits) == 2 * (40 + 12 + 8)


def test_toycats_are_rendered_once(tmp_path, monkeypatch):
    sizes = TOYS | {"cache": tmp_path / "new" / "folder"}
    first = open_dataset("toycats", **sizes)
    other = open_dataset("toycats", **sizes | {"seed": 2})
    monkeypatch.setattr(toycats, "render", lambda *_: pytest.fail("rendered again"))
    again = open_dataset("toycats", **sizes)
    assert again.fingerprint == first.fingerprint != other.fingerprint
    assert all(torch.equal(again.attributes["test"][name], first.attributes["test"][name]) for name in again.hidden)


def test_a_damaged_cache_is_made_again_and_leaves_no_parts(tmp_path):
    first = open_dataset("toycats", **TOYS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:5000])
    assert open_dataset("toycats", **TOYS, cache=tmp_path).fingerprint == first.fingerprint
    assert list(tmp_path.iterdir()) == [file] and file.stat().st_size > 5000


def test_a_full_disk_leaves_no_cache_and_costs_a_line(disk_of, tmp_path, capsys):
    with disk_of(5000):
        without = open_dataset("toycats", **TOYS, cache=tmp_path / "cache")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("lab5: .*toycats-.*npz could not be written and is as it was before.*LAB5_DATA", line)
    assert list((tmp_path / "cache").iterdir()) == []
    assert without.fingerprint == open_dataset("toycats", **TOYS, cache=tmp_path / "cache").fingerprint


def test_the_fingerprint_changes_with_one_pixel_and_not_with_counts_and_numbers(toys):
    images = toys.val.clone()
    assert replace(toys, val=images, numbers=(), given={}).fingerprint == toys.fingerprint
    images[3, 1, 20, 20] ^= 1
    assert replace(toys, val=images).fingerprint != toys.fingerprint


def test_the_fingerprint_is_what_it_was():
    """Trainings on disk are named by it: whatever becomes of this module, they are to be found again."""
    known = torch.arange(2 * 64 * 64).view(2, 64, 64) % 5 > 0
    images = (torch.arange(4 * 3 * 64 * 64) % 251).to(torch.uint8).view(4, 3, 64, 64)
    dataset = Dataset("fixed", images, images[:1], images[1:3], ~known, known[:, 0, 1], known[:, 0, 0], {}, {})
    assert dataset.fingerprint == "66951303e2fb9a8a"


# --- the lab's layouts ------------------------------------------------------------------------------------------

PICTURES = np.random.default_rng(0).integers(256, size=(9, 64, 64, 3), dtype=np.uint8)
KNOWN = np.full((3, 64, 64), 255, dtype=np.uint8)  # the masks: 255 = known
for i in range(3):
    KNOWN[i, 10 * i : 10 * i + 12, 20:44] = 0
MASKED = np.where(KNOWN[..., None] == 255, PICTURES[[3, 6, 8]], np.uint8(128))


def lab_files(train: str = "lab5_dataset/", masks: str = "lab5_dataset/") -> dict[str, bytes]:
    """Six train files of which two are equal; five val files: two leaked, two equal; three test images, of which
    one comes from train, one from val and one from elsewhere; four masks."""
    files = {f"{train}train/image_{i:05}.png": png(PICTURES[p]) for i, p in enumerate([0, 1, 2, 3, 4, 1])}
    files |= {f"{train}val/image_{i:05}.png": png(PICTURES[p]) for i, p in enumerate([0, 5, 4, 6, 6])}
    files |= {f"{train}masked_image/image_{i:03}.png": png(masked) for i, masked in enumerate(MASKED)}
    return files | {f"{masks}mask64/mask_{i:03}.png": png(KNOWN[min(i, 2)]) for i in range(4)}


@pytest.mark.parametrize("pack", [as_zip, as_folder])
@pytest.mark.parametrize(
    "train, masks",
    [
        ("lab5_dataset/", "lab5_dataset/"),
        ("lab5_dataset/cat_face/", "lab5_dataset/"),
        ("lab3_dataset/cat_face/", "lab3_dataset/"),
        ("", ""),
    ],
)
def test_every_layout_of_the_lab_opens_alike(tmp_path, pack, train, masks):
    files = lab_files(train, masks) | {f"__MACOSX/{train}train/._image_00000.png": b"junk", "read me.txt": b""}
    dataset = opened(tmp_path, files, pack)
    pictures = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
    assert torch.equal(dataset.train, pictures[:5])  # in the order of the files, each once
    assert torch.equal(dataset.val, pictures[[5, 6]])  # nothing of train, each once
    assert torch.equal(dataset.holes, torch.from_numpy(KNOWN == 0)) and dataset.numbers == (0, 1, 2)
    masked = torch.from_numpy(MASKED).permute(0, 3, 1, 2)
    assert torch.equal(dataset.masked_test, masked) and torch.equal(dataset.test[2], masked[2])
    assert dataset.whole.tolist() == [True, True, False] and dataset.leaked.tolist() == [True, False, False]
    assert torch.equal(dataset.test[:2], pictures[[3, 6]]) and dataset.attributes == {}
    assert dataset.given == {
        "train": 6, "train.twice": 1, "val": 5, "val.twice": 1, "val.in_train": 2, "test": 3, "masks": 4,
    }  # fmt: skip


@pytest.mark.parametrize("inside", ["", "lab5_dataset", "lab5_dataset/cat_face"])
def test_the_dataset_is_found_from_above_at_its_root_and_from_inside(tmp_path, inside):
    files = lab_files("lab5_dataset/cat_face/", "lab5_dataset/")
    root = as_folder(tmp_path, files | {"other/mask64/not a mask.png": b"", "lab5_dataset/x.png": b""})
    dataset = open_dataset(root / inside, cache=tmp_path / "cache", **SIZES)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (5, 2, 3)


def test_the_summary_is_one_table_of_what_became_of_the_files(tmp_path, toys):
    rows = summary(opened(tmp_path, lab_files(), n_train=3))  # the original of test image 0 is the fourth of train
    assert {tuple(row) for row in rows} == {("what", "all", "train", "val", "test")}
    table = {row["what"]: tuple(row.values())[1:] for row in rows}
    assert table["files given"] == (14, 6, 5, 3)
    assert table["left out: twice"] == (2, 1, 1, None)
    assert table["left out: also in train"] == (2, None, 2, None)
    assert "left out: also a test image" not in table
    assert table["images used"] == (8, 3, 2, 3)
    assert table["missing pixels (%), mean"][3] == pytest.approx(100 * 12 * 24 / 4096)
    tokens = [6 * 3, 6 * 4, 6 * 3]  # rows 0..11, 10..21 and 20..31, in blocks of four
    found = [table[f"masked tokens of 256, {end}"][3] for end in ("mean", "least", "most")]
    assert found == [sum(tokens) / 3, min(tokens), max(tokens)]
    of_toys = {row["what"]: row["all"] for row in summary(toys)}
    assert not any(what.startswith("left out") for what in of_toys)
    assert of_toys["files given"] == of_toys["images used"] == 60


@pytest.mark.parametrize("n_train, counts", [(100, [1, 1, 1]), (3, [0, 2, 1])])
def test_the_summary_tells_leaked_from_known(tmp_path, n_train, counts):
    table = {row["what"]: row["test"] for row in summary(opened(tmp_path, lab_files(), n_train=n_train))}
    kinds = ("original among the training images", "original known, not trained on", "no original known")
    assert [table[kind] for kind in kinds] == counts


def test_sizes_are_upper_bounds(tmp_path):
    small = opened(tmp_path, lab_files(), n_train=3, n_val=1, n_test=2)
    assert (len(small.train), len(small.val), len(small.test), len(small.holes)) == (3, 1, 2, 2)
    assert small.whole.tolist() == [True, True] and small.leaked.tolist() == [False, False]


def test_an_original_agrees_on_every_known_pixel(tmp_path):
    nearly = MASKED[2].copy()
    nearly[0, 1] ^= 1  # one known pixel of the test image that has no original
    dataset = opened(tmp_path, lab_files() | {"lab5_dataset/train/image_00006.png": png(nearly)})
    assert len(dataset.train) == 6 and dataset.whole.tolist() == [True, True, False]


def test_images_and_masks_pair_by_number_in_a_dataset_and_in_two_folders_alone(tmp_path):
    files = lab_files()
    del files["lab5_dataset/masked_image/image_001.png"]
    dataset, root = opened(tmp_path, files), tmp_path / "photos/lab5_dataset"
    assert torch.equal(dataset.holes, torch.from_numpy(KNOWN[[0, 2]] == 0)) and dataset.numbers == (0, 2)
    images, holes, numbers = open_masked(root / "masked_image", root / "mask64")
    assert numbers == [0, 2] and torch.equal(holes, dataset.holes) and torch.equal(images, dataset.masked_test)


def test_files_are_decoded_once_until_they_change(tmp_path, monkeypatch):
    first, path = opened(tmp_path, lab_files()), tmp_path / "photos"
    with monkeypatch.context() as patch:
        patch.setattr(layouts, "read_images", lambda *_: pytest.fail("decoded again"))
        assert open_dataset(path, cache=tmp_path / "cache", **SIZES).fingerprint == first.fingerprint
    changed = path / "lab5_dataset/train/image_00002.png"
    for step in (1, 2):  # bitmaps: files of one size
        Image.new("RGB", (64, 64), (step, 7, 7)).save(changed, "BMP")
        os.utime(changed, (step, step))
        train = open_dataset(path, cache=tmp_path / "cache", **SIZES).train
        assert train[2, 0].eq(step).all()


# --- any folder of images ---------------------------------------------------------------------------------------


def photographs(n: int) -> dict[str, bytes]:
    """Pictures of several sizes and modes; the first comes twice."""
    rng = np.random.default_rng(1)
    files = {}
    for i in range(n):
        shape = [(80, 100, 3), (64, 64, 3), (50, 40, 3), (90, 70), (64, 64, 4)][i % 5]
        files[f"{'ab'[i % 2]}/photo {i}.png"] = png(rng.integers(256, size=shape, dtype=np.uint8))
    return files | {"b/copy.png": files["a/photo 0.png"]}


def all_images(dataset: Dataset) -> torch.Tensor:
    return torch.cat([dataset.train, dataset.val, dataset.test])


def test_any_folder_becomes_a_dataset_without_duplicates(tmp_path):
    dataset = opened(tmp_path, photographs(30))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (24, 3, 3)
    assert len(hashes(all_images(dataset))) == 30
    assert dataset.name == "photos" and dataset.whole.all() and not dataset.leaked.any()
    assert dataset.holes.shape == (3, 64, 64) and 0.05 < dataset.holes.float().mean() < 0.4
    other = open_dataset(tmp_path / "photos", cache=tmp_path / "cache", **SIZES | {"seed": 6})
    assert torch.equal(other.train, dataset.train) and not torch.equal(other.holes, dataset.holes)


@pytest.mark.parametrize("pack", [as_folder, as_zip])
@pytest.mark.parametrize("where", ["cats/cats/", "cats/", ""])
def test_the_public_collection_is_read_as_it_unpacks(where, pack, tmp_path):
    """Kaggle's "Cats faces 64x64": JPEG files of that size called 1.jpg, 2.jpg, ... in cats/cats."""
    photos = [encoded(Image.fromarray(cat.permute(1, 2, 0).numpy()), "JPEG") for cat in toycats.render(4, 20).images]
    dataset = opened(tmp_path, {f"{where}{i}.jpg": photo for i, photo in enumerate(photos, start=1)}, pack)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (16, 2, 2) and dataset.whole.all()
    pixels = {np.asarray(Image.open(io.BytesIO(photo))).transpose(2, 0, 1).tobytes() for photo in photos}
    assert hashes(all_images(dataset)) == pixels, "neither cropped nor resized"


def test_the_split_depends_on_the_pictures_and_not_on_their_names(tmp_path):
    files = photographs(12)
    first = opened(tmp_path / "one", files)
    second = opened(tmp_path / "two", {f"{name[::-1]}.png": content for name, content in files.items()})
    assert torch.equal(first.val, second.val) and torch.equal(first.train, second.train)


def test_photographs_are_cropped_from_the_middle_and_resized(tmp_path):
    wide = np.zeros((128, 256, 3), dtype=np.uint8)
    wide[:, 64:192] = (200, 100, 50)  # the middle square has one colour, the sides are black
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2)) // 2
    square = np.full((64, 64, 3), 30, dtype=np.uint8)
    dataset = opened(tmp_path, {"w.png": png(wide), "t.png": png(tall), "s.png": png(square)})
    images = all_images(dataset)[:, :, 4:60, 4:60]  # the filter blurs the edges
    colours = {tuple(image.flatten(1).unique(dim=1).flatten().tolist()) for image in images}
    assert colours == {(200, 100, 50), (100, 50, 25), (30, 30, 30)}


def test_photographs_are_turned_upright_where_their_exif_data_can_be_read(tmp_path):
    half = Image.new("RGB", (64, 64), (250, 250, 250))
    half.paste((10, 10, 10), (0, 0, 32, 64))  # dark on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise, dark on top
    files = {"turned.jpg": encoded(half, "JPEG", exif=exif, quality=100)}
    for i, damaged in enumerate((b"Exif\x00\x00no header of a TIFF", exif.tobytes()[:20])):
        files[f"{i}.png"] = encoded(Image.new("RGB", (64, 64), (200, 10, i)), exif=damaged)
    dataset = opened(tmp_path, files)
    images = all_images(dataset).float()
    contrast = images[:, :, 33:].mean((1, 2, 3)) - images[:, :, :31].mean((1, 2, 3))
    assert len(images) == 3 and contrast.max() > 200


def test_linked_folders_are_read_like_others_and_loops_end(tmp_path, monkeypatch):
    plain = opened(tmp_path, photographs(12))
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in ("a", "b"):
        (linked / folder).symlink_to(tmp_path / "photos" / folder)
    (linked / "again").symlink_to(linked)
    found = open_dataset(linked, cache=tmp_path / "cache", **SIZES)
    assert hashes(found.train) == hashes(plain.train) and found.given == plain.given
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_dataset("~/photos", cache=tmp_path / "cache", **SIZES).train) == len(plain.train)


@pytest.mark.parametrize("pack", [as_zip, as_folder])
def test_photographs_with_masks_of_their_own_become_the_test_images(tmp_path, pack):
    """Three of thirty have one: a square, a rectangle that is grey, thin lines across a larger picture."""
    files = photographs(30)
    files |= {"b/copy of 1.png": files["b/photo 1.png"], "b/photo 6 as it was.png": files["a/photo 6.png"]}
    square, grey, lines = (np.full(shape, 255, dtype=np.uint8) for shape in ((64, 64), (64, 64), (80, 100)))
    square[16:32, 16:32] = grey[40:50, 3:20] = lines[::16, 10:90] = 0
    photo, holed = (np.array(Image.open(io.BytesIO(files[name]))) for name in ("b/photo 1.png", "a/photo 6.png"))
    holed[grey == 0] = 128
    masks = {"photo 1": square, "photo 6": grey, "photo 5": lines}
    files |= {"a/photo 6.png": png(holed)} | {f"masks/{stem}.png": png(mask) for stem, mask in masks.items()}
    dataset = opened(tmp_path, files, pack)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (25, 2, 3)
    assert dataset.given == {"all": 33, "all.twice": 1, "all.in_test": 2, "masks": 3}
    assert not dataset.leaked.any() and not hashes(dataset.test) & (hashes(dataset.train) | hashes(dataset.val))
    places = {int(hole.sum()): i for i, hole in enumerate(dataset.holes)}
    seen, unseen = places.pop(16 * 16), places.pop(10 * 17)
    assert dataset.holes[seen, 16:32, 16:32].all() and dataset.holes[unseen, 40:50, 3:20].all()
    assert dataset.whole[seen] and not dataset.whole[unseen]
    assert torch.equal(dataset.test[seen], torch.from_numpy(photo).permute(2, 0, 1))
    ((_, scratched),) = places.items()
    assert dataset.holes[scratched].any(1).sum() == 5 and dataset.whole[scratched]


def test_a_masked_photograph_shows_nothing_of_its_hole_around_it(tmp_path):
    """Resizing must not mix missing pixels into known ones."""
    picture, known = np.full((190, 190, 3), 100, dtype=np.uint8), np.full((190, 190), 255, dtype=np.uint8)
    picture[50:101, 70:120], known[50:101, 70:120] = 255, 0
    dataset = opened(tmp_path, photographs(4) | {"holed.png": png(picture), "masks/holed.png": png(known)})
    assert dataset.test[0][:, ~dataset.holes[0]].eq(100).all()
    assert dataset.holes[0].float().mean().item() == pytest.approx(51 * 50 / 190**2, abs=0.02)


def test_one_missing_pixel_of_a_large_photograph_is_missing(tmp_path):
    large, known = np.full((1600, 1600, 3), 9, dtype=np.uint8), np.full((1600, 1600), 255, dtype=np.uint8)
    known[800, 800] = 0
    dataset = opened(tmp_path, photographs(4) | {"large.png": png(large), "masks/large.png": png(known)})
    assert dataset.holes[0].nonzero().tolist() == [[32, 32]]
