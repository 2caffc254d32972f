"""State dicts in PyTorch's files: found wherever they are, beside whatever else, and nothing is executed."""

import argparse
import collections
import datetime
import enum
import io
import pathlib
import pickle
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab5.runtime.pickles import INERT, unpickle

MARKER = "tok_emb.weight"
STATE = {MARKER: torch.arange(12.0).view(4, 3), "bias": torch.ones(4), "blocks.0.MLP.0.weight": torch.zeros(2, 3)}


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok_emb, self.bias = nn.Embedding(4, 3), nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList([nn.ModuleDict({"MLP": nn.Sequential(nn.Linear(3, 2, bias=False))})])
        self.load_state_dict(STATE)


class MaskGit(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer, self.vqgan = Transformer(), nn.Linear(3, 3)


@dataclass
class Settings:
    lr: float = 1e-4
    betas: tuple = (0.9, 0.96)


class Losses(list):
    pass


class Phase(enum.Enum):
    TRAIN = 1


class Pairs(NamedTuple):
    name: str
    model: dict


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: x for name, x in state.items()} | {"vqgan.decoder.weight": torch.ones(2, 2)}


def trained() -> dict[str, Any]:
    net = Transformer()
    optimiser = torch.optim.AdamW(net.parameters())
    sum(parameter.sum() for parameter in net.parameters()).backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 10)
    return {"optimizer": optimiser.state_dict(), "scheduler": schedule.state_dict(), "epoch": 3}


WHERE: dict[str, Callable[[], Any]] = {
    "bare": lambda: STATE,
    "under a strange name": lambda: {"weights_of_last_epoch": STATE} | trained(),
    "two entries deep": lambda: {"checkpoint": {"net": {"params": STATE}}, "note": "best"},
    "in a list": lambda: [3, STATE, trained()],
    "in a tuple of names": lambda: Pairs("best", STATE),
    "twice the same": lambda: {"model": STATE, "whole": prefixed("transformer.")},
    "beside numbers": lambda: STATE | {"epoch": 3, "loss": 0.5},
    "whole MaskGit": lambda: {"model_state_dict": prefixed("transformer.")},
    "data-parallel": lambda: prefixed("module.transformer."),
    "compiled": lambda: prefixed("_orig_mod.transformer."),
    "compiled within": lambda: prefixed("transformer._orig_mod."),
    "compiled by blocks": lambda: {name.replace("blocks.0.", "blocks.0._orig_mod."): x for name, x in STATE.items()},
    "averaged": lambda: {"n_averaged": torch.tensor(7)} | prefixed("module."),
    "Lightning": lambda: {"state_dict": prefixed("model.net."), "pytorch-lightning_version": "2.1", "callbacks": {}},
    "positions that are no weights": lambda: STATE | {"position_ids": torch.arange(9), "mask": torch.ones(2).bool()},
    "beside argparse": lambda: {"model": STATE, "args": argparse.Namespace(lr=1e-4, device="cuda:0")},
    "beside a namespace": lambda: {"model": STATE, "args": types.SimpleNamespace(lr=1e-4)},
    "beside a class of one's own": lambda: {"model": STATE, "config": Settings(), "phase": Phase.TRAIN},
    "beside lists of one's own": lambda: {"model": STATE, "losses": Losses([1.0, 2.0])},
    "beside queues and sets": lambda: {
        "model": STATE, "last": collections.deque([1, 2]), "seen": {1}, "frozen": frozenset({2}),
        "counts": collections.defaultdict(list, a=[1]), "counter": collections.Counter("aab"),
    },
    "beside numpy": lambda: {
        "model": STATE, "best": np.float64(1.5), "losses": np.zeros(3), "words": np.array(["a"]), "n": np.int64(3),
        "things": np.array([Settings()], dtype=object), "generator": np.random.get_state(),
    },
    "beside paths and times": lambda: {
        "model": STATE, "out": pathlib.PurePosixPath("runs"), "at": datetime.datetime(2024, 5, 1), "z": 1j,
    },
    "beside a function": lambda: {"model": STATE, "gamma": trained},
    "within an object": lambda: types.SimpleNamespace(model=STATE, epoch=3),
    "a whole module": MaskGit,
    "a whole module in a dict": lambda: {"net": Transformer(), "epoch": 3},
}  # fmt: skip
SAVERS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("make", WHERE.values(), ids=WHERE)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_state_dict_is_found_wherever_it_is(tmp_path, make, saver):
    content = make()
    if saver == "legacy" and (isinstance(content, nn.Module) or isinstance(content, dict) and "net" in content):
        pytest.skip("the old format keeps the source of a module, which is not read")
    torch.save(content, tmp_path / "net.pt", **SAVERS[saver])
    found = unpickle(tmp_path / "net.pt", MARKER)
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_of_several_the_entry_says_which(tmp_path):
    average = {name: x + 1 for name, x in STATE.items()}
    torch.save({"model": STATE, "ema": {"shadow": prefixed("module.", average)}}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="has tok_emb.weight in model, ema.shadow.module: choose one by --read"):
        unpickle(tmp_path / "net.pt", MARKER)
    assert torch.equal(unpickle(tmp_path / "net.pt", MARKER, "model")["bias"], STATE["bias"])
    for name in ("ema", "shadow", "ema.shadow.module"):
        assert torch.equal(unpickle(tmp_path / "net.pt", MARKER, name)["bias"], average["bias"])
    with pytest.raises(ValueError, match="0 of them by the name best"):
        unpickle(tmp_path / "net.pt", MARKER, "best")


