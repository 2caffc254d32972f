"""The way to multiply float32 matrices: chosen by a trial, borrowed, put back."""

import pytest
import torch

from lab5 import matmul
from lab5.matmul import choose, fastest_matmul, fastest_way

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_it_was():
    """Trials are kept for the process, and the setting is the process's."""
    assert torch.get_float32_matmul_precision() == "highest"
    yield
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("trials", "right"), [
    ({"highest": (3.0, 1e-6), "high": (1.0, 1e-6), "medium": (1.5, 1e-6)}, "high"),
    ({"highest": (3.0, 1e-6), "high": (1.0, 1e-3), "medium": (1.5, 1e-6)}, "medium"),  # the fastest rounds
    ({"highest": (3.0, 1e-6), "high": (2.5, 1e-6), "medium": (0.5, 1e-3)}, "highest"),  # what is exact is not worth it
    ({"highest": (1.0, 1e-6), "high": (2.0, 1e-6), "medium": (3.0, 1e-6)}, "highest"),
])  # fmt: skip
def test_the_fastest_exact_way_is_taken_where_it_is_worth_it(trials, right):
    assert choose(trials) == right


def test_the_trial_leaves_the_setting_and_the_random_numbers_alone():
    before = torch.get_rng_state()
    fastest_way.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):  # within it, products would all be rounded
        assert fastest_way(1) in ("highest", "high", "medium")
    assert torch.equal(before, torch.get_rng_state())


def test_the_way_is_borrowed_and_put_back_also_after_an_error(monkeypatch):
    monkeypatch.setattr(matmul, "fastest_way", lambda threads: "medium")
    with fastest_matmul(CPU):
        assert torch.get_float32_matmul_precision() == "medium"
    with pytest.raises(KeyError), fastest_matmul(CPU):
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_somebodys_choice_the_environment_and_a_gpu_are_respected(monkeypatch):
    monkeypatch.setattr(matmul, "fastest_way", lambda threads: "medium")
    with fastest_matmul(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("high")
    try:
        with fastest_matmul(CPU):
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setenv("LAB5_MATMUL", "highest")
    with fastest_matmul(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
