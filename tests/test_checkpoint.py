"""Files survive accidents and execute nothing; every layout of the lab's gives the same model."""

import math
import os
import pickle
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from lab5 import checkpoint
from lab5.checkpoint import lab_config, load_transformer, load_vqgan, rename_attention, save_transformer, save_vqgan
from lab5.cli.export import export_transformer, export_vqgan
from lab5.config import TransformerConfig, VQGANConfig
from lab5.runtime.files import load_tensors, save_tensors
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

CONTRACT = Path(__file__).parent / "lab_contract"
SMALL_VQGAN = VQGANConfig(
    codes=12, latent=4, stem=8, encoder=((8,), (8, 16)), middle=(16,), decoder=((16,), (8,), (8,)), groups=0,
    attention=False,
)  # fmt: skip
SMALL = replace(TransformerConfig(), codes=10, width=32, layers=2, hidden=24)  # 16 heads, as in the lab


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, so that none can be mistaken for another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def transformer() -> BidirectionalTransformer:
    return shaken(BidirectionalTransformer(SMALL))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(11, (2, 256), generator=torch.Generator().manual_seed(1))


def same_logits(loaded: BidirectionalTransformer, original: BidirectionalTransformer, tokens: torch.Tensor) -> None:
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), original(tokens), rtol=1e-5, atol=1e-5)


# --- our models -------------------------------------------------------------------------------------------------


def test_missing_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    for read in (load_vqgan, load_transformer):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint at .*state.safetensors"):
            read(path)
    save_tensors(path, {"x": torch.ones(1000)}, {"step": 1})
    whole = path.read_bytes()
    for length in (0, 4, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        for read in (load_vqgan, load_transformer):
            with pytest.raises(ValueError, match="state.safetensors is truncated or is not one of our"):
                read(path)
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no VQGANConfig; its header holds nothing"):
        load_vqgan(path)


def test_a_vqgan_comes_back_with_its_config(tmp_path):
    model = shaken(VQGAN(SMALL_VQGAN)).train()
    save_vqgan(tmp_path / "vqgan.safetensors", model, psnr=28.5, config="quick")
    loaded = load_vqgan(tmp_path / "vqgan.safetensors")
    assert loaded.config == SMALL_VQGAN and not loaded.training and model.training
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), model.eval().encode(images))
    meta = load_tensors(tmp_path / "vqgan.safetensors")[1]
    assert (meta["psnr"], meta["config"]) == (28.5, "quick")


def test_a_transformer_comes_back_with_its_config(tmp_path, tokens):
    config = replace(SMALL, norm="pre", heads=4)
    model = shaken(BidirectionalTransformer(config))
    save_transformer(tmp_path / "transformer.safetensors", model, step=7)
    loaded = load_transformer(tmp_path / "transformer.safetensors")
    assert loaded.config == config and load_tensors(tmp_path / "transformer.safetensors")[1]["step"] == 7
    same_logits(loaded, model, tokens)


def test_our_files_are_never_taken_for_pickles(tmp_path, transformer, tokens):
    """A safetensors file begins with the length of its header: one in 32 with the byte of a bare pickle."""
    path = tmp_path / "t"
    for length in range(0, 256, 8):
        save_transformer(path, transformer, note="x" * length)
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    same_logits(load_transformer(path), transformer, tokens)


def test_one_stage_is_not_mistaken_for_the_other(tmp_path, transformer):
    save_transformer(tmp_path / "t", transformer)
    with pytest.raises(ValueError, match="no VQGANConfig; its header holds TransformerConfig"):
        load_vqgan(tmp_path / "t")


def test_a_config_of_another_version_is_refused(tmp_path, transformer):
    save_tensors(tmp_path / "t", transformer.state_dict(), {"TransformerConfig": {"codes": 10, "colour": "blue"}})
    with pytest.raises(ValueError, match="another version.*colour"):
        load_transformer(tmp_path / "t")


def test_tensors_that_do_not_fit_are_named(tmp_path, transformer):
    state = dict(transformer.state_dict())
    state["LN.scale"] = state.pop("LN.weight")
    state["tok_emb.weight"] = state["tok_emb.weight"][:, :5]
    save_tensors(tmp_path / "t", state, {"TransformerConfig": vars(SMALL)})
    with pytest.raises(ValueError) as error:
        load_transformer(tmp_path / "t")
    assert "1 missing (LN.weight); 1 unknown (LN.scale); 1 of another shape (tok_emb.weight)" in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("as_pickle", [False, True])
