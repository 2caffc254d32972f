"""What can come in broken, and the sentence that each is answered with: a table.

A line is what is wrong, how it comes about, and what the sentence says (a regular expression). Every one is tried:
it raises an error of this package, of one sentence that names the file or the setting, and nothing is written.
"""

import contextlib
import hashlib
import io
import os
import pickle
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from lab5.attention import MultiHeadAttention
from lab5.checkpoint import load_transformer, load_vqgan
from lab5.cli.main import main
from lab5.config import DecodeConfig, TransformerConfig, VQGANConfig
from lab5.data.dataset import normalise, open_dataset, open_masked, token_mask
from lab5.data.holes import fill_holes
from lab5.decoder import decode_steps
from lab5.fid import feature_stats, frechet_distance, frechet_distance_from_stats, kid
from lab5.gamma import masked_count
from lab5.profiles import configure
from lab5.runtime.files import save_tensors
from lab5.scoring.classifier import ToyFeatures, load_classifier
from lab5.scoring.inception import InceptionFeatures
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

Action = Callable[[], Any]  # what is to be refused
Make = Callable[[Path], Action]  # writes the broken input into an empty folder
Files = dict[str, bytes | None]  # None: not there

SIZES = {"n_train": 9, "n_val": 9, "n_test": 9, "seed": 5}
REFUSALS = (ValueError, OSError, FileNotFoundError, PermissionError)


# --- pictures ---------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def png(array: np.ndarray) -> bytes:
    return encoded(Image.fromarray(array))


PICTURES = np.random.default_rng(0).integers(1, 127, size=(9, 64, 64, 3), dtype=np.uint8)  # none of it the grey 128
PICTURE = Image.fromarray(PICTURES[8])
JPEG = encoded(PICTURE, "JPEG")
KNOWN = np.full((64, 64), 255, dtype=np.uint8)
KNOWN[10:30, 20:44] = 0
HOLED = np.where(KNOWN[:, :, None] == 255, PICTURES[:2], np.uint8(128))


def bomb(side: int) -> bytes:
    """A PNG whose header says that it is so large."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + b"IHDR" + header + check + png(PICTURES[0])[33:]


def moving(kind: str) -> bytes:
    return encoded(PICTURE, kind, save_all=True, append_images=[Image.fromarray(PICTURES[7])])


def mode(name: str, kind: str = "PNG") -> bytes:
    return encoded(PICTURE.convert(name), kind)


SIXTEEN_BITS = png(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))


# --- datasets ---------------------------------------------------------------------------------------------------

LAB: Files = (
    {f"train/image_{i:05}.png": png(PICTURES[i]) for i in range(4)}
    | {f"val/image_{i:05}.png": png(PICTURES[4 + i]) for i in range(2)}
    | {f"masked_image/image_{i:03}.png": png(HOLED[i]) for i in range(2)}
    | {f"mask64/mask_{i:03}.png": png(KNOWN) for i in range(3)}
)
OWN: Files = {f"cat {i}.png": png(PICTURES[i]) for i in range(5)}


def without(folder: str) -> Files:
    return {name: None for name in LAB if name.startswith(f"{folder}/")}


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def opening(path: Path, **sizes: int) -> Action:
    return lambda: open_dataset(path, cache=path.parent / "cache", **SIZES | sizes)


def lab(changes: Files) -> Make:
    """The lab's dataset as a folder, with changes."""
    return lambda at: opening(write(at / "lab5_dataset", LAB | changes))


def mask(content: bytes) -> Make:
    """The lab's dataset with another mask for test image 1."""
    return lab({"mask64/mask_001.png": content})


def train(content: bytes) -> Make:
    """The lab's dataset with another training image 2."""
    return lab({"train/image_00002.png": content})


def own(changes: Files) -> Make:
    """A folder of one's own pictures, with changes."""
    return lambda at: opening(write(at / "photos", OWN | changes))


def file(name: str, content: bytes) -> Make:
    """A file in the place of a dataset."""
    return lambda at: opening(write(at, {name: content}) / name)


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], files: Files = LAB) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names given twice
        for name, content in [*files.items(), *entries]:
            target.writestr(name, content)
    return buffer.getvalue()


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], files: Files = LAB) -> Make:
    """The lab's dataset as a zip, with more entries."""
    return file("lab5_dataset.zip", archive(*entries, files=files))


def link(name: str = "train/image_00009.png") -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def directory_field(content: bytes, offset: int, value: bytes) -> bytes:
    """A zip with a field of its first entry in the central directory replaced, as a liar would."""
    start = content.index(b"PK\x01\x02") + offset
    return content[:start] + value + content[start + len(value) :]


def all_of_size(content: bytes, size: int) -> bytes:
    """A zip that says so of each of its entries."""
    parts = content.split(b"PK\x01\x02")
    field = struct.pack("<I", size)  # 24 bytes behind the start, 20 behind the mark
    return b"PK\x01\x02".join([parts[0], *(part[:20] + field + part[24:] for part in parts[1:])])


