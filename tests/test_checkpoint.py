"""Networks on disk: what is written comes back, nothing is executed, every layout of the lab's is the same model."""

import argparse
import math
import pickle
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab5.checkpoint import lab_config, load_transformer, load_vqgan, save_transformer, save_vqgan
from lab5.cli.export import export_transformer, export_vqgan
from lab5.config import TransformerConfig, VQGANConfig
from lab5.runtime.attentions import plain_attention
from lab5.runtime.files import load_tensors, save_tensors
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

LAB = Path(__file__).parent / "lab_contract"
SMALL_VQGAN = VQGANConfig(
    codes=12, latent=4, stem=8, encoder=((8,), (8, 16)), middle=(16,), decoder=((16,), (8,), (8,)), groups=0,
    attention=False,
)  # fmt: skip
SMALL = replace(TransformerConfig(), codes=10, width=32, layers=2, hidden=24)  # 16 heads, as in the lab


def contract(name: str) -> dict[str, list[int]]:
    """Names and shapes of the lab's own state dict."""
    rows = [line.split("\t") for line in (LAB / name).read_text().splitlines()[1:]]
    return {key: [int(size) for size in shape.split("x")] for key, shape in rows}


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


def test_a_vqgan_comes_back_with_its_config(tmp_path):
    model = shaken(VQGAN(SMALL_VQGAN)).train()
    save_vqgan(tmp_path / "net", model, psnr=28.5, config="quick")
    loaded, (_, meta) = load_vqgan(tmp_path / "net"), load_tensors(tmp_path / "net")
    assert loaded.config == SMALL_VQGAN and not loaded.training and model.training
    assert (meta["psnr"], meta["config"]) == (28.5, "quick")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), model.eval().encode(images))


def test_a_transformer_comes_back_with_its_config(tmp_path, tokens):
    config = replace(SMALL, norm="pre", heads=4)
    model = shaken(BidirectionalTransformer(config))
    save_transformer(tmp_path / "net", model, step=7)
    loaded = load_transformer(tmp_path / "net")
    assert loaded.config == config and load_tensors(tmp_path / "net")[1]["step"] == 7
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


# --- the lab's --------------------------------------------------------------------------------------------------


def whole_maskgit(state):
    return {f"transformer.{name}": tensor for name, tensor in state.items()} | {"vqgan.quant_conv.bias": torch.ones(4)}


WRAPPINGS = {
    "bare": lambda state: state,
    "beside an optimiser": lambda state: {
        "transformer_state_dict": state, "optimizer": {"lr": 1e-4, "state": {0: torch.ones(2)}}, "epoch": 3,
    },
    "as model": lambda state: {"model": state, "epoch": 3},
    "as model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3, "train_loss": 1.0},
    "as transformer_parameter": lambda state: {"transformer_parameter": state, "epoch": 3},
    "whole maskgit as model_state": lambda state: {"model_state": whole_maskgit(state), "best_val": np.float64(1.5)},
    "beside arguments": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-4, device="cuda:0")},
    "whole maskgit": whole_maskgit,
    "whole maskgit as model": lambda state: {"model": whole_maskgit(state)},
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_every_wrapping_of_the_lab_loads(tmp_path, transformer, tokens, wrap):
    torch.save(wrap(transformer.state_dict()), tmp_path / "model.pt")
    loaded = load_transformer(tmp_path / "model.pt")
    assert loaded.config == SMALL
    same_logits(loaded, transformer, tokens)


def relabelled(state: dict, names: list[str]) -> dict:
    """The same network with its attention's layers called otherwise; three names become two by stacking."""
    theirs = {name: tensor for name, tensor in state.items() if ".Attention." not in name}
    for block in range(SMALL.layers):
        for kind in ("weight", "bias"):
            parts = [state[f"blocks.{block}.Attention.{role}.{kind}"] for role in ("query", "key", "value", "out")]
            if len(names) == 2:
                parts = [torch.cat(parts[:3]), parts[3]]
            theirs |= {f"blocks.{block}.Attention.{name}.{kind}": x for name, x in zip(names, parts, strict=True)}
    return theirs