def test_weights_that_are_not_finite_are_refused(tmp_path, transformer, bad, as_pickle):
    state = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    state["blocks.1.MLP.0.weight"][2, 3] = bad
    if as_pickle:
        torch.save(state, tmp_path / "t")
    else:
        save_tensors(tmp_path / "t", state, {"TransformerConfig": vars(SMALL)})
    with pytest.raises(ValueError, match="NaN or infinity in 1 tensors, the first is blocks.1.MLP.0.weight"):
        load_transformer(tmp_path / "t")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("as_pickle", [False, True])
def test_weights_of_another_precision_become_float32(tmp_path, transformer, dtype, as_pickle):
    state = {name: tensor.to(dtype) for name, tensor in transformer.state_dict().items()}
    if as_pickle:
        torch.save(state, tmp_path / "t")
    else:
        save_tensors(tmp_path / "t", state, {"TransformerConfig": vars(SMALL)})
    for name, tensor in load_transformer(tmp_path / "t").state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state[name].float())


def test_a_loaded_network_is_on_the_cpu_can_learn_and_has_tensors_of_its_own(tmp_path, transformer, tokens):
    state = dict(transformer.state_dict())
    shared = state["LN.weight"]
    state["LN.weight"] = state["LN.bias"] = shared  # one memory for two, as PyTorch's files may have it
    torch.save(state, tmp_path / "t")
    random = torch.get_rng_state()
    loaded = load_transformer(tmp_path / "t")
    assert torch.equal(torch.get_rng_state(), random), "reading draws nothing"
    assert loaded.LN.weight.data_ptr() != loaded.LN.bias.data_ptr()
    loaded(tokens).mean().backward()
    assert all(p.device.type == "cpu" and p.requires_grad and p.is_contiguous() for p in loaded.parameters())


def test_a_network_of_any_size_in_a_header_is_refused_before_it_takes_memory(tmp_path, transformer, monkeypatch):
    """10**7 wide it would be 1.6 petabytes: nothing may be made of it but shapes."""
    made = []
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda self, **_: made.append(self))
    save_tensors(tmp_path / "t", transformer.state_dict(), {"TransformerConfig": vars(SMALL) | {"width": 10**7}})
    with pytest.raises(ValueError, match="does not fit BidirectionalTransformer: tensors .* of another shape"):
        load_transformer(tmp_path / "t")
    assert not made


# --- pickles ----------------------------------------------------------------------------------------------------


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("read", [load_vqgan, load_transformer])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, read):
    fired, path = tmp_path / "fired", tmp_path / "model.pt"
    for write in (
        lambda content: torch.save(content, path),
        lambda content: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda content: path.write_bytes(pickle.dumps(content, protocol=2)),
    ):
        write({"tok_emb.weight": torch.zeros(3, 4), "extra": Payload(fired)})
        with pytest.raises(ValueError, match="model.pt cannot be read as plain tensors.*state_dict"):
            read(path)
        assert not fired.exists()
    pickle.loads(path.read_bytes())
    assert fired.exists()  # the payload was a live one


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="of a whole model, save the state_dict"):
        load_transformer(tmp_path / "model.pt")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_pickles_are_refused(tmp_path, transformer, share):
    path = tmp_path / "model.pt"
    torch.save(transformer.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="model.pt cannot be read"):
        load_transformer(path)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {"epoch": 3, "weights": {}}, {0: torch.zeros(1)}]
)
def test_pickles_of_something_else_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="must hold a state dict"):
        load_transformer(tmp_path / "model.pt")


def test_a_state_dict_of_another_network_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no transformer of the lab's.*weight, bias"):
        load_transformer(tmp_path / "model.pt")


def test_a_broken_file_is_refused_before_a_large_network_is_built(tmp_path, monkeypatch):
    (tmp_path / "VQGAN.pt").write_bytes(b"PK\x03\x04" + bytes(99))
    monkeypatch.setattr(checkpoint, "VQGAN", None)
    with pytest.raises(ValueError, match="VQGAN.pt cannot be read"):
        load_vqgan(tmp_path / "VQGAN.pt")


# --- the lab's transformers -------------------------------------------------------------------------------------


def bare(state):
    return state


def beside_an_optimiser(state):
    return {"transformer_state_dict": state, "optimizer": {"lr": 1e-4, "state": {0: torch.ones(2)}}, "epoch": 3}


def as_model(state):
    return {"model": state, "epoch": 3}


def whole_maskgit(state):
    return {f"transformer.{name}": tensor for name, tensor in state.items()} | {"vqgan.quant_conv.bias": torch.ones(4)}


