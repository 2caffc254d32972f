"""Several processes that do one run together: who is who, and what they tell each other.

`torchrun --nproc-per-node 4 -m lab5 train` starts four and says in their environment which is which. They have the
ranks 0 to 3 of a world of 4: each computes its part of a step on a device of its own, and all have the same network
after it. A process by itself is rank 0 of a world of 1, for whom everything here is nothing.

A rank that ends, however it does, ends the others: its connections close, and they say so.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from lab5.runtime.files import defer_signals, write
from lab5.runtime.folders import data_folder

ROLL_CALL = timedelta(minutes=5)  # for all ranks to be there
PATIENCE = timedelta(days=1)  # with one that works by itself, at a token cache or a decoding; the dead are noticed
BUCKET = 1 << 23  # numbers in a message, 32 MB of float32
ENDED = "another rank has ended, or cannot be reached any more, and so does this one"


class Ranks:
    """This process among those of its world. What is told goes over gloo, the tensors of GPUs over NCCL."""

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, store: Any = None):
        self.rank, self.world, self.local = rank, world, local  # `local`: among those of this machine
        self._store, self._deals = store, 0
        self._own: list[int] = []  # signals that wait for the others to know of them
        self._agreed: list[int] = []  # and of which all know

    @property
    def first(self) -> bool:
        """Whether it is the one that locks, saves, checks and prints."""
        return self.rank == 0

    def check_device(self, device: str) -> None:
        """Raises ValueError where the ranks of a machine would share a GPU."""
        kind, _, number = device.partition(":")
        if self.world == 1 or kind != "cuda":
            return
        if number:
            raise ValueError(f"device = {device} is one GPU, and there are {self.world} ranks: cuda gives each its own")
        if self.local >= (cards := torch.cuda.device_count()):
            raise ValueError(f"LOCAL_RANK = {self.local} needs a GPU of its own, and this machine has {cards}")

    # --- the batches of a step

    def share(self, accumulate: int, name: str = "accumulate") -> int:
        """How many of a step's batches are this rank's. Raises ValueError where they cannot be dealt out evenly."""
        if accumulate % self.world:
            raise ValueError(
                f"{name} = {accumulate}, the batches in a step, cannot be dealt out to {self.world} ranks: make it a "
                f"multiple of {self.world}, and the batch smaller for as many images in a step"
            )
        return accumulate // self.world

    def draws(self, step: int, accumulate: int) -> list[int]:
        """The numbers of its batches in a 1-based step. In each round of all ranks they are a row."""
        mine = self.share(accumulate)
        return [((step - 1) * mine + micro) * self.world + self.rank + 1 for micro in range(mine)]

    def is_last(self, draw: int, accumulate: int) -> bool:
        """Whether a batch is this rank's last one in its step."""
        return (draw - 1) % accumulate >= accumulate - self.world

    # --- what they tell each other; each of these waits for all

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor its sum over the ranks: the same bits everywhere."""
        if self.world > 1:
            _together(tensors, dist.all_reduce)

    def from_first(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor what rank 0 has there."""
        if self.world > 1:
            _together(tensors, lambda flat: dist.broadcast(flat, 0))

    def from_last(self, tensors: Iterable[Tensor]) -> None:
        """Put into each tensor what the rank with the last batch of a step has there."""
        if self.world > 1:
            _together(tensors, lambda flat: dist.broadcast(flat, self.world - 1))

    def gather(self, *numbers: float) -> list[list[float]]:
        """The numbers of each rank."""
        if self.world == 1:
            return [list(numbers)]
        rows = [torch.zeros(len(numbers), dtype=torch.float64) for _ in range(self.world)]
        with _others_needed():
            dist.all_gather(rows, torch.tensor(numbers, dtype=torch.float64))
        return [row.tolist() for row in rows]

    def first_says(self, answer: bool) -> bool:
        """The answer of rank 0."""
        return bool(self.gather(answer)[0][0])

    def last_says(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers of the rank with the last batch of a step, in the same order everywhere."""
        return dict(zip(numbers, self.gather(*numbers.values())[-1], strict=True))

    def wait(self) -> None:
        """Go on when all are here."""
        self.gather(0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 goes through the block by itself, then the others do, who find on disk what it has made."""
        if not self.first:
            self.wait()
        with alone():
            yield
        if self.first:
            self.wait()

    def deal(self, n: int) -> Iterator[int]:
        """The numbers below n, each to one rank: whoever is done with one takes the next."""
        self._deals += 1
        with _others_needed():
            while (number := self._store.add(f"deal {self._deals}", 1) - 1) < n:
                yield number

    # --- ends

    def agree(self, weight: float) -> float:
        """The sum of all ranks' weights in a step; from here on all know of a signal that one of them has got."""
        rows = self.gather(weight, self._own[0] if self._own else 0)
        if signals := [int(number) for _, number in rows if number]:
            self._own[:1] = self._agreed[:] = signals[:1]
        return sum(weight for weight, _ in rows)

    @contextmanager
    def signals_wait(self) -> Iterator[None]:
        """A block in which Ctrl-C and SIGTERM wait until all ranks know of them: at the end of a step of `fit`."""
        if self.world == 1:
            yield
            return
        with defer_signals() as self._own:
            yield
        if self._own:  # after the last step
            signal.raise_signal(self._own[0])

    @contextmanager
    def defer_signals(self) -> Iterator[list[int]]:
        """`files.defer_signals` around a step; among several ranks, the list has what all know of."""
        if self.world == 1:
            with defer_signals() as waiting:
                yield waiting
        else:
            yield self._agreed


_here = Ranks()


def here() -> Ranks:
    """This process among its ranks."""
    return _here


@contextmanager
def alone() -> Iterator[None]:
    """A block that this process goes through without the others."""
    global _here
    among, _here = _here, Ranks()
    try:
        yield
    finally:
        _here = among


def from_environment(environ: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """(rank, world, rank on this machine) as torchrun says them. Raises ValueError where they are no such numbers."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if not environ.get(name)]:
        there = [f"{name}={environ[name]}" for name in names if environ.get(name)]
        raise ValueError(f"the environment has {' '.join(there)} without {', '.join(missing)}: torchrun sets them all")
    numbers = {name: environ[name] for name in names if name != "MASTER_ADDR"}
    if wrong := [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]:
        raise ValueError(f"the environment has {wrong[0]}, which is no whole number: torchrun sets it")
    rank, world, local = (int(environ[name]) for name in names[:3])
    if rank >= world:
        raise ValueError(f"the environment has RANK={rank}, which must be below WORLD_SIZE={world}")
    return rank, world, local


@contextmanager
def joined() -> Iterator[None]:
    """A block in which this process is one of the ranks that the environment speaks of; all but rank 0 are silent.

    Raises ValueError for an environment that is not torchrun's, ConnectionError where the others do not come.
    """
    global _here
    from torch.distributed.rendezvous import rendezvous  # here alone: not every build of torch has it

    rank, world, local = from_environment()
    if world == 1:
        yield
        return
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)  # what "cuda" means here
    with ExitStack() as leaving:
        with _others_needed(f"of the {world} ranks not all have come within {ROLL_CALL}"):
            store, *_ = next(rendezvous("env://", rank, world, timeout=ROLL_CALL))
            store.set(f"rank {rank}", "here")
            store.wait([f"rank {number}" for number in range(world)], ROLL_CALL)
            gpus = torch.cuda.is_available() and dist.is_nccl_available()
            backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
        leaving.callback(dist.destroy_process_group)
        if rank > 0:
            nobody = leaving.enter_context(open(os.devnull, "w", encoding="utf-8"))
            leaving.enter_context(redirect_stdout(nobody))
            leaving.enter_context(redirect_stderr(nobody))
        _here = Ranks(rank, world, local, store)
        try:
            _check_folder(_here, store)
            yield
        finally:
            _here = Ranks()


def _check_folder(ranks: Ranks, store: Any) -> None:
    """Raises ValueError where machines do not see the same folder for what is trained."""
    if ranks.first:
        store.set("note", uuid4().hex)
    note = data_folder() / f".ranks-{store.get('note').decode()}"
    if ranks.first:
        write(note, b"")
    ranks.wait()
    seen = note.exists()
    ranks.wait()
    if ranks.first:
        note.unlink(missing_ok=True)
    if not seen:
        raise ValueError(f"{note.parent} is not the folder that rank 0 writes to: LAB5_DATA has to name a shared one")


@contextmanager
def _others_needed(without: str = ENDED) -> Iterator[None]:
    """Where the others cannot be reached, one sentence in place of the names of sockets."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(f"{without}: given again, the command goes on from what is saved") from error


def _together(tensors: Iterable[Tensor], send: Callable[[Tensor], object]) -> None:
    """Send tensors in a few messages, however they lie in memory, and put back what comes."""
    for bucket in _buckets(tensors):
        message = torch.cat([tensor.reshape(-1) for tensor in bucket])
        with _others_needed():
            send(message)
        for tensor, part in zip(bucket, message.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """In order, each of one type and hardly more than BUCKET numbers."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in (tensor.detach() for tensor in tensors):
        if bucket and (size >= BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