def test_an_object_that_holds_itself_is_no_trap(tmp_path):
    content: dict[str, Any] = {"model": STATE}
    content["self"] = [content]
    torch.save(content, tmp_path / "net.pt")
    assert unpickle(tmp_path / "net.pt", MARKER).keys() == STATE.keys()


class Fires:
    """A pickle that calls something."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_to(path: str) -> None:
    pathlib.Path(path).write_text("fired")


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_is_not_known_is_never_called(tmp_path, saver):
    """A function of one's own is as inert as a class: the weights beside it are read."""
    fired = tmp_path / "fired"
    torch.save({"model": STATE, "x": Fires(write_to, str(fired))}, tmp_path / "net.pt", **SAVERS[saver])
    assert unpickle(tmp_path / "net.pt", MARKER).keys() == STATE.keys()
    assert not fired.exists()
    pickle.loads(pickle.dumps(Fires(write_to, str(fired))))
    assert fired.exists()  # it was a live one


@pytest.mark.parametrize("function", [eval, exec, open, __import__, setattr, print], ids=lambda f: f.__name__)
def test_what_can_only_mean_harm_is_refused_by_name(tmp_path, function):
    torch.save({"model": STATE, "x": Fires(function, "1")}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=rf"a pickle that would run code \(\w+.{function.__name__}\)"):
        unpickle(tmp_path / "net.pt", MARKER)


def test_no_pickle_can_change_what_reads_the_next(tmp_path):
    """BUILD sets attributes of what stands before it; what a name stands for here is made for one file alone."""
    name = b"ctorch._utils\n_rebuild_tensor_v2\n"
    data = b"\x80\x02" + name + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b."
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/version", "3")
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(ValueError, match="must hold a state dict"):
        unpickle(tmp_path / "net.pt", MARKER)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_compiled_script_is_refused_and_not_compiled(tmp_path, monkeypatch):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "net.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        unpickle(tmp_path / "net.pt", MARKER)


def test_a_pickle_cannot_change_a_class_that_outlives_it():
    payload = b"\x80\x02ctorch.storage\nUntypedStorage\nN}X\x05\x00\x00\x00lab5xK\x01s\x86b."
    with pytest.raises(pickle.UnpicklingError, match="attributes of a class"):
        INERT.load(io.BytesIO(payload))
    assert not hasattr(torch.UntypedStorage, "lab5x")
