"""PyTorch's own files: pickles with a state dict somewhere in them, read without executing anything."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from lab5.runtime.files import State

PICKLES = (b"PK\x03\x04", b"\x80")  # how PyTorch's files begin: zip archives, and bare pickles before 1.6
SAFETENSORS = b"\0\0\0\0{"  # and how safetensors go on behind four bytes of length, which may look like a pickle's
WRAPPERS = ("transformer_state_dict", "model")  # entries that hold a transformer's state dict beside other things
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # of weights, which all become float32
MAX_RATIO = 4  # of what the tensors take to what the file does


def is_pickle(path: str | Path) -> bool:
    """Whether PyTorch wrote the file, going by its first bytes."""
    with Path(path).open("rb") as file:
        head = file.read(9)
    return head.startswith(PICKLES) and head[4:] != SAFETENSORS


def unpickle(path: str | Path, prefix: str) -> State:
    """The state dict of one part, out of a bare one, one beside an optimiser's, or a whole MaskGit's."""
    stored = Path(path).stat().st_size
    _check_size(path, _unpacked(path), stored)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated files and pickles that ask for code fail in many ways
        raise ValueError(
            f"{path} cannot be read as plain tensors: it is truncated, or a pickle that would run code; "
            "of a whole model, save the state_dict()"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    entries = content.items() if isinstance(content, dict) else [(type(content).__name__, None)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in entries):
        names = ", ".join(str(name) for name, _ in list(entries)[:6])
        raise ValueError(f"{path} must hold a state dict, bare or as transformer_state_dict or model; found {names}")
    state = {name.removeprefix(prefix): t for name, t in content.items() if name.startswith(prefix)} or content
    check_weights(state, path)
    _check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()), stored)
    return state


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
