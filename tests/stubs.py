"""Small stand-ins that several test files decode and score with."""

import io
import multiprocessing
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import torch
from PIL import Image

from lab5.config import DecodeConfig
from lab5.data.dataset import Dataset, open_dataset
from lab5.decoder import DecodeStep
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN


class Blocks:
    """Stub features: the means of 16x16 blocks."""

    score_name = "Frechet distance on block means"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2)).flatten(1)


def cats(n: int, cache: Path) -> Dataset:
    return open_dataset("toycats", n_train=1, n_val=1, n_test=n, seed=0, cache=cache)


def photographs(folder: Path) -> Dataset:
    """A folder of 240 made-up ones, coarse colours, of which 24 are test images; there are no attributes to read."""
    coarse = torch.randint(0, 256, (240, 3, 8, 8), dtype=torch.uint8, generator=seeded(5))
    images = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).permute(0, 2, 3, 1).numpy()
    write_files(folder / "photographs", {f"{i}.png": png(image) for i, image in enumerate(images)})
    sizes = {"n_train": 192, "n_val": 24, "n_test": 24}
    return open_dataset(folder / "photographs", **sizes, seed=0, cache=folder / "cache")


def untrained_pair(seed: int = 0) -> Pair:
    """Untrained, but with codes far apart and logits far from flat: each token shows in the picture."""
    config = configure("smoke", device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqgan = VQGAN(config.vqgan)
        torch.nn.init.normal_(vqgan.codebook.embedding.weight)
    transformer = BidirectionalTransformer(config.transformer, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(transformer.bias, generator=torch.Generator().manual_seed(2 + seed))
    return Pair(Tokenizer(vqgan), transformer.eval(), "stub 1")


# --- decoding: a model whose answer is known, holes of every size, and what every decoding promises

IMAGES, POSITIONS, K = 4, 16, 6  # the mask id is K


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Table:
    """A fixed table of logits per position, plus what a position gets from the tokens of its image."""

    mask_id = K

    def __init__(self, columns: int = K):
        self.table = torch.randn(POSITIONS, columns, generator=seeded(1))
        self.context = torch.randn(K + 1, POSITIONS, columns, generator=seeded(2))
        self.asked = []

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.asked.append(tokens.clone())
        return self.table + self.context[tokens].mean(dim=1)


class Chain:
    """Sure that a token is one more than its left neighbour where it sees that, without a clue elsewhere."""

    mask_id = K

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        left = tokens.roll(1, dims=1)
        logits = torch.zeros(*tokens.shape, K)
        clue = torch.nn.functional.one_hot((left + 1) % K, K).float() * 50
        return torch.where((left < K)[..., None], clue, logits)


def named(answer: Callable[[torch.Tensor], torch.Tensor], mask_id: int = K) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same function, with the mask id that a decoder asks a model for."""
    model = lambda tokens: answer(tokens)  # noqa: E731
    model.mask_id = mask_id
    return model


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Holes of 0, 1, 9 and 16 of the 16 positions."""
    tokens = torch.randint(0, K, (IMAGES, POSITIONS), generator=seeded(3))
    shuffled = torch.rand(IMAGES, POSITIONS, generator=seeded(4)).argsort(dim=1)
    return tokens, shuffled < torch.tensor([0, 1, 9, 16])[:, None]


def per_image() -> list[torch.Generator]:
    return [seeded(i) for i in range(IMAGES)]


Decode = Callable[..., Iterator[DecodeStep]]


def walk(decode: Decode, model, tokens, unknown, generator=None, *, prior=None, **settings) -> list[DecodeStep]:
    """The states of `decoder.decode_steps` or `variants.decode`, under these fields of DecodeConfig."""
    states = decode(model, tokens, unknown, DecodeConfig(**settings), generator=generator or seeded(), prior=prior)
    return list(states)


def walks_alike(decode: Decode, **settings) -> list[DecodeStep]:
    """The states of the batch; its two larger holes are decoded once more, alone, with the same seeds."""
    tokens, unknown = a_batch()
    before = tokens.clone(), unknown.clone()
    states = walk(decode, Table(), tokens, unknown, per_image(), **settings)
    for i in (2, 3):
        alone = walk(decode, Table(), tokens[i : i + 1], unknown[i : i + 1], [seeded(i)], **settings)
        alone += alone[-1:] * (len(states) - len(alone))  # under a budget one alone is done when it is done
        for state, right in zip(alone, states, strict=True):
            assert torch.equal(state.filled, right.filled[i : i + 1])
            assert torch.equal(state.masked, right.masked[i : i + 1])
    assert torch.equal(tokens, before[0]) and torch.equal(unknown, before[1]), "the caller's tensors"
    return states


def assert_promises(states: list[DecodeStep], tokens: torch.Tensor, unknown: torch.Tensor) -> None:
    """What holds at every step of every decoding."""
    assert [state.step for state in states] == list(range(len(states)))
    assert torch.equal(states[0].masked, unknown)
    assert not states[-1].masked.any() and torch.equal(states[-1].filled, states[-1].tokens)
    for state in states:
        assert torch.equal(state.unknown, unknown)
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])
        assert torch.equal(state.filled[~unknown], tokens[~unknown])
        assert torch.equal(state.tokens == K, state.masked) and not (state.masked & ~unknown).any()
        assert state.step == 0 or ((0 <= state.filled) & (state.filled < K)).all()
        # What is committed is what was proposed.
        assert torch.equal(state.tokens[~state.masked], state.filled[~state.masked])


