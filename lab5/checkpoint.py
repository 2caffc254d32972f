"""Models and training states on disk: safe to open, whole or absent, from and to the lab's own formats.

Our files are safetensors: tensors, and a header of JSON with a checksum of it all. Opening one never executes
anything, and a file is replaced only by a complete successor. The lab's files are PyTorch pickles, which
`lab5.labfiles` reads.

It does not know how a model was trained or what it is used for.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from lab5.config import TransformerConfig, VQGANConfig
from lab5.durable import replacing
from lab5.durable import write as write  # on offer from here too
from lab5.labfiles import (
    LAYOUTS,
    WRAPPERS,
    State,
    check_weights,
    fuse_attention,
    is_pickle,
    lab_config,
    printable,
    rename_attention,
    unpickle,
)
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

Model = TypeVar("Model", bound=nn.Module)

CHECKSUM = "sha256 of this file with 64 zeros here"  # an entry of the header
BLANK = 64 * "0"
ENTRY = f'"{CHECKSUM}":"'.encode()  # how it stands there


# --- our files --------------------------------------------------------------------------------------------------


def save(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts about them; a crash or a full disk leaves what was at `path` before.

    Raises OSError where the file cannot be written and TypeError for a `meta` that is not JSON.
    """
    # Copies: safetensors wants every tensor contiguous, on the CPU and in memory of its own.
    dense = torch.contiguous_format
    copies = {name: tensor.detach().cpu().clone(memory_format=dense) for name, tensor in tensors.items()}
    header = {name: json.dumps(value) for name, value in meta.items()} | {CHECKSUM: BLANK}
    content = memoryview(safetensors.torch.save(copies, header))
    at = bytes(content[: _header_end(content)]).index(ENTRY + BLANK.encode()) + len(ENTRY)
    with replacing(Path(path)) as file:
        file.write(content[:at])
        file.write(hashlib.sha256(content).hexdigest().encode())
        file.write(content[at + len(BLANK) :])


def _header_end(start: bytes | memoryview) -> int:
    return 8 + int.from_bytes(start[:8], "little")


def load(path: str | Path) -> tuple[State, dict[str, Any]]:
    """The tensors and the meta that `save` wrote, on the CPU.

    Raises FileNotFoundError for a missing file, ValueError for one that is truncated or that `save` did not write,
    and for one that has changed since. What another program wrote has no checksum, and is taken without.
    """
    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
            meta = {name: json.loads(value) for name, value in header.items() if name != CHECKSUM}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:  # the last two are of the JSON
        raise ValueError(f"{path} is truncated or is not one of our safetensors files: {error}") from error
    if CHECKSUM in header and _checksum(path, header[CHECKSUM]) != header[CHECKSUM]:
        raise ValueError(f"{path} was damaged after it was written: its checksum does not fit")
    return state, meta


def load_meta(path: str | Path) -> dict[str, Any]:
    """The meta alone, without reading the tensors or checking them. Raises like `load`."""
    path = _existing(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: json.loads(value) for name, value in (file.metadata() or {}).items() if name != CHECKSUM}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or is not one of our safetensors files: {error}") from error


def _checksum(path: Path, given: str) -> str:
    """Of the file as it was before the checksum was put in."""
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(_header_end(start) - 8)
        digest = hashlib.sha256(start + header.replace(ENTRY + given.encode(), ENTRY + BLANK.encode(), 1))
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights with their names, in hex."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_vqgan(path: str | Path, model: VQGAN, **meta: Any) -> None:
    """Weights and config of stage one, and whatever JSON-able facts are worth keeping beside them."""
    save(path, model.state_dict(), meta | {VQGANConfig.__name__: asdict(model.config)})


def save_transformer(path: str | Path, model: BidirectionalTransformer, **meta: Any) -> None:
    """Weights and config of stage two, and whatever JSON-able facts are worth keeping beside them."""
    save(path, model.state_dict(), meta | {TransformerConfig.__name__: asdict(model.config)})


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    return path


def load_vqgan(path: str | Path) -> VQGAN:
    """Stage one in eval mode, from our file or from the course's VQGAN.pt (315 float32 tensors, the lab's shape).

    Weights in other floating-point types become float32. Raises FileNotFoundError, or ValueError for files that hold
    anything else, or NaN or infinity.
    """
    if is_pickle(_existing(path)):
        return fill(lambda: VQGAN(VQGANConfig()), unpickle(path, "vqgan."), path)
    state, config = _ours(path, VQGANConfig)
    return fill(lambda: VQGAN(config), state, path)


def load_transformer(path: str | Path) -> BidirectionalTransformer:
    """Stage two in eval mode, from our file or from a checkpoint of the lab's.

    The lab's may be a transformer's state dict, a dict that holds one as `transformer_state_dict` or `model`,
    or a whole MaskGit's, with any attention of ATTENTION_NAMES. Sizes follow from the tensors, except the number
    of heads, which no tensor shows: the lab's 16. Raises like `load_vqgan`.
    """
    if is_pickle(_existing(path)):
        state = rename_attention(unpickle(path, "transformer."), path)
        config = lab_config(state, path)
    else:
        state, config = _ours(path, TransformerConfig)
    return fill(lambda: BidirectionalTransformer(config), state, path)


