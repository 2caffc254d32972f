"""PyTorch's own files: pickles with a state dict somewhere in them, read without executing anything."""

import pickle
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lab5.runtime.files import State

PICKLES = (b"PK\x03\x04", b"\x80")  # how PyTorch's files begin: zip archives, and bare pickles before 1.6
SAFETENSORS = b"\0\0\0\0{"  # and how safetensors go on behind four bytes of length, which may look like a pickle's
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # in names
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # of weights, which all become float32
MAX_RATIO = 4  # of what the tensors take to what the file does


def is_pickle(path: str | Path) -> bool:
    """Whether PyTorch wrote the file, going by its first bytes."""
    with Path(path).open("rb") as file:
        head = file.read(9)
    return head.startswith(PICKLES) and head[4:] != SAFETENSORS


def unpickle(path: str | Path, marker: str, entry: str = "") -> State:
    """The one state dict that has a tensor called `marker`, under whatever entries and prefix it lies.

    Names are without that prefix and without what wrappers put into them; buffers of whole numbers are left out.
    Where a file holds several, `entry` says which. Raises ValueError where there is not exactly one, and for files
    that would run code.
    """
    stored = Path(path).stat().st_size
    _check_size(path, _unpacked(path), stored)
    content = _content(path)
    found = _distinct(list(_states(content, marker)))
    if entry or len(found) > 1:
        found = _called(entry, found, f"{path} has {marker} in")
    if found:
        state = found[0][1]
    elif type(content) in (dict, OrderedDict) and _is_state(content):
        state = content  # of another network: whoever asked can say what is missing
    else:
        names = printable(", ".join(map(str, content if isinstance(content, dict) else [type(content).__name__])))
        raise ValueError(
            f"{path} must hold a state dict, bare or as an entry, with {marker} in it (of a whole model, save the "
            f"state_dict()); found {names[:80]}"
        )
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in state}
    state = {names[name]: tensor for name, tensor in state.items() if _is_weight(names[name], tensor)}
    _check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()), stored)
    return state


def _is_state(content: dict) -> bool:
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())


def _is_weight(name: str, tensor: Tensor) -> bool:
    """Positions, counters and masks are whole numbers or bool, and no weights."""
    return tensor.is_floating_point() or tensor.is_complex() or name.endswith(("weight", "bias"))


def _called(entry: str, found: list[tuple[str, State]], where: str) -> list[tuple[str, State]]:
    """The one whose place has this name, as a whole or as a part of it."""
    exact = [one for one in found if one[0] == entry]
    named = exact or [one for one in found if entry in one[0].split(".")]
    if len(named) == 1:
        return named
    places = printable(", ".join(place or "(bare)" for place, _ in found))[:120] or "no state dict"
    asked = f"; {len(named)} of them by the name {printable(entry)[:40]}" if entry else ""
    raise ValueError(f"{where} {places}{asked}: choose one by --read entry=NAME")


def _distinct(found: list[tuple[str, State]]) -> list[tuple[str, State]]:
    """Without those whose tensors are all another's."""
    distinct: list[tuple[str, State]] = []
    for place, state in found:
        same = (
            state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
            for _, other in distinct
        )
        if not any(same):
            distinct.append((place, state))
    return distinct


def _states(content: Any, marker: str) -> Iterator[tuple[str, State]]:
    """Where in the file which state dicts are that have the marker: entries and prefix, joined by dots."""
    todo, seen = deque([("", content)] if isinstance(content, dict | list | tuple) else []), set()
    while todo:
        place, item = todo.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        children = list(item.items() if isinstance(item, dict) else enumerate(item))
        if isinstance(item, dict) and "_modules" in item and "_parameters" in item:
            children = list(_parameters(item).items())
        tensors = {name: x for name, x in children if isinstance(name, str) and isinstance(x, Tensor)}
        for name in tensors:
            if name == marker or name.endswith(f".{marker}"):
                prefix = name.removesuffix(marker)
                state = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
                yield f"{place}.{prefix}".strip("."), state
        within = [(f"{place}.{name}".strip("."), child) for name, child in children]
        within += [(place, child) for child in getattr(item, "given", ())]
        todo += [(name, child) for name, child in within if isinstance(child, dict | list | tuple)]


def _parameters(module: Any, prefix: str = "", depth: int = 50) -> State:
    """The state dict of a module that was saved as a whole, from what stubs were given in its place."""
    while isinstance(module, Stub) and module.given and depth:
        module, depth = module.given[-1], depth - 1
    state: State = {}
    if isinstance(module, dict) and depth:
        for kind in ("_parameters", "_buffers"):
            if isinstance(tensors := module.get(kind), dict):
                state |= {f"{prefix}{name}": x for name, x in tensors.items() if isinstance(x, Tensor)}
        if isinstance(parts := module.get("_modules"), dict):
            for name, part in parts.items():
                state |= _parameters(part, f"{prefix}{name}.", depth - 1)
    return state


