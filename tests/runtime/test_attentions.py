"""Attention written in many ways: what its own module computes is what the loaded checkpoint computes."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lab5.checkpoint import load_transformer
from lab5.config import TransformerConfig
from lab5.runtime.attentions import Reading
from lab5.transformer import BidirectionalTransformer

WIDTH, HEADS = 48, 16
SIZE = WIDTH // HEADS
SMALL = replace(TransformerConfig(), codes=10, width=WIDTH, layers=2, hidden=24)


class Written(nn.Module):
    """softmax(QKᵀ/√d)V; how query, key and value come about, and what is done at the end, is left to each kind."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(x)  # each (B, heads, N, d)
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)
        return self.end((weights @ value).transpose(1, 2).flatten(2))


def cut(x: Tensor, heads: int = HEADS) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def linear(times: int = 1, bias: bool = True) -> nn.Linear:
    return nn.Linear(WIDTH, times * WIDTH, bias)


class Four(Written):
    """Four layers, made by `layer` and called so."""

    def __init__(self, names: str, layer: Callable[[], nn.Module] = linear):
        super().__init__()
        self.names = names.split()
        for name in self.names:
            setattr(self, name, layer())

    def parts(self, x):
        return [cut(getattr(self, name)(x)) for name in self.names[:3]]

    def end(self, x):
        return getattr(self, self.names[3])(x)


class Fused(Written):
    """One matrix whose rows run so, cut as einops would cut it."""

    def __init__(self, names: str = "qkv proj", rows: str = "3hd", bias: bool = True):
        super().__init__()
        self.names = names.split()
        self.rows = rows
        setattr(self, self.names[0], linear(3, bias))
        setattr(self, self.names[1], linear())

    def parts(self, x):
        sizes = {"3": 3, "h": HEADS, "d": SIZE}
        axes = getattr(self, self.names[0])(x).unflatten(2, [sizes[axis] for axis in self.rows])
        return axes.movedim([2 + self.rows.index(axis) for axis in "3hd"], [0, 2, 4])

    def end(self, x):
        return getattr(self, self.names[1])(x)


class KeyFirst(Fused):
    """The order of minGPT's first versions, in the name."""

    def parts(self, x):
        key, query, value = super().parts(x)
        return query, key, value


class TwoFused(Written):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_kv, self.to_out = linear(bias=False), linear(2, bias=False), linear()

    def parts(self, x):
        return [cut(part) for part in (self.to_q(x), *self.to_kv(x).chunk(2, 2))]

    def end(self, x):
        return self.to_out(x)


class Torchs(nn.Module):
    """PyTorch's own, which the lab forbids."""

    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        return self.mha(x, x, x, need_weights=False)[0]


class Head(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, size, bias=False) for _ in range(3))


