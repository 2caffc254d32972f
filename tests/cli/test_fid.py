"""The command fid: every kind of set, what is printed beside the values, and features that are not made twice."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lab5.cli import fid as command
from lab5.cli.main import main
from lab5.data.dataset import Dataset
from lab5.data.toycats import render
from lab5.fid import feature_stats, frechet_distance, kid
from lab5.runtime import files
from lab5.scoring.classifier import EncoderFeatures, ToyFeatures
from lab5.scoring.damages import FAMILIES
from lab5.scoring.imagenet import ImageNetFeatures
from lab5.scoring.inception import InceptionFeatures

PIXELS = 64 * 64 * 3


@pytest.fixture
def images(generator) -> Tensor:
    return torch.randint(256, (12, 3, 64, 64), generator=generator, dtype=torch.uint8)


@pytest.fixture
def network(monkeypatch, images) -> ToyFeatures:
    """A small network that counts the images it looks at, in the place of the committed classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ToyFeatures({"fur": 3}, features=5, channels=(8, 8, 8, 8)).eval()
    network.calibrate(images.float() / 255)
    network.seen, real = [], network.features

    def features(images: Tensor, batch: int = 256) -> Tensor:
        network.seen.append(len(images))
        return real(images, batch)

    network.features = features
    monkeypatch.setattr(command, "load_classifier", lambda: network)
    return network


@pytest.fixture
def folders(images, tmp_path, monkeypatch) -> tuple[str, str]:
    """Two folders of six images, in the folder that the command line is used in."""
    monkeypatch.chdir(tmp_path)
    return write_images("a", images[:6]), write_images("b", images[6:])


def write_images(folder: str, images: Tensor) -> str:
    Path(folder).mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{folder}/image_{i:03d}.png")
    return folder


def run(line: str, features: str = "toy") -> int:
    return main(["fid", *line.split(), "--features", features, "--profile", "smoke", "--device", "cpu"])


@pytest.fixture
def distance(folders, images, network) -> float:
    """Of the two folders."""
    return frechet_distance(*(network.features(part / 255) for part in images.split(6)))


def value(out: str) -> float:
    return float(re.search(r"^Frechet.* = (\S+)$", out, re.MULTILINE)[1])


def test_n_of_both_the_network_and_the_values_are_printed(images, network, distance, capsys):
    assert run("a b") == 0
    n_a, n_b, used, score, *spread = capsys.readouterr().out.splitlines()
    assert (n_a, n_b) == ("n = 6: a", "n = 6: b")
    assert re.fullmatch(r"features: ToyFeatures, weights [0-9a-f]{12}", used)
    assert score == f"Frechet distance on toy-attribute features = {distance:.4f}", "it is not called FID"
    assert run("a b --paired") == 0
    spread += capsys.readouterr().out.splitlines()[4:]
    for line, paired in zip(spread, (False, True), strict=True):
        printed = re.fullmatch(r"KID = (-?\d+\.\d+) ± \d+\.\d+ \(SD .*\), (.*)", line)
        exact = kid(*(network.features(part / 255) for part in images.split(6)), paired=paired)
        assert float(printed[1]) == pytest.approx(exact, abs=1e-6)
        assert ("image by image" in printed[2]) == paired


def test_pairs_are_told_by_the_numbers_of_the_files_in_whatever_order(folders, images, network, capsys):
    assert run("a b --paired") == 0
    right = capsys.readouterr().out.splitlines()[3:]
    for i in range(6):  # by their names 10 comes before 5
        Path(f"a/image_{i:03}.png").rename(f"a/{i + 5}.png")
        Path(f"b/image_{i:03}.png").rename(f"b/of {i + 5:03}.png")
    assert run("--predicted-path a --gtcsv-path b") == 0
    ours = capsys.readouterr().out.splitlines()[3:]
    assert [re.findall(r"-?\d+\.\d+", line)[:1] for line in ours] == [
        re.findall(r"-?\d+\.\d+", line)[:1] for line in right]  # fmt: skip
    assert "image by image" in ours[-1]
    assert run("a a --paired") == 0 and "KID = 0.000000" in capsys.readouterr().out.replace("-0.0", "0.0")
    Path("a/7.png").rename("a/17.png")
    assert run("a b --paired") == 2 and "same numbers in a and b, but 17 is in one" in capsys.readouterr().err
    assert run("--predicted-path a --gtcsv-path b") == 0 and "independent" in capsys.readouterr().out
    np.savez("s.npz", mu=np.zeros(96), sigma=np.eye(96), n=6)
    assert run("a s.npz --paired") == 2 and "--paired needs images" in (said := capsys.readouterr().err)
    assert "but one of them has statistics alone" in said


