"""Thousands of spoiled files to every loader: an answer or one sentence, no file anywhere, no code run, no hang.

A valid file is taken and a few of its bytes, fields or entries are changed, mostly where its structure is. What is
built on purpose, with the sentence that it must get, is in test_malformed.py.
"""

import gc
import io
import json
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from stubs import encoded, png, shapes_unchecked, write_files, written, zipped

from lab5.checkpoint import load_transformer, load_vqgan
from lab5.config import TransformerConfig, VQGANConfig
from lab5.data.archives import read_cached
from lab5.data.dataset import open_masked
from lab5.data.layouts import read_dataset
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.files import save_tensors
from lab5.scoring.classifier import ToyFeatures, load_classifier
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

REFUSALS = (ValueError, OSError, FileNotFoundError, PermissionError)
SECONDS = 30  # of computing, and twenty times that of waiting: nothing here takes one, but the machine may be busy

# --- what must not happen ---------------------------------------------------------------------------------------------

# Files that are opened for writing or changed, programs that are started, addresses that are called.
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
STARTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork"}
_watched: list[str] | None = None  # what was seen while a loader is at work


def _watch(event: str, arguments: tuple) -> None:
    if _watched is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in CHANGES | STARTS:
        _watched.append(f"{event} {arguments[:2]}")


sys.addaudithook(_watch)  # for good, but it sleeps unless a loader is at work