class HeadByHead(Written):
    """A module for each of `heads` heads."""

    def __init__(self, heads: int = HEADS):
        super().__init__()
        self.heads = nn.ModuleList(Head(WIDTH // heads) for _ in range(heads))
        self.proj = linear()

    def parts(self, x):
        return [torch.stack([getattr(head, n)(x) for head in self.heads], 1) for n in ("query", "key", "value")]

    def end(self, x):
        return self.proj(x)


class HeadByHeadFused(Written):
    def __init__(self):
        super().__init__()
        self.qkv_heads = nn.ModuleList(nn.Linear(WIDTH, 3 * SIZE) for _ in range(HEADS))
        self.unify_heads = linear()

    def parts(self, x):
        return torch.stack([head(x) for head in self.qkv_heads], 1).chunk(3, 3)

    def end(self, x):
        return self.unify_heads(x)


class ListsOfHeads(Written):
    def __init__(self):
        super().__init__()
        for name in ("queries", "keys", "values"):
            setattr(self, name, nn.ModuleList(nn.Linear(WIDTH, SIZE) for _ in range(HEADS)))
        self.combine = linear()

    def parts(self, x):
        return [torch.stack([head(x) for head in heads], 1) for heads in (self.queries, self.keys, self.values)]

    def end(self, x):
        return self.combine(x)


class Annotated(Written):
    """As in "The Annotated Transformer": four clones in a list."""

    def __init__(self):
        super().__init__()
        self.linears = nn.ModuleList(linear() for _ in range(4))

    def parts(self, x):
        return [cut(layer(x)) for layer in list(self.linears)[:3]]

    def end(self, x):
        return self.linears[3](x)


class Bare(Written):
    """Parameters without layers, x @ W, with or without an axis for the heads."""

    def __init__(self, by_head: bool):
        super().__init__()
        self.by_head = by_head
        into, back = ((HEADS, WIDTH, SIZE), (HEADS, SIZE, WIDTH)) if by_head else ((WIDTH, WIDTH), (WIDTH, WIDTH))
        self.W_q, self.W_k, self.W_v = (nn.Parameter(torch.empty(into)) for _ in range(3))
        self.W_o = nn.Parameter(torch.empty(back))
        self.b_q, self.b_v, self.b_o = (nn.Parameter(torch.empty(WIDTH)) for _ in range(3))

    def parts(self, x):
        parts = []
        for weight, bias in ((self.W_q, self.b_q), (self.W_k, torch.zeros(WIDTH)), (self.W_v, self.b_v)):
            one = torch.einsum("bnD,hDd->bnhd", x, weight).flatten(2) if self.by_head else x @ weight
            parts.append(cut(one + bias))
        return parts

    def end(self, x):
        return x @ self.W_o.reshape(WIDTH, WIDTH) + self.b_o


class BareStack(Written):
    def __init__(self):
        super().__init__()
        self.qkv_weight_all = nn.Parameter(torch.empty(3, WIDTH, WIDTH))
        self.out = linear()

    def parts(self, x):
        return [cut(x @ weight) for weight in self.qkv_weight_all]

    def end(self, x):
        return self.out(x)


class Convolutions(Four):
    """1x1 convolutions, with the channels in front."""

    def __init__(self):
        super().__init__("q_conv k_conv v_conv out_conv", lambda: nn.Conv1d(WIDTH, WIDTH, 1))

    def parts(self, x):
        return [cut(getattr(self, name)(x.mT).mT) for name in self.names[:3]]

    def end(self, x):
        return self.out_conv(x.mT).mT


class Transposed(nn.Module):
    """The layer of GPT-2: (in, out)."""

    def __init__(self, times: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH, times * WIDTH))
        self.bias = nn.Parameter(torch.empty(times * WIDTH))

    def forward(self, x):
        return x @ self.weight + self.bias


class LikeGPT2(Written):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = Transposed(3), linear()
        self.register_buffer("bias_mask", torch.ones(1, 1, 4, 4, dtype=torch.bool))

    def parts(self, x):
        return [cut(part) for part in self.c_attn(x).chunk(3, 2)]

    def end(self, x):
        return self.c_proj(x)


class LikeBert(Written):
    """Layers in a module of their own, the last one in another."""

    def __init__(self):
        super().__init__()
        self.self = Four("query key value unused")
        del self.self.unused
        self.output = nn.ModuleDict({"dense": linear()})

    def parts(self, x):
        return self.self.parts(x)

    def end(self, x):
        return self.output["dense"](x)


class LikeBeit(Fused):
    """No bias for the keys; those of query and value are parameters."""

    def __init__(self):
        super().__init__(bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(WIDTH)), nn.Parameter(torch.empty(WIDTH))

    def parts(self, x):
        bias = torch.cat([self.q_bias, torch.zeros(WIDTH), self.v_bias])
        return [cut(part) for part in (self.qkv(x) + bias).chunk(3, 2)]


class InSequence(Four):
    def __init__(self):
        super().__init__("W_q W_k W_v W_o", lambda: nn.Sequential(linear(), nn.Dropout(0.1)))


class Nested(Written):
    """A public solution: head by head, with a layer that is never used."""

    def __init__(self, ends: str = "outer"):
        super().__init__()
        self.ends = ends
        self.attention = Fused("W_qkv W_o", rows="h3d")
        self.linear_proj = linear()

    def parts(self, x):
        return self.attention.parts(x)

    def end(self, x):
        x = x if self.ends == "outer" else self.attention.W_o(x)
        return x if self.ends == "inner" else self.linear_proj(x)


class WithExtras(Four):
    """What a module may keep beside its layers."""

    def __init__(self, scale: float):
        super().__init__("wq wk wv wo")
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("positions", torch.arange(256))

    def parts(self, x):
        query, key, value = super().parts(x)
        return query * (self.scale * math.sqrt(SIZE)), key, value


WAYS: dict[str, tuple[Callable[[], nn.Module], Reading | None]] = {
    "four with strange ends": (lambda: Four("query_fc Key_Layer VALUE projection"), None),
    "camel case": (lambda: Four("queryLinear keyLinear valueLinear outLinear"), None),
    "without bias": (lambda: Four("to_queries to_keys to_values unifyheads", lambda: linear(bias=False)), None),
    "numbered layers": (lambda: Four("fc1 fc2 fc3 fc4"), None),
    "one strange word": (lambda: Four("Q K V mingle"), None),
    "out is declared first": (lambda: Four("q k v fc_out"), None),
    "fused": (lambda: Fused("to_qkv to_out"), None),
    "fused, a projection in": (lambda: Fused("in_proj out_proj", bias=False), None),
    "fused head by head": (lambda: Fused(rows="h3d"), Reading(rows="h3d")),
    "fused, the three innermost": (lambda: Fused(rows="hd3"), Reading(rows="hd3")),
    "fused, heads innermost": (lambda: Fused(rows="d3h"), Reading(rows="d3h")),
    "fused, the key first": (lambda: KeyFirst("kqv_proj c_proj"), None),
    "key and value fused": (TwoFused, None),
    "PyTorch's": (Torchs, None),
    "a module for each head": (HeadByHead, None),
    "eight heads, each a module": (lambda: HeadByHead(8), None),
    "a fused layer for each head": (HeadByHeadFused, None),
    "lists of heads": (ListsOfHeads, None),
    "a list of four": (Annotated, None),
    "parameters": (lambda: Bare(False), None),
    "parameters with heads": (lambda: Bare(True), None),
    "a stack of parameters": (BareStack, None),
    "convolutions": (Convolutions, None),
    "as in GPT-2": (LikeGPT2, None),
    "as in BERT": (LikeBert, None),
    "as in BEiT": (LikeBeit, None),
    "in sequences": (InSequence, None),
    "nested, one unused": (Nested, Reading(rows="h3d")),
    "nested, the inner used": (lambda: Nested("inner"), Reading(rows="h3d", out="W_o")),
    "nested, both used": (lambda: Nested("both"), Reading(rows="h3d", out="attention.W_o,linear_proj")),
    "a factor and counters": (lambda: WithExtras(SIZE**-0.5), None),
    "the factor of the whole width": (lambda: WithExtras(WIDTH**-0.5), None),
    "compiled alone": (lambda: torch.compile(Four("q k v o")), None),
}  # fmt: skip


def network(make: Callable[[], nn.Module], seed: int = 0) -> BidirectionalTransformer:
    """One whose attention is of this kind, every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    net = BidirectionalTransformer(SMALL)
    for block in net.blocks:
        block.Attention = make()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.eval()


@torch.no_grad()
def logits(net: nn.Module) -> Tensor:
    for module in net.modules():
        if hasattr(module, "_orig_mod"):
            module.forward = module._orig_mod.forward  # its own function; compiling it takes a minute
    return net(torch.randint(11, (2, 256), generator=torch.Generator().manual_seed(1)))


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"transformer.{name}": x for name, x in state.items()} | {"vqgan.quant_conv.bias": torch.ones(4)}


@pytest.mark.filterwarnings("ignore:.*read in other ways")
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize("make, reading", WAYS.values(), ids=WAYS)
def test_what_the_module_computes_is_what_the_loaded_network_computes(tmp_path, make, reading, precision):
    net = network(make)
    for parameter in net.parameters():
        parameter.data = parameter.data.to(precision).float()  # so that half precision loses nothing
    state = {name: x.to(precision) if x.is_floating_point() else x for name, x in net.state_dict().items()}
    wrapped = {"model": {f"module.{name}": x for name, x in whole(state).items()}, "epoch": 3}
    for content in (state, wrapped):
        torch.save(content, tmp_path / "net.pt")
        loaded = load_transformer(tmp_path / "net.pt", reading)
        with torch.no_grad():
            torch.testing.assert_close(logits(loaded), logits(net), rtol=0, atol=1e-5)


def test_there_are_more_than_twenty_ways_no_two_alike():
    names = {tuple(network(make).blocks[0].Attention.state_dict()) for make, _ in WAYS.values()}
    assert len(WAYS) > 20 and len(names) > 20
