"""Cheap dropout has the distribution of dropout: shares, means, independence, gradients."""

import pytest
import torch

from lab5.runtime import dropout as dropout_module
from lab5.runtime.dropout import LEVELS, Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_becomes_zero_and_the_mean_stays(p):
    torch.manual_seed(0)
    dropped = dropout(torch.full((1000, 1001), 3.0), p)  # no multiple of four
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(p, abs=3e-3)
    assert dropped.unique().tolist() == pytest.approx([0, 3 / (1 - p)], rel=1e-3)
    assert dropped.mean().item() == pytest.approx(3, rel=1e-2)


def test_decisions_of_the_same_64_bits_are_independent():
    torch.manual_seed(1)
    kept = dropout(torch.ones(400_000, 4), 0.3).bool().double()
    covariance = torch.cov(kept.T)  # 0.3 * 0.7 on the diagonal
    torch.testing.assert_close(covariance, 0.21 * torch.eye(4, dtype=torch.float64), atol=2e-3, rtol=0)


def test_the_gradient_passes_where_the_value_does():
    torch.manual_seed(2)
    x = torch.randn(50, 50, requires_grad=True)
    y = dropout(x, 0.25)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), y.detach())
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_a_seed_gives_the_same_numbers_and_another_others():
    first, again, other = ((torch.manual_seed(seed), dropout(torch.ones(100), 0.5))[1] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_rests_in_evaluation_at_zero_and_takes_all_at_one():
    x = torch.randn(8)
    before = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0) is x and Dropout(0.5).eval()(x) is x
    assert torch.equal(before, torch.get_rng_state())
    assert not Dropout(1.0)(x).any()
    assert torch.equal(dropout(x, 0.1 / LEVELS), x)  # rounds to no dropout at all


def test_any_layout_and_precision_keep_their_own():
    x = torch.ones(6, 4, 5, dtype=torch.bfloat16).transpose(0, 2)
    y = Dropout(0.5)(x)
    assert y.dtype == x.dtype and y.shape == x.shape and set(y.flatten().tolist()) <= {0.0, 2.0}
    assert torch.equal(x, torch.ones_like(x)), "the caller's tensor was changed"


def test_torchs_own_is_one_line_away(monkeypatch):
    monkeypatch.setattr(dropout_module, "CHEAP", False)
    x, outputs = torch.ones(100), []
    for drop in (dropout, torch.nn.functional.dropout):
        torch.manual_seed(0)
        outputs.append(drop(x, 0.5))
    assert torch.equal(*outputs)
