"""Masks against a loop, datasets against small ones written here. The lab's own files: test_lab_facts.py."""

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
REFUSED = (ValueError, TypeError)  # the shape checker, where it is installed, refuses first with a TypeError


def hashes(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


# --- pixels -----------------------------------------------------------------------------------------------------


def test_a_token_is_masked_if_any_pixel_of_its_block_is_missing():
    hole = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.03
    expected = torch.zeros(3, 256, dtype=torch.bool)
    for image, row, column in hole.nonzero().tolist():
        expected[image, 16 * (row // 4) + column // 4] = True
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(token_mask(hole), expected)
    assert torch.equal(token_mask(hole[1]), expected[1])


def test_one_missing_pixel_masks_exactly_its_token():
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[7, 60] = True
    assert token_mask(hole).nonzero().tolist() == [[16 * 1 + 15]]


@pytest.mark.parametrize("hole", [torch.ones(2, 64, 64), torch.ones(2, 64, 60, dtype=torch.bool)])
def test_holes_of_another_kind_are_refused(hole):
    with pytest.raises(REFUSED):
        token_mask(hole)


def test_normalise_is_torchvisions_and_denormalise_undoes_it():
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    expected = functional.normalize(images / 255, *TRAIN_STATS)
    torch.testing.assert_close(normalise(images), expected)
    torch.testing.assert_close(normalise(images / 255), expected)
    torch.testing.assert_close(denormalise(expected), images / 255)
    assert torch.equal((denormalise(normalise(images)) * 255).round().byte(), images)


def test_denormalise_clamps():
    assert denormalise(torch.full((3, 2, 2), 9.0)).eq(1).all() and denormalise(torch.full((3, 2, 2), -9.0)).eq(0).all()


def test_normalising_twice_is_refused():
    with pytest.raises(ValueError, match=r"must be bytes or in \[0,1\]"):
        normalise(normalise(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))))


# --- toy cats ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Dataset:
    cache = tmp_path_factory.mktemp("cache")
    return open_dataset("toycats", n_train=40, n_val=12, n_test=8, seed=5, cache=cache)


def test_toycats_fill_the_sizes_asked_for(toys):
    assert (len(toys.train), len(toys.val), len(toys.test), len(toys.holes)) == (40, 12, 8, 8)
    assert toys.train.dtype == torch.uint8 and toys.holes.dtype == torch.bool
    assert toys.whole.all() and not toys.leaked.any()
    for split, images in (("train", toys.train), ("val", toys.val), ("test", toys.test)):
        assert toys.attributes[split].keys() == toycats.ATTRIBUTES.keys()
        assert all(len(classes) == len(images) for classes in toys.attributes[split].values())


def test_toycats_splits_share_no_image_within_or_across_seeds(toys, tmp_path):
    other = open_dataset("toycats", n_train=40, n_val=12, n_test=8, seed=6, cache=tmp_path)
    splits = [hashes(images) for d in (toys, other) for images in (d.train, d.val, d.test)]
    assert len(set.union(*splits)) == sum(len(images) for images in splits) == 2 * (40 + 12 + 8)


def test_attributes_belong_to_their_images(toys):
    seed_of_val = 1000 + 5
    cats = toycats.render(seed_of_val, 12)
    assert torch.equal(cats.images, toys.val)
    assert all(torch.equal(cats.attributes[name], toys.attributes["val"][name]) for name in toycats.ATTRIBUTES)


def test_toycats_are_rendered_once(tmp_path, monkeypatch):
    sizes = {"n_train": 3, "n_val": 2, "n_test": 2, "seed": 1, "cache": tmp_path / "new" / "folder"}
    first = open_dataset("toycats", **sizes)
    with monkeypatch.context() as patch:
        patch.setattr(toycats, "render", lambda *_: pytest.fail("rendered again"))
        again = open_dataset("toycats", **sizes)
    assert again.fingerprint == first.fingerprint
    assert all(
        torch.equal(again.attributes["test"][name], classes) for name, classes in first.attributes["test"].items()
    )
    assert open_dataset("toycats", **sizes | {"seed": 2}).fingerprint != first.fingerprint


def test_a_damaged_cache_is_made_again_and_leaves_no_parts(tmp_path):
    sizes = {"n_train": 3, "n_val": 2, "n_test": 2, "seed": 1, "cache": tmp_path}
    first = open_dataset("toycats", **sizes)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:5000])
    assert open_dataset("toycats", **sizes).fingerprint == first.fingerprint
    assert list(tmp_path.iterdir()) == [file] and file.stat().st_size > 5000


