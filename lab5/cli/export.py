"""The command export: a network for the lab's own code, a PyTorch file with a state dict under the lab's names."""

import io
import re
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from lab5.checkpoint import load_transformer, load_vqgan
from lab5.config import TransformerConfig, VQGANConfig
from lab5.runtime.attentions import Reading
from lab5.runtime.files import State, write
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN


def export(
    network: str, file: Path, out: Path, *, layout: str, wrapper: str, overwrite: bool, reading: Reading | None = None
) -> None:
    """Write a "transformer" or a "vqgan" for the lab's code; `reading` as in `checkpoint.load_transformer`."""
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already: choose another file, or replace it with --overwrite")
    if network == "vqgan":
        if (layout, wrapper) != ("separate", "none"):
            raise ValueError("--layout and --wrapper are the transformer's; the lab has one format for the vqgan")
        export_vqgan(out, load_vqgan(file, reading.entry if reading else ""))
    else:
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            model = load_transformer(file, reading)
        export_transformer(out, model, layout=layout, wrapper=wrapper)
        for doubt in doubts:
            print(f"lab5: {doubt.message}", file=sys.stderr)
    print(f"{out}: the {network} of {file} for the lab's code, {out.stat().st_size / 1e6:.1f} MB")


def export_transformer(
    path: Path, model: BidirectionalTransformer, *, layout: str = "separate", wrapper: str = "none"
) -> None:
    """Stage two for the lab's own code: a PyTorch file with a state dict under its names.

    layout   of the attention: "separate" linears query, key, value, out; or "fused", qkv and proj
    wrapper  "none" for a bare state dict, or the name of the entry that holds it, "transformer_state_dict" or "model"

    Raises ValueError for a network that the lab's code would read as another: it has 16 heads, is post-norm, and
    knows nothing of hints. Sizes may differ, because its MaskGit.yml names them.
    """
    sizes = {"codes", "width", "layers", "hidden", "dropout", "attention_dropout"}
    if differ := _differences(model.config, TransformerConfig(), sizes):
        raise ValueError(f"the lab's code would compute something else with this transformer: {differ}")
    state = _detached(model)
    if layout == "fused":
        state = fuse_attention(state)
    _pickle(path, state if wrapper == "none" else {wrapper: state})


def export_vqgan(path: Path, model: VQGAN) -> None:
    """Stage one for the lab's own code, as the course's VQGAN.pt is: a bare state dict of 315 tensors.

    Raises ValueError for a network of another shape than the lab's.
    """
    if differ := _differences(model.config, VQGANConfig(), set()):
        raise ValueError(f"the lab's code has no place for this VQGAN: {differ}")
    _pickle(path, _detached(model))


def _differences(ours: TransformerConfig | VQGANConfig, lab: TransformerConfig | VQGANConfig, free: set[str]) -> str:
    """The fields in which a network is not the lab's, in words, but for those that are free."""
    pairs = {name: (getattr(ours, name), value) for name, value in asdict(lab).items() if name not in free}
    return ", ".join(f"{name} = {a} where the lab has {b}" for name, (a, b) in pairs.items() if a != b)


def fuse_attention(state: State) -> State:
    """Query, key and value stacked into qkv, in the place of the query; out is called proj."""
    fused: State = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(blocks\.\d+\.Attention)\.(\w+)\.(weight|bias)", name)
        block, role, kind = match.groups() if match else ("", "", "")
        if role == "query":
            parts = [state[f"{block}.{part}.{kind}"] for part in ("query", "key", "value")]
            fused[f"{block}.qkv.{kind}"] = torch.cat(parts)
        elif role == "out":
            fused[f"{block}.proj.{kind}"] = tensor
        elif not role:
            fused[name] = tensor
    return fused


def _detached(model: nn.Module) -> State:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}


def _pickle(path: Path, content: dict) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())