def test_the_labs_csv_is_the_folder_of_its_images(folders, images, network, capsys):
    rows = images[6:].permute(0, 2, 3, 1).reshape(6, -1).tolist()  # pixels row by row, red green blue of each
    Path("gt.csv").write_text("\n".join(",".join(map(str, row)) for row in [range(PIXELS), *rows]) + "\n")
    assert run("a b --paired") == 0
    as_folder = capsys.readouterr().out.splitlines()[2:]
    assert run("--predicted-path a --gtcsv-path gt.csv") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2:] == as_folder
    assert "found on disk" in printed.err, "the same images, wherever they are from"


@pytest.mark.parametrize("n", [{"n": 6}, {}], ids=["n", "unknown"])
def test_pytorch_fids_statistics_take_the_place_of_images(images, network, distance, capsys, n):
    mu, sigma = feature_stats(network.features(images[6:] / 255))
    np.savez("stats.npz", mu=mu.numpy(), sigma=sigma.numpy(), **n)
    assert run("a stats.npz") == 0
    out = capsys.readouterr().out
    assert value(out) == pytest.approx(distance, abs=1e-3)
    assert f"n = {n.get('n', 'unknown')}: stats.npz" in out
    assert "KID needs the images of both sets" in out and "KID =" not in out


def test_saved_statistics_can_be_compared_later_and_read_by_others(images, network, distance, capsys):
    assert run("b --save-stats b.npz") == 0
    assert "mu, sigma and n = 6" in capsys.readouterr().out
    with np.load("b.npz") as stats:
        features = network.features(images[6:] / 255).double().numpy()
        np.testing.assert_allclose(stats["mu"], features.mean(0), atol=1e-6)
        np.testing.assert_allclose(stats["sigma"], np.cov(features, rowvar=False), atol=1e-6)
    assert run("b a --save-stats a.npz") == 0, "of the second"
    network.seen.clear()
    capsys.readouterr()
    assert run("a.npz b.npz") == 0
    assert value(capsys.readouterr().out) == pytest.approx(distance, abs=1e-3) and network.seen == []


def test_toy_cats_are_cut_to_the_number_of_the_other_set(folders, images, network, monkeypatch, capsys):
    none = torch.zeros(12, dtype=torch.bool)
    cats = Dataset("toycats", images, images, images.flip(3), torch.zeros(12, 64, 64) > 0, none, none, {}, {})
    monkeypatch.setattr(command, "get_dataset", lambda config: cats)
    assert run("a toycats-test") == 0
    out = capsys.readouterr().out
    assert out.startswith("n = 6: a\nn = 6: toycats-test\n")
    a, b = (network.features(part / 255) for part in (images[:6], images.flip(3)[:6]))
    assert value(out) == pytest.approx(frechet_distance(a, b), abs=1e-4)
    assert run("toycats-test a --n 5") == 0
    assert "n = 5: toycats-test\nn = 5:" in capsys.readouterr().out


def test_features_of_the_reference_are_made_once(folders, network, capsys):
    run("a b")
    first = capsys.readouterr()
    assert network.seen == [6, 6] and "found on disk" not in first.err
    run("a b")
    second = capsys.readouterr()
    assert network.seen == [6, 6, 6], "only those of the results"
    assert "features of b: found on disk" in second.err and second.out == first.out


def test_another_pixel_weight_or_number_of_images_is_another_reference(folders, images, network, capsys):
    run("a b")
    first = capsys.readouterr().out.splitlines()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save("b/image_003.png")
    run("a b")
    run("a b --n 5")
    with torch.no_grad():
        network.mean += 1
    capsys.readouterr()
    run("a b")
    last = capsys.readouterr()
    assert network.seen == [6, 6] * 2 + [5, 5] + [6, 6] and "found on disk" not in last.err
    assert last.out.splitlines()[2] != first[2], "the hash of the weights"


def test_inception_is_made_from_the_flags(folders, network, monkeypatch, capsys):
    asked = []

    class Stub(InceptionFeatures):
        def __init__(self, weights=None, *, download=False):
            torch.nn.Module.__init__(self)
            asked.append((weights, download))
            self.weights_hash, self.score_name = "6726825d" + "0" * 56, "FID (Inception 6726825d)"

        def features(self, images: Tensor, batch: int = 50) -> Tensor:
            asked.append(batch)
            return network.features(images)

    monkeypatch.setattr(command, "InceptionFeatures", Stub)
    assert run("a b", features="inception") == 0
    out = capsys.readouterr().out
    assert "FID (Inception 6726825d) = " in out and "features: Stub, weights 6726825d0000" in out
    run("a b --weights w.pth --download --batch-size 7 --dims 2048", features="inception")
    assert asked == [(None, False), 50, 50, (Path("w.pth"), True), 7], "features of the reference were found"


