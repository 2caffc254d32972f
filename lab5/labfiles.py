"""The lab's checkpoints: PyTorch pickles with a state dict, in the layouts that its solutions have.

Read with `weights_only=True`, which refuses any that ask for code. Whatever the layout, what comes out has this
package's names, which are those of the lab's template.

It knows names and tensors, and no network.
"""

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lab5.config import TransformerConfig

PICKLES = (b"PK\x03\x04", b"\x80")  # how PyTorch's files begin: zip archives, and bare pickles before 1.6

SAFETENSORS = b"\0\0\0\0{"  # and how safetensors go on behind four bytes of length, which may look like a pickle's

# What solutions of the lab call the linear layers inside their attention.
ATTENTION_NAMES = {
    "query": ("query", "q", "Q", "W_q", "W_Q", "linear_q", "to_q", "q_proj", "q_linear", "to_queries"),
    "key": ("key", "k", "K", "W_k", "W_K", "linear_k", "to_k", "k_proj", "k_linear", "to_keys"),
    "value": ("value", "v", "V", "W_v", "W_V", "linear_v", "to_v", "v_proj", "v_linear", "to_values"),
    "out": ("out", "o", "O", "W_o", "W_O", "W_out", "linear_out", "linear_o", "to_out", "out_proj", "proj",
            "unify_heads"),
    "query key value": ("qkv", "to_qkv", "W_qkv", "qkv_proj", "linear_qkv"),
}  # fmt: skip
LAYOUTS = ("separate", "fused")  # of the attention in what is exported
WRAPPERS = ("transformer_state_dict", "model")  # entries that hold a transformer's state dict beside other things
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # of weights, which all become float32
ATTENTION = re.compile(r"(blocks\.\d+\.Attention)\.(\w+)\.(weight|bias)")

MAX_RATIO = 4  # of what the tensors take to what the file does

State = dict[str, Tensor]


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
        found = ", ".join(str(name) for name, _ in list(entries)[:6])
        raise ValueError(f"{path} must hold a state dict, bare or as transformer_state_dict or model; found {found}")
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
            found = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{path} must hold plain floating-point tensors of at least one axis; {name} is {found}")


def rename_attention(state: State, path: str | Path) -> State:
    """Our four linears with bias, out of any known layout; a bias that is not there is zero."""
    roles_of = {theirs: roles.split() for roles, names in ATTENTION_NAMES.items() for theirs in names}
    renamed: State = {}
    for name, tensor in state.items():
        if (match := ATTENTION.fullmatch(name)) is None:
            ours = {name: tensor}
        else:
            block, theirs, kind = match.groups()
            if theirs not in roles_of:
                raise ValueError(f"{path} has an attention of unknown layout: {name} is no query, key, value or out")
            roles = roles_of[theirs]
            if len(tensor) % len(roles):
                raise ValueError(f"{path} has {len(tensor)} rows in {name}, which should stack query, key and value")
            parts = tensor.chunk(len(roles))
            ours = {f"{block}.{role}.{kind}": rows for role, rows in zip(roles, parts, strict=True)}
        if twice := ours.keys() & renamed.keys():
            raise ValueError(f"{path} has more than one tensor for {min(twice)}, the last is {name}")
        renamed |= ours
    for name, tensor in list(renamed.items()):
        if (match := ATTENTION.fullmatch(name)) and match[3] == "weight":
            renamed.setdefault(f"{match[1]}.{match[2]}.bias", torch.zeros(len(tensor)))
    return renamed


def lab_config(state: State, path: str | Path) -> TransformerConfig:
    """The lab's config with the sizes that the tensors have."""
    try:
        ids, width = state["tok_emb.weight"].shape
        positions, hidden = len(state["pos_emb"]), len(state["blocks.0.MLP.0.weight"])
        layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    except (KeyError, ValueError) as error:
        found = ", ".join(list(state)[:4]) or "nothing"
        raise ValueError(f"{path} holds no transformer of the lab's ({error}); it has {found}, ...") from error
    if layers > len(state):
        raise ValueError(f"{path} has only {len(state)} tensors for {layers} layers, as its blocks are numbered")
    config = TransformerConfig()
    if width % config.heads:
        raise ValueError(f"{path} has width {width}, which the lab's {config.heads} heads do not divide")
    return replace(config, codes=ids - 1, positions=positions, width=width, layers=layers, hidden=hidden)


def fuse_attention(state: State) -> State:
    """Query, key and value stacked into qkv, in the place of the query; out is called proj."""
    fused: State = {}
    for name, tensor in state.items():
        match = ATTENTION.fullmatch(name)
        block, role, kind = match.groups() if match else ("", "", "")
        if role == "query":
            parts = [state[f"{block}.{part}.{kind}"] for part in ("query", "key", "value")]
            fused[f"{block}.qkv.{kind}"] = torch.cat(parts)
        elif role == "out":
            fused[f"{block}.proj.{kind}"] = tensor
        elif not role:
            fused[name] = tensor
    return fused
