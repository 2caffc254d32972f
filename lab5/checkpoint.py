"""Models and training states on disk: safe to open, whole or absent, and the lab's own formats read.

Our files are safetensors: tensors, and a header of JSON. Opening one never executes anything, and a file is
replaced only by a complete successor. The lab's files are PyTorch pickles; they are read with
`weights_only=True`, which refuses any that ask for code.

It does not know how a model was trained or what it is used for.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from lab5.config import TransformerConfig, VQGANConfig
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

PICKLES = (b"PK\x03\x04", b"\x80")  # how PyTorch's files begin: zip archives, and bare pickles before 1.6

# What solutions of the lab call the linear layers inside their attention.
ATTENTION_NAMES = {
    "query": ("query", "q", "Q", "W_q", "W_Q", "linear_q", "to_q", "q_proj", "q_linear", "to_queries"),
    "key": ("key", "k", "K", "W_k", "W_K", "linear_k", "to_k", "k_proj", "k_linear", "to_keys"),
    "value": ("value", "v", "V", "W_v", "W_V", "linear_v", "to_v", "v_proj", "v_linear", "to_values"),
    "out": ("out", "o", "O", "W_o", "W_O", "W_out", "linear_out", "linear_o", "to_out", "out_proj", "proj",
            "unify_heads"),
    "query key value": ("qkv", "to_qkv", "W_qkv", "qkv_proj", "linear_qkv"),
}  # fmt: skip
ATTENTION = re.compile(r"(blocks\.\d+\.Attention)\.(\w+)\.(weight|bias)")

State = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)


# --- our files --------------------------------------------------------------------------------------------------


def save(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts about them; a crash or a full disk leaves what was at `path` before.

    Raises OSError where the file cannot be written and TypeError for a `meta` that is not JSON.
    """
    path = Path(path)
    # Copies: safetensors wants every tensor contiguous, on the CPU and in memory of its own.
    dense = torch.contiguous_format
    copies = {name: tensor.detach().cpu().clone(memory_format=dense) for name, tensor in tensors.items()}
    content = safetensors.torch.save(copies, {name: json.dumps(value) for name, value in meta.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path} could not be written and is as it was before: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def load(path: str | Path) -> tuple[State, dict[str, Any]]:
    """The tensors and the meta that `save` wrote, on the CPU.

    Raises FileNotFoundError for a missing file, ValueError for a truncated one or one that `save` did not write.
    """
    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            return state, {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is truncated or is not one of our safetensors files: {error}") from error


def save_vqgan(path: str | Path, model: VQGAN, **meta: Any) -> None:
    """Weights and config of stage one, and whatever JSON-able facts are worth keeping beside them."""
    save(path, model.state_dict(), meta | {VQGANConfig.__name__: asdict(model.config)})


def save_transformer(path: str | Path, model: BidirectionalTransformer, **meta: Any) -> None:
    """Weights and config of stage two, and whatever JSON-able facts are worth keeping beside them."""
    save(path, model.state_dict(), meta | {TransformerConfig.__name__: asdict(model.config)})


def load_vqgan(path: str | Path) -> VQGAN:
    """Stage one in eval mode, from our file or from the course's VQGAN.pt (315 float32 tensors, the lab's shape).

    Raises FileNotFoundError, or ValueError for files that hold anything else, or NaN or infinity.
    """
    if _is_pickle(path):
        return _fill(VQGAN(VQGANConfig()), _unpickle(path, "vqgan."), path)
    state, config = _ours(path, VQGANConfig)
    return _fill(VQGAN(config), state, path)


def load_transformer(path: str | Path) -> BidirectionalTransformer:
    """Stage two in eval mode, from our file or from a checkpoint of the lab's.

    The lab's may be a transformer's state dict, a dict that holds one as `transformer_state_dict` or `model`,
    or a whole MaskGit's, with any attention of ATTENTION_NAMES. Sizes follow from the tensors, except the number
    of heads, which no tensor shows: the lab's 16. Raises like `load_vqgan`.
    """
    if _is_pickle(path):
        state = _rename_attention(_unpickle(path, "transformer."), path)
        return _fill(BidirectionalTransformer(_lab_config(state, path)), state, path)
    state, config = _ours(path, TransformerConfig)
    return _fill(BidirectionalTransformer(config), state, path)


def _ours(path: str | Path, config_class: type) -> tuple[State, Any]:
    state, meta = load(path)
    if config_class.__name__ not in meta:
        raise ValueError(f"{path} has no {config_class.__name__}; its header holds {', '.join(meta) or 'nothing'}")
    try:
        return state, config_class(**{name: _tuples(value) for name, value in meta[config_class.__name__].items()})
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} has a {config_class.__name__} of another version: {error}") from error


def _tuples(value: Any) -> Any:
    """JSON has no tuples; the frozen configs have no lists."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _fill(model: Model, state: State, path: str | Path) -> Model:
    """Strictly: the same names, the same shapes, finite numbers."""
    own = model.state_dict()
    wrong = [
        f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for kind, names in {
            "missing": [name for name in own if name not in state],
            "unknown": [name for name in state if name not in own],
            "of another shape": [name for name in own if name in state and state[name].shape != own[name].shape],
        }.items()
        if names
    ]
    if wrong:
        raise ValueError(f"{path} does not fit {type(model).__name__}: tensors {'; '.join(wrong)}")
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} holds NaN or infinity in {len(broken)} tensors, the first is {broken[0]}")
    model.load_state_dict(state)
    return model.eval()


# --- the lab's files --------------------------------------------------------------------------------------------


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    return path


def _is_pickle(path: str | Path) -> bool:
    with _existing(path).open("rb") as file:
        return file.read(4).startswith(PICKLES)


def _unpickle(path: str | Path, prefix: str) -> State:
    """The state dict of one part, out of a bare one, one beside an optimiser's, or a whole MaskGit's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated files and pickles that ask for code fail in many ways
        raise ValueError(
            f"{path} cannot be read as plain tensors: it is truncated, or a pickle that would run code; "
            "of a whole model, save the state_dict()"
        ) from error
    for wrapper in ("transformer_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    entries = content.items() if isinstance(content, dict) else [(type(content).__name__, None)]
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in entries):
        found = ", ".join(str(name) for name, _ in list(entries)[:6])
        raise ValueError(f"{path} must hold a state dict, bare or as transformer_state_dict or model; found {found}")
    return {name.removeprefix(prefix): t for name, t in content.items() if name.startswith(prefix)} or content


def _rename_attention(state: State, path: str | Path) -> State:
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


def _lab_config(state: State, path: str | Path) -> TransformerConfig:
    """The lab's config with the sizes that the tensors have."""
    try:
        ids, width = state["tok_emb.weight"].shape
        positions, hidden = len(state["pos_emb"]), len(state["blocks.0.MLP.0.weight"])
        layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    except (KeyError, ValueError) as error:
        found = ", ".join(list(state)[:4]) or "nothing"
        raise ValueError(f"{path} holds no transformer of the lab's ({error}); it has {found}, ...") from error
    config = TransformerConfig()
    if width % config.heads:
        raise ValueError(f"{path} has width {width}, which the lab's {config.heads} heads do not divide")
    return replace(config, codes=ids - 1, positions=positions, width=width, layers=layers, hidden=hidden)