def test_imagenet_features_are_named_kept_under_a_key_of_their_own_and_need_no_weights(
    folders, images, network, monkeypatch, capsys
):
    ours, looked = ImageNetFeatures(), []
    expected = frechet_distance(*(ours.features(part / 255) for part in images.split(6)))
    forward = ImageNetFeatures.forward
    monkeypatch.setattr(ImageNetFeatures, "forward", lambda self, x: looked.append(len(x)) or forward(self, x))
    assert run("a b --paired", features="imagenet") == 0
    printed = capsys.readouterr().out
    assert f"Fréchet distance on ImageNet features (EfficientNet-Lite0) = {expected:.2f}" in printed
    assert "features: ImageNetFeatures, weights 57934424" in printed and "KID = " in printed and "FID" not in printed
    assert run("a b", features="toy") == 0 and "found on disk" not in capsys.readouterr().err, "of another network"
    looked.clear()
    assert run("a b", features="imagenet") == 0
    assert "features of b: found on disk" in capsys.readouterr().err and looked == [6], "those of a are made again"
    monkeypatch.setattr(ImageNetFeatures, "version", 2)
    assert run("a b", features="imagenet") == 0 and "found on disk" not in capsys.readouterr().err
    assert run("a b --weights w.pth", features="imagenet") == 2
    assert "--weights and --download are for --features inception" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    assert run("a b", features="imagenet") == 2
    error = capsys.readouterr().err
    assert "need efficientnet_lite_pytorch, which is not here: pip install" in error and error.count("\n") == 1


def test_sets_of_different_n_are_refused_with_the_way_out(folders, network, capsys):
    Path("b/image_005.png").unlink()
    assert run("a b") == 2
    error = capsys.readouterr().err
    assert "a has 6 images and" in error and "b has 5" in error and "--n" in error
    assert run("a b --n 5") == 0 and "n = 5" in capsys.readouterr().out
    assert run("a b --n 3") == 2 and "at least 4 images, found 3" in capsys.readouterr().err
    np.savez("five.npz", mu=np.zeros(5), sigma=np.eye(5), n=5)
    assert run("a five.npz") == 2 and "has 6 images and" in capsys.readouterr().err


def test_images_that_cannot_be_compared_are_named(folders, images, network, monkeypatch, capsys):
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", "none.pth")
    write_images("small", images[:6, :, :32, :32])
    assert run("a small") == 2 and "64x64" in capsys.readouterr().err
    assert run("a small", features="inception") == 2
    error = capsys.readouterr().err
    assert "no Inception weights at" in error and "--features imagenet needs no download" in error
    Image.new("RGB", (20, 10)).save("small/4.png")
    assert run("a small") == 2 and "several sizes (20x10, 32x32)" in capsys.readouterr().err
    Path("a/image_002.png").write_bytes(b"no picture")
    assert run("a small") == 2 and "image_002.png in" in capsys.readouterr().err


ROW = ",".join(["7"] * PIXELS)


@pytest.mark.parametrize("content, sentence", [
    ("", "holds no images"),
    ("header\n", "holds no images"),
    ("header\n1,2,3\n", "must have 12288 values a row; row 2 has 3"),
    (f"header\n{ROW}\n{ROW},7\n", "must have 12288 values a row; row 3 has 12289"),
    (f"header\n{ROW[:-1]}x\n", "is not the lab's csv of images"),
    (f"header\n{ROW[:-1]}256\n", "whole numbers from 0 to 255"),
    (f"header\n{ROW[:-1]}0.5\n", "whole numbers from 0 to 255"),
    (f"header\n{ROW[:-1]}nan\n", "whole numbers from 0 to 255"),
    (f"{ROW}\n{ROW}\n", "has no header"),
    ({"mu": np.zeros(5)}, "must hold mu and sigma, found mu"),
    ({"mu": np.zeros(5), "sigma": np.eye(4)}, "found mu (5,), sigma (4, 4)"),
    ({"mu": np.zeros(5), "sigma": np.eye(5), "n": np.zeros(3)}, "n (3,) float64"),
    ({"mu": np.zeros(5), "sigma": np.full((5, 5), np.nan)}, "must hold finite floats"),
    ({"mu": np.zeros(5, int), "sigma": np.eye(5)}, "must hold finite floats"),
    ({"mu": np.array([None] * 5), "sigma": np.eye(5)}, "is not a readable npz"),
    ({"mu": np.zeros(7), "sigma": np.eye(7)}, "has 5 features and"),
], ids=[f"csv{i}" for i in range(9)] + [f"npz{i}" for i in range(7)])  # fmt: skip
def test_a_csv_or_statistics_of_another_form_are_refused(folders, network, capsys, content, sentence):
    if isinstance(content, str):
        Path("set.csv").write_text(content)
    else:
        np.savez("set.npz", **content)
    assert run("a set.csv" if isinstance(content, str) else "a set.npz") == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.out == ""
    assert network.seen == [] or sentence == "has 5 features and", "refused before anything is computed"


