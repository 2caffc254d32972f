"""The machine in a line, memory that runs out, and the way to multiply float32 matrices, borrowed and put back."""

import os
from pathlib import Path

import pytest
import torch

from lab5.runtime import machine
from lab5.runtime.machine import fast_float32

CPU, the_way = torch.device("cpu"), torch.get_float32_matmul_precision


@pytest.fixture(autouse=True)
def as_it_was():
    """The setting is the process's."""
    assert the_way() == "highest"
    yield
    assert the_way() == "highest"


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


def test_the_way_is_borrowed_and_put_back_also_after_an_error(monkeypatch):
    monkeypatch.setattr(machine, "_onednn_is_faster", lambda: True)
    with pytest.raises(ZeroDivisionError), fast_float32(CPU):
        assert the_way() == "medium"
        raise ZeroDivisionError


def test_a_choice_that_was_made_already_stays(monkeypatch):
    monkeypatch.setattr(machine, "_onednn_is_faster", lambda: True)
    torch.set_float32_matmul_precision("high")
    try:
        with fast_float32(CPU):
            assert the_way() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    with fast_float32(torch.device("cuda")):
        assert the_way() == "highest", "a GPU is left alone"
    monkeypatch.setenv("LAB5_MATMUL", "highest")
    with fast_float32(CPU):
        assert the_way() == "highest"


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
