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
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from stubs import encoded, named, png, shapes_unchecked, write_files, written, zipped

from lab5.attention import MultiHeadAttention
from lab5.checkpoint import load_transformer, load_vqgan
from lab5.cli.main import main
from lab5.config import DecodeConfig, TransformerConfig, VQGANConfig
from lab5.data.dataset import normalise, open_dataset, open_masked, token_mask
from lab5.data.holes import fill_holes, paste_known
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
    return write_files(folder, {name: content for name, content in files.items() if content is not None})


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
    """The lab's dataset as a zip, with more entries."""
    return zipped([*files.items(), *entries])


def lab_zip(*entries: tuple[str | zipfile.ZipInfo, bytes], files: Files = LAB) -> Make:
    return file("lab5_dataset.zip", archive(*entries, files=files))


def link(name: str) -> zipfile.ZipInfo:
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
    with zipfile.ZipFile(io.BytesIO(written(partial(torch.save, content)))) as plain:
        return zipped([(name, plain.read(name)) for name in plain.namelist()], zipfile.ZIP_DEFLATED)


def swapped(at: Path) -> Action:
    """The lab's two test folders, each named in the place of the other."""
    write(at, LAB | {"mask64/mask_002.png": None})
    return lambda: open_masked(at / "mask64", at / "masked_image")


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
    ("a grey training image", train(encoded(PICTURE.convert("L"))), "2.png in .* is L 64x64, but must be RGB 64x64"),
    ("a transparent training image", train(encoded(PICTURE.convert("RGBA"))), "is RGBA 64x64, but must be RGB"),
    ("a PNG that was cut short", train(png(PICTURES[0])[:900]), "image_00002.png in .* is not a readable image"),
    ("an empty image", train(b""), "image_00002.png in .* is an empty file"),
    ("text called .png", train(b"a cat, sitting"), "image_00002.png in .* is not a readable image"),
    ("a PNG of 3600 million pixels", train(bomb(60_000)), "2.png in .* is larger than the 80 million pixels"),
    ("a PNG of 81 million pixels", train(bomb(9_000)), "is larger than the 80 million pixels"),
    ("an animated PNG", train(moving("PNG")), "image_00002.png in .* is an animation of 2 frames"),
    ("a GIF called .png", train(moving("GIF")), "image_00002.png in .* is not a readable image"),
    ("a number twice", lab({"train/image_2.png": png(PICTURES[8])}), "00002.png and train/image_2.png .* number, 2"),
    ("a copy called (1)", lab({"val/image_00001 (1).png": png(PICTURES[8])}), r"\(1\).png in .* needs a number"),
    ("a masked image whose hole is not grey", lab({"masked_image/image_001.png": png(PICTURES[1])}),
     r"image_001.png in .* is not grey \(128\) where its mask says missing"),
    ("a masked image of another grey", lab({"masked_image/image_001.png": png(HOLED[1] - (HOLED[1] == 128))}),
     r"image_001.png in .* is not grey \(128\)"),
    # The lab's masks.
    ("a mask in colour", mask(png(PICTURES[0])), "mask_001.png in .* is RGB 64x64, but must be L 64x64"),
    ("a mask of 0 and 1", mask(png(KNOWN // 255)), r"mask_001.png .* 0 \(missing\) and 255 \(known\), but it holds 1"),
    ("a mask with nothing known", mask(png(0 * KNOWN)), "mask_001.png in .* says that every pixel is missing"),
    ("a mask with nothing missing", mask(png(KNOWN | 255)), "mask_001.png in .* says that no pixel is missing"),
    ("an inverted mask", mask(png(255 - KNOWN)), "mask_001.png in .* is inverted: its image is grey where"),
    ("a missing mask", lab({"mask64/mask_001.png": None}), "1 masked image without a mask, .* is number 1"),
    ("two missing masks", lab({f"mask64/mask_00{i}.png": None for i in (0, 1)}), "2 masked images .* number 0"),
    # The lab's folders.
    ("a path that is not there", lambda at: opening(at / "nowhere"), "nowhere does not exist; a dataset is"),
    ("a folder of text", lambda at: opening(write(at / "a", {"read me.txt": b"hello"})), "a holds no images"),
    ("hidden files", lambda at: opening(write(at / "a", {"._cat.png": b"", ".x/cat.png": b""})), "holds no images"),
    ("a folder with the zip inside", lambda at: opening(write(at / "a", {"lab5_dataset.zip": b"PK"})),
     "a holds no images .*; the archive lab5_dataset.zip in it has to be named itself"),
    ("a picture in place of a folder", file("cat.png", png(PICTURES[0])), "cat.png is neither a folder nor a zip"),
    ("a folder that may not be read", unreadable, "lab5_dataset may not be read"),
    ("no train", lab(without("train")), "no images in train; the lab's dataset has train, val, masked_image, mask64"),
    ("no masked images", lab(without("masked_image")), "has no images in masked_image; the lab's dataset has"),
    ("no masks", lab(without("mask64")), "has no images in mask64; the lab's dataset has"),
    ("two datasets together", lab({"copy/masked_image/image_000.png": b"x"}), "holds 2 datasets .*: name the folder"),
    ("a val that is all in train", lab({"val/image_00000.png": LAB["train/image_00000.png"],
     "val/image_00001.png": None}),
     "every image of val in .* is in train too"),
    ("no images asked for", lambda at: opening(write(at / "a", OWN), n_val=0), "at least one image .* n_val = 0"),
    ("toy cats whose seed meets another split's", lambda at: lambda: open_dataset(
        "toycats", **SIZES | {"seed": 1000}, cache=at / "cache"), "seed of the toy cats must lie in 0..999.*1000"),
    # Two test folders alone.
    ("no folder of masks", lambda at: lambda: open_masked(at, at / "masks"), "masks does not exist"),
    ("the two folders swapped", swapped, "mask64 is L 64x64, but must be RGB"),
    # Pictures of one's own.
    ("two pictures", own({f"cat {i}.png": None for i in range(3)}), "photos holds 2 distinct images; .* at least 3"),
    ("one picture five times", own({name: OWN["cat 0.png"] for name in OWN}), "photos holds 1 distinct images"),
    ("a picture of 16 bits", own({"x.png": SIXTEEN_BITS}), "x.png in .* has pixels of type I;16; save it with 8 bits"),
    ("a mask of no picture", own({"masks/dog.png": png(KNOWN)}), "masks/dog.png in .* needs one picture called dog"),
    ("a mask of two", own({"b/cat 1.jpg": JPEG, "masks/cat 1.png": png(KNOWN)}), "needs one picture called cat 1"),
    ("two masks of one picture", own({f"masks/{i}/cat 1.png": png(KNOWN) for i in "ab"}), "and that picture one mask"),
    ("a mask of another size than its picture", own({"masks/cat 1.png": png(KNOWN[:40])}),
     "cat 1.png in .* is 64x64, but its mask masks/cat 1.png is 64x40"),
    ("a grey mask", own({"masks/cat 1.png": png(KNOWN // 2)}), "masks/cat 1.png in .* must hold only 0 .* 127"),
    ("a mask outside the middle", own({"cat 1.png": encoded(PICTURE.resize((64, 128))), "masks/cat 1.png": png(
        np.vstack([0 * KNOWN[:9], KNOWN[:1].repeat(119, 0)]))}),
     "cat 1.png in .*: of the square in its middle masks/cat 1.png says"),
    ("masks for all pictures but one", own({f"masks/cat {i}.png": png(KNOWN) for i in range(4)}),
     "photos holds 1 distinct images beside the test images; at least 2"),
    # Archives.
    ("a zip that was cut short", file("x.zip", archive()[:5000]), "x.zip is a zip archive .* damaged or cut short"),
    ("a zip with a damaged picture", file("x.zip", archive().replace(b"IDAT", b"XDAT")), "not a readable image"),
    ("a zip of a picture without a name", file("x.zip", directory_field(
        archive(("x", png(PICTURES[0])), files={}), 28, b"\0\0\1\0")), "x.zip holds no images"),
    ("a zip of nothing", lab_zip(files={}), "lab5_dataset.zip holds no images"),
    ("an encrypted zip", file("x.zip", directory_field(archive(), 8, b"\1\0")), "in .*x.zip is encrypted: unpack"),
    ("a path that leaves it half way", lab_zip(("train/../../x.png", b"x")), "which leads out of the archive"),
    ("a name of two lines", lab_zip(("train/a\nb.png", b"x")), r"the name 'train/a\\nb.png', with characters"),
    ("a name that colours the terminal", lab({"train/\x1b[31m.png": b"x"}), r"holds the name 'train/\\x1b\[31m.png'"),
    ("an absolute path", lab_zip(("/etc/x.png", b"x")), "holds the path '/etc/x.png', which leads out"),
    ("a path with a drive", lab_zip(("C:/x.png", b"x")), "holds the path 'C:/x.png', which leads out"),
    ("a symbolic link in a zip", lab_zip((link("train/9.png"), b"/etc/passwd")), "9.png in .* is a symbolic link"),
    ("a zip bomb", file("x.zip", directory_field(archive(), 24, struct.pack("<I", 3 << 30))),
     "image_00000.png in .*x.zip unpacks to 3221 MB, more than the 268 MB that are read"),
    ("a zip bomb of many pictures", file("x.zip", all_of_size(archive(), 200 << 20)),
     r"the pictures in .*x.zip unpack to 2\d\d\d MB, \d+ times what the archive takes"),
    ("a file twice in a zip", lab_zip(("train/image_00000.png", b"x")), "holds train/image_00000.png 2 times"),
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
    return weights(written(partial(torch.save, content)), load)


def lab_state(**changes: torch.Tensor | None) -> State:
    """A transformer's state dict with changes; `__` stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    state = BidirectionalTransformer(SMALL).state_dict() | named
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def attention(*names: str, rows: int = 32) -> State:
    """A transformer whose attention has weights of these names in place of the query."""
    renamed = {f"{ATTENTION}.{name}.weight": torch.zeros(rows, 32) for name in names}
    return lab_state(**{QUERY.replace(".", "__"): None}) | renamed


def ours(state: State, header: dict[str, Any], load: Callable) -> Make:
    """A file of our own."""

    def make(at: Path) -> Action:
        save_tensors(at / "weights.safetensors", state, header)
        return lambda: load(at / "weights.safetensors")

    return make


def our_transformer(load: Callable = load_transformer, bias: torch.Tensor | None = None, **settings: Any) -> Make:
    """With these settings in its header, or with this bias."""
    state = lab_state() if bias is None else lab_state(bias=bias)
    return ours(state, {"TransformerConfig": vars(SMALL) | settings}, load)


def our_vqgan(**settings: Any) -> Make:
    return ours(VQGAN(SMALL_VQGAN).state_dict(), {"VQGANConfig": vars(SMALL_VQGAN) | settings}, load_vqgan)


def our_classifier(shape: Any, **tensors: torch.Tensor) -> Make:
    state = ToyFeatures({"fur": 3}, 4).state_dict() | tensors
    return ours(state, {"kind": "classifier", "shape": shape}, load_classifier)


class Harmful:
    """What a pickle can do: call anything."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmful",)


SHAPE = {"attributes": {"fur": 3}, "features": 4}  # a classifier's
HEALTHY = safetensors.torch.save({"x": torch.zeros(100)})

CHECKPOINTS: list[tuple[str, Make, str]] = [
    ("a checkpoint that is not there", lambda at: lambda: load_vqgan(at / "VQGAN.pt"), "no checkpoint at .*VQGAN.pt"),
    ("a folder in place of a checkpoint", lambda at: lambda: load_transformer(at), "there is no checkpoint at"),
    ("an empty checkpoint", weights(b""), "weights.pt is truncated or is not one of our safetensors files"),
    ("text for a checkpoint", weights(b"hello, I am a network"), "weights.pt is truncated or is not one of our"),
    ("a safetensors file that was cut short", weights(HEALTHY[:-100]), "weights.pt is truncated or"),
    ("a safetensors file without our header", weights(HEALTHY), "weights.pt has no TransformerConfig; .* nothing"),
    ("a safetensors header that is not JSON", weights(safetensors.torch.save({"x": torch.zeros(2)}, {"a": "{"})),
     "weights.pt is truncated or is not one of our"),
    ("a pickle that runs code", weights(pickle.dumps(Harmful(), protocol=2)), "a pickle that would run code"),
    ("a PyTorch file that runs code", pickled({"x": Harmful()}), "weights.pt cannot be read .* would run code"),
    ("a whole network, not its state", pickled(torch.nn.Linear(2, 2)), "of a whole model, save the state_dict"),
    ("a PyTorch file that was cut short", weights(written(partial(torch.save, lab_state()))[:-99]),
     "weights.pt cannot be read .* truncated"),
    ("a list in place of a state dict", pickled([torch.zeros(2)]), "must hold a state dict, .*; found list"),
    ("numbers in place of tensors", pickled({"epoch": 3, "loss": 0.5}), "must hold a state dict, .* found epoch, loss"),
    ("names that are numbers", pickled({1: torch.zeros(2)}), "must hold a state dict, .*; found 1"),
    ("one number that is a billion weights", pickled({"bias": torch.zeros(1).expand(1 << 20, 1 << 10)}),
     "weights.pt claims to hold 4295 MB of tensors in 0.0 MB: it is damaged, or meant to fill the memory"),
    ("weights that unpack to a thousand times as much", weights(packed({"bias": torch.zeros(1 << 10, 1 << 10)})),
     r"weights.pt claims to hold 4 MB of tensors in 0.0 MB"),
    ("an empty state dict", pickled({}), "weights.pt holds no transformer of the lab's .* nothing"),
    ("another network", pickled(torch.nn.Linear(2, 2).state_dict()), "no transformer of the lab's .* weight, bias"),
    ("NaN in the lab's weights", pickled(lab_state(bias=torch.full((256, 11), torch.nan))), "NaN or inf.* is bias"),
    ("a tensor of another shape", pickled(lab_state(bias=torch.zeros(256, 9))), r"tensors 1 of another shape \(bias\)"),
    ("a tensor that is missing", pickled(lab_state(bias=None)), r"does not fit .*: tensors 1 missing \(bias\)"),
    ("a tensor too many", pickled(lab_state(scale=torch.zeros(2))), r"does not fit .*: tensors 1 unknown \(scale\)"),
    ("a width not divided by 16 heads", pickled(lab_state(tok_emb__weight=torch.zeros(11, 40))), "has width 40, which"),
    ("embeddings of one axis", pickled(lab_state(tok_emb__weight=torch.zeros(11))), "no transformer of the lab's"),
    ("an attention of unknown layout", pickled(attention("question")), "unknown layout: .*question.weight is no query"),
    ("a qkv that is not three", pickled(attention("qkv", rows=95)), "has 95 rows in .*qkv.weight"),
    ("two queries", pickled(attention("query", "to_q")), "more than one tensor for blocks.0.Attention.query.weight"),
    ("NaN in our weights", our_transformer(bias=torch.full((256, 11), torch.nan)), "NaN or infinity"),
    ("our header with a colour", our_transformer(colour="blue"), "TransformerConfig of another version: .*colour"),
    ("our header without settings", ours(lab_state(), {"TransformerConfig": None}, load_transformer),
     "has a TransformerConfig of another version"),
    ("heads that do not divide the width", our_transformer(heads=7), "width is 32 and heads is 7"),
    ("a norm of another kind", our_transformer(norm="middle"), "version: norm must be one of post, pre, not 'mid"),
    ("no layers", our_transformer(layers=0), "of another version: layers must be at least 1, not 0"),
    ("a transformer given as a VQGAN", our_transformer(load_vqgan), "no VQGANConfig; .* holds TransformerConfig"),
    ("the lab's transformer given as a VQGAN", pickled(lab_state(), load_vqgan), "not fit VQGAN: tensors 315 missing"),
    ("a transformer given as a classifier", our_transformer(load_classifier), "is not an attribute classifier"),
    ("a VQGAN of three levels", our_vqgan(encoder=((8,),) * 3), "2 encoder and 3 decoder levels, not 3 and 3"),
    ("whole numbers in our weights", our_transformer(bias=torch.zeros(256, 11).long()),
     r"weights.safetensors must hold plain floating-point .*; bias is int64 of shape \(256, 11\)"),
    ("whole numbers in the lab's weights", pickled(lab_state(bias=torch.zeros(256, 11, dtype=torch.uint8))),
     "weights.pt must hold plain floating-point .*; bias is uint8"),
    ("a tensor without memory", pickled(lab_state(bias=torch.zeros(9, device="meta"))), "must hold .*; bias is"),
    ("embeddings without an axis", pickled(lab_state(tok_emb__weight=torch.zeros(()))),
     r"weights.pt must hold .* at least one axis; tok_emb.weight is float32 of shape \(\)"),
    ("doubles that float32 cannot hold", pickled(lab_state(bias=torch.full((256, 11), 1e300, dtype=torch.float64))),
     "weights.pt holds NaN or infinity in 1 tensors, the first is bias"),
    ("a block far off", pickled(lab_state(blocks__99999999__y=torch.zeros(2))), "only 26 tensors for 100000000 layers"),
    ("a width that is a word", our_transformer(width="wide"),
     r"weights.safetensors has a Trans.* version: width takes values such as 768 \(int\), not 'wide'"),
    ("a width of ten million", our_transformer(width=10**7), "weights.safetensors does not fit .* of another shape"),
    ("a width beyond all memory", our_transformer(width=16 * 10**18), "describes a network that cannot be built"),
    ("a million layers", our_transformer(layers=10**6), "has only 25 tensors for the 1000000 blocks"),
    ("a header nested too deeply", weights(safetensors.torch.save({"x": torch.zeros(2)}, {"a": "[" * 10**5})),
     "weights.pt is truncated or is not one of our"),
    ("a VQGAN whose groups divide no width", our_vqgan(groups=5), "weights.safetensors describes a network that"),
    ("a VQGAN of ten thousand blocks", our_vqgan(middle=(8,) * 10**4), "tensors for the 10005 blocks"),
    ("a classifier whose shape is a word", our_classifier("round"), "must say in its header what shape .* has"),
    ("a classifier without features", our_classifier({"attributes": {"fur": 3}}), "must say in its header what shape"),
    ("a classifier whose features are a word", our_classifier(SHAPE | {"features": "x"}),
     "describes a network that cannot be built"),
    ("a classifier with other tensors", our_classifier(SHAPE, mean=torch.zeros(9)),
     r"weights.safetensors does not fit ToyFeatures: tensors 1 of another shape \(mean\)"),
    ("no Inception weights", lambda at: lambda: InceptionFeatures(at / "inception.pth"), "no Inception weights at"),
    ("other weights for Inception", pickled(lab_state(), InceptionFeatures), "not hold the weights of pytorch-fid's"),
]  # fmt: skip


# --- commands -----------------------------------------------------------------------------------------------------


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
    return written(lambda file: np.savez(file, **arrays))


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
    ("a number that is none", command("inpaint", "--total-iter", "many"), "--total-iter: invalid int value: 'many'"),
    ("a sweet spot of 13 in 12", command("inpaint", "--total-iter", "12", "--sweet-spot", "13"), "--sweet-spot must"),
    ("a sweet spot of 0", command("inpaint", "--sweet-spot", "0"), "--sweet-spot must lie in 1"),
    ("a share of more than all", command("inpaint", "--partial", "1.5"), "--partial must lie above 0"),
    ("an unknown scheduler", command("train", "--scheduler", "never"), "stage2.schedule must be one of .* 'never'"),
    ("betas of one number", command("train", "--betas", "0.9"), "--betas takes two numbers"),
    ("features other than FID's", command("fid", "a", "b", "--dims", "768"), "--dims must be 2048"),
    ("a set that is not there", command("fid", "nowhere", "toycats-test"), "nowhere is no folder and no file"),
    ("a set of no known kind", command("fid", "x.txt", "x.txt", files={"x.txt": b"hello"}), "x.txt is no set"),
    ("a set of a broken image", command("fid", "a", "a", files={"a/x.png": b"hello"}), "x.png in a is not a readable"),
    ("a set of 16 bits", command("fid", "a", "a", files={"a/x.png": SIXTEEN_BITS}), "x.png .* of type I;16"),
    ("a set of several sizes", command("fid", "a", "a", files={"a/x.png": png(KNOWN), "a/y.png": png(KNOWN[:9])}),
     "a holds images of several sizes .64x64, 64x9."),
    ("a csv without a row", compared("gt.csv", HEADER), "gt.csv holds no images"),
    ("a csv without a header", compared("gt.csv", row() + b"\n" + row()), "gt.csv has no header"),
    ("a csv with a short row", compared("gt.csv", HEADER + row(12287)), "gt.csv must have 12288 .* row 2 has 12287"),
    ("a csv with a word", compared("gt.csv", HEADER + row(fill="cat")), "gt.csv is not the lab's csv of images: .*cat"),
    ("a csv with 256", compared("gt.csv", HEADER + row(fill="256")), "gt.csv must hold whole numbers from 0 to 255"),
    ("a csv of fractions", compared("gt.csv", HEADER + row(fill="0.5")), "gt.csv must hold whole numbers"),
    ("a csv that is no text", compared("gt.csv", PICTURES.tobytes()), "gt.csv is not the lab's csv"),
    ("statistics that are no npz", compared("x.npz", b"hello"), "x.npz is not a readable npz of statistics"),
    ("statistics that are one array", compared("x.npz", written(lambda file: np.save(file, MU))),
     "x.npz is not a readable npz of statistics"),
    ("statistics with code", compared("x.npz", statistics(mu=np.array([Harmful()]), sigma=SIGMA)), "not a readable"),
    ("statistics without sigma", compared("x.npz", statistics(mu=MU)), "x.npz must hold mu and sigma, found mu"),
    ("statistics of two sizes", compared("x.npz", statistics(mu=MU, sigma=np.eye(3))), r"x.npz must hold mu \(F,\)"),
    ("statistics with NaN", compared("x.npz", statistics(mu=MU + np.nan, sigma=SIGMA)), "npz must hold finite floats"),
]  # fmt: skip


# --- calls ------------------------------------------------------------------------------------------------------


def stub(answer: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model of 4 tokens and 8 codes."""
    return named(lambda tokens: answer, mask_id=8)


IN_TRAINING = torch.nn.Identity().train()
IN_TRAINING.mask_id = 8
TOKENS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
UNKNOWN = TOKENS % 2 == 0
GENERATOR = torch.Generator().manual_seed(0)


def call(function: Callable, *arguments: Any, **more: Any) -> Make:
    return lambda at: lambda: function(*arguments, **more)


def decoding(model: Any = None, tokens: Any = TOKENS, unknown: Any = UNKNOWN, **more: Any) -> Make:
    model = model or stub(torch.zeros(2, 4, 9))
    drawn = {"generator": GENERATOR} | {name: more.pop(name) for name in ("generator", "prior") if name in more}
    return lambda at: lambda: list(decode_steps(model, tokens, unknown, DecodeConfig(**more), **drawn))


SMALL_NETS = BidirectionalTransformer(SMALL).eval(), VQGAN(SMALL_VQGAN).eval()
IMAGE = torch.from_numpy(PICTURES[:1].transpose(0, 3, 1, 2))
HOLE = torch.ones(1, 64, 64, dtype=torch.bool)
FEATURES = torch.arange(12.0).view(4, 3)

CALLS: list[tuple[str, Make, str]] = [
    ("an unknown profile", call(configure, "huge"),
     "unknown profile 'huge'; there are auto, smoke, quick, pretrained, cats-cpu, gpu, full"),
    ("an unknown setting", call(configure, "smoke", **{"stage1.stpes": 3}),
     "no setting 'stage1.stpes'; Stage1Config has steps"),
    ("a section without a setting", call(configure, "smoke", **{"decode": 3}),
     "'decode' is a section; set one of schedule"),
    ("text for a number", call(configure, "smoke", **{"seed": "x"}), "seed takes values such as 0 .int., not 'x'"),
    ("a learning rate of 0", call(configure, "smoke", **{"stage1.lr": "0"}), "stage1.lr must be above 0, not 0.0"),
    ("one beta", call(configure, "smoke", **{"stage1.betas": "0.9"}), r"stage1.betas must be two values, not \(0.9,\)"),
    ("a batch of more than all", call(configure, "smoke", **{"data.train": 8}), "batch = .* is more than the 8 images"),
    ("known tokens beyond the codes", decoding(tokens=TOKENS + 1), "known tokens must be codes in 0..7, .* 2..8"),
    ("known tokens below 0", decoding(tokens=TOKENS - 2), "known tokens must be codes in 0..7, but they span -1"),
    ("unknown as numbers", decoding(unknown=UNKNOWN.float()), "unknown must be bool, .* but it is torch.float32"),
    ("unknown of another shape", decoding(unknown=UNKNOWN[:1]), r"the same shape \(B, N\), .* \(2, 4\) and \(1, 4\)"),
    ("tokens without a batch", decoding(tokens=TOKENS[0], unknown=UNKNOWN[0]), r"the same shape \(B, N\)"),
    ("stop after more steps than there are", decoding(steps=8, stop_at=9), "decode.stop_at = 9 must lie in 0..8"),
    ("a decoding of no steps", decoding(steps=0), "decode.steps must be at least 1, not 0"),
    ("a budget without its loop", decoding(budget="entropy"), "decode_steps follows a schedule alone"),
    ("three generators for two images", decoding(generator=[GENERATOR] * 3), "there are 3 generators for 2 images"),
    ("a model that is training", decoding(IN_TRAINING), "in evaluation mode, but it is training"),
    ("a model without a mask id", decoding(lambda tokens: tokens), "needs an attribute mask_id"),
    ("logits of another shape", decoding(stub(torch.zeros(2, 4, 7))), r"but it returned \(2, 4, 7\)"),
    ("logits of NaN", decoding(stub(torch.full((2, 4, 9), torch.nan))), "must return finite logits"),
    ("a prior of another shape", decoding(prior=torch.zeros(2, 4, 9)), r"prior must have shape \(2, 4, 8\)"),
    ("a step after the last", call(masked_count, "cosine", 9, 8, 85), "step must lie between 0 and the 8 steps"),
    ("tokens of another number", call(SMALL_NETS[0], TOKENS), "must have 256 positions per image, but they have 4"),
    ("tokens beyond the mask id", call(SMALL_NETS[0], torch.full((1, 256), 11)), "tokens must lie in 0..10, .* 11..11"),
    ("hints for a network without", call(SMALL_NETS[0], torch.zeros(1, 256).long(), None, torch.zeros(1, 256, 48)),
     "built for tokens alone"),
    ("heads that do not divide", call(MultiHeadAttention, 10, 3), "width is 10 and heads is 3"),
    ("the mask id to decode", call(SMALL_NETS[1].decode, torch.full((1, 256), 12)), "masked positions .* to be filled"),
    ("too few tokens to decode", call(SMALL_NETS[1].decode, TOKENS), r"tokens must be \(B,256\), not \(2, 4\)"),
    ("images of another size to encode", call(SMALL_NETS[1].encode, torch.zeros(1, 3, 32, 32)), "must be .B,3,64,64."),
    ("a hole of numbers", call(token_mask, torch.zeros(64, 64)), r"a hole must be bool .*; found torch.float32"),
    ("a hole of another size", call(token_mask, HOLE[0, :, :60]), r"a hole must be bool .*; found .* \(64, 60\)"),
    ("images that are normalised already", call(normalise, torch.full((3, 64, 64), -1.5)), r"bytes or in \[0,1\]"),
    ("images of 0 to 255 as floats", call(normalise, torch.full((3, 64, 64), 200.0)), r"bytes or in \[0,1\]; .* 200"),
    ("an unknown fill", call(fill_holes, IMAGE, HOLE, "pink"), "unknown fill 'pink'; there are grey, mean, telea"),
    ("no such paste", call(paste_known, IMAGE, IMAGE, HOLE, "soft"), "'soft'; there are none, hard, blurred, poisson"),
    ("features of one image", call(frechet_distance, FEATURES[:1], FEATURES), "features_a must be .* least 2 images"),
    ("features without an axis", call(kid, FEATURES, FEATURES[0]), r"features_b must be .* found shape \(3,\)"),
    ("features of two networks", call(frechet_distance, FEATURES, FEATURES[:, :2]), "have 3 and 2 features"),
    ("features with NaN", call(frechet_distance, FEATURES * torch.nan, FEATURES), "features_a hold NaN or inf.* in 4"),
    ("features with infinity", call(feature_stats, FEATURES / 0), "features hold NaN or infinity"),
    ("statistics of two", call(frechet_distance_from_stats, MU, SIGMA, np.zeros(3), np.eye(3)), "2 and 3 features"),
]  # fmt: skip


# --- every one --------------------------------------------------------------------------------------------------

CASES = DATASETS + CHECKPOINTS + COMMANDS + CALLS


def contents(*folders: Path) -> dict[str, str]:
    """Every folder and file below, with a hash of what is in it."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@pytest.mark.parametrize("make, says", [pytest.param(*case, id=name) for name, *case in CASES])
def test_one_sentence_and_nothing_written(make, says, tmp_path, own_folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    action = make(tmp_path)
    before = contents(tmp_path, own_folders)
    with shapes_unchecked(), pytest.raises(REFUSALS, match=says) as refused:
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
