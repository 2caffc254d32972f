"""What computes: how much memory it has, what to lower where that was not enough, its fastest exact float32."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

GB = 2**30
CPU_FACTS = Path("/proc/cpuinfo")


def machine(device: str) -> str:
    """In a line what computes here: `cpu with 2 cores, 5.3 of 7.8 GB memory free`, or a GPU's name and memory."""
    import torch  # here alone: how much memory there is can be asked without it

    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{torch.cuda.get_device_name(device)}, {free / GB:.1f} of {total / GB:.1f} GB memory free"
    return f"{device} with {os.cpu_count()} cores, {memory()}"


def memory() -> str:
    """Free and whole memory of the computer, in words."""
    free, total = memory_gb()
    return f"{free:.1f} of {total:.1f} GB memory free" if total else "memory unknown"


def memory_gb() -> tuple[float, float]:
    """What programs could still be given, and the whole, in GB; zeros on a system that does not say."""
    try:
        pages = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / GB for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
        free, total = pages
    except (AttributeError, ValueError, OSError):
        return 0.0, 0.0
    try:  # unused pages are not all that is free: the system gives back what it keeps of files
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024 / GB
    except (OSError, StopIteration):
        pass
    return free, total


@contextmanager
def oom_hint(setting: str, value: int, instead: str = "") -> Iterator[None]:
    """Where a GPU's memory runs out, raise MemoryError with a sentence that names the setting to lower.

    `instead` says what keeps the result the same.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the GPU's memory is full ({machine('cuda')}): lower {setting}, which is {value}, for example with "
            f'configure(profile, **{{"{setting}": {max(1, value // 2)}}}){instead}'
        ) from error


def compile_parts(model: Any, **options: Any) -> None:
    """Every block of a transformer, else the whole network, by torch.compile; names and weights stay as they are."""
    for part in getattr(model, "blocks", [model]):
        part.compile(**options)


def fast_precision(device: str) -> str:
    """ "bf16" or, before compute capability 8, "fp16": what a GPU computes in fast; "off" on a CPU."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return "off"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextmanager
def exact_float32(device: Any) -> Iterator[None]:
    """Within it products and convolutions of float32 are of float32, whatever has been chosen for the process.

    Neither autocast, nor TF32 on a GPU, whose 10 bits would flip codes that are near a tie, nor bfloat16 on a CPU.
    """
    import torch

    ways, chosen = _float32_ways(), _chosen_by_older_names()
    before = [way.fp32_precision for way in ways]
    try:
        _choose(ways, ["ieee"] * len(ways), chosen and ("highest", False))
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _choose(ways, before, chosen)


def _float32_ways() -> list[Any]:
    """Where torch keeps how products of float32 are computed: of a GPU, then of a CPU."""
    import torch

    gpu, cpu = torch.backends.cudnn, torch.backends.mkldnn
    return [torch.backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv, cpu.rnn]


def _chosen_by_older_names() -> tuple[str, bool] | None:
    """The same by torch's older names, which raise as soon as somebody has used the newer ones."""
    import torch

    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _choose(ways: list[Any], precisions: list[str], older: tuple[str, bool] | None) -> None:
    """By both names, as far as both can be used: torch complains where they do not say the same."""
    import torch

    if older is not None:
        torch.set_float32_matmul_precision(older[0])
        torch.backends.cudnn.allow_tf32 = older[1]
    for way, precision in zip(ways, precisions, strict=True):
        way.fp32_precision = precision


@contextmanager
def fast_float32(device: Any) -> Iterator[None]:
    """Within it, float32 products on a CPU take the fastest way that is exact; the setting found is put back after it.

    Where somebody has chosen a way already, or the environment's LAB5_MATMUL is "highest", nothing is changed.
    """
    import torch

    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    chosen = device.type != "cpu" or before not in ("none", "ieee") or os.environ.get("LAB5_MATMUL") == "highest"
    if chosen or not _onednn_is_faster():
        yield
        return
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def _onednn_is_faster() -> bool:
    """Whether "bf16" means oneDNN's float32 in the place of MKL's, which is made for Intel's processors.

    torch takes that way where there are instructions for bfloat16, and oneDNN rounds to it with AMX alone: on AMD's
    processors the result is as exact, to 1e-6, in half the time. What is chosen depends on nothing but the processor.
    """
    try:
        words = set(CPU_FACTS.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return {"AuthenticAMD", "avx512_bf16"} <= words and "amx_bf16" not in words
