"""Which of torch's ways to multiply float32 matrices is the fastest on this CPU, of those that are equally exact.

The usual way is MKL's, which is made for Intel's processors. `torch.set_float32_matmul_precision` names others, that
go through oneDNN and may be several times as fast elsewhere. They are also free to round to bfloat16 where the
processor has instructions for it: a short trial finds out, and a way that rounds is not taken.

It knows no network. The setting is of the whole process, and only borrowed: nothing else in lab5 touches it.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

USUAL, OTHERS = "highest", ("high", "medium")
SHAPE = (256, 768, 768)  # an image's tokens through a linear map of the lab's width
ROUNDS = 8
EXACT = 1e-5  # of the largest entry; float32 is off by 1e-6 here, bfloat16 by 1e-3
WORTH = 1.5  # times as fast: less may be chance, on which the last digits of a result should not depend


@contextmanager
def fastest_matmul(device: torch.device) -> Iterator[None]:
    """Within it, float32 products on a CPU take the fastest exact way; the setting found is put back after it.

    Where somebody has chosen a way already, or the environment's LAB5_MATMUL is "highest", nothing is changed.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and before == USUAL and os.environ.get("LAB5_MATMUL") != USUAL:
        torch.set_float32_matmul_precision(fastest_way(torch.get_num_threads()))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def fastest_way(threads: int) -> str:
    """A trial of some milliseconds, once for every number of threads; the usual way unless another is worth it."""
    rows, inner, columns = SHAPE
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    right = a.double() @ b.double()
    trials: dict[str, list[tuple[float, float]]] = {way: [] for way in (USUAL, *OTHERS)}
    before = torch.get_float32_matmul_precision()
    try:
        with torch.autocast("cpu", enabled=False):
            for _ in range(ROUNDS):  # in turns: whatever else the machine does, it does to all
                for way, results in trials.items():
                    torch.set_float32_matmul_precision(way)
                    results.append(_trial(a, b, right))
    finally:
        torch.set_float32_matmul_precision(before)
    return choose({way: min(results) for way, results in trials.items()})


def choose(trials: dict[str, tuple[float, float]]) -> str:
    """The way to take, of trials way -> (seconds, error relative to the largest entry)."""
    usual = trials[USUAL][0]
    worthy = {way: s for way, (s, error) in trials.items() if error <= EXACT and usual >= WORTH * s}
    return min(worthy, key=worthy.get, default=USUAL)


def _trial(a: Tensor, b: Tensor, right: Tensor) -> tuple[float, float]:
    began = time.perf_counter()
    product = a @ b
    seconds = time.perf_counter() - began
    return seconds, ((product - right).abs().max() / right.abs().max()).item()
