"""Masks against a loop, datasets against small ones written here, and the lab's own files where they are present."""

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lab5 import files, toycats
from lab5.data import (
    TEST_STATS,
    TRAIN_STATS,
    Dataset,
    denormalise,
    normalise,
    open_dataset,
    pixel_mask,
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


def test_pixel_mask_covers_whole_blocks_and_is_undone_by_token_mask():
    unknown = torch.rand(4, 256, generator=torch.Generator().manual_seed(1)) < 0.3
    pixels = pixel_mask(unknown)
    assert pixels.shape == (4, 64, 64) and pixels.sum() == 16 * unknown.sum()
    assert torch.equal(token_mask(pixels), unknown)


@pytest.mark.parametrize("hole", [torch.ones(2, 64, 64), torch.ones(2, 64, 60, dtype=torch.bool)])
def test_holes_of_another_kind_are_refused(hole):
    with pytest.raises(REFUSED):
        token_mask(hole)


@pytest.mark.parametrize("stats", [TRAIN_STATS, TEST_STATS])
def test_normalise_is_torchvisions_and_denormalise_undoes_it(stats):
    functional = pytest.importorskip("torchvision.transforms.functional")
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    expected = functional.normalize(images / 255, stats.mean, stats.std)
    torch.testing.assert_close(normalise(images, stats), expected)
    torch.testing.assert_close(normalise(images / 255, stats), expected)
    torch.testing.assert_close(denormalise(expected, stats), images / 255)
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
    with pytest.raises(OSError, match="No space"):
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


def lab_files(train="lab5_dataset/", masks="lab5_dataset/") -> dict[str, bytes]:
    """Six train files of which two are equal; five val files: two leaked, two equal; three test images, of which
    one comes from train, one from val and one from elsewhere; four masks."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(256, size=(9, 64, 64, 3), dtype=np.uint8)
    files = {f"{train}train/image_{i:05}.png": png(pictures[p]) for i, p in enumerate([0, 1, 2, 3, 4, 1])}
    files |= {f"{train}val/image_{i:05}.png": png(pictures[p]) for i, p in enumerate([0, 5, 4, 6, 6])}
    for i, picture in enumerate([3, 6, 8]):
        known = np.full((64, 64), 255, dtype=np.uint8)
        known[10 * i : 10 * i + 12, 20:44] = 0
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


def test_files_are_decoded_once_until_they_change(tmp_path, monkeypatch):
    path = as_folder(tmp_path, lab_files())
    first = open_dataset(path, cache=tmp_path / "cache", **SIZES)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_read", lambda *_: pytest.fail("decoded again"))
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
        ({"lab5_dataset/mask64/mask_001.png": None}, "1 masked images without a mask, the first is number 1"),
        ({"lab5_dataset/mask64/mask_001.png": png(GREY64 // 2)}, "only 0 .missing. and 255 .known."),
        ({"lab5_dataset/mask64/mask_001.png": png(COLOUR64)}, "is RGB 64x64, but must be L 64x64"),
        ({"lab5_dataset/mask64/mask_001.png": png(255 - GREY64)}, "image_001.png is not grey"),
        ({"lab5_dataset/train/image_00002.png": png(COLOUR64[:32])}, "is RGB 64x32, but must be RGB 64x64"),
        ({"lab5_dataset/val/image_00002.png": png(GREY64)}, "is L 64x64, but must be RGB"),
        ({"lab5_dataset/val/image_00002.png": b"not a picture"}, "image_00002.png in .* is not a readable image"),
        ({"lab3_dataset/train/image_00002.png": png(COLOUR64)}, "needs a number of its own"),
        ({"lab5_dataset/train/cat.png": png(COLOUR64)}, "needs a number of its own"),
        ({f"lab5_dataset/val/image_{i:05}.png": None for i in range(5)}, "no images in a folder val"),
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
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        open_dataset(path, cache=tmp_path / "cache", **SIZES)


def test_archives_are_not_extracted(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "lab.zip", lab_files() | {"../train/image_00099.png": png(COLOUR64)})
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


def test_too_few_photographs_are_refused(tmp_path):
    same = {f"{i}.png": png(COLOUR64) for i in range(5)}
    with pytest.raises(ValueError, match="1 distinct images; train, val and test need at least 3"):
        open_dataset(write_folder(tmp_path / "photos", same), cache=tmp_path / "cache", **SIZES)


# --- the real files ---------------------------------------------------------------------------------------------

REAL = Path(os.environ.get("LAB5_DATASET") or Path(__file__).parents[2] / "shared" / "lab5_dataset.zip")


@pytest.mark.skipif(not REAL.exists(), reason=f"the lab's dataset is not at {REAL}; LAB5_DATASET names another place")
def test_the_labs_dataset_has_the_known_figures(tmp_path, monkeypatch):
    everything = {"n_train": 20000, "n_val": 20000, "n_test": 20000, "seed": 0, "cache": tmp_path}
    dataset = open_dataset(REAL, **everything)
    assert (len(dataset.train), len(dataset.val)) == (8244, 896)
    assert not hashes(dataset.train) & hashes(dataset.val)
    if zipfile.is_zipfile(REAL):  # of 3000 validation files 1118 are not in train
        train = hashes(dataset.train)
        val = files._stack(REAL, [n for n in zipfile.ZipFile(REAL).namelist() if "/val/" in n], "RGB")
        assert sum(image.tobytes() not in train for image in val) == 1118
    masked = token_mask(dataset.holes).float()
    assert masked.mean().item() == pytest.approx(0.332, abs=0.005)
    assert token_mask(~dataset.holes).float().mean().item() == pytest.approx(0.945, abs=0.005)
    assert 0.09 < dataset.holes.float().mean((1, 2)).min() and dataset.holes.float().mean((1, 2)).max() < 0.31
    assert dataset.whole.float().mean().item() == pytest.approx(570 / 747, abs=0.03)
    assert dataset.leaked.float().mean().item() == pytest.approx(446 / 747, abs=0.03)
    monkeypatch.setattr(files, "_read", lambda *_: pytest.fail("decoded again"))
    assert open_dataset(REAL, **everything).fingerprint == dataset.fingerprint
