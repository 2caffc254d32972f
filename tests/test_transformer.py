"""The transformer is the lab's, weight for weight, and its conveniences change nothing."""

import csv
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stubs import seeded

from lab5.config import TransformerConfig
from lab5.transformer import BidirectionalTransformer

LAB = Path(__file__).parent / "lab_contract"
LAB_SIZE = TransformerConfig(
    codes=1024, width=768, layers=15, heads=16, hidden=1536, dropout=0.1, attention_dropout=0.1, norm="post"
)
SMALL = TransformerConfig(
    codes=12, positions=9, width=16, layers=3, heads=4, hidden=24, dropout=0.1, attention_dropout=0.1
)
both_norms = pytest.mark.parametrize("norm", ["post", "pre"])


def small_model(norm="post", fused=True):
    """In float64; biases are not zero, so that a test sees whether each position gets its own."""
    generator = seeded(7)
    model = BidirectionalTransformer(replace(SMALL, norm=norm), fused=fused, generator=generator).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3, generator=generator)
    return model


def random_tokens(images=4):
    return torch.randint(0, SMALL.codes + 1, (images, SMALL.positions), generator=seeded(5))


def lab_shapes():
    with open(LAB / "transformer_state_dict.tsv", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["key"]: tuple(int(size) for size in row["shape"].split("x")) for row in rows}


def lab_weight(key, shape):
    """The contract's weights for testing, which anyone can rebuild from the names of the parameters."""
    draw = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        std = 0.02 if "emb" in key or key == "bias" else np.prod(shape[1:]) ** -0.5
        return torch.from_numpy(draw * np.float32(std))
    return torch.from_numpy(np.float32(1 + 0.1 * draw) if key.endswith("weight") else np.float32(0.02) * draw)


@both_norms
def test_parameters_have_the_labs_names_and_shapes(norm):
    config = replace(LAB_SIZE, norm=norm)
    with torch.device("meta"):
        model = BidirectionalTransformer(config)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == lab_shapes()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(72.7e6, rel=1e-3)
    assert (model.codes, model.mask_id, model.config) == (1024, 1024, config)


def test_outputs_equal_those_of_the_labs_own_modules():
    golden = np.load(LAB / "transformer_golden.npz")
    with torch.device("meta"):
        model = BidirectionalTransformer(LAB_SIZE).eval()
    model.load_state_dict({key: lab_weight(key, shape) for key, shape in lab_shapes().items()}, assign=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(golden["tokens"]))
    np.testing.assert_allclose(logits[:, ::64], golden["logits_every_64th_position"], atol=1e-4)
    np.testing.assert_allclose(logits.logsumexp(dim=-1), golden["logsumexp"], atol=1e-4)
    # Where the two best codes are closer than the tolerance, either may win.
    best, second = logits[..., :1024].topk(2).values.unbind(-1)
    clear = (best - second) > 1e-3
    assert clear.float().mean() > 0.99
    right = torch.from_numpy(golden["argmax"])
    assert torch.equal(logits[..., :1024].argmax(dim=-1)[clear], right[clear])


@both_norms
def test_a_block_is_its_equation(norm):
    block = small_model(norm).blocks[1]
    x = torch.randn(2, SMALL.positions, SMALL.width, dtype=torch.float64)
    if norm == "post":
        middle = block.LayerNorm1(x + block.Attention(x))
        right = block.LayerNorm2(middle + block.MLP(middle))
    else:
        middle = x + block.Attention(block.LayerNorm1(x))
        right = middle + block.MLP(block.LayerNorm2(middle))
    torch.testing.assert_close(block(x), right)


@both_norms
def test_logits_where_asked_and_their_gradients_are_those_of_the_full_answer(norm):
    model, tokens = small_model(norm), random_tokens()
    where, found = tokens % 3 == 0, []
    assert 0 < where.sum() < where.numel()
    for logits in (model(tokens, where), model(tokens)[where]):
        model.zero_grad()
        logits.logsumexp(dim=-1).square().sum().backward()
        found.append([logits] + [parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*found)
    assert model(tokens, torch.zeros_like(where)).shape == (0, SMALL.codes + 1)


@both_norms
def test_the_fused_kernel_changes_nothing(norm):
    tokens = random_tokens()
    torch.testing.assert_close(small_model(norm, fused=True)(tokens), small_model(norm, fused=False)(tokens))


@both_norms
def test_attention_weights_are_those_that_the_forward_pass_uses(norm):
    model, tokens = small_model(norm, fused=False), random_tokens()
    weights = model.attention_weights(tokens)
    assert weights.shape == (3, 4, 4, 9, 9) and not weights.requires_grad
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 4, 9, dtype=torch.float64))
    read = []  # what each layer's attention is given in a forward pass
    for block in model.blocks:
        block.Attention.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model(tokens)
    for layer, (block, x) in enumerate(zip(model.blocks, list(read), strict=True)):
        torch.testing.assert_close(block.Attention(x, return_weights=True)[1], weights[layer])