@contextmanager
def harmless() -> Iterator[None]:
    """Fails where something is written or started, or takes too long."""
    global _watched
    _watched = seen = []
    hangs = lambda *_: pytest.fail(f"it hangs: more than {SECONDS} s")  # noqa: E731
    handlers = {number: signal.signal(number, hangs) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
    # What is imported for the first time would be kept compiled, and what another test has left might be cleared away.
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    gc.disable()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _watched = None
        gc.enable()
        sys.dont_write_bytecode = compiles
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert seen == []


@pytest.fixture(autouse=True, scope="module")
def torch_is_warm(tmp_path_factory):
    """The first network that is loaded makes torch import its compiler, which makes a folder for itself."""
    for name, (load, network, config) in NETWORKS.items():
        path = tmp_path_factory.mktemp("networks") / "net"
        save_tensors(path, network.state_dict(), {name: config, "kind": "classifier"})
        load(path)


def answers(load: Callable[[Path], Any], content: dict[str, bytes]) -> None:
    """An answer, or one sentence."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's and torch's
        write_files(Path(folder), content)
        try:
            with shapes_unchecked(), harmless():
                load(Path(folder))
        except REFUSALS as error:
            assert type(error) in REFUSALS, f"an error of another library: {error!r}"
            sentence = str(error)
            assert sentence and "\n" not in sentence, repr(error)
            assert len(sentence) < 700, sentence


# --- valid files ------------------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(1, 127, size=(8, 16, 16, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
PICTURES = [Image.fromarray(array) for array in PIXELS]
OWN = {f"cat {i}.png": encoded(picture) for i, picture in enumerate(PICTURES[:5])}
IMAGES = [encoded(PICTURES[6], kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")]
IMAGES += [encoded(PICTURES[6].convert(mode)) for mode in ("P", "LA", "1", "I;16")]
KNOWN = np.full((64, 64), 255, np.uint8)
KNOWN[10:30, 20:44] = 0
MASKS = [encoded(Image.fromarray(KNOWN), kind) for kind in ("PNG", "BMP")]
HOLED = png(np.where(KNOWN[:, :, None] == 255, PIXELS[7], np.uint8(128)))

TRANSFORMER = TransformerConfig(codes=6, positions=4, width=32, layers=1, heads=16, hidden=8)
SMALL_VQGAN = VQGANConfig(codes=5, latent=4, stem=4, encoder=((4,), (4,)), middle=(4,), decoder=((4,), (4,), (4,)),
                          groups=0, attention=False)  # fmt: skip
with torch.random.fork_rng():
    torch.manual_seed(0)
    NETWORKS = {
        "TransformerConfig": (load_transformer, BidirectionalTransformer(TRANSFORMER), asdict(TRANSFORMER)),
        "VQGANConfig": (load_vqgan, VQGAN(SMALL_VQGAN), asdict(SMALL_VQGAN)),
        "shape": (load_classifier, ToyFeatures({"fur": 3}, 4), {"attributes": {"fur": 3}, "features": 4}),
    }


def pickled(state: dict[str, torch.Tensor], old: bool = False) -> bytes:
    return written(partial(torch.save, state, _use_new_zipfile_serialization=not old))


LAB = {name: tensor[..., :1].repeat(*[1] * (tensor.ndim - 1), tensor.shape[-1]) if tensor.ndim else tensor
       for name, tensor in NETWORKS["TransformerConfig"][1].state_dict().items()}  # fmt: skip

# --- spoiling ---------------------------------------------------------------------------------------------------------


@st.composite
def spoiled(draw, whole: bytes) -> bytes:
    """A few changes, at the beginning and the end more often than in between."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        size = len(data)
        ends = st.integers(0, min(size, 120)), st.integers(max(0, size - 120), size)
        at = draw(st.one_of(st.integers(0, size), *ends))
        kind = draw(st.sampled_from(["bit", "byte", "number", "cut", "drop", "repeat", "insert", "zeros"]))
        length = draw(st.sampled_from([1, 2, 4, 8, 30, 200]))
        if kind == "bit" and at < size:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and at < size:
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            data[at : at + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", draw(st.integers(0, 2**32 - 1)))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 3))
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif kind == "zeros":
            data[at : at + length] = bytes(length)
    return bytes(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.sampled_from([2**31, 2**63, -1, 10**30]) | st.floats()
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def changed(draw, value: Any) -> Any:
    """JSON with one of its parts replaced, left out or added, at any depth."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        kind = draw(st.sampled_from(["change"] * 4 + ["drop", "add", "rename"]))
        if kind == "drop":
            return {key: item for key, item in value.items() if key != name}
        if kind == "add":
            return value | {draw(st.text(max_size=8)): draw(JSON)}
        if kind == "rename":
            return {draw(st.text(max_size=8)) if key == name else key: item for key, item in value.items()}
        return value | {name: draw(changed(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return value[:at] + [draw(changed(value[at]))] + value[at + 1 :]
    if isinstance(value, int) and draw(st.booleans()):
        return value + draw(st.sampled_from([-1, 1, 1000, 2**40]))
    return draw(JSON)


@st.composite
def safetensors_files(draw) -> dict[str, bytes]:
    """One of our networks, by its kind: its settings, its table of tensors or its bytes are changed."""
    kind = draw(st.sampled_from(sorted(NETWORKS)))
    _, network, config = NETWORKS[kind]
    where = draw(st.sampled_from(["settings", "table", "bytes", "checksum"]))
    if where == "settings":
        config = draw(changed(json.loads(json.dumps(config))))
    meta = {kind: json.dumps(config), "kind": json.dumps("classifier"), "settings": json.dumps({"tokenizer": "ab"})}
    whole = safetensors.torch.save({name: t.contiguous() for name, t in network.state_dict().items()}, meta)
    if where == "table":
        end = 8 + int.from_bytes(whole[:8], "little")
        table = json.dumps(draw(changed(json.loads(whole[8:end])))).encode()
        whole = len(table).to_bytes(8, "little") + table + whole[end:]
    if where == "bytes":
        whole = draw(spoiled(whole))
    if where == "checksum":
        with tempfile.TemporaryDirectory() as folder:
            save_tensors(Path(folder) / "net", network.state_dict(), {kind: config})
            whole = draw(spoiled((Path(folder) / "net").read_bytes()))
    return {kind: whole}


@st.composite
def pickles(draw) -> bytes:
    """A checkpoint of the lab's: its pickle, its tensors, its archive or its whole is changed."""
    state = dict(LAB)
    where = draw(st.sampled_from(["pickle", "tensors", "bytes", "old"]))
    if where == "tensors":
        name = draw(st.sampled_from(sorted(state)))
        shape = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
        tensor = torch.zeros(1, dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool])))
        state[draw(st.sampled_from([name, name + "x", "blocks.7.Attention.qkv.weight"]))] = tensor.expand(shape)
    whole = pickled(state, old=where == "old")
    if where in ("bytes", "old"):
        return draw(spoiled(whole))
    if where == "pickle":
        with zipfile.ZipFile(io.BytesIO(whole)) as source:
            entries = {name: source.read(name) for name in source.namelist()}
        (name,) = (name for name in entries if name.endswith("data.pkl"))
        return zipped((entries | {name: draw(spoiled(entries[name]))}).items())
    return whole