def test_a_failing_write_leaves_no_cache(tmp_path, monkeypatch):
    def full_disk(out, **arrays):
        out.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="toycats-.*npz could not be written and is as it was before: No space"):
        open_dataset("toycats", n_train=1, n_val=1, n_test=1, seed=1, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_cache(disk_of, tmp_path):
    with disk_of(5000), pytest.raises(OSError, match="toycats-.*npz could not be written and is as it was before"):
        open_dataset("toycats", n_train=1, n_val=1, n_test=1, seed=1, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_masked_test_shows_grey_in_the_hole_and_the_image_outside(toys):
    masked, hole = toys.masked_test, toys.holes[:, None].expand_as(toys.test)
    assert masked[hole].eq(128).all() and torch.equal(masked[~hole], toys.test[~hole])
    assert not torch.equal(masked, toys.test)


def test_the_fingerprint_changes_with_one_pixel(toys):
    images = toys.val.clone()
    assert replace(toys, val=images).fingerprint == toys.fingerprint
    images[3, 1, 20, 20] ^= 1
    assert replace(toys, val=images).fingerprint != toys.fingerprint


# --- the lab's layouts ------------------------------------------------------------------------------------------


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def known_of(i: int) -> np.ndarray:
    """The mask of the i-th test image below: 255 = known."""
    known = np.full((64, 64), 255, dtype=np.uint8)
    known[10 * i : 10 * i + 12, 20:44] = 0
    return known


def lab_files(train="lab5_dataset/", masks="lab5_dataset/") -> dict[str, bytes]:
    """Six train files of which two are equal; five val files: two leaked, two equal; three test images, of which
    one comes from train, one from val and one from elsewhere; four masks."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(256, size=(9, 64, 64, 3), dtype=np.uint8)
    files = {f"{train}train/image_{i:05}.png": png(pictures[p]) for i, p in enumerate([0, 1, 2, 3, 4, 1])}
    files |= {f"{train}val/image_{i:05}.png": png(pictures[p]) for i, p in enumerate([0, 5, 4, 6, 6])}
    for i, picture in enumerate([3, 6, 8]):
        known = known_of(i)
        masked = np.where(known[:, :, None] == 255, pictures[picture], np.uint8(128))
        files[f"{train}masked_image/image_{i:03}.png"] = png(masked)
        files[f"{masks}mask64/mask_{i:03}.png"] = png(known)
    files[f"{masks}mask64/mask_003.png"] = png(known)
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_zip(tmp_path, files):
    return write_zip(tmp_path / "lab5_dataset.zip", files)


def as_folder(tmp_path, files):
    return write_folder(tmp_path / "data", files)


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
    dataset = open_dataset(pack(tmp_path, files), cache=tmp_path / "cache", **SIZES)
    pictures = torch.from_numpy(np.random.default_rng(0).integers(256, size=(9, 64, 64, 3), dtype=np.uint8))
    pictures = pictures.permute(0, 3, 1, 2)
    assert torch.equal(dataset.train, pictures[:5])  # in the order of the files, each once
    assert torch.equal(dataset.val, pictures[[5, 6]])  # nothing of train, each once
    assert dataset.holes.sum((1, 2)).tolist() == [12 * 24] * 3  # 0 in the file is missing
    assert dataset.holes[1, 10:22, 20:44].all()
    assert dataset.whole.tolist() == [True, True, False] and dataset.leaked.tolist() == [True, False, False]
    assert torch.equal(dataset.test[:2], pictures[[3, 6]])
    assert dataset.test[2][:, dataset.holes[2]].eq(128).all()
    assert torch.equal(dataset.masked_test[2], dataset.test[2]) and dataset.attributes == {}
    assert dataset.numbers == (0, 1, 2)


@pytest.mark.parametrize("inside", ["", "lab5_dataset", "lab5_dataset/cat_face"])
def test_the_dataset_is_found_from_above_at_its_root_and_from_inside(tmp_path, inside):
    files = lab_files("lab5_dataset/cat_face/", "lab5_dataset/")
    root = write_folder(tmp_path / "data", files | {"other/mask64/not a mask.png": b"", "lab5_dataset/x.png": b""})
    dataset = open_dataset(root / inside, cache=tmp_path / "cache", **SIZES)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (5, 2, 3)


def test_the_counts_of_files_given_add_up(tmp_path):
    given = open_dataset(as_zip(tmp_path, lab_files()), cache=tmp_path / "cache", **SIZES).given
    assert given == {
        "train": 6, "train.twice": 1, "val": 5, "val.twice": 1, "val.in_train": 2, "test": 3, "masks": 4,
    }  # fmt: skip


def test_the_summary_is_one_table_of_what_became_of_the_files(tmp_path):
    small = SIZES | {"n_train": 3}  # the original of test image 0 is the fourth of train
    rows = summary(open_dataset(as_zip(tmp_path, lab_files()), cache=tmp_path / "cache", **small))
    assert {tuple(row) for row in rows} == {("what", "all", "train", "val", "test")}
    table = {row["what"]: tuple(row.values())[1:] for row in rows}
    assert table["files given"] == (14, 6, 5, 3)
    assert table["left out: twice"] == (2, 1, 1, None)
    assert table["left out: also in train"] == (2, None, 2, None)
    assert "left out: also a test image" not in table
    assert table["images used"] == (8, 3, 2, 3)
    assert table["original among the training images"][3] == 0
    assert table["original known, not trained on"][3] == 2
    assert table["no original known"][3] == 1
    assert table["missing pixels (%), mean"][3] == pytest.approx(100 * 12 * 24 / 4096)
    tokens = [6 * 3, 6 * 4, 6 * 3]  # rows 0..11, 10..21 and 20..31, in blocks of four
    found = [table[f"masked tokens of 256, {end}"][3] for end in ("mean", "least", "most")]
    assert found == [sum(tokens) / 3, min(tokens), max(tokens)]


def test_the_summary_tells_leaked_from_known(tmp_path):
    table = {row["what"]: row["test"] for row in summary(open_dataset(as_zip(tmp_path, lab_files()),
             cache=tmp_path / "cache", **SIZES))}  # fmt: skip
    kinds = ("original among the training images", "original known, not trained on", "no original known")
    assert [table[kind] for kind in kinds] == [1, 1, 1]


def test_the_summary_of_toycats_leaves_nothing_out(toys):
    rows = {row["what"]: row for row in summary(toys)}
    assert not any(what.startswith("left out") for what in rows)
    assert rows["files given"]["all"] == rows["images used"]["all"] == 60
    assert rows["original known, not trained on"]["test"] == 8 and toys.numbers == tuple(range(8))


def test_counts_and_numbers_leave_the_fingerprint_alone(toys):
    assert replace(toys, numbers=(), given={}).fingerprint == toys.fingerprint


def test_the_fingerprint_is_what_it_was(tmp_path):
    """Trainings on disk are named by it: whatever becomes of this module, they are to be found again."""
    known = torch.arange(2 * 64 * 64).view(2, 64, 64) % 5 > 0
    images = (torch.arange(4 * 3 * 64 * 64) % 251).to(torch.uint8).view(4, 3, 64, 64)
    dataset = Dataset("fixed", images, images[:1], images[1:3], ~known, known[:, 0, 1], known[:, 0, 0], {}, {})
    assert dataset.fingerprint == "66951303e2fb9a8a"


def test_masked_test_is_the_labs_own_file(tmp_path):
    files = lab_files()
    dataset = open_dataset(as_zip(tmp_path, files), cache=tmp_path / "cache", **SIZES)
    for i, image in enumerate(dataset.masked_test):
        file = np.asarray(Image.open(io.BytesIO(files[f"lab5_dataset/masked_image/image_{i:03}.png"])))
        assert torch.equal(image, torch.tensor(file).permute(2, 0, 1))


def test_sizes_are_upper_bounds_and_leaks_are_counted_against_what_is_trained_on(tmp_path):
    path = as_zip(tmp_path, lab_files())
    small = open_dataset(path, n_train=3, n_val=1, n_test=2, seed=5, cache=tmp_path / "cache")
    assert (len(small.train), len(small.val), len(small.test), len(small.holes)) == (3, 1, 2, 2)
    assert small.whole.tolist() == [True, True] and small.leaked.tolist() == [False, False]


def test_an_original_agrees_on_every_known_pixel(tmp_path):
    files = lab_files()
    nearly = np.asarray(Image.open(io.BytesIO(files["lab5_dataset/masked_image/image_002.png"]))).copy()
    nearly[0, 1] ^= 1  # one known pixel of the test image that has no original
    files["lab5_dataset/train/image_00006.png"] = png(nearly)
    dataset = open_dataset(as_zip(tmp_path, files), cache=tmp_path / "cache", **SIZES)
    assert len(dataset.train) == 6 and dataset.whole.tolist() == [True, True, False]


def test_images_and_masks_pair_by_number(tmp_path):
    files = lab_files()
    del files["lab5_dataset/masked_image/image_001.png"]
    dataset = open_dataset(as_zip(tmp_path, files), cache=tmp_path / "cache", **SIZES)
    assert dataset.holes[:, 5, 30].tolist() == [True, False] and dataset.holes[:, 25, 30].tolist() == [False, True]
    assert dataset.numbers == (0, 2)


def test_two_test_folders_open_without_the_rest_of_the_dataset(tmp_path):
    files = lab_files()
    del files["lab5_dataset/masked_image/image_001.png"]
    root = write_folder(tmp_path, files) / "lab5_dataset"
    images, holes, numbers = open_masked(root / "masked_image", root / "mask64")
    dataset = open_dataset(tmp_path, cache=tmp_path / "cache", **SIZES)
    assert numbers == [0, 2] and torch.equal(holes, dataset.holes) and torch.equal(images, dataset.masked_test)


def test_files_are_decoded_once_until_they_change(tmp_path, monkeypatch):
    path = as_folder(tmp_path, lab_files())
    first = open_dataset(path, cache=tmp_path / "cache", **SIZES)
    with monkeypatch.context() as patch:
        patch.setattr(layouts, "read_images", lambda *_: pytest.fail("decoded again"))
        assert open_dataset(path, cache=tmp_path / "cache", **SIZES).fingerprint == first.fingerprint
    changed = path / "lab5_dataset/train/image_00002.png"
    for step in (1, 2):  # bitmaps: files of one size
        Image.new("RGB", (64, 64), (step, 7, 7)).save(changed, "BMP")
        os.utime(changed, (step, step))
        train = open_dataset(path, cache=tmp_path / "cache", **SIZES).train
        assert train[2, 0].eq(step).all()


GREY64, COLOUR64 = np.full((64, 64), 255, dtype=np.uint8), np.full((64, 64, 3), 90, dtype=np.uint8)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"lab5_dataset/mask64/mask_001.png": None}, "1 masked image without a mask, the first is number 1"),
        ({"lab5_dataset/mask64/mask_001.png": png(GREY64 // 2)}, "only 0 .missing. and 255 .known."),
        ({"lab5_dataset/mask64/mask_001.png": png(COLOUR64)}, "is RGB 64x64, but must be L 64x64"),
        ({"lab5_dataset/mask64/mask_001.png": png(255 - GREY64)}, "mask_001.png in .* every pixel is missing"),
        ({"lab5_dataset/mask64/mask_001.png": png(np.roll(known_of(1), 30))}, "image_001.png in .* is not grey .128."),
        ({"lab5_dataset/mask64/mask_001.png": png(255 - known_of(1))}, "mask_001.png in .* is inverted"),
        ({"lab5_dataset/train/image_00002.png": png(COLOUR64[:32])}, "is RGB 64x32, but must be RGB 64x64"),
        ({"lab5_dataset/val/image_00002.png": png(GREY64)}, "is L 64x64, but must be RGB"),
        ({"lab5_dataset/val/image_00002.png": b"not a picture"}, "image_00002.png in .* is not a readable image"),
        ({"lab3_dataset/masked_image/image_000.png": png(COLOUR64)}, "holds 2 datasets"),
        ({"lab5_dataset/train/cat.png": png(COLOUR64)}, "needs a number at the end of its name"),
        ({f"lab5_dataset/val/image_{i:05}.png": None for i in range(5)}, "no images in lab5_dataset/val"),
    ],
)
@pytest.mark.parametrize("pack", [as_zip, as_folder])
def test_broken_lab_data_is_refused_with_a_sentence(tmp_path, pack, changes, sentence):
    files = {name: content for name, content in (lab_files() | changes).items() if content is not None}
    with pytest.raises(ValueError, match=sentence):
        open_dataset(pack(tmp_path, files), cache=tmp_path / "cache", **SIZES)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_archive_is_refused(tmp_path):
    path = as_zip(tmp_path, lab_files())
    content = bytearray(path.read_bytes())
    content[500:600] = bytes(100)  # inside the first picture
    path.write_bytes(content)
    with pytest.raises(ValueError, match="image_00000.png in .* is not a readable image"):
        open_dataset(path, cache=tmp_path / "cache", **SIZES)
    path.write_bytes(content[:3000])
    with pytest.raises(ValueError, match="damaged or cut short"):
        open_dataset(path, cache=tmp_path / "cache", **SIZES)


def test_archives_are_not_extracted(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "lab.zip", lab_files())
    for method in ("extract", "extractall"):
        monkeypatch.setattr(zipfile.ZipFile, method, lambda *_: pytest.fail("extracted"))
    open_dataset(path, cache=tmp_path / "cache", **SIZES)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache", "lab.zip"]


def test_missing_and_empty_paths_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere", cache=tmp_path, **SIZES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        open_dataset(tmp_path / "empty", cache=tmp_path, **SIZES)
    with pytest.raises(ValueError, match="n_val = 0"):
        open_dataset("toycats", cache=tmp_path, **SIZES | {"n_val": 0})


# --- any folder of images ---------------------------------------------------------------------------------------


def photographs(n: int) -> dict[str, bytes]:
    """Pictures of several sizes and modes; the first comes twice."""
    rng = np.random.default_rng(1)
    files = {}
    for i in range(n):
        shape = [(80, 100, 3), (64, 64, 3), (50, 40, 3), (90, 70), (64, 64, 4)][i % 5]
        files[f"{'ab'[i % 2]}/photo {i}.png"] = png(rng.integers(256, size=shape, dtype=np.uint8))
    return files | {"b/copy.png": files["a/photo 0.png"]}


def test_any_folder_becomes_a_dataset_without_duplicates(tmp_path):
    folder = write_folder(tmp_path / "photos", photographs(30))
    dataset = open_dataset(folder, cache=tmp_path / "cache", **SIZES)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (24, 3, 3)
    assert len(hashes(dataset.train) | hashes(dataset.val) | hashes(dataset.test)) == 30
    assert dataset.name == "photos" and dataset.whole.all() and not dataset.leaked.any()
    assert dataset.holes.shape == (3, 64, 64) and 0.05 < dataset.holes.float().mean() < 0.4
    other = open_dataset(folder, cache=tmp_path / "cache", **SIZES | {"seed": 6})
    assert torch.equal(other.train, dataset.train) and not torch.equal(other.holes, dataset.holes)


def test_the_split_depends_on_the_pictures_and_not_on_their_names(tmp_path):
    files = photographs(30)
    renamed = {f"{name[::-1]}.png": content for name, content in files.items()}
    first = open_dataset(write_folder(tmp_path / "one", files), cache=tmp_path / "cache", **SIZES)
    second = open_dataset(write_folder(tmp_path / "two", renamed), cache=tmp_path / "cache", **SIZES)
    assert torch.equal(first.val, second.val) and torch.equal(first.train, second.train)


def test_photographs_are_cropped_from_the_middle_and_resized(tmp_path):
    wide = np.zeros((128, 256, 3), dtype=np.uint8)
    wide[:, 64:192] = (200, 100, 50)  # the middle square has one colour, the sides are black
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2)) // 2
    square = np.full((64, 64, 3), 30, dtype=np.uint8)
    folder = write_folder(tmp_path / "photos", {"w.png": png(wide), "t.png": png(tall), "s.png": png(square)})
    dataset = open_dataset(folder, cache=tmp_path / "cache", **SIZES)
    images = torch.cat([dataset.train, dataset.val, dataset.test])[:, :, 4:60, 4:60]  # the filter blurs the edges
    colours = {tuple(image.flatten(1).unique(dim=1).flatten().tolist()) for image in images}
    assert colours == {(200, 100, 50), (100, 50, 25), (30, 30, 30)}


def test_photographs_are_turned_upright(tmp_path):
    files = photographs(2)
    half = Image.new("RGB", (64, 64), (250, 250, 250))
    half.paste((10, 10, 10), (0, 0, 32, 64))  # dark on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise, dark on top
    folder = write_folder(tmp_path / "photos", files)
    half.save(folder / "turned.jpg", exif=exif, quality=100)
    dataset = open_dataset(folder, cache=tmp_path / "cache", **SIZES)
    images = torch.cat([dataset.train, dataset.val, dataset.test]).float()
    contrast = images[:, :, 33:].mean((1, 2, 3)) - images[:, :, :31].mean((1, 2, 3))
    assert contrast.max() > 200


def own_with_masks() -> dict[str, bytes]:
    """Thirty photographs and a copy. Three have masks: a square, a rectangle that is grey, thin lines across one."""
    files = photographs(30)
    known = {stem: np.full(shape, 255, dtype=np.uint8) for stem, shape in
             {"photo 1": (64, 64), "photo 6": (64, 64), "photo 5": (80, 100)}.items()}  # fmt: skip
    known["photo 1"][16:32, 16:32] = known["photo 6"][40:50, 3:20] = 0
    known["photo 5"][::16, 10:90] = 0  # a line of one pixel
    holed = np.asarray(Image.open(io.BytesIO(files["a/photo 6.png"]))).copy()
    holed[known["photo 6"] == 0] = 128
    return files | {"a/photo 6.png": png(holed)} | {f"masks/{stem}.png": png(mask) for stem, mask in known.items()}


def test_a_photograph_whose_exif_data_are_damaged_is_taken_as_it_is_stored(tmp_path):
    files = photographs(12)
    tags = Image.Exif()
    tags[0x0112] = 6
    for name, exif in {"torn.png": b"Exif\x00\x00no header of a TIFF", "turned.png": tags.tobytes()[:20]}.items():
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (200, 10, len(name))).save(buffer, "png", exif=exif)
        files[name] = buffer.getvalue()
    dataset = open_dataset(write_folder(tmp_path / "photos", files), cache=tmp_path / "cache", **SIZES)
    assert dataset.given["all"] == 15


def test_linked_folders_are_read_like_others_and_loops_end(tmp_path, monkeypatch):
    plain = open_dataset(write_folder(tmp_path / "plain", photographs(12)), cache=tmp_path / "cache", **SIZES)
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in ("a", "b"):
        (linked / folder).symlink_to(tmp_path / "plain" / folder)
    (linked / "again").symlink_to(linked)
    found = open_dataset(linked, cache=tmp_path / "cache", **SIZES)
    assert hashes(found.train) == hashes(plain.train) and found.given == plain.given
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_dataset("~/plain", cache=tmp_path / "cache", **SIZES).train) == len(plain.train)


@pytest.mark.parametrize("pack", [as_zip, as_folder])
def test_photographs_with_masks_of_their_own_become_the_test_images(tmp_path, pack):
    originals = photographs(30)
    copies = {"b/copy of 1.png": originals["b/photo 1.png"], "b/photo 6 as it was.png": originals["a/photo 6.png"]}
    files = own_with_masks() | copies
    dataset = open_dataset(pack(tmp_path, files), cache=tmp_path / "cache", **SIZES)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (25, 2, 3)
    assert dataset.given == {"all": 33, "all.twice": 1, "all.in_test": 2, "masks": 3}
    assert not dataset.leaked.any() and not hashes(dataset.test) & (hashes(dataset.train) | hashes(dataset.val))
    places = {int(hole.sum()): i for i, hole in enumerate(dataset.holes)}
    seen, grey = places.pop(16 * 16), places.pop(10 * 17)
    assert dataset.holes[seen, 16:32, 16:32].all() and dataset.holes[grey, 40:50, 3:20].all()
    assert dataset.whole[seen] and not dataset.whole[grey]
    photo = torch.tensor(np.asarray(Image.open(io.BytesIO(files["b/photo 1.png"])))).permute(2, 0, 1)
    assert torch.equal(dataset.test[seen], photo)
    ((_, scratched),) = places.items()
    assert dataset.holes[scratched].any(1).sum() == 5 and dataset.whole[scratched]


def test_a_masked_photograph_shows_nothing_of_its_hole_around_it(tmp_path):
    """Resizing must not mix missing pixels into known ones."""
    rng = np.random.default_rng(2)
    files = {f"{i}.png": png(rng.integers(256, size=(90, 90, 3), dtype=np.uint8)) for i in range(4)}
    picture, known = np.full((190, 190, 3), 100, dtype=np.uint8), np.full((190, 190), 255, dtype=np.uint8)
    picture[50:101, 70:120], known[50:101, 70:120] = 255, 0
    folder = write_folder(tmp_path / "photos", files | {"holed.png": png(picture), "masks/holed.png": png(known)})
    dataset = open_dataset(folder, cache=tmp_path / "cache", **SIZES)
    assert dataset.test[0][:, ~dataset.holes[0]].eq(100).all()
    assert dataset.holes[0].float().mean().item() == pytest.approx(51 * 50 / 190**2, abs=0.02)


def test_one_missing_pixel_of_a_large_photograph_is_missing(tmp_path):
    large, known = np.full((1600, 1600, 3), 9, dtype=np.uint8), np.full((1600, 1600), 255, dtype=np.uint8)
    known[800, 800] = 0
    files = photographs(4) | {"large.png": png(large), "masks/large.png": png(known)}
    dataset = open_dataset(write_folder(tmp_path / "photos", files), cache=tmp_path / "cache", **SIZES)
    assert dataset.holes[0].nonzero().tolist() == [[32, 32]]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"masks/photo 1.png": png(known_of(0)[:32])}, "photo 1.png in .* is 64x64, but its mask .* is 64x32"),
        ({"masks/photo 99.png": png(GREY64 * (np.arange(64) > 9))}, "needs one picture called photo 99"),
        ({"a/photo 1.jpg": png(COLOUR64)}, "masks/photo 1.png in .* needs one picture called photo 1"),
        ({"masks/photo 1.png": png(GREY64)}, "masks/photo 1.png in .* says that no pixel is missing"),
        ({"masks/photo 1.png": png(GREY64 // 2)}, "only 0 .missing. and 255 .known., but it holds 127"),
    ],
)
def test_masks_that_fit_no_photograph_are_refused(tmp_path, changes, sentence):
    folder = write_folder(tmp_path / "photos", own_with_masks() | changes)
    with pytest.raises(ValueError, match=sentence):
        open_dataset(folder, cache=tmp_path / "cache", **SIZES)


def test_too_few_photographs_are_refused(tmp_path):
    same = {f"{i}.png": png(COLOUR64) for i in range(5)}
    with pytest.raises(ValueError, match="1 distinct images; train, val and test need at least 3"):
        open_dataset(write_folder(tmp_path / "photos", same), cache=tmp_path / "cache", **SIZES)