@pytest.mark.filterwarnings("ignore:.*can be read in other ways")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("names", [
    "query key value out", "W_q W_k W_v W_o", "Q K V W_out", "linear_q linear_k linear_v linear_out",
    "to_queries to_keys to_values unify_heads", "to_qkv proj", "qkv proj", "qkv to_out",
    "q_linear k_linear v_linear out_linear", "query key value output", "query key value output_layer",
    "query_proj key_proj value_proj output_proj", "w_q w_k w_v w_o", "wq wk wv linear_out", "WQ WK WV Wo", "wqkv wo",
    "transfer_qkv projection", "qkv_layer out_proj", "W_q W_k W_v W_o.0",
])  # fmt: skip
def test_every_attention_layout_of_the_lab_loads(tmp_path, transformer, tokens, names, bias):
    state = dict(transformer.state_dict())
    biases = [] if bias else [name for name in state if re.search(r"\.Attention\..*bias", name)]
    state |= {name: torch.zeros_like(state[name]) for name in biases}
    expected = BidirectionalTransformer(SMALL).eval()
    expected.load_state_dict(state)
    theirs = relabelled(state, names.split())
    if not bias:
        theirs = {name: x for name, x in theirs.items() if not re.search(r"\.Attention\..*bias", name)}
    torch.save(theirs, tmp_path / "model.pt")
    same_logits(load_transformer(tmp_path / "model.pt"), expected, tokens)


def test_the_lab_sized_state_dict_asks_for_the_labs_config():
    shapes = contract("transformer_state_dict.tsv")
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}  # 250 names, next to no memory
    assert lab_config(plain_attention(state, "file").state, "file") == TransformerConfig()


@pytest.fixture(scope="module")
def course_vqgan(tmp_path_factory) -> VQGAN:
    """As it loads a VQGAN.pt with the weights that the golden outputs were made with."""
    state = {}
    for key, shape in contract("vqgan_state_dict.tsv").items():
        noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            noise *= 0.5 if key == "codebook.embedding.weight" else math.prod(shape[1:]) ** -0.5
        else:
            noise = 1 + 0.1 * noise if key.endswith("weight") else 0.02 * noise
        state[key] = torch.from_numpy(noise.astype(np.float32))
    file = tmp_path_factory.mktemp("course") / "VQGAN.pt"
    torch.save(state, file)
    return load_vqgan(file)


def test_the_courses_vqgan_loads_and_answers_as_the_labs_own_code(course_vqgan):
    assert course_vqgan.config == VQGANConfig() and not course_vqgan.training
    golden = {name: torch.from_numpy(array) for name, array in np.load(LAB / "vqgan_golden.npz").items()}
    clear = golden["margin"] > 1e-3
    assert clear.float().mean() > 0.9
    with torch.no_grad():
        latents = course_vqgan.latents(golden["images"])
        torch.testing.assert_close(latents[:, ::16], golden["latent_sample"], rtol=0, atol=1e-3)
        assert torch.equal(course_vqgan.quantise(latents)[clear], golden["indices"][clear])
        torch.testing.assert_close(course_vqgan.decode(golden["decode_indices"]), golden["decoded"], rtol=0, atol=1e-3)


# --- export -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["separate", "fused"])
@pytest.mark.parametrize("wrapper", ["none", "transformer_state_dict", "model"])
def test_an_exported_transformer_is_the_same_network(tmp_path, transformer, layout, wrapper):
    export_transformer(tmp_path / "new" / "t.pt", transformer, layout=layout, wrapper=wrapper)
    loaded = load_transformer(tmp_path / "new" / "t.pt").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in transformer.state_dict().items())
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


@pytest.mark.parametrize("export, network, sentence", [
    (export_transformer, BidirectionalTransformer(replace(SMALL, heads=4)), "transformer: heads = 4 where the lab has"),
    (export_transformer, BidirectionalTransformer(replace(SMALL, norm="pre")), "norm = pre where the lab has post"),
    (export_transformer, BidirectionalTransformer(replace(SMALL, hints=20, heads=2)),
     "something else .*: heads = 2 where the lab has 16, hints = 20 where the lab has 0"),
    (export_vqgan, VQGAN(SMALL_VQGAN), "no place for this VQGAN: codes = 12 where the lab has 1024, latent = 4"),
], ids=["heads", "norm", "hints", "vqgan"])  # fmt: skip
def test_a_network_that_the_lab_would_compute_otherwise_is_not_exported(tmp_path, export, network, sentence):
    with pytest.raises(ValueError, match=sentence):
        export(tmp_path / "net.pt", network)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_vqgan_is_the_courses_format(tmp_path, course_vqgan):
    export_vqgan(tmp_path / "VQGAN.pt", course_vqgan)
    state = torch.load(tmp_path / "VQGAN.pt", weights_only=True, mmap=True)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == contract("vqgan_state_dict.tsv")
    assert all(torch.equal(state[name], tensor) for name, tensor in course_vqgan.state_dict().items())
    assert load_vqgan(tmp_path / "VQGAN.pt").config == VQGANConfig()


def test_a_failing_export_leaves_the_old_file(disk_of, tmp_path, transformer):
    path = tmp_path / "t.pt"
    path.write_bytes(b"old")
    with disk_of(1000), pytest.raises(OSError, match="t.pt could not be written and is as it was before"):
        export_transformer(path, transformer)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