def assert_committed_tokens_stay(states: list[DecodeStep]) -> None:
    for before, after in pairwise(states):
        assert not (after.masked & ~before.masked).any()
        assert torch.equal(after.tokens[~before.masked], before.tokens[~before.masked])


# --- files: what would be on disk, as bytes


def written(write: Callable[[io.BytesIO], Any]) -> bytes:
    """What `write` writes into a file."""
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def encoded(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    return written(lambda file: picture.save(file, kind, **more))


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels))


def zipped(entries: Iterable[tuple[str | zipfile.ZipInfo, bytes]], packing: int = zipfile.ZIP_STORED) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w", packing) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names given twice
            for name, content in entries:
                archive.writestr(name, content)

    return written(write)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Below `folder`, under these names."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """As for a user: without the test suite's check of shapes, which would refuse some input first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def assert_finished_states_repeat(states: list[DecodeStep]) -> None:
    for before, after in pairwise(states):
        if not before.masked.any():
            assert after.step == before.step + 1
            assert all(torch.equal(new, old) for new, old in zip(after[1:6], before[1:6], strict=True))


def assert_stopping_early_follows_the_plan(decode: Decode, **settings) -> None:
    whole = walk(decode, Table(), *a_batch(), **settings)
    for stop_at in range(1, len(whole)):
        *states, last = walk(decode, Table(), *a_batch(), **settings, stop_at=stop_at)
        assert len(states) == stop_at
        for state, right in zip(states, whole, strict=False):
            assert torch.equal(state.tokens, right.tokens)
        # The last one shows what the whole run showed at this step, but with nothing left masked.
        assert torch.equal(last.filled, whole[stop_at].filled)
        assert torch.equal(last.tokens, last.filled) and not last.masked.any()


def assert_the_logit_of_the_mask_id_does_not_matter(decode: Decode, **settings) -> None:
    model = Table()
    with_mask = named(lambda tokens: torch.nn.functional.pad(model(tokens), (0, 1), value=1e9))
    with_and_without = (walk(decode, one, *a_batch(), **settings) for one in (with_mask, model))
    for state, right in zip(*with_and_without, strict=True):
        assert torch.equal(state.filled, right.filled) and torch.equal(state.confidence, right.confidence)


# --- processes: forked by a server that has imported torch and what is trained, so that a start takes no time

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["lab5.training.networks", "lab5.study.run", "torch._dynamo"])  # which optimisers load


def started(work: Callable, *args) -> multiprocessing.Process:
    """A process of its own, in which nothing of the tests has run; `work` is a function of a module."""
    process = PROCESSES.Process(target=work, args=args)
    process.start()
    return process
