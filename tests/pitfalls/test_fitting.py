"""A checkpoint that is read otherwise than it was trained is told, and one that is read rightly is not."""

import math
from dataclasses import replace

import pytest
import torch
from stubs import seeded, untrained_pair
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from lab5.attention import MultiHeadAttention
from lab5.checkpoint import load_transformer, save_transformer
from lab5.cli import train as command
from lab5.cli.train import Networks, choose_pair
from lab5.config import TransformerConfig
from lab5.data.dataset import Dataset
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.pitfalls.fitting import (
    IMAGES,
    MISTAKES,
    fit_reading,
    hidden_losses,
    is_clearly_less,
    mistaken,
    parse_reading,
)
from lab5.pitfalls.training import BareView
from lab5.profiles import configure
from lab5.runtime.attentions import Reading
from lab5.transformer import BidirectionalTransformer

LAB = replace(TransformerConfig(), codes=16, width=32, layers=1, hidden=32)  # of the lab's 16 heads
FEW = replace(LAB, positions=64, heads=4)
SIZES = {".query.weight": 2.0, ".key.weight": 2.0, ".value.weight": 2.5, ".out.weight": 2.5, "tok_emb.weight": 4.0}


def random_network(seed: int, config: TransformerConfig = FEW) -> BidirectionalTransformer:
    """What it predicts hangs on where it looks, and it is fairly sure of it."""
    net, generator = BidirectionalTransformer(config), seeded(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 2 and name != "bias":
                size = next((size for end, size in SIZES.items() if name.endswith(end)), 1.0)
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
    return net.eval()


@torch.no_grad()
def as_predicted(net: BidirectionalTransformer, attention: type[MultiHeadAttention], seed: int) -> Tensor:
    """Images whose hidden tokens are drawn from what the network predicts with this attention: so it was trained."""
    tokens = torch.randint(net.codes, (IMAGES, net.config.positions), generator=seeded(seed))
    hidden = torch.rand(tokens.shape, generator=seeded()) < 0.5  # as in hidden_losses
    with mistaken(net, attention):
        logits = net(tokens.masked_fill(hidden, net.mask_id))[hidden][:, :-1]
    return tokens.masked_scatter(hidden, torch.multinomial(logits.softmax(1), 1, generator=seeded(seed)))


def told(net: BidirectionalTransformer, tokens: Tensor) -> str | None:
    """The mistake with which the network fits clearly better."""
    unknown, losses = torch.zeros_like(tokens, dtype=torch.bool), {}
    for name, mistake in MISTAKES.items():
        with mistaken(net, mistake):
            losses[name] = hidden_losses(net, tokens, unknown)
    best = min(losses, key=lambda name: float(losses[name].mean()))
    return best if is_clearly_less(losses[best], hidden_losses(net, tokens, unknown), net.codes) else None


@pytest.mark.parametrize("name", [None, *MISTAKES])
def test_networks_of_another_function_are_told_by_its_name_and_those_of_the_right_one_are_not(name):
    nets = [random_network(seed) for seed in range(10)]
    attention = MISTAKES.get(name, MultiHeadAttention)
    found = [told(net, as_predicted(net, attention, seed)) for seed, net in enumerate(nets)]
    assert found.count(name) >= 9, found


# --- networks that have learned something -----------------------------------------------------------------------------

SIDE, CODES = 8, 8
SMALL = replace(
    TransformerConfig(), codes=CODES, positions=SIDE**2, width=32, layers=2, heads=4, hidden=64, dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip


def stripes(n: int, generator: torch.Generator) -> Tensor:
    """Images with rows of one code each, one token in ten another."""
    rows = torch.randint(CODES, (n, SIDE, 1), generator=generator).expand(n, SIDE, SIDE)
    noise = torch.randint(CODES, (n, SIDE, SIDE), generator=generator)
    return torch.where(torch.rand(noise.shape, generator=generator) < 0.9, rows, noise).flatten(1)


def trained(attention: type[MultiHeadAttention], seeds: int, steps: int) -> list[BidirectionalTransformer]:
    """Networks that begin with these seeds and learn the same stripes, side by side."""
    nets = [BidirectionalTransformer(SMALL, fused=False, generator=seeded(seed)) for seed in range(seeds)]
    generator, stacked = seeded(), stack_module_state(nets)[0]
    weights = {name: x.detach().requires_grad_() for name, x in stacked.items()}
    optimiser = torch.optim.AdamW(weights.values(), betas=(0.9, 0.98), weight_decay=0.0)

    def loss(weights: dict[str, Tensor], tokens: Tensor, hidden: Tensor) -> Tensor:
        logits = functional_call(nets[0], weights, (tokens.masked_fill(hidden, CODES),))[..., :CODES]
        return (F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none") * hidden).sum() / hidden.sum()

    with mistaken(nets[0], attention):
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 0.004 * min(1, (step + 1) / 30, 2 * (1 - step / steps))
            tokens = stripes(16, generator)
            losses = vmap(loss, (0, None, None))(weights, tokens, torch.rand(tokens.shape, generator=generator) < 0.5)
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
    for i, net in enumerate(nets):
        net.load_state_dict({name: x[i].detach() for name, x in weights.items()})
    return [net.eval() for net in nets]


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *list(MISTAKES)[:4]])
def test_networks_that_were_trained_with_a_mistake_are_told(name):
    """But for those that have hardly learned anything, as all do with a softmax over the heads."""
    images = stripes(IMAGES, seeded(99))
    unknown = torch.zeros_like(images, dtype=torch.bool)
    found = []
    for net in trained(MISTAKES.get(name, MultiHeadAttention), seeds=10, steps=300):
        with mistaken(net, MISTAKES.get(name, MultiHeadAttention)):
            has_learned = hidden_losses(net, images, unknown).mean() < math.log(CODES) / 2
        found += [told(net, images)] * bool(has_learned)
    assert len(found) >= 5 and sum((one is None) == (name is None) for one in found) >= 0.9 * len(found), found


# --- files ------------------------------------------------------------------------------------------------------------


class Given(Tokenizer):
    """It has these tokens for any images."""

    def __init__(self, tokens: Tensor):
        super().__init__(untrained_pair().tokenizer.vqgan)
        self.tokens = tokens

    def encode(self, images):
        return self.tokens[: len(images)]


@pytest.fixture
def data() -> Dataset:
    images, flags = torch.zeros(IMAGES, 3, 64, 64, dtype=torch.uint8), torch.zeros(IMAGES, dtype=torch.bool)
    holes = torch.zeros(IMAGES, 64, 64, dtype=torch.bool)
    return Dataset("grey", images, images, images, holes, flags, flags, {}, {})


def by_heads(net: BidirectionalTransformer, rows: str = "h3d") -> dict[str, Tensor]:
    """Its state dict with query, key and value in one matrix, stacked so."""
    state = dict(net.state_dict())
    for block in range(LAB.layers):
        for kind in ("weight", "bias"):
            names = [f"blocks.{block}.Attention.{role}.{kind}" for role in ("query", "key", "value")]
            parts = torch.stack([state.pop(name).unflatten(0, (LAB.heads, -1)) for name in names])  # (3, h, d, ...)
            order = ["3hd".index(axis) for axis in rows]
            stacked = parts.permute(*order, *range(3, parts.ndim)).flatten(0, 2)
            state[f"blocks.{block}.Attention.qkv.{kind}"] = stacked
    return state


@pytest.mark.parametrize("rows", ["3hd", "h3d", "d3h"])
def test_the_rows_that_fit_are_taken_and_said(tmp_path, data, rows):
    net, file = random_network(0, LAB), tmp_path / "net.pt"
    torch.save(by_heads(net, rows), file)
    tokens = as_predicted(net, MultiHeadAttention, 0)
    pair = Pair(Given(tokens), load_transformer(file, Reading()), "x")
    fitted, sentences = fit_reading(pair, file, data, Reading())
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in fitted.transformer.state_dict().items())
    assert len(sentences) == (rows != "3hd")
    assert all(f"net.pt is read by --read rows={rows}, which fits clearly better" in text for text in sentences)


