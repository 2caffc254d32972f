"""The machine in a line, memory that runs out, and the way to multiply float32 matrices, borrowed and put back."""

import os
from pathlib import Path

import pytest
import torch

from lab5.runtime import machine
from lab5.runtime.machine import exact_float32, fast_float32

CPU = torch.device("cpu")


def ways() -> list[str]:
    return [way.fp32_precision for way in machine._float32_ways()]


@pytest.fixture(autouse=True)
def as_it_was():
    """The settings are the process's."""
    before = machine._float32_ways(), ways(), machine._chosen_by_older_names()
    yield
    machine._choose(*before)


@pytest.fixture
def matmul(monkeypatch):
    """How products are computed on a CPU where oneDNN is the fastest exact way."""
    monkeypatch.setattr(machine, "_onednn_is_faster", lambda: True)
    monkeypatch.delenv("LAB5_MATMUL", raising=False)
    return torch.backends.mkldnn.matmul


@pytest.mark.parametrize(("words", "faster"), [
    ("vendor_id : AuthenticAMD flags : avx2 avx512f avx512_bf16", True),
    ("vendor_id : AuthenticAMD flags : avx2 avx512f avx512_bf16 amx_bf16", False),  # AMX rounds to bfloat16
    ("vendor_id : AuthenticAMD flags : avx2", False),
    ("vendor_id : GenuineIntel flags : avx2 avx512f avx512_bf16", False),
])  # fmt: skip
def test_the_way_depends_on_the_processor_alone(words, faster, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(words)
    monkeypatch.setattr(machine, "CPU_FACTS", tmp_path / "cpuinfo")
    assert machine._onednn_is_faster.__wrapped__() is faster
    monkeypatch.setattr(machine, "CPU_FACTS", tmp_path / "none")
    assert machine._onednn_is_faster.__wrapped__() is False


def test_what_is_fast_here_is_exact_too():
    a, b = torch.randn(2, 512, 768, generator=torch.Generator().manual_seed(0)).unbind(0)
    with fast_float32(CPU):
        product = a @ b.T
    right = a.double() @ b.double().T
    assert (product - right).abs().max() / right.abs().max() < 1e-5  # bfloat16 is off by 1e-3


def test_the_way_is_borrowed_and_put_back_also_after_an_error(matmul):
    before = matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), fast_float32(CPU):
        assert matmul.fp32_precision == "bf16"
        raise ZeroDivisionError
    assert matmul.fp32_precision == before


def test_a_choice_that_was_made_already_stays(matmul, monkeypatch):
    before = matmul.fp32_precision
    with fast_float32(torch.device("cuda")):
        assert matmul.fp32_precision == before, "a GPU is left alone"
    monkeypatch.setenv("LAB5_MATMUL", "highest")
    with fast_float32(CPU):
        assert matmul.fp32_precision == before
    monkeypatch.delenv("LAB5_MATMUL")
    torch.set_float32_matmul_precision("high")
    with fast_float32(CPU):
        assert matmul.fp32_precision == "tf32"


def test_a_choice_of_torchs_newer_kind_is_no_error(matmul):
    """After it, torch.get_float32_matmul_precision raises."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with fast_float32(CPU):
        assert matmul.fp32_precision == "bf16"


@pytest.mark.parametrize("chosen", ["high", "medium"])
def test_where_it_has_to_be_exact_no_choice_counts(chosen):
    torch.set_float32_matmul_precision(chosen)
    before = ways()
    a, b = torch.randn(2, 64, 768, generator=torch.Generator().manual_seed(0)).unbind(0)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ZeroDivisionError), exact_float32(CPU):
        assert set(ways()) == {"ieee"}
        product = a @ b.T
        raise ZeroDivisionError
    assert product.dtype == torch.float32 and ways() == before != ["ieee"] * len(before)
    torch.testing.assert_close(product, (a.double() @ b.double().T).float(), rtol=1e-5, atol=1e-4)


def test_a_full_gpu_is_told_with_the_setting_to_lower(monkeypatch):
    monkeypatch.setattr(machine, "machine", lambda device: "a GPU, 0.1 of 8.0 GB memory free")
    with pytest.raises(MemoryError, match=r"0.1 of 8.0 GB.*lower stage1.batch, which is 12.*: 6}\), or both$"):
        with machine.oom_hint("stage1.batch", 12, ", or both"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="else"), machine.oom_hint("stage1.batch", 12):
        raise RuntimeError("something else")


def test_the_machine_is_a_line_with_memory_in_it(monkeypatch):
    line = machine.machine("cpu")
    assert line.startswith(f"cpu with {os.cpu_count()} cores, ")
    free, total = machine.memory_gb()
    if Path("/proc/meminfo").exists():
        assert 0 < free < total and f"of {total:.1f} GB" in line
    monkeypatch.delattr(os, "sysconf")
    assert machine.machine("cpu").endswith("memory unknown")