def test_every_position_sees_every_other():
    model, tokens = small_model(), random_tokens(images=1) % SMALL.codes
    reference = model(tokens)
    for position in range(SMALL.positions):
        changed = tokens.clone()
        changed[0, position] = SMALL.codes
        assert (model(changed) != reference).any(dim=-1).all()


def test_images_do_not_see_each_other():
    model, tokens = small_model(), random_tokens()
    torch.testing.assert_close(model(tokens), torch.cat([model(image[None]) for image in tokens]))


def test_initial_weights_follow_the_seed_and_the_labs_distribution():
    def build(seed):
        return BidirectionalTransformer(replace(SMALL, width=64), generator=seeded(seed))

    first, again, other = build(1).state_dict(), build(1).state_dict(), build(2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key, value in first.items():
        if "LayerNorm" in key or key.startswith(("LN.", "Token_Prediction.2.")):
            assert torch.equal(value, torch.full_like(value, key.endswith("weight")))
        elif key.endswith("bias"):
            assert not value.any()
        else:
            assert not torch.equal(value, other[key])
            assert value.std().item() == pytest.approx(0.02, rel=0.15)
            assert abs(value.mean()) < 0.003


def test_dropout_acts_in_training_and_rests_in_evaluation():
    model, tokens = small_model(), random_tokens()
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("wrong", [-1, SMALL.codes + 1])
def test_tokens_out_of_range_are_refused(wrong):
    tokens = random_tokens()
    tokens[1, 3] = wrong
    with pytest.raises(ValueError, match=r"tokens must lie in 0\.\.12.*they span"):
        small_model()(tokens)


def test_bad_shapes_settings_and_hints_that_were_not_learned_are_refused():
    with pytest.raises(ValueError, match="must have 9 positions per image, but they have 8"):
        small_model()(random_tokens()[:, :8])
    with pytest.raises(ValueError, match="norm must be 'post' or 'pre', but it is 'middle'"):
        BidirectionalTransformer(replace(SMALL, norm="middle"))
    with pytest.raises(ValueError, match="width is 16 and heads is 3"):
        BidirectionalTransformer(replace(SMALL, heads=3))
    with pytest.raises(ValueError, match="built for tokens alone"):
        BidirectionalTransformer(SMALL)(random_tokens(), hints=torch.zeros(4, 9, 5))


# --- hints ------------------------------------------------------------------------------------------------------------


def hinted_model(size=0.5):
    """With a table of hints that is not zero, as a training leaves it."""
    model = BidirectionalTransformer(replace(SMALL, hints=5), generator=seeded(7)).eval()
    model.hint_emb.weight.data += size * torch.randn(16, 5, generator=seeded(1))
    return model


def test_a_network_without_hints_has_the_labs_parameters_and_one_with_them_starts_as_the_same_function():
    plain, hinted = BidirectionalTransformer(SMALL).eval(), hinted_model(size=0.0)
    assert set(hinted.state_dict()) - set(plain.state_dict()) == {"hint_emb.weight"}
    hinted.load_state_dict(plain.state_dict(), strict=False)
    tokens, hints = random_tokens(), torch.randn(4, 9, 5, generator=seeded(2))
    assert torch.equal(hinted(tokens, hints=hints), plain(tokens)), "an untrained table says nothing"


def test_no_hints_and_zeros_are_the_same_and_others_are_not():
    model, tokens = hinted_model(), random_tokens()
    hints = torch.zeros(4, 9, 5)
    torch.testing.assert_close(model(tokens, hints=hints), model(tokens))
    hints[1, 3] = 1
    changed = (model(tokens, hints=hints) - model(tokens)).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [False, True, False, False]


def test_hints_are_added_to_the_embedding_before_its_norm():
    model, tokens, hints = hinted_model(), random_tokens(), torch.randn(4, 9, 5, generator=seeded(3))
    x = model.LN(model.tok_emb(tokens) + model.pos_emb + hints @ model.hint_emb.weight.T)
    torch.testing.assert_close(model.attention_weights(tokens, hints)[0], model.blocks[0].attention_weights(x))
    where = tokens > 6
    torch.testing.assert_close(model(tokens, where, hints), model(tokens, hints=hints)[where])