def test_a_mistake_is_said_by_the_command(tmp_path, data, monkeypatch, capsys):
    net, file = random_network(0, LAB), tmp_path / "net.pt"
    torch.save({"model": net.state_dict()}, file)
    pair = Pair(Given(as_predicted(net, BareView, 0)), net, "net")
    monkeypatch.setattr(command, "load_pair", lambda *_: pair)
    assert choose_pair(configure("smoke"), data, Networks(vqgan=file, transformer=file)) is pair
    said = capsys.readouterr().err
    assert "net.pt fits clearly better with a mistake in its attention, heads cut out by a bare view: " in said
    assert said.count("\n") == 1 and all(type(block.Attention) is MultiHeadAttention for block in net.blocks)


def test_our_own_files_are_read_in_one_way(tmp_path, data):
    net = random_network(0, LAB)
    save_transformer(tmp_path / "net", net)
    pair = Pair(Given(as_predicted(net, BareView, 0)), net, "net")
    assert fit_reading(pair, tmp_path / "net", data, Reading()) == (pair, [])


def test_what_is_said_of_a_reading_is_checked(tmp_path, data):
    assert parse_reading([]) == Reading()
    assert parse_reading(["rows=h3d", "heads=8", "out=a,b"]) == Reading(rows="h3d", heads=8, out="a,b")
    for words, sentence in {
        ("rows",): "--read takes entry, rows, .* not 'rows'",
        ("colour=red",): "--read takes entry, rows, .* not 'colour=red'",
        ("heads=x",): "heads= takes a number, not 'x'",
        ("rows=abc",): "rows must be one of 3hd, h3d",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            parse_reading(list(words))
    with pytest.raises(ValueError, match="--read says how a PyTorch file of the lab's is read: give one"):
        choose_pair(configure("smoke"), data, Networks(reading=Reading(rows="h3d")))