def export_transformer(
    path: str | Path, model: BidirectionalTransformer, *, layout: str = "separate", wrapper: str = "none"
) -> None:
    """Stage two for the lab's own code: a PyTorch file with a state dict under its names.

    layout   of the attention: "separate" linears query, key, value, out; or "fused", qkv and proj
    wrapper  "none" for a bare state dict, or the name of the entry that holds it, "transformer_state_dict" or "model"

    Raises ValueError for a network that the lab's code would read as another: it has 16 heads, is post-norm, and
    knows nothing of hints. Sizes may differ, because its MaskGit.yml names them.
    """
    if layout not in LAYOUTS or wrapper not in ("none", *WRAPPERS):
        known = f"layouts {', '.join(LAYOUTS)} and wrappers none, {', '.join(WRAPPERS)}"
        raise ValueError(f"there are {known}, not {layout!r} and {wrapper!r}")
    named_by_the_lab = ("codes", "width", "layers", "hidden", "dropout", "attention_dropout")
    ours, lab = asdict(model.config), asdict(TransformerConfig())
    if differ := [name for name in lab if name not in named_by_the_lab and ours[name] != lab[name]]:
        found = ", ".join(f"{name} = {ours[name]} where the lab has {lab[name]}" for name in differ)
        raise ValueError(f"the lab's code would compute something else with this transformer: {found}")
    state = _detached(model)
    if layout == "fused":
        state = fuse_attention(state)
    _pickle(path, state if wrapper == "none" else {wrapper: state})


def export_vqgan(path: str | Path, model: VQGAN) -> None:
    """Stage one for the lab's own code, as the course's VQGAN.pt is: a bare state dict of 315 tensors.

    Raises ValueError for a network of another shape than the lab's.
    """
    ours, lab = asdict(model.config), asdict(VQGANConfig())
    if differ := [name for name in lab if ours[name] != lab[name]]:
        found = ", ".join(f"{name} = {ours[name]} where the lab has {lab[name]}" for name in differ)
        raise ValueError(f"the lab's code has no place for this VQGAN: {found}")
    _pickle(path, _detached(model))


def _detached(model: nn.Module) -> State:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def _pickle(path: str | Path, content: dict) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(Path(path), buffer.getvalue())


def _ours(path: str | Path, config_class: type) -> tuple[State, Any]:
    state, meta = load(path)
    if config_class.__name__ not in meta:
        found = printable(", ".join(meta)) or "nothing"
        raise ValueError(f"{path} has no {config_class.__name__}; its header holds {found}")
    try:
        config = config_class(**{name: _tuples(value) for name, value in meta[config_class.__name__].items()})
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has a {config_class.__name__} of another version: {printable(error)}") from error
    for name, default in vars(config_class()).items():
        if not _is_like(getattr(config, name), default):
            found = f"{name} = {getattr(config, name)!r:.60} in its {config_class.__name__}"
            raise ValueError(f"{path} has {found}, which takes values such as {default!r:.60}")
    # Building takes time that grows with the blocks, each of which has tensors: a header may ask for a million.
    if (blocks := _blocks(config)) > len(state):
        raise ValueError(f"{path} has only {len(state)} tensors for the {blocks} blocks of its {config_class.__name__}")
    return state, config


def _tuples(value: Any) -> Any:
    """JSON has no tuples; the frozen configs have no lists."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _is_like(value: Any, default: Any) -> bool:
    """Whether a setting has the type of its default, and is not negative: both configs hold sizes and shares."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_like(item, default[0]) for item in value)
    if isinstance(default, float) and type(value) is int:
        return value >= 0
    return type(value) is type(default) and (isinstance(value, str) or value >= 0)


def _blocks(config: TransformerConfig | VQGANConfig) -> int:
    if isinstance(config, TransformerConfig):
        return config.layers
    return sum(map(len, (config.middle, *config.encoder, *config.decoder)))


def fill(build: Callable[[], Model], state: State, path: str | Path) -> Model:
    """The network that `build` makes, in eval mode, with these weights in float32.

    Raises ValueError, with `path`, where it cannot be built, and for other names or shapes, NaN and infinity. It takes
    no memory for a network that the tensors do not fit.
    """
    check_weights(state, path)
    try:
        with torch.device("meta"):  # shapes alone: a header may ask for any
            model = build()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} describes a network that cannot be built: {reason}") from error
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
    state = {name: tensor.detach().float() for name, tensor in state.items()}
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} holds NaN or infinity in {len(broken)} tensors, the first is {broken[0]}")
    model.to_empty(device="cpu").load_state_dict(state)
    return model.eval()