def whole_maskgit_as_model(state):
    return {"model": whole_maskgit(state)}


@pytest.mark.parametrize("wrap", [bare, beside_an_optimiser, as_model, whole_maskgit, whole_maskgit_as_model])
def test_every_wrapping_of_the_lab_loads(tmp_path, transformer, tokens, wrap):
    torch.save(wrap(transformer.state_dict()), tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt")
    assert loaded.config == SMALL
    same_logits(loaded, transformer, tokens)


FOUR_LINEARS = [
    ("query", "key", "value", "out"),
    ("W_q", "W_k", "W_v", "W_o"),
    ("Q", "K", "V", "W_out"),
    ("linear_q", "linear_k", "linear_v", "linear_out"),
    ("to_queries", "to_keys", "to_values", "unify_heads"),
]


def relabelled(state: dict, names: tuple[str, ...]) -> dict:
    """The same network with its attention's layers called otherwise; three names become two by stacking."""
    theirs = {}
    for name, tensor in state.items():
        block, attention, rest = name.partition(".Attention.")
        layer, _, kind = rest.partition(".")
        if not attention:
            theirs[name] = tensor
        elif len(names) == 4:
            theirs[f"{block}.Attention.{names[('query', 'key', 'value', 'out').index(layer)]}.{kind}"] = tensor
        elif layer == "out":
            theirs[f"{block}.Attention.{names[1]}.{kind}"] = tensor
        else:
            parts = [state[f"{block}.Attention.{part}.{kind}"] for part in ("query", "key", "value")]
            theirs[f"{block}.Attention.{names[0]}.{kind}"] = torch.cat(parts)
    return theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("names", [*FOUR_LINEARS, ("to_qkv", "proj"), ("qkv", "proj"), ("qkv", "to_out")])
def test_every_attention_layout_of_the_lab_loads(tmp_path, transformer, tokens, names, bias):
    state = dict(transformer.state_dict())
    if not bias:
        for name in state:
            if ".Attention." in name and name.endswith("bias"):
                state[name] = torch.zeros_like(state[name])
    expected = BidirectionalTransformer(SMALL).eval()
    expected.load_state_dict(state)
    theirs = relabelled(state, names)
    if not bias:
        theirs = {n: t for n, t in theirs.items() if not (".Attention." in n and n.endswith("bias"))}
    torch.save(theirs, tmp_path / "model.pt")
    same_logits(load_transformer(tmp_path / "model.pt"), expected, tokens)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda s: {n.replace("query", "whatever"): t for n, t in s.items()}, "unknown layout: .*whatever"),
        (lambda s: {n.replace("Attention.out", "Attention.heads.0"): t for n, t in s.items()}, "unknown .*heads.0"),
        (lambda s: {n: t for n, t in s.items() if "1.Attention.key" not in n}, "missing .*1.Attention.key.weight"),
        (lambda s: s | {"blocks.0.Attention.W_q.weight": torch.zeros(32, 32)}, "more than one .*query.weight"),
        (lambda s: s | {"blocks.0.Attention.qkv.weight": torch.zeros(32, 32)}, "should stack"),
        (lambda s: s | {"blocks.0.MLP.4.weight": torch.zeros(3)}, "unknown .blocks.0.MLP.4.weight"),
    ],
)
def test_unknown_layouts_are_refused_by_name(tmp_path, transformer, change, sentence):
    torch.save(change(dict(transformer.state_dict())), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=sentence):
        load_transformer(tmp_path / "model.pt")


def test_the_lab_sized_state_dict_asks_for_the_labs_config():
    rows = [line.split("\t") for line in (CONTRACT / "transformer_state_dict.tsv").read_text().split("\n")[1:] if line]
    shapes = {key: [int(size) for size in shape.split("x")] for key, shape in rows}
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}  # 250 names, next to no memory
    assert lab_config(rename_attention(state, "file"), "file") == TransformerConfig()


# --- the lab's VQGAN --------------------------------------------------------------------------------------------


