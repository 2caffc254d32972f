"""Attention by hand is the attention of the literature, in every form that it takes here."""

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from stubs import seeded

from lab5.attention import AttentionHead, MultiHeadAttention, PerHeadAttention, scaled_dot_product_attention

WIDTH, HEADS = 24, 4


@pytest.fixture(params=[HEADS, 1], ids=["heads", "one head"])
def attention(request):
    torch.manual_seed(0)
    return MultiHeadAttention(WIDTH, request.param).double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 7, WIDTH, dtype=torch.float64, generator=seeded(1))


def draws(*shapes):
    generator = seeded(2)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def test_the_function_equals_the_formula_in_numpy():
    query, key, value = draws((2, 4, 5, 3), (2, 4, 6, 3), (2, 4, 6, 7))
    right_weights = scipy.special.softmax(np.einsum("bhnd,bhmd->bhnm", query, key) / np.sqrt(3), axis=3)
    attended, weights = scaled_dot_product_attention(query, key, value)
    np.testing.assert_allclose(attended, np.einsum("bhnm,bhme->bhne", right_weights, value), atol=1e-12)
    np.testing.assert_allclose(weights, right_weights, atol=1e-12)


def test_equals_torch_multihead_attention_under_the_weight_mapping(attention, x):
    right, right_weights = attention.to_torch()(x, x, x, average_attn_weights=False)
    output, weights = attention(x, return_weights=True)
    torch.testing.assert_close(output, right, atol=1e-12, rtol=0)
    torch.testing.assert_close(weights, right_weights, atol=1e-12, rtol=0)


def test_the_fused_kernel_equals_the_hand_written_path_and_has_the_same_gradients(attention, x):
    outputs, gradients = [], []
    for fused in (False, True):
        attention.fused = fused
        attention.zero_grad()
        outputs.append(attention(x))
        outputs[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in attention.parameters()])
    torch.testing.assert_close(*outputs, atol=1e-12, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


def test_one_set_of_matrices_per_head_is_the_same_function(attention, x):
    split = PerHeadAttention.from_fused(attention)
    torch.testing.assert_close(split(x), attention(x), atol=1e-12, rtol=0)
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in attention.parameters())


def test_conversions_copy_the_weights(attention, x):
    before = attention(x)
    for twin in (PerHeadAttention.from_fused(attention), attention.to_torch()):
        for parameter in twin.parameters():
            parameter.data.zero_()
    assert torch.equal(attention(x), before)


@pytest.mark.parametrize("training", [False, True])
def test_conversions_keep_dropout_and_mode(training):
    attention = MultiHeadAttention(WIDTH, HEADS, dropout=0.25).train(training)
    split, twin = PerHeadAttention.from_fused(attention), attention.to_torch()
    assert twin.dropout == split.heads[0].dropout == 0.25
    assert twin.training == split.training == split.heads[0].training == training


@pytest.mark.parametrize("form", ["by hand", "fused", "per head"])
def test_dropout_acts_in_training_and_rests_in_evaluation(form):
    torch.manual_seed(0)
    x = torch.randn(2, 7, WIDTH)
    if form == "per head":
        attention = PerHeadAttention(WIDTH, HEADS, dropout=0.5)
    else:
        attention = MultiHeadAttention(WIDTH, HEADS, dropout=0.5, fused=form == "fused")
    attention.train()
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_dropout_keeps_the_average_and_leaves_the_returned_weights_whole():
    query, key, value = (t.expand(4000, -1, -1) for t in draws((1, 3, 6), (1, 5, 6), (1, 5, 6)))
    torch.manual_seed(0)
    attended, weights = scaled_dot_product_attention(query, key, value, dropout=0.3)
    right, _ = scaled_dot_product_attention(query, key, value)
    assert (attended.mean(dim=0) - right[0]).abs().max() < 0.05
    # A weight is kept with probability 0.7 and divided by it: a variance of 0.3 / 0.7 times its square.
    spread = (0.3 / 0.7 * weights[0].square() @ value[0].square()).sqrt()
    torch.testing.assert_close(attended.std(dim=0), spread, rtol=0.1, atol=0)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4000, 3, dtype=torch.float64))


class OfAGPU(torch.Tensor):
    """A tensor of the CPU that says otherwise."""

    device = torch.device("cuda")


@pytest.mark.parametrize(("fused", "dropout", "kind", "asked", "dropped"), [
    (True, 0.0, torch.Tensor, False, [0.0]), (True, 0.0, torch.Tensor, True, []), (False, 0.0, torch.Tensor, False, []),
    (True, 0.5, torch.Tensor, False, []), (True, 0.5, OfAGPU, False, [0.5]), (False, 0.5, OfAGPU, False, []),
])  # fmt: skip
def test_the_fused_kernel_is_taken_where_it_can_be_and_told_the_dropout(
    fused, dropout, kind, asked, dropped, monkeypatch
):
    told, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv, **how: told.append(how) or kernel(*qkv))
    attention = MultiHeadAttention(WIDTH, HEADS, dropout, fused).train()
    attention(torch.zeros(1, 5, WIDTH).as_subclass(kind), return_weights=asked)
    assert told == [{"dropout_p": p} for p in dropped]


def test_nothing_is_dropped_and_nothing_fused_unless_asked_for(x):
    torch.manual_seed(0)
    attention = MultiHeadAttention(WIDTH, HEADS).double()
    split = PerHeadAttention.from_fused(attention)
    assert not attention.fused and torch.equal(attention.train()(x), attention.eval()(x))
    for form in (split, PerHeadAttention(WIDTH, HEADS).double(), AttentionHead(WIDTH, 6).double()):
        assert torch.equal(form.train()(x), form.eval()(x))


def test_parameters_carry_the_labs_names(attention):
    linears = ("query", "key", "value", "out")
    assert set(attention.state_dict()) == {f"{n}.{kind}" for n in linears for kind in ("weight", "bias")}


@pytest.mark.parametrize("form", [MultiHeadAttention, PerHeadAttention])
@pytest.mark.parametrize("heads", [5, 0])
def test_a_width_that_heads_do_not_divide_is_refused(form, heads):
    with pytest.raises(ValueError, match=f"width is 24 and heads is {heads}"):
        form(24, heads)
