"""Clocks and counters: two implementations in turns, the peak of the machine, memory, what computes.

It knows nothing of what is measured.
"""

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

Clock = Callable[[], float]


# --- two in turns ---------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """Two implementations on the same machine at the same time."""

    naive: float  # seconds per unit, median over the rounds
    lab5: float
    ratio: float  # median of naive / lab5 of each round
    lowest: float
    highest: float
    rounds: int


def interleaved(
    naive: Callable[[], object], lab5: Callable[[], object], rounds: int, *,
    units: tuple[float, float] = (1, 1), warm_up: bool = True,
    clock: Clock = time.perf_counter, wait: Callable[[], None] = lambda: None,
) -> Compared:  # fmt: skip
    """Run both in every round, the one that begins changing each time, and compare within the round.

    Whatever else the machine does then does it to both. `units` are how many a call of each does. A call of each comes
    before, which is not counted, unless `warm_up` is False. `wait` returns when the device is done.
    """
    both = (naive, lab5)
    if warm_up:
        for work in both:
            work()
    seconds: list[tuple[float, float]] = []
    for number in range(rounds):
        spent = [0.0, 0.0]
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            spent[i] = timed(both[i], clock, wait) / units[i]
        seconds.append((spent[0], spent[1]))
    ratios = [slow / fast for slow, fast in seconds]
    slow, fast = (median(column) for column in zip(*seconds, strict=True))
    return Compared(slow, fast, median(ratios), min(ratios), max(ratios), rounds)


def timed(
    work: Callable[[], object], clock: Clock = time.perf_counter, wait: Callable[[], None] = lambda: None
) -> float:
    """Seconds that a call takes, the device's work included."""
    wait()
    began = clock()
    work()
    wait()
    return clock() - began


def waiting(device: torch.device) -> Callable[[], None]:
    """What returns when the device is done: a GPU works on while Python goes ahead."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


# --- what the machine can do ----------------------------------------------------------------------------------------


def matmul_peak(
    device: torch.device, dtype: torch.dtype = torch.float32, size: int = 2048, seconds: float = 1.0
) -> float:
    """The most floating-point operations per second that a product of two square matrices has reached."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait, best, end = waiting(device), 0.0, time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < end:
        best = max(best, 2 * size**3 / timed(lambda: a @ b, wait=wait))
    return best


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes per second read and written by a copy that no cache holds: the best of five."""
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
    target, wait = torch.empty_like(source), waiting(device)
    return max(2 * source.numel() / timed(lambda: target.copy_(source), wait=wait) for _ in range(5))


def bf16_pays(device: torch.device, size: int = 512) -> bool:
    """Whether products in bfloat16 are faster than in float32 here, by a quarter: else it is emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        seconds[dtype] = min(timed(lambda a=a, b=b: a @ b) for _ in range(5))
    return seconds[torch.float32] > 1.25 * seconds[torch.bfloat16]


# --- memory ---------------------------------------------------------------------------------------------------------


class Memory:
    """`bytes` at the most, within the region of `peak_memory`; None where the system does not say."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """The most memory in use in the region: the tensors of a GPU, else all of the process."""
    memory = Memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield memory
        memory.bytes = torch.cuda.max_memory_allocated(device)
        return
    reset = _reset_high_water_mark()
    yield memory
    memory.bytes = _high_water_mark() if reset else None


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: proc_pid_clear_refs(5)
        return True
    except OSError:
        return False


def _high_water_mark() -> int | None:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def whole_peak() -> int:
    """Bytes of the process at the most since it began."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- which machine --------------------------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    """The model of what computes, and nothing that names a particular machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"