# --- without executing anything ---------------------------------------------------------------------------------------


def _content(path: str | Path) -> Any:
    """What PyTorch can read as plain tensors, else the same with stubs in the place of all other classes."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            if _is_script(path):  # torch would not unpickle but compile it
                raise
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=INERT)
    except Exception as error:  # truncated files and pickles that ask for code fail in many ways
        asks = f" ({error})" if isinstance(error, _HarmfulError) else ""
        raise ValueError(
            f"{path} cannot be read as plain tensors: it is truncated, or a pickle that would run code{asks}; "
            "of a whole model, save the state_dict()"
        ) from error


class _HarmfulError(pickle.UnpicklingError):
    """A file asks for a function that no checkpoint needs."""


class Stub(dict):
    """In the place of every class and function that a pickle names: it keeps what it is given and does nothing."""

    given: list[Any]

    def __new__(cls, *args: Any, **more: Any) -> "Stub":
        stub = super().__new__(cls)
        stub.given = [*args, more]
        return stub

    def __init__(self, *args: Any, **more: Any):
        super().__init__()  # dict would read the arguments as items

    def __setstate__(self, state: Any) -> None:
        self.given.append(state)

    def append(self, item: Any) -> None:
        self.given.append(item)

    add = append

    def extend(self, items: Any) -> None:
        self.given.extend(items)

    __hash__ = object.__hash__


# Whoever names one of these means harm, or has a function in the checkpoint that does; types and getattr are innocent.
HARMFUL = {"os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "pty", "ctypes"}
INNOCENT = {"getattr", "object", "set", "frozenset", "complex", "bytearray", "slice", "range", "list", "dict", "tuple",
            "int", "float", "str", "bytes", "bool", "type", "BytesIO", "StringIO"}  # fmt: skip


class _Unpickler(pickle._Unpickler):  # in Python: the one in C reserves any memory that a damaged file asks for
    """Tensors are made as PyTorch makes them; of everything else there are stubs, which are never more than kept.

    What a name stands for is made here, so that a pickle can reach into nothing that outlives it.
    """

    def find_class(self, module: str, name: str) -> Any:
        own = module in ("builtins", "__builtin__", "io", "_io")
        if own and name not in INNOCENT or module.split(".")[0] in HARMFUL:
            raise _HarmfulError(printable(f"{module}.{name}")[:60])
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module == "torch" and name == "Size":
            return lambda sizes=(): tuple(sizes)
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return lambda storage, offset, size, stride, *_: torch._utils._rebuild_tensor(storage, offset, size, stride)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return lambda tensor, *_: tensor
        if module == "torch.storage" and name == "UntypedStorage":
            return torch.UntypedStorage
        return Stub

    def load_build(self) -> None:
        if isinstance(self.stack[-2], type):
            raise _HarmfulError("attributes of a class")
        super().load_build()

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}


INERT = SimpleNamespace(
    __name__="inert", Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load()
)
"""A pickle module for torch.load."""


# --- doors ------------------------------------------------------------------------------------------------------------


def _is_script(path: str | Path) -> bool:
    """Whether torch.load would hand the file to TorchScript; it asks the same reader."""
    with Path(path).open("rb") as file:
        if file.read(4) != PICKLES[0]:
            return False
    return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()


def _unpacked(path: str | Path) -> int:
    """Bytes of all that a zip archive holds, as it says; of other files none. PyTorch packs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except Exception:  # damaged archives fail in many ways, and torch will say so
        return 0


def _check_size(path: str | Path, asked: int, stored: int) -> None:
    """Tensors may share what is stored, but a small file that asks for all the memory is no network."""
    if asked > MAX_RATIO * stored:
        sizes = f"{asked / 1e6:.0f} MB of tensors in {stored / 1e6:.1f} MB"
        raise ValueError(f"{path} claims to hold {sizes}: it is damaged, or meant to fill the memory")


def printable(text: object) -> str:
    """In one line: a name out of a file may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def check_weights(state: State, path: str | Path) -> None:
    """Refuse what is no weight: whole numbers, say, which would become floats in silence, and tensors without axes."""
    for name, tensor in state.items():
        if name != printable(name):
            raise ValueError(f"{path} holds a tensor by the name {name!r:.60}, which is none")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (plain and tensor.ndim and tensor.dtype in FLOATS):
            kind = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{path} must hold plain floating-point tensors of at least one axis; {name} is {kind}")