def test_the_courses_vqgan_loads_and_answers_as_the_labs_own_code(tmp_path):
    rows = [line.split("\t") for line in (CONTRACT / "vqgan_state_dict.tsv").read_text().split("\n")[1:] if line]
    state = {}
    for key, shape in rows:  # the weights that the golden outputs were made with
        rng, shape = np.random.default_rng(zlib.crc32(key.encode())), [int(size) for size in shape.split("x")]
        noise = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            noise *= 0.5 if key == "codebook.embedding.weight" else math.prod(shape[1:]) ** -0.5
        else:
            noise = 1 + 0.1 * noise if key.endswith("weight") else 0.02 * noise
        state[key] = torch.from_numpy(noise.astype(np.float32))
    torch.save(state, tmp_path / "VQGAN.pt")
    del state
    model = load_vqgan(tmp_path / "VQGAN.pt")
    assert model.config == VQGANConfig() and not model.training

    golden = {name: torch.from_numpy(array) for name, array in np.load(CONTRACT / "vqgan_golden.npz").items()}
    clear = golden["margin"] > 1e-3
    assert clear.float().mean() > 0.9
    with torch.no_grad():
        latents = model.latents(golden["images"])
        torch.testing.assert_close(latents[:, ::16], golden["latent_sample"], rtol=0, atol=1e-3)
        assert torch.equal(model.quantise(latents)[clear], golden["indices"][clear])
        torch.testing.assert_close(model.decode(golden["decode_indices"]), golden["decoded"], rtol=0, atol=1e-3)


# --- export -----------------------------------------------------------------------------------------------------


def contract(name: str) -> dict[str, list[int]]:
    """Names and shapes of the lab's own state dict."""
    rows = [line.split("\t") for line in (CONTRACT / name).read_text().split("\n")[1:] if line]
    return {key: [int(size) for size in shape.split("x")] for key, shape in rows}


@pytest.mark.parametrize("layout", ["separate", "fused"])
@pytest.mark.parametrize("wrapper", ["none", "transformer_state_dict", "model"])
def test_an_exported_transformer_is_the_same_network(tmp_path, transformer, tokens, layout, wrapper):
    export_transformer(tmp_path / "new" / "t.pt", transformer, layout=layout, wrapper=wrapper)
    same_logits(load_transformer(tmp_path / "new" / "t.pt"), transformer, tokens)
    content = torch.load(tmp_path / "new" / "t.pt", weights_only=True)
    state = content if wrapper == "none" else content[wrapper]
    assert wrapper == "none" or list(content) == [wrapper]
    labs = [key for key in contract("transformer_state_dict.tsv") if not re.match(r"blocks\.([2-9]|1\d)\.", key)]
    if layout == "separate":
        assert list(state) == labs, "the lab's names in the lab's order"
    else:
        others = [key for key in state if ".Attention." not in key]
        assert others == [key for key in labs if ".Attention." not in key]
        names = {key.split(".Attention.")[1] for key in state if ".Attention." in key}
        assert names == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
        assert state["blocks.0.Attention.qkv.weight"].shape == (96, 32)


def test_a_network_goes_through_the_labs_format_and_back_unchanged(tmp_path, transformer):
    export_transformer(tmp_path / "fused.pt", transformer, layout="fused")
    export_transformer(tmp_path / "again.pt", load_transformer(tmp_path / "fused.pt"))
    state = torch.load(tmp_path / "again.pt", weights_only=True)
    for name, tensor in transformer.state_dict().items():
        assert torch.equal(state[name], tensor) and state[name].data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("changes, found", [
    ({"heads": 4}, "heads = 4 where the lab has 16"),
    ({"norm": "pre"}, "norm = pre where the lab has post"),
    ({"hints": 20, "heads": 2}, "heads = 2 where the lab has 16, hints = 20 where the lab has 0"),
])  # fmt: skip
def test_a_transformer_that_the_lab_would_compute_otherwise_is_not_exported(tmp_path, changes, found):
    with pytest.raises(ValueError, match=f"would compute something else with this transformer: {found}"):
        export_transformer(tmp_path / "t.pt", BidirectionalTransformer(replace(SMALL, **changes)))
    assert list(tmp_path.iterdir()) == []


def test_an_exported_vqgan_is_the_courses_format(tmp_path):
    model = VQGAN(VQGANConfig())
    export_vqgan(tmp_path / "VQGAN.pt", model)
    state = torch.load(tmp_path / "VQGAN.pt", weights_only=True, mmap=True)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == contract("vqgan_state_dict.tsv")
    loaded = load_vqgan(tmp_path / "VQGAN.pt").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_vqgan_of_another_shape_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="no place for this VQGAN: codes = 12 where the lab has 1024, latent = 4"):
        export_vqgan(tmp_path / "VQGAN.pt", VQGAN(SMALL_VQGAN))
    assert list(tmp_path.iterdir()) == []


def test_a_failing_export_leaves_the_old_file(tmp_path, transformer, monkeypatch):
    path = tmp_path / "t.pt"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="t.pt could not be written and is as it was before"):
        export_transformer(path, transformer)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