@pytest.mark.parametrize("line, sentence", [
    ("a /nowhere", "/nowhere is no folder and no file; a set is"),
    ("a a/image_000.png", "is no set: files must be"),
    ("a --save-stats stats.txt", "writes a new file that ends in .npz"),
    ("a --save-stats there.npz", "there.npz is there already"),
    ("a there.npz --save-stats new.npz", "is a file of statistics itself"),
    ("a b --n 0", "--n must be at least 1"),
    ("a b --batch-size 0", "--batch-size must be at least 1"),
])  # fmt: skip
def test_other_mistakes_are_one_sentence(folders, network, capsys, line, sentence):
    np.savez("there.npz", mu=np.zeros(5), sigma=np.eye(5))
    assert run(line) == 2
    assert sentence in capsys.readouterr().err and network.seen == [] and not Path("new.npz").exists()


def test_statistics_are_written_whole_or_not_at_all(folders, network, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert run("a --save-stats stats.npz") == 2
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b"]
    assert "No space left" in capsys.readouterr().err


# --- damages --------------------------------------------------------------------------------------------------------


def damages(line: str) -> int:
    return main(["fid", "--damages", *line.split(), "--profile", "smoke", "--device", "cpu"])


def test_damages_of_toy_cats_are_a_table_and_a_line_for_each_number(capsys):
    assert damages("toycats --features toy --n 4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "n = 4 test images of toycats whose truth is known, device cpu; paired"
    assert lines[1:3] == [f"toy: {ToyFeatures.score_name}", f"encoder: {EncoderFeatures.score_name}"]
    assert lines[3].split() == ["damage", "strength", "toy", "KID", "encoder", "PSNR", "(dB)", "SSIM"]
    n = sum(len(family.strengths) for family in FAMILIES.values())
    assert [line.split()[0] for line in lines[4 : 4 + n]] == [
        name for name, family in FAMILIES.items() for _ in family.strengths]  # fmt: skip
    for line, number in zip(lines[4 + n : -1], ("toy", "KID", "encoder", "PSNR (dB)", "SSIM"), strict=True):
        assert re.match(rf"{re.escape(number)} orders \d+ of {len(FAMILIES)} families by strength", line)
    assert re.search(rf"with toy over all {n} rows: KID .0.\d\d, encoder .0.\d\d, PSNR \(dB\) -", lines[-1])


def test_damages_of_any_folder_of_pictures_need_no_vqgan(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images("photos", render(1, 30).images)
    assert damages("photos --features imagenet --n 3") == 0
    out, err = capsys.readouterr()
    assert "n = 3 test images of photos" in out and "encoder" not in out and "\ntokens" not in out
    assert "imagenet: Fréchet distance on ImageNet features (EfficientNet-Lite0)" in out
    assert f"imagenet orders {len(FAMILIES) - 1} of {len(FAMILIES) - 1} families by strength\n" in out
    assert "without --vqgan there are no features of an encoder" in err


@pytest.mark.parametrize("line, sentence", [
    ("toycats a b", "leave out the two sets"),
    ("toycats --save-stats s.npz", "leave out the two sets"),
    ("toycats --n 1", "--n must be at least 2"),
    ("/nowhere --features toy", "/nowhere does not exist"),
    ("toycats --features toy --vqgan none.safetensors", "none.safetensors"),
    ("toycats --features toy --weights w.pth", "are for --features inception"),
])  # fmt: skip
def test_damages_are_refused_with_a_sentence(line, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert damages(line) == 2
    out, err = capsys.readouterr()
    assert sentence in err and out == "" and list(tmp_path.iterdir()) == []


def test_a_vqgan_is_for_damages_alone(folders, network, capsys):
    assert run("a b --vqgan v.safetensors") == 2 and "--vqgan is for --damages" in capsys.readouterr().err