def packed(content: Any) -> bytes:
    """What torch saves, with every part of it compressed."""
    plain, small = io.BytesIO(), io.BytesIO()
    torch.save(content, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return small.getvalue()


def folders(images: Files, masks: Files) -> Make:
    """Two test folders of the lab's."""

    def make(at: Path) -> Action:
        write(at, {f"images/{name}": content for name, content in images.items()})
        write(at, {f"masks/{name}": content for name, content in masks.items()})
        return lambda: open_masked(at / "images", at / "masks")

    return make


def unreadable(at: Path) -> Action:
    path = write(at / "lab5_dataset", LAB)

    def action() -> None:
        with pytest.MonkeyPatch.context() as patch:  # chmod would not stop root
            patch.setattr(os, "access", lambda *_: False)
            opening(path)()

    return action


DATASETS: list[tuple[str, Make, str]] = [
    # The lab's photographs.
    ("a training image that is too small", train(png(PICTURES[0][:32])), r"image_00002.png in .* is RGB 64x32"),
    ("a training image that is too large", train(encoded(PICTURE.resize((128, 128)))), "is RGB 128x128, but must be"),
    ("a grey training image", train(mode("L")), "image_00002.png in .* is L 64x64, but must be RGB 64x64"),
    ("a transparent training image", train(mode("RGBA")), "is RGBA 64x64, but must be RGB"),
    ("a training image with a palette", train(mode("P")), "is P 64x64, but must be RGB"),
    ("a training image of one bit", train(mode("1")), "is 1 64x64, but must be RGB"),
    ("a training image of 16 bits", train(SIXTEEN_BITS), "is I;16 64x64, but must be RGB"),
    ("a training image for printers", train(mode("CMYK", "JPEG")), "is CMYK 64x64, but must be RGB"),
    ("a PNG that was cut short", train(png(PICTURES[0])[:900]), "image_00002.png in .* is not a readable image"),
    ("a JPEG that was cut short", train(JPEG[: len(JPEG) // 2]), "image_00002.png in .* is not a readable image"),
    ("a PNG with a damaged header", train(png(PICTURES[0]).replace(b"IHDR", b"IHDX")), "is not a readable image"),
    ("an empty image", train(b""), "image_00002.png in .* is an empty file"),
    ("text called .png", train(b"a cat, sitting"), "image_00002.png in .* is not a readable image"),
    ("a web page called .png", train(b"<!DOCTYPE html><title>404</title>"), "is not a readable image"),
    ("PostScript called .png", train(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"), "not a readable image"),
    ("a PNG that says 60000 x 60000 pixels", train(bomb(60_000)),
     "image_00002.png in .* is larger than the 80 million pixels"),
    ("a PNG of 81 million pixels", train(bomb(9_000)), "is larger than the 80 million pixels"),
    ("an animated PNG", train(moving("PNG")), "image_00002.png in .* is an animation of 2 frames"),
    ("an animated WebP", train(moving("WEBP")), "image_00002.png in .* is an animation of 2 frames"),
    ("a GIF called .png", train(moving("GIF")), "image_00002.png in .* is not a readable image"),
    ("a validation image of another size", lab({"val/image_00001.png": png(PICTURES[0][:, :9])}), "is RGB 9x64"),
    ("an image without a number", lab({"train/cat.png": png(PICTURES[8])}),
     "train/cat.png in .* needs a number at the end"),
    ("a number given twice", lab({"train/image_2.png": png(PICTURES[8])}),
     "image_00002.png and train/image_2.png in .* the same number, 2"),
    ("a copy called (1)", lab({"val/image_00001 (1).png": png(PICTURES[8])}), r"\(1\).png in .* needs a number"),
    ("a masked image whose hole is not grey", lab({"masked_image/image_001.png": png(PICTURES[1])}),
     r"image_001.png in .* is not grey \(128\) where its mask says missing"),
    ("a masked image of another grey", lab({"masked_image/image_001.png": png(HOLED[1] - (HOLED[1] == 128))}),
     r"image_001.png in .* is not grey \(128\)"),
    ("a masked image that JPEG has blurred", lab({"masked_image/image_001.png": encoded(
        Image.fromarray(HOLED[1]), "JPEG", quality=30)}), r"image_001.png in .* is not grey \(128\)"),
    # The lab's masks.
    ("a mask of another size", mask(png(KNOWN[:32])), "mask_001.png in .* is L 64x32, but must be L 64x64"),
    ("a mask in colour", mask(png(PICTURES[0])), "mask_001.png in .* is RGB 64x64, but must be L 64x64"),
    ("a transparent mask", mask(encoded(Image.fromarray(KNOWN).convert("LA"))), "is LA 64x64, but must be L"),
    ("a mask of one bit", mask(encoded(Image.fromarray(KNOWN).convert("1"))), "is 1 64x64, but must be L"),
    ("a mask of 0 and 1", mask(png(KNOWN // 255)), r"mask_001.png .* 0 \(missing\) and 255 \(known\), but it holds 1"),
    ("a mask with 127", mask(png(np.where(KNOWN, KNOWN, 127).astype(np.uint8))), "but it holds 127"),
    ("a mask with soft edges", mask(png(KNOWN - np.tri(64, dtype=np.uint8) * 9 * (KNOWN > 0))), "it holds 246"),
    ("a mask with nothing known", mask(png(0 * KNOWN)), "mask_001.png in .* says that every pixel is missing"),
    ("a mask with nothing missing", mask(png(KNOWN | 255)), "mask_001.png in .* says that no pixel is missing"),
    ("an inverted mask", mask(png(255 - KNOWN)),
     "mask_001.png in .* is inverted: its image is grey where it says known"),
    ("a mask that was moved", mask(png(np.roll(KNOWN, 9, 0))), "image_001.png in .* is not grey"),
    ("a mask that is missing", lab({"mask64/mask_001.png": None}), "1 masked image without a mask, .* is number 1"),
    ("two masks that are missing", lab({f"mask64/mask_00{i}.png": None for i in (0, 1)}),
     "2 masked images .* number 0"),
    ("a mask without a number", lab({"mask64/mask.png": png(KNOWN)}), "mask64/mask.png in .* needs a number"),
    ("two masks of one number", lab({"mask64/mask_1.png": png(KNOWN)}),
     "mask_001.png and mask64/mask_1.png in .* the same number, 1"),
    ("a mask that was cut short", mask(png(KNOWN)[:60]), "mask_001.png in .* is not a readable image"),
    ("an empty mask", mask(b""), "mask_001.png in .* is an empty file"),
    # The lab's folders.
    ("a path that is not there", lambda at: opening(at / "nowhere"), "nowhere does not exist; a dataset is"),
    ("an empty folder", own({name: None for name in OWN}), "photos holds no images"),
    ("a folder of text", lambda at: opening(write(at / "a", {"read me.txt": b"hello"})), "a holds no images"),
    ("only hidden files", lambda at: opening(write(at / "a", {"._cat.png": b"", ".x/cat.png": b""})),
     "holds no images"),
    ("a folder with the zip inside", lambda at: opening(write(at / "a", {"lab5_dataset.zip": b"PK"})),
     "a holds no images .*; the archive lab5_dataset.zip in it has to be named itself"),
    ("a text in place of a folder", file("lab5_dataset", b"hello"), "lab5_dataset is neither a folder nor a zip"),
    ("a picture in place of a folder", file("cat.png", png(PICTURES[0])), "cat.png is neither a folder nor a zip"),
    ("a folder that may not be read", unreadable, "lab5_dataset may not be read"),
    ("no train", lab(without("train")),
     "has no images in train; the lab's dataset has train, val, masked_image, mask64"),
    ("no val", lab(without("val")), "has no images in val; the lab's dataset has"),
    ("no masked images", lab(without("masked_image")), "has no images in masked_image; the lab's dataset has"),
    ("no masks", lab(without("mask64")), "has no images in mask64; the lab's dataset has"),
    ("two datasets in one folder", lab({"copy/masked_image/image_000.png": b"x"}),
     "holds 2 datasets .*: name the folder"),
    ("a val that is all in train", lab({"val/image_00000.png": LAB["train/image_00000.png"],
     "val/image_00001.png": None}),
     "every image of val in .* is in train too"),
    ("no images asked for", lambda at: opening(write(at / "a", OWN), n_val=0), "at least one image .* n_val = 0"),
    ("toy cats whose seed meets another split's", lambda at: lambda: open_dataset(
        "toycats", **SIZES | {"seed": 1000}, cache=at / "cache"), "seed of the toy cats must lie in 0..999.*1000"),
    # Two test folders alone.
    ("no folder of masked images", lambda at: lambda: open_masked(at / "images", at), "images does not exist"),
    ("no folder of masks", lambda at: lambda: open_masked(at, at / "masks"), "masks does not exist"),
    ("an empty folder of masks", folders({"image_000.png": png(HOLED[0])}, {"x.txt": b""}), "masks holds no images"),
    ("a masked image without a number", folders({"cat.png": png(HOLED[0])}, {"0.png": png(KNOWN)}),
     "cat.png in .*number"),
    ("masked images without masks", folders({"7.png": png(HOLED[0])}, {"0.png": png(KNOWN)}),
     "without a mask.*number 7"),
    ("the two folders swapped", folders({"0.png": png(KNOWN)}, {"0.png": png(HOLED[0])}),
     "images is L 64x64, but must"),
    ("masks that are inverted", folders({"0.png": png(HOLED[0])}, {"0.png": png(255 - KNOWN)}),
     "0.png in .* is inverted"),
    ("images that were filled", folders({"0.png": png(PICTURES[0])}, {"0.png": png(KNOWN)}), "0.png in .* is not grey"),
    # Pictures of one's own.
    ("two pictures", own({f"cat {i}.png": None for i in range(3)}), "photos holds 2 distinct images; .* at least 3"),
    ("one picture five times", own({name: OWN["cat 0.png"] for name in OWN}), "photos holds 1 distinct images"),
    ("a picture of 16 bits", own({"x.png": SIXTEEN_BITS}), "x.png in .* has pixels of type I;16; save it with 8 bits"),
    ("a photograph that was cut short", own({"x.jpg": JPEG[:500]}), "x.jpg in .* is not a readable image"),
    ("a photograph that is empty", own({"x.jpg": b""}), "x.jpg in .* is an empty file"),
    ("a photograph too large", own({"x.png": bomb(60_000)}), "x.png in .* is larger than the 80 million pixels"),
    ("a mask of no picture", own({"masks/dog.png": png(KNOWN)}), "masks/dog.png in .* needs one picture called dog"),
    ("a mask of two pictures", own({"b/cat 1.jpg": JPEG, "masks/cat 1.png": png(KNOWN)}),
     "needs one picture called cat 1"),
    ("two masks of one picture", own({f"masks/{i}/cat 1.png": png(KNOWN) for i in "ab"}), "and that picture one mask"),
    ("a mask of another size than its picture", own({"masks/cat 1.png": png(KNOWN[:40])}),
     "cat 1.png in .* is 64x64, but its mask masks/cat 1.png is 64x40"),
    ("a grey mask", own({"masks/cat 1.png": png(KNOWN // 2)}), "masks/cat 1.png in .* must hold only 0 .* 127"),
    ("a mask that hides a picture wholly", own({"masks/cat 1.png": png(0 * KNOWN)}), "every pixel is missing"),
    ("a mask outside the middle", own({"cat 1.png": encoded(PICTURE.resize((64, 128))), "masks/cat 1.png": png(
        np.vstack([0 * KNOWN[:9], KNOWN[:1].repeat(119, 0)]))}),
     "cat 1.png in .*: of the square in its middle masks/cat 1.png says"),
    ("masks for all pictures but one", own({f"masks/cat {i}.png": png(KNOWN) for i in range(4)}),
     "photos holds 1 distinct images beside the test images; at least 2"),
    # Archives.
    ("a text called .zip", file("x.zip", b"hello"), "x.zip is neither a folder nor a zip archive"),
    ("an empty .zip", file("x.zip", b""), "x.zip is neither a folder nor a zip archive"),
    ("a zip that was cut short", file("x.zip", archive()[:5000]),
     "x.zip is a zip archive that was damaged or cut short"),
    ("a zip whose end is damaged", file("x.zip", archive().replace(b"PK\x01\x02", b"PK\x00\x00")),
     "damaged or cut short"),
    ("a zip with a damaged picture", file("x.zip", archive().replace(b"IDAT", b"XDAT")), "not a readable image"),
    ("a zip of a picture without a name", file("x.zip", directory_field(
        archive(("x", png(PICTURES[0])), files={}), 28, b"\0\0\1\0")), "x.zip holds no images"),
    ("a zip of nothing", zipped(files={}), "lab5_dataset.zip holds no images"),
    ("a zip of text", zipped(("read me.txt", b"hello"), files={}), "lab5_dataset.zip holds no images"),
    ("a zip in a zip", zipped(("lab5.zip", archive()), files={}), "the archive lab5.zip in it has to be named itself"),
    ("an encrypted zip", file("x.zip", directory_field(archive(), 8, b"\1\0")), "in .*x.zip is encrypted: unpack"),
    ("a zip in an unknown compression", file("x.zip", directory_field(archive(), 10, b"\x63\0")),
     "not a readable image"),
    ("a path that leaves the zip", zipped(("../x.png", b"x")), r"holds the path '../x.png', which leads out"),
    ("a path that leaves it half way", zipped(("train/../../x.png", b"x")), "which leads out of the archive"),
    ("a name of two lines", zipped(("train/a\nb.png", b"x")),
     r"holds the name 'train/a\\nb.png', with characters that no"),
    ("a name that would colour the terminal", lab({"train/\x1b[31m.png": b"x"}),
     r"holds the name 'train/\\x1b\[31m.png'"),
    ("an absolute path", zipped(("/etc/x.png", b"x")), "holds the path '/etc/x.png', which leads out"),
    ("a path with a drive", zipped(("C:/x.png", b"x")), "holds the path 'C:/x.png', which leads out"),
    ("a symbolic link in a zip", zipped((link(), b"/etc/passwd")), "image_00009.png in .* is a symbolic link"),
    ("such a link with a name in two lines", zipped((link("train/\n.png"), b"x")), r"holds the name 'train/\\n.png'"),
    ("a zip bomb", file("x.zip", directory_field(archive(), 24, struct.pack("<I", 3 << 30))),
     "image_00000.png in .*x.zip unpacks to 3221 MB, more than the 268 MB that are read"),
    ("a zip bomb of many pictures", file("x.zip", all_of_size(archive(), 200 << 20)),
     r"the pictures in .*x.zip unpack to 2\d\d\d MB, \d+ times what the archive takes"),
    ("a file twice in a zip", zipped(("train/image_00000.png", b"x")), "holds train/image_00000.png 2 times"),
]  # fmt: skip


# --- checkpoints ------------------------------------------------------------------------------------------------

SMALL = TransformerConfig(codes=10, width=32, layers=1, hidden=24)  # 16 heads, as the lab has
SMALL_VQGAN = VQGANConfig(
    codes=12, latent=4, stem=8, encoder=((8,), (8,)), middle=(8,), decoder=((8,), (8,), (8,)), groups=0, attention=False
)
ATTENTION = "blocks.0.Attention"
QUERY = f"{ATTENTION}.query.weight"

State = dict[str, torch.Tensor]


def weights(content: bytes, load: Callable = load_transformer) -> Make:
    """A file of weights that holds these bytes."""

    def make(at: Path) -> Action:
        (at / "weights.pt").write_bytes(content)
        return lambda: load(at / "weights.pt")

    return make


def pickled(content: Any, load: Callable = load_transformer) -> Make:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return weights(buffer.getvalue(), load)


def lab_state(**changes: torch.Tensor | None) -> State:
    """A transformer's state dict with changes; `__` stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    state = BidirectionalTransformer(SMALL).state_dict() | named
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def attention(*names: str, rows: int = 32) -> State:
    """A transformer whose attention has weights of these names in place of the query."""
    renamed = {f"{ATTENTION}.{name}.weight": torch.zeros(rows, 32) for name in names}
    return lab_state(**{QUERY.replace(".", "__"): None}) | renamed


def ours(network: torch.nn.Module, change: Callable[[State, dict], Any], load: Callable) -> Make:
    """A file of our own, after a change of its tensors or its header."""

    def make(at: Path) -> Action:
        state, header = dict(network.state_dict()), {type(network.config).__name__: vars(network.config).copy()}
        change(state, header)
        save_tensors(at / "weights.safetensors", state, header)
        return lambda: load(at / "weights.safetensors")

    return make


def our_transformer(change: Callable[[State, dict], Any]) -> Make:
    return ours(BidirectionalTransformer(SMALL), change, load_transformer)


def our_vqgan(change: Callable[[State, dict], Any]) -> Make:
    return ours(VQGAN(SMALL_VQGAN), change, load_vqgan)


def config(**changes: Any) -> Make:
    return our_transformer(lambda _, header: header["TransformerConfig"].update(changes))


def tensor(name: str, value: torch.Tensor) -> Callable[[State, dict], None]:
    return lambda state, _: state.update({name: value})


def our_vqgan_with(**changes: Any) -> Make:
    return our_vqgan(lambda _, header: header["VQGANConfig"].update(changes))


def our_classifier(change: Callable[[State, dict], Any]) -> Make:
    """A classifier's file, after a change of its tensors or its header."""

    def make(at: Path) -> Action:
        state = dict(ToyFeatures({"fur": 3}, 4).state_dict())
        header = {"kind": "classifier", "shape": {"attributes": {"fur": 3}, "features": 4}}
        change(state, header)
        save_tensors(at / "weights.safetensors", state, header)
        return lambda: load_classifier(at / "weights.safetensors")

    return make


class Harmful:
    """What a pickle can do: call anything."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmful",)


HEALTHY = safetensors.torch.save({"x": torch.zeros(100)})

CHECKPOINTS: list[tuple[str, Make, str]] = [
    ("a checkpoint that is not there", lambda at: lambda: load_vqgan(at / "VQGAN.pt"), "no checkpoint at .*VQGAN.pt"),
    ("a folder in place of a checkpoint", lambda at: lambda: load_transformer(at), "there is no checkpoint at"),
    ("an empty checkpoint", weights(b""), "weights.pt is truncated or is not one of our safetensors files"),
    ("an empty VQGAN", weights(b"", load_vqgan), "weights.pt is truncated or is not one of our safetensors files"),
    ("text in place of a checkpoint", weights(b"hello, I am a network"),
     "weights.pt is truncated or is not one of our"),
    ("an error page in place of a checkpoint", weights(b"<!DOCTYPE html><title>404</title>"), "is not one of our"),
    ("a safetensors file that was cut short", weights(HEALTHY[:-100]), "weights.pt is truncated or"),
    ("a safetensors file without our header", weights(HEALTHY), "weights.pt has no TransformerConfig; .* nothing"),
    ("a safetensors header that is not JSON", weights(safetensors.torch.save({"x": torch.zeros(2)}, {"a": "{"})),
     "weights.pt is truncated or is not one of our"),
    ("a pickle that runs code", weights(pickle.dumps(Harmful(), protocol=2)), "a pickle that would run code"),
    ("a PyTorch file that runs code", pickled({"x": Harmful()}), "weights.pt cannot be read .* would run code"),
    ("a whole network, not its state", pickled(torch.nn.Linear(2, 2)), "of a whole model, save the state_dict"),
    ("a PyTorch file that was cut short", weights(b"PK\x03\x04" + bytes(99)), "weights.pt cannot be read .* truncated"),
    ("a zip of pictures as a checkpoint", weights(archive()), "weights.pt cannot be read as plain tensors"),
    ("a list in place of a state dict", pickled([torch.zeros(2)]), "must hold a state dict, .*; found list"),
    ("a tensor in place of a state dict", pickled(torch.zeros(2)), "must hold a state dict, .*; found Tensor"),
    ("an optimiser's state", pickled(torch.optim.Adam([torch.zeros(2)]).state_dict()), "found state, param_groups"),
    ("numbers in place of tensors", pickled({"epoch": 3, "loss": 0.5}), "must hold a state dict, .* found epoch, loss"),
    ("names that are numbers", pickled({1: torch.zeros(2)}), "must hold a state dict, .*; found 1"),
    ("one number that is a billion weights", pickled({"bias": torch.zeros(1).expand(1 << 20, 1 << 10)}),
     "weights.pt claims to hold 4295 MB of tensors in 0.0 MB: it is damaged, or meant to fill the memory"),
    ("weights that unpack to a thousand times the file", weights(packed({"bias": torch.zeros(1 << 10, 1 << 10)})),
     r"weights.pt claims to hold 4 MB of tensors in 0.0 MB"),
    ("an empty state dict", pickled({}), "weights.pt holds no transformer of the lab's .* nothing"),
    ("another network", pickled(torch.nn.Linear(2, 2).state_dict()), "no transformer of the lab's .* weight, bias"),
    ("NaN in the lab's weights", pickled(lab_state(bias=torch.full((256, 11), torch.nan))),
     "NaN or infinity .* is bias"),
    ("infinity in the lab's weights", pickled(lab_state(bias=torch.full((256, 11), torch.inf))), "NaN or infinity"),
    ("a tensor of another shape", pickled(lab_state(bias=torch.zeros(256, 9))), r"tensors 1 of another shape \(bias\)"),
    ("a tensor that is missing", pickled(lab_state(bias=None)), r"does not fit .*: tensors 1 missing \(bias\)"),
    ("a tensor too many", pickled(lab_state(scale=torch.zeros(2))), r"does not fit .*: tensors 1 unknown \(scale\)"),
    ("a width that 16 heads do not divide", pickled(lab_state(tok_emb__weight=torch.zeros(11, 40))),
     "has width 40, which"),
    ("embeddings of one axis", pickled(lab_state(tok_emb__weight=torch.zeros(11))), "no transformer of the lab's"),
    ("no blocks", pickled({"tok_emb.weight": torch.zeros(11, 32), "pos_emb": torch.zeros(256, 32)}), "of the lab's"),
    ("an attention of unknown layout", pickled(attention("question")), "unknown layout: .*question.weight is no query"),
    ("a qkv that is not three", pickled(attention("qkv", rows=95)), "has 95 rows in .*qkv.weight"),
    ("two queries", pickled(attention("query", "to_q")), "more than one tensor for blocks.0.Attention.query.weight"),
    ("NaN in our weights", our_transformer(tensor("bias", torch.full((256, 11), torch.nan))), "NaN or infinity"),
    ("our tensors of another shape", our_transformer(tensor(QUERY, torch.zeros(3, 3))), f"another shape .{QUERY}"),
    ("our header with an unknown setting", config(colour="blue"), "TransformerConfig of another version: .*colour"),
    ("our header without settings", our_transformer(lambda _, header: header.update(TransformerConfig=None)),
     "has a TransformerConfig of another version"),
    ("heads that do not divide the width", config(heads=7), "width is 32 and heads is 7"),
    ("a norm of another kind", config(norm="middle"), "another version: norm must be one of post, pre, not 'mid"),
    ("no layers", config(layers=0), "of another version: layers must be at least 1, not 0"),
    ("fewer layers than tensors", our_transformer(tensor("blocks.1.LayerNorm1.bias", torch.zeros(32))),
     r"does not fit BidirectionalTransformer: tensors 1 unknown \(blocks.1.LayerNorm1.bias\)"),
    ("a VQGAN given as a transformer", ours(VQGAN(SMALL_VQGAN), lambda *_: None, load_transformer),
     "has no TransformerConfig; its header holds VQGANConfig"),
    ("a transformer given as a VQGAN", ours(BidirectionalTransformer(SMALL), lambda *_: None, load_vqgan),
     "has no VQGANConfig; its header holds TransformerConfig"),
    ("the lab's transformer given as a VQGAN", pickled(lab_state(), load_vqgan),
     "does not fit VQGAN: tensors 315 missing"),
    ("a transformer given as a classifier", ours(BidirectionalTransformer(SMALL), lambda *_: None, load_classifier),
     "is not an attribute classifier"),
    ("NaN in a VQGAN", our_vqgan(tensor("codebook.embedding.weight", torch.full((12, 4), torch.nan))),
     "NaN or infinity in 1 tensors, the first is codebook.embedding.weight"),
    ("a VQGAN without its codebook", our_vqgan(lambda state, _: state.pop("codebook.embedding.weight")), "1 missing"),
    ("a VQGAN of three levels", our_vqgan(lambda _, header: header["VQGANConfig"].update(encoder=((8,),) * 3)),
     "2 encoder and 3 decoder levels, not 3 and 3"),
    ("whole numbers in our weights", our_transformer(tensor("bias", torch.zeros(256, 11, dtype=torch.int64))),
     r"weights.safetensors must hold plain floating-point .*; bias is int64 of shape \(256, 11\)"),
    ("complex numbers in our weights", our_transformer(tensor("bias", torch.zeros(256, 11, dtype=torch.complex64))),
     "weights.safetensors must hold plain floating-point .*; bias is complex64"),
    ("yes and no in the lab's weights", pickled(lab_state(bias=torch.zeros(256, 11, dtype=torch.bool))),
     "weights.pt must hold plain floating-point .*; bias is bool"),
    ("whole numbers in the lab's weights", pickled(lab_state(bias=torch.zeros(256, 11, dtype=torch.uint8))),
     "weights.pt must hold plain floating-point .*; bias is uint8"),
    ("complex numbers in the lab's VQGAN", pickled({"x": torch.zeros(2, dtype=torch.complex64)}, load_vqgan),
     "weights.pt must hold plain floating-point .*; x is complex64"),
    ("a tensor without memory", pickled(lab_state(bias=torch.zeros(256, 11, device="meta"))),
     "weights.pt must hold .*; bias is"),
    ("embeddings without an axis", pickled(lab_state(tok_emb__weight=torch.zeros(()))),
     r"weights.pt must hold .* at least one axis; tok_emb.weight is float32 of shape \(\)"),
    ("positions without an axis", pickled(lab_state(pos_emb=torch.zeros(()))), "weights.pt must hold .*; pos_emb is"),
    ("a query without an axis", pickled(lab_state(**{QUERY.replace(".", "__"): torch.zeros(())})),
     f"weights.pt must hold .*; {QUERY} is"),
    ("doubles that float32 cannot hold", pickled(lab_state(bias=torch.full((256, 11), 1e300, dtype=torch.float64))),
     "weights.pt holds NaN or infinity in 1 tensors, the first is bias"),
    ("a block of a far number", pickled(lab_state(blocks__99999999__y=torch.zeros(2))),
     "weights.pt has only 26 tensors for 100000000 layers"),
    ("a width that is a word", config(width="wide"),
     r"weights.safetensors has a Trans.* version: width takes values such as 768 \(int\), not 'wide'"),
    ("a width of ten million", config(width=10**7), "weights.safetensors does not fit .* of another shape"),
    ("a width beyond all memory", config(width=16 * 10**18), "weights.safetensors describes a network that cannot be"),
    ("a width below zero", config(width=-32), "weights.safetensors has .* width must be at least 1, not -32"),
    ("a width that is a fraction", config(width=32.0), "weights.safetensors has .* width takes .*, not 32.0"),
    ("a million layers", config(layers=10**6), "weights.safetensors has only 25 tensors for the 1000000 blocks"),
    ("a dropout that is a word", config(attention_dropout="x"), "has .* attention_dropout takes .*, not 'x'"),
    ("a dropout of NaN", config(dropout=float("nan")), "has .* dropout must be at least 0 and below 1, not nan"),
    ("a dropout of 2", config(dropout=2), "has .* dropout must be at least 0 and below 1, not 2.0"),
    ("a header nested too deeply", weights(safetensors.torch.save({"x": torch.zeros(2)}, {"a": "[" * 10**5})),
     "weights.pt is truncated or is not one of our"),
    ("a VQGAN whose groups are a word", our_vqgan_with(groups="x"), "has a VQGANConfig .* groups takes .*, not 'x'"),
    ("a VQGAN whose groups divide no width", our_vqgan_with(groups=5), "weights.safetensors describes a network that"),
    ("a VQGAN without a middle", our_vqgan_with(middle=()), "has a VQGANConfig .* middle needs at least one value"),
    ("a VQGAN with a flat encoder", our_vqgan_with(encoder=(8, 8)), "has a VQGANConfig .* encoder takes .*, not 8"),
    ("a VQGAN with a list for a width", our_vqgan_with(stem=[8]), r"has a VQGANConfig .* stem takes .*, not \[8\]"),
    ("a VQGAN of no codes", our_vqgan_with(codes=0), "has a VQGANConfig .* codes must be at least 1, not 0"),
    ("a VQGAN of a hundred thousand blocks", our_vqgan_with(middle=(8,) * 10**5), "tensors for the 100005 blocks"),
    ("a classifier without its shape", our_classifier(lambda _, header: header.pop("shape")),
     "weights.safetensors must say in its header what shape the classifier has"),
    ("a classifier whose shape is a word", our_classifier(lambda _, header: header.update(shape="round")),
     "weights.safetensors must say in its header what shape"),
    ("a classifier whose features are a word", our_classifier(lambda _, header: header["shape"].update(features="x")),
     "weights.safetensors describes a network that cannot be built"),
    ("a classifier with other tensors", our_classifier(tensor("mean", torch.zeros(9))),
     r"weights.safetensors does not fit ToyFeatures: tensors 1 of another shape \(mean\)"),
    ("a classifier without a tensor", our_classifier(lambda state, _: state.pop("scale")),
     r"weights.safetensors does not fit ToyFeatures: tensors 1 missing \(scale\)"),
    ("no Inception weights", lambda at: lambda: InceptionFeatures(at / "inception.pth"), "no Inception weights at"),
    ("other weights for Inception", pickled(lab_state(), InceptionFeatures),
     "does not hold the weights of pytorch-fid's"),
]  # fmt: skip


# --- settings and words -----------------------------------------------------------------------------------------


def settings(profile: str = "smoke", **changes: Any) -> Make:
    """`configure`; `__` stands for a dot."""
    return lambda at: lambda: configure(profile, **{name.replace("__", "."): value for name, value in changes.items()})


SETTINGS: list[tuple[str, Make, str]] = [
    ("an unknown profile", settings("huge"), "unknown profile 'huge'; there are auto, smoke"),
    ("an unknown setting", settings(stage1__stpes=3), "no setting 'stage1.stpes'; Stage1Config has steps"),
    ("an unknown section", settings(stage3__steps=3), "no setting 'stage3.steps'; Config has"),
    ("a section without a setting", settings(decode=3), "'decode' is a section; set one of schedule"),
    ("a setting within a setting", settings(seed__first=3), "no setting 'seed.first'; 'seed' is a single value"),
    ("text for a number", settings(seed="x"), "seed takes values such as 0 .int., not 'x'"),
    ("a fraction for a count", settings(decode__steps=2.5), "decode.steps takes values such as 8 .int., not 2.5"),
    ("yes for a number", settings(decode__steps=True), "decode.steps takes values such as 8 .int., not True"),
    ("a number for yes or no", settings(decode__hints=1), "decode.hints takes values such as False .bool., not 1"),
    ("a number for a name", settings(decode__schedule=3), "decode.schedule takes values .*str.*, not 3"),
    ("nothing for a number", settings(seed=None), "seed takes values such as 0 .int., not None"),
    ("a list for a number", settings(seed="[1, 2]"), r"seed takes values such as 0 .int., not \[1, 2\]"),
    ("a word among numbers", settings(study__steps="1,two"), "study.steps takes values such as 1 .int., not 'two'"),
    ("a sweet spot after the last step", settings(decode__stop_at=9, decode__steps=8), "decode.stop_at = 9 .* 0..8"),
    ("a sweet spot of -1", settings(decode__stop_at=-1), "decode.stop_at must be at least 0, not -1"),
    ("no steps", settings(decode__steps=0), "decode.steps must be at least 1, not 0"),
    ("no passes", settings(decode__passes=0), "decode.passes must be at least 1, not 0"),
    ("no heads", settings(transformer__heads=0), "transformer.heads must be at least 1, not 0"),
    ("three heads for a width of 64", settings(transformer__heads=3), "transformer.width = 64 must be a multiple"),
    ("a grid that is not 16x16", settings(transformer__positions=64), "transformer.positions = 64 must be 256"),
    ("codes that differ", settings(vqgan__codes=32), "vqgan.codes = 32 must equal transformer.codes = 64"),
    ("hints of another size", settings(transformer__hints=7), "transformer.hints = 7 must be 0 or vqgan.latent . 16"),
    ("a training of no steps", settings(stage2__steps=0), "stage2.steps must be at least 1, not 0"),
    ("an empty batch", settings(stage1__batch=0), "stage1.batch must be at least 1, not 0"),
    ("batches that are never summed", settings(stage2__accumulate=0), "stage2.accumulate must be at least 1, not 0"),
    ("a learning rate of 0", settings(stage1__lr="0"), "stage1.lr must be above 0, not 0.0"),
    ("a learning rate of NaN", settings(stage2__lr="NaN"), "stage2.lr must be above 0, not nan"),
    ("an infinite learning rate", settings(classifier__lr=float("inf")), "classifier.lr must be above 0, not inf"),
    ("one beta", settings(stage1__betas="0.9"), r"stage1.betas must be two values, not \(0.9,\)"),
    ("a beta of 1", settings(stage2__betas="0.9,1"), "stage2.betas must be at least 0 and below 1"),
    ("averages that never move", settings(stage2__ema=1.0), "stage2.ema must be at least 0 and below 1, not 1.0"),
    ("a dropout of all", settings(transformer__dropout=1), "transformer.dropout must be at least 0 and below 1"),
    ("smoothing of all", settings(stage2__label_smoothing=1), "stage2.label_smoothing must be at least 0 and below 1"),
    ("a warm-up below 0", settings(stage1__warmup=-1), "stage1.warmup must be at least 0, not -1"),
    ("a decoding temperature below 0", settings(decode__temperature=-1), "decode.temperature must be at least 0"),
    ("evidence below 0", settings(decode__evidence=-1), "decode.evidence must be at least 0, not -1.0"),
    ("no validation images", settings(data__val=0), "data.val must be at least 1, not 0"),
    ("threads below 0", settings(threads=-1), "threads must be at least 0, not -1"),
    ("a seed below 0", settings(seed=-1), "seed must be at least 0 and at most 1 000 000 000 000"),
    ("a seed that is a date and a time", settings(seed=20250101120000),
     "seed must be .* at most 1 000 000 000 000, not 20250101120000"),
    ("a study of no seeds", settings(study__seeds=0), "study.seeds must be at least 1, not 0"),
    ("a study of one image", settings(study__images=1), "study.images must be at least 8, not 1"),
    ("a study with 0 steps", settings(study__steps="4,0"), r"study.steps must be at least 1, not \(4, 0\)"),
    ("a study without steps", settings(study__steps=[]), "study.steps needs at least one value"),
    ("a study without schedules", settings(study__schedules=()), "study.schedules needs at least one value"),
    ("groups that do not divide", settings(vqgan__groups=3), "vqgan.groups = 3 must divide every width .* not 8"),
    ("milestones that are words", settings(stage2__milestones="soon"), "stage2.milestones takes values such as 1000"),
    ("a batch of more than all", settings(data__train=8), "batch = .* is more than the 8 images"),
]


def command(*words: str, files: Files | None = None) -> Make:
    """`python -m lab5` beside these files: exit code 2, and the last line on stderr is the sentence.

    Before it there may be what the lab's flags stand for, or, of words that are no flags, the usage.
    """

    def make(at: Path) -> Action:
        write(at, files or {})

        def action() -> None:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                try:
                    code = main(words)
                except SystemExit as leaving:
                    code = leaving.code
            *before, sentence = said.getvalue().splitlines()
            assert code == 2 and "Traceback" not in before and sentence.startswith(("lab5: ", "python -m lab5"))
            assert not before or before[0].startswith(("lab5: the lab's flags", "usage: "))
            raise ValueError(sentence)

        return action

    return make


def compared(name: str, content: bytes) -> Make:
    """`fid` with a file as its reference."""
    return command("fid", "set", name, files={name: content} | {f"set/{i}.png": png(PICTURES[i]) for i in range(4)})


def row(values: int = 12288, fill: str = "7") -> bytes:
    return ",".join([fill] * values).encode()


def statistics(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def bare_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    return buffer.getvalue()


def damaged_statistics() -> bytes:
    """Compressed, as pytorch-fid writes them, with some bytes of the compressed part changed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=np.random.default_rng(0).normal(size=99), sigma=np.eye(99))
    text = bytearray(buffer.getvalue())
    text[60:90] = bytes(255 - byte for byte in text[60:90])
    return bytes(text)


HEADER = ",".join(map(str, range(12288))).encode() + b"\n"
MU, SIGMA = np.zeros(2), np.eye(2)

COMMANDS: list[tuple[str, Make, str]] = [
    ("a command with an unknown profile", command("train", "--profile", "huge"), "unknown profile 'huge'"),
    ("--set without a value", command("train", "--set", "seed"), "--set takes KEY=VALUE .*, not 'seed'"),
    ("--set without a name", command("train", "--set", "=3"), "--set takes KEY=VALUE .*, not '=3'"),
    ("--set of the profile", command("train", "--set", "profile=full"), "--set cannot change the profile"),
    ("a device that is not there", command("train", "--set", "device=abacus"), "device 'abacus' cannot be used"),
    ("--data that is not there", command("train", "--profile", "smoke", "--data", "nowhere"), "nowhere does not exist"),
    ("--data that holds no images", command("inpaint", "--profile", "smoke", "--data", "a", files={"a/x.txt": b""}),
     "a holds no images"),
    ("--data with a broken image", command("train", "--profile", "smoke", "--data", "a", files={
        f"a/{name}": content for name, content in (LAB | {"train/image_00002.png": b"x"}).items()}),
     "image_00002.png in a"),
    ("no command", command(), "the following arguments are required: COMMAND"),
    ("an unknown command", command("paint"), "invalid choice: 'paint'"),
    ("an unknown flag", command("train", "--fast"), "unrecognized arguments: --fast"),
    ("a number that is none", command("inpaint", "--total-iter", "many"), "--total-iter: invalid int value: 'many'"),
    ("an unknown stage", command("train", "--stage", "three"), "--stage: invalid choice: 'three'"),
    ("a sweet spot of 13 steps in 12", command("inpaint", "--total-iter", "12", "--sweet-spot", "13"),
     "--sweet-spot must"),
    ("a sweet spot of 0", command("inpaint", "--sweet-spot", "0"), "--sweet-spot must lie in 1"),
    ("a share of more than all", command("inpaint", "--partial", "1.5"), "--partial must lie above 0"),
    ("an unknown scheduler", command("train", "--scheduler", "never"), "stage2.schedule must be one of .* 'never'"),
    ("betas of one number", command("train", "--betas", "0.9"), "--betas takes two numbers"),
    ("features other than FID's", command("fid", "a", "b", "--dims", "768"), "--dims must be 2048"),
    ("a set that is not there", command("fid", "nowhere", "toycats-test"), "nowhere is no folder and no file"),
    ("a set of no known kind", command("fid", "x.txt", "x.txt", files={"x.txt": b"hello"}), "x.txt is no set"),
    ("a set of text", command("fid", "a", "a", files={"a/x.txt": b"hello"}), "a holds no images"),
    ("a set with a broken image", command("fid", "a", "a", files={"a/x.png": b"hello"}),
     "x.png in a is not a readable"),
    ("a set with a picture of 60000 x 60000", command("fid", "a", "a", files={"a/x.png": bomb(60_000)}),
     "x.png in a is larger than the 80 million pixels"),
    ("a set with an animation", command("fid", "a", "a", files={"a/x.png": moving("PNG")}),
     "x.png in a is an animation of 2 frames"),
    ("a set with a picture of 16 bits", command("fid", "a", "a", files={"a/x.png": SIXTEEN_BITS}),
     "x.png in a has pixels of type I;16"),
    ("a set of several sizes", command("fid", "a", "a", files={"a/x.png": png(KNOWN), "a/y.png": png(KNOWN[:9])}),
     "a holds images of several sizes .64x64, 64x9."),
    ("a csv without a row", compared("gt.csv", HEADER), "gt.csv holds no images"),
    ("a csv without a header", compared("gt.csv", row() + b"\n" + row()), "gt.csv has no header"),
    ("a csv with a short row", compared("gt.csv", HEADER + row(12287)),
     "gt.csv must have 12288 values .* row 2 has 12287"),
    ("a csv with a word", compared("gt.csv", HEADER + row(fill="cat")), "gt.csv is not the lab's csv of images: .*cat"),
    ("a csv with 256", compared("gt.csv", HEADER + row(fill="256")), "gt.csv must hold whole numbers from 0 to 255"),
    ("a csv with NaN", compared("gt.csv", HEADER + row(fill="nan")), "gt.csv must hold whole numbers from 0 to 255"),
    ("a csv of fractions", compared("gt.csv", HEADER + row(fill="0.5")), "gt.csv must hold whole numbers"),
    ("a csv that is no text", compared("gt.csv", PICTURES.tobytes()), "gt.csv is not the lab's csv"),
    ("statistics that are no npz", compared("x.npz", b"hello"), "x.npz is not a readable npz of statistics"),
    ("statistics that were cut short", compared("x.npz", statistics(mu=MU, sigma=SIGMA)[:99]),
     "x.npz is not a readable"),
    ("statistics that are one array", compared("x.npz", bare_array()), "x.npz is not a readable npz of statistics"),
    ("packed statistics that are damaged", compared("x.npz", damaged_statistics()),
     "x.npz is not a readable npz of statistics"),
    ("statistics that run code", compared("x.npz", statistics(mu=np.array([Harmful()]), sigma=SIGMA)),
     "not a readable"),
    ("statistics without sigma", compared("x.npz", statistics(mu=MU)), "x.npz must hold mu and sigma, found mu"),
    ("statistics of two sizes", compared("x.npz", statistics(mu=MU, sigma=np.eye(3))), r"x.npz must hold mu \(F,\)"),
    ("statistics with NaN", compared("x.npz", statistics(mu=MU + np.nan, sigma=SIGMA)),
     "x.npz must hold finite floats"),
]  # fmt: skip


# --- calls ------------------------------------------------------------------------------------------------------


class Stub(torch.nn.Module):
    """A model of 4 tokens and 8 codes that gives back `answer`."""

    mask_id = 8

    def __init__(self, answer: torch.Tensor | None = None):
        super().__init__()
        self.answer = torch.zeros(2, 4, 9) if answer is None else answer

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.answer


TOKENS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
UNKNOWN = TOKENS % 2 == 0
GENERATOR = torch.Generator().manual_seed(0)


def decoding(model: Any = None, tokens: Any = TOKENS, unknown: Any = UNKNOWN, **more: Any) -> Make:
    model = Stub().eval() if model is None else model
    drawn = {"generator": GENERATOR} | {name: more.pop(name) for name in ("generator", "prior") if name in more}
    return lambda at: lambda: list(decode_steps(model, tokens, unknown, DecodeConfig(**more), **drawn))


def call(function: Callable, *arguments: Any, **more: Any) -> Make:
    return lambda at: lambda: function(*arguments, **more)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def no_holes(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool)


SMALL_NETS = BidirectionalTransformer(SMALL).eval(), VQGAN(SMALL_VQGAN).eval()
FEATURES = torch.arange(12.0).view(4, 3)

CALLS: list[tuple[str, Make, str]] = [
    ("known tokens beyond the codes", decoding(tokens=TOKENS + 1), "known tokens must be codes in 0..7, .* 2..8"),
    ("known tokens below 0", decoding(tokens=TOKENS - 2), "known tokens must be codes in 0..7, but they span -1"),
    ("unknown as numbers", decoding(unknown=UNKNOWN.float()), "unknown must be bool, .* but it is torch.float32"),
    ("unknown of another shape", decoding(unknown=UNKNOWN[:1]), r"the same shape \(B, N\), .* \(2, 4\) and \(1, 4\)"),
    ("tokens without a batch", decoding(tokens=TOKENS[0], unknown=UNKNOWN[0]), r"the same shape \(B, N\)"),
    ("stop after more steps than there are", decoding(steps=8, stop_at=9), "decode.stop_at = 9 must lie in 0..8"),
    ("stop at -1", decoding(stop_at=-1), "decode.stop_at must be at least 0, not -1"),
    ("a decoding of no steps", decoding(steps=0), "decode.steps must be at least 1, not 0"),
    ("an unknown schedule", decoding(schedule="sine"), "decode.schedule must be one of linear, .* 'sine'"),
    ("an unknown way to draw codes", decoding(codes="guess"), "decode.codes must be one of .* 'guess'"),
    ("an unknown order", decoding(order="up"), "decode.order must be one of confidence, .* 'up'"),
    ("an unknown rounding", decoding(rounding="even"), "decode.rounding must be one of floor, ceil, not 'even'"),
    ("a temperature below 0", decoding(temperature=-1.0), "decode.temperature must be at least 0, not -1.0"),
    ("a temperature of NaN", decoding(temperature=float("nan")), "decode.temperature must be at least 0, not nan"),
    ("an infinite choice", decoding(choice_temperature=float("inf")),
     "decode.choice_temperature must be at least 0, not inf"),
    ("a budget without its loop", decoding(budget="entropy"), "decode_steps follows a schedule alone"),
    ("three generators for two images", decoding(generator=[GENERATOR] * 3), "there are 3 generators for 2 images"),
    ("a model that is training", decoding(model=Stub().train()), "in evaluation mode, but it is training"),
    ("a model without a mask id", decoding(model=lambda tokens: tokens), "needs an attribute mask_id"),
    ("logits of another shape", decoding(model=Stub(torch.zeros(2, 4, 7)).eval()), r"but it returned \(2, 4, 7\)"),
    ("logits of NaN", decoding(model=Stub(torch.full((2, 4, 9), torch.nan)).eval()), "must return finite logits"),
    ("a prior of another shape", decoding(prior=torch.zeros(2, 4, 9)), r"prior must have shape \(2, 4, 8\)"),
    ("a step after the last", call(masked_count, "cosine", 9, 8, 85), "step must lie between 0 and the 8 steps"),
    ("tokens of another number", call(SMALL_NETS[0], TOKENS),
     "tokens must have 256 positions per image, but they have 4"),
    ("tokens beyond the mask id", call(SMALL_NETS[0], torch.full((1, 256), 11)), "tokens must lie in 0..10, .* 11..11"),
    ("hints for a network without", call(SMALL_NETS[0], torch.zeros(1, 256).long(), None, torch.zeros(1, 256, 48)),
     "built for tokens alone"),
    ("heads that do not divide", call(MultiHeadAttention, 10, 3), "width is 10 and heads is 3"),
    ("the mask id to decode", call(SMALL_NETS[1].decode, torch.full((1, 256), 12)),
     "masked positions have to be filled"),
    ("too few tokens to decode", call(SMALL_NETS[1].decode, TOKENS), r"tokens must be \(B,256\), not \(2, 4\)"),
    ("images of another size to encode", call(SMALL_NETS[1].encode, torch.zeros(1, 3, 32, 32)), "must be .B,3,64,64."),
    ("a hole of numbers", call(token_mask, torch.zeros(64, 64)), r"a hole must be bool .*; found torch.float32"),
    ("a hole of another size", call(token_mask, no_holes(64, 60)), r"a hole must be bool .*; found .* \(64, 60\)"),
    ("images that are normalised already", call(normalise, torch.full((3, 64, 64), -1.5)), r"bytes or in \[0,1\]"),
    ("images of 0 to 255 as floats", call(normalise, torch.full((3, 64, 64), 200.0)), r"bytes or in \[0,1\]; .* 200"),
    ("an unknown fill", call(fill_holes, bytes_of(1, 3, 64, 64), no_holes(1, 64, 64), "pink"), "unknown fill 'pink'"),
    ("features of one image", call(frechet_distance, FEATURES[:1], FEATURES),
     "features_a must be .* at least 2 images"),
    ("features without an axis", call(kid, FEATURES, FEATURES[0]), r"features_b must be .* found shape \(3,\)"),
    ("features of two networks", call(frechet_distance, FEATURES, FEATURES[:, :2]), "have 3 and 2 features"),
    ("features with NaN", call(frechet_distance, FEATURES * torch.nan, FEATURES),
     "features_a hold NaN or infinity in 4"),
    ("features with infinity", call(feature_stats, FEATURES / 0), "features hold NaN or infinity"),
    ("statistics of two networks", call(frechet_distance_from_stats, MU, SIGMA, np.zeros(3), np.eye(3)),
     "2 and 3 features"),
]  # fmt: skip


# --- every one --------------------------------------------------------------------------------------------------

CASES = DATASETS + CHECKPOINTS + SETTINGS + COMMANDS + CALLS


def contents(*folders: Path) -> dict[str, str]:
    """Every folder and file below, with a hash of what is in it."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@pytest.fixture
def unchecked():
    """As for a user: without the test suite's check of shapes, which would refuse some of this first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("make, says", [pytest.param(*case, id=name) for name, *case in CASES])
def test_one_sentence_and_nothing_written(make, says, tmp_path, own_folders, unchecked, monkeypatch):
    monkeypatch.chdir(tmp_path)
    action = make(tmp_path)
    before = contents(tmp_path, own_folders)
    with pytest.raises(REFUSALS, match=says) as refused:
        action()
    sentence = str(refused.value)
    assert type(refused.value) in REFUSALS, "an error of another library"
    assert "\n" not in sentence and len(sentence.replace(str(tmp_path), "")) < 400
    assert contents(tmp_path, own_folders) == before


def test_the_harmful_pickle_would_do_harm(tmp_path, monkeypatch):
    """Otherwise the cases of pickles that run code would show nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Harmful()))
    assert (tmp_path / "harmful").is_dir()


def test_the_table_is_long_and_no_line_is_there_twice():
    names = [name for name, *_ in CASES]
    assert len(names) == len(set(names)) >= 100