PLACES = st.sampled_from(["", "train/", "val/", "masked_image/", "mask64/", "masks/", "a/b/", "../", "/", "C:\\",
                          "..\\", "a/../../", "__MACOSX/", "\u0000", "\U0001f431/"])  # fmt: skip


@st.composite
def archives(draw) -> bytes:
    """A zip of pictures with strange names, places and kinds, or a plain one whose bytes are changed."""
    entries: list[tuple[str | zipfile.ZipInfo, bytes]] = list(OWN.items())
    for _ in range(draw(st.integers(0, 3))):
        name = draw(PLACES) + draw(st.text(max_size=8)) + draw(st.sampled_from([".png", ".jpg", "1.png", ".zip", ""]))
        info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
        info.external_attr = draw(st.sampled_from([0o644, 0o120777, 0o40755, 0o10644])) << 16
        entries.append((info, draw(st.sampled_from(IMAGES + MASKS))))
    whole = zipped(entries, draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])))
    return draw(spoiled(whole)) if draw(st.booleans()) else whole


Files = dict[str, bytes]


def any_of(whole: list[bytes], name: str, beside: Files | None = None) -> st.SearchStrategy[Files]:
    """One of these files, spoiled, with others beside it that are whole."""
    return st.sampled_from(whole).flatmap(spoiled).map(lambda content: (beside or {}) | {name: content})


# --- the loaders ------------------------------------------------------------------------------------------------------


def load_ours(folder: Path) -> None:
    (path,) = folder.iterdir()
    NETWORKS[path.name][0](path)


TOKENIZER = Tokenizer(NETWORKS["VQGANConfig"][1])
TOKENS = written(lambda file: np.save(file, np.zeros((2, 256), np.int16)))
ARRAYS = written(lambda file: np.savez(file, train=np.zeros((2, 3), np.uint8), holes=np.ones((2, 2), bool)))

LOADERS: dict[str, tuple[Callable[[Path], Any], st.SearchStrategy[Files], int]] = {
    "images": (read_dataset, any_of(IMAGES, "cat 5.png", OWN), 80),
    "masks": (lambda folder: open_masked(folder / "images", folder / "masks"),
              any_of(MASKS, "masks/mask_1.png", {"images/image_1.png": HOLED}), 60),
    "masks of one's own": (read_dataset, any_of(MASKS, "masks/cat 1.png", OWN), 40),
    "zips": (lambda folder: read_dataset(folder / "cats.zip"), archives().map(lambda zip: {"cats.zip": zip}), 60),
    "our checkpoints": (load_ours, safetensors_files(), 60),
    "the lab's checkpoints": (lambda folder: load_transformer(folder / "net.pt"),
                              pickles().map(lambda pickle: {"net.pt": pickle}), 60),
    # A cache that is damaged counts as none.
    "token caches": (lambda folder: TOKENIZER._read(folder / "a.npy", (2, 256)), any_of([TOKENS], "a.npy"), 20),
    "dataset caches": (lambda folder: read_cached(folder / "a.npz"), any_of([ARRAYS], "a.npz"), 20),
}  # fmt: skip
"""Loader, what it is given, and how many of 400 examples."""


def fuzz(name: str, times: int, **options: Any) -> None:
    load, inputs, examples = LOADERS[name]

    @settings(
        max_examples=examples * times, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip
    @given(inputs)
    def run(given):
        answers(load, given)

    run()


@pytest.mark.parametrize("name", LOADERS)
def test_hundreds_of_spoiled_files(name):
    fuzz(name, 1, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_ten_thousand_spoiled_files(name):
    """Others at every run; hypothesis prints the one that fails."""
    fuzz(name, 25)


def test_valid_files_load_and_what_is_written_or_hangs_is_caught(monkeypatch, tmp_path):
    (tmp_path / "net.pt").write_bytes(pickled(LAB))
    load_transformer(tmp_path / "net.pt")
    with pytest.raises(AssertionError, match="open"):
        answers(lambda folder: (folder / "x").write_bytes(b""), {})
    with pytest.raises(AssertionError, match="os.mkdir"):
        answers(lambda folder: (folder / "x").mkdir(), {})
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.05)
    with pytest.raises(pytest.fail.Exception, match="it hangs"):
        answers(lambda folder: signal.pause(), {})
    with pytest.raises(pytest.fail.Exception, match="it hangs"):
        answers(lambda folder: [None for _ in iter(int, 1)], {})
