"""Networks on disk: safe to open, written atomically, in our own format and in the lab's.

Our files are safetensors: tensors, and a header of JSON with a checksum of it all. Opening one never executes
anything, and a file is replaced only by a complete successor. The lab's files are PyTorch pickles with a state dict, in
the layouts that its solutions have; whatever the layout, what comes out has the names of the lab's template.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lab5.config import TransformerConfig, VQGANConfig, check, flat
from lab5.runtime.attentions import HEADS, Reading, plain_attention
from lab5.runtime.changes import changed
from lab5.runtime.files import State, existing_file, load_tensors, save_tensors
from lab5.runtime.pickles import check_weights, is_pickle, printable, unpickle
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

Model = TypeVar("Model", bound=nn.Module)


def save_vqgan(path: str | Path, model: VQGAN, **meta: Any) -> None:
    """Weights and config of stage one, and whatever JSON-able facts are worth keeping beside them."""
    save_tensors(path, model.state_dict(), meta | {VQGANConfig.__name__: asdict(model.config)})


def save_transformer(path: str | Path, model: BidirectionalTransformer, **meta: Any) -> None:
    """Weights and config of stage two, and whatever JSON-able facts are worth keeping beside them."""
    save_tensors(path, model.state_dict(), meta | {TransformerConfig.__name__: asdict(model.config)})


def load_vqgan(path: str | Path, entry: str = "") -> VQGAN:
    """Stage one in eval mode, from our file or from the course's VQGAN.pt (315 float32 tensors, the lab's shape).

    Of a file with several such networks `entry` says which. Weights in other floating-point types become float32.
    Raises FileNotFoundError, or ValueError for files that hold anything else, or NaN or infinity.
    """
    if is_pickle(existing_file(path)):
        return with_weights(lambda: VQGAN(VQGANConfig()), unpickle(path, "codebook.embedding.weight", entry), path)
    state, config = _ours(path, VQGANConfig)
    return with_weights(lambda: VQGAN(config), state, path)


def load_transformer(path: str | Path, reading: Reading | None = None) -> BidirectionalTransformer:
    """Stage two in eval mode, from our file or from a checkpoint of the lab's.

    The lab's has a transformer's state dict in it, or a whole MaskGit's, with any attention that can be written as
    ours: `runtime.attentions`. Sizes follow from the tensors, but for the number of heads where no tensor shows it:
    the lab's 16. What else they leave open `reading` says; without one, a checkpoint that could be read otherwise is
    warned of. Raises like `load_vqgan`.
    """
    if not is_pickle(existing_file(path)):
        state, config = _ours(path, TransformerConfig)
        return with_weights(lambda: BidirectionalTransformer(config), state, path)
    state = unpickle(path, "tok_emb.weight", reading.entry if reading else "")
    plain = plain_attention(state, path, reading or Reading())
    if plain.doubt and reading is None:
        warnings.warn(f"{path} can be read in other ways: {plain.doubt}; {SAY}", stacklevel=2)
    config = lab_config(plain.state, path, plain.heads)
    return with_weights(lambda: BidirectionalTransformer(config), plain.state, path)


SAY = "a Reading says how, as does --read on the command line"


def other_readings(path: str | Path, reading: Reading) -> list[Reading]:
    """The ways in which the tensors of a checkpoint of the lab's allow to read it otherwise; [] for our files."""
    if not is_pickle(existing_file(path)):
        return []
    return plain_attention(unpickle(path, "tok_emb.weight", reading.entry), path, reading).others


def _ours(path: str | Path, config_class: type) -> tuple[State, Any]:
    state, meta = load_tensors(path)
    if config_class.__name__ not in meta:
        entries = printable(", ".join(meta)) or "nothing"
        raise ValueError(f"{path} has no {config_class.__name__}; its header holds {entries}")
    config = config_class()
    try:
        for name, value in meta[config_class.__name__].items():
            config = changed(config, name, value)
        check(config)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a {config_class.__name__} of another version: {printable(error)}") from error
    # Building takes time that grows with the blocks, each of which has tensors: a header may ask for a million.
    is_transformer = isinstance(config, TransformerConfig)
    blocks = config.layers if is_transformer else len(flat((config.encoder, config.middle, config.decoder)))
    if blocks > len(state):
        raise ValueError(f"{path} has only {len(state)} tensors for the {blocks} blocks of its {config_class.__name__}")
    return state, config


def with_weights(build: Callable[[], Model], state: State, path: str | Path) -> Model:
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


def lab_config(state: State, path: str | Path, heads: int = HEADS) -> TransformerConfig:
    """The lab's config with the sizes that the tensors have."""
    try:
        ids, width = state["tok_emb.weight"].shape
        positions, hidden = len(state["pos_emb"]), len(state["blocks.0.MLP.0.weight"])
        layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    except (KeyError, ValueError) as error:
        names = ", ".join(list(state)[:4]) or "nothing"
        raise ValueError(f"{path} holds no transformer of the lab's ({error}); it has {names}, ...") from error
    if layers > len(state):
        raise ValueError(f"{path} has only {len(state)} tensors for {layers} layers, as its blocks are numbered")
    if width % heads:
        raise ValueError(f"{path} has width {width}, which {heads} heads do not divide; --read heads=H says how many")
    sizes = {"codes": ids - 1, "positions": positions, "width": width, "layers": layers, "hidden": hidden}
    return replace(TransformerConfig(), heads=heads, **sizes)
