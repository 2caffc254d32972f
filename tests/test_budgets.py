"""A budget commits the longest safe prefix of the order: against a loop over every prefix."""

import numpy as np
import pytest
import scipy.stats
import torch

from lab5.samplers import CODES, ORDERS, Proposal
from lab5.variants import BUDGETS, still_masked


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def a_proposal(images=6, positions=16, codes=5, sharpness=4.0) -> Proposal:
    logits = sharpness * torch.randn(images, positions, codes, generator=seeded(1))
    unknown = torch.ones(images, positions, dtype=torch.bool)
    return Proposal(logits.log_softmax(dim=-1), CODES["sample"](logits, 1.0, seeded(2)), unknown, 0.0)


def a_mask(proposal: Proposal) -> torch.Tensor:
    """From no position masked to all of them."""
    images, positions = proposal.codes.shape
    shares = torch.linspace(0, 1, images)[:, None]
    return torch.rand(images, positions, generator=seeded(3)) < shares


def is_safe(budget: str, probabilities: np.ndarray, chosen: np.ndarray, limit: float) -> bool:
    """The rules as their papers state them, for one set of positions."""
    if budget == "threshold":
        return bool((chosen >= limit).all())
    entropies = [scipy.stats.entropy(p) for p in probabilities]
    return sum(entropies) - max(entropies) <= limit


@pytest.mark.parametrize("order", ["confidence", "random", "entropy"])
@pytest.mark.parametrize("budget, limit", [
    ("entropy", 0.0), ("entropy", 0.3), ("entropy", 3.0), ("threshold", 0.2), ("threshold", 0.7), ("threshold", 1.0),
])  # fmt: skip
def test_the_longest_safe_prefix_is_committed_and_at_least_one(budget, limit, order):
    proposal = a_proposal()
    masked, scores = a_mask(proposal), ORDERS[order](proposal, seeded(4))
    counts = masked.sum(dim=1) - still_masked(budget, proposal, scores, masked, limit)
    probabilities, chosen = proposal.log_probabilities.exp().numpy(), proposal.log_probability.exp().numpy()
    for image, count in enumerate(counts.tolist()):
        first = [n for n in scores[image].argsort(descending=True).tolist() if masked[image, n]]
        prefixes = [first[:length] for length in range(1, len(first) + 1)]
        safe = [is_safe(budget, probabilities[image][prefix], chosen[image][prefix], limit) for prefix in prefixes]
        assert count == min(len(first), max(1, sum(safe)))
    assert budget == "entropy" or limit == 1.0 or len(set(counts.tolist())) > 2, "images differ"


def test_a_threshold_on_the_confidence_commits_all_that_pass_it():
    proposal = a_proposal()
    masked, scores = a_mask(proposal), ORDERS["confidence"](proposal, seeded())
    passing = ((proposal.log_probability.exp() >= 0.6) & masked).sum(dim=1)
    counts = masked.sum(dim=1) - still_masked("threshold", proposal, scores, masked, 0.6)
    assert torch.equal(counts, passing.clamp(min=1).minimum(masked.sum(dim=1)))


def test_a_limit_is_within_bounds():
    """Three positions of two equally likely codes: log 2 nats each, and probability one half."""
    log_probabilities = torch.full((1, 3, 2), 0.5).log()
    masked = torch.ones(1, 3, dtype=torch.bool)
    proposal = Proposal(log_probabilities, torch.zeros(1, 3).long(), masked, 0.0)
    for budget, limit, left in (
        ("threshold", 0.5, 0), ("threshold", 0.5001, 2),
        ("entropy", 2 * 0.6932, 0), ("entropy", 2 * 0.6931, 1), ("entropy", 0.6932, 1), ("entropy", 0.6931, 2),
    ):  # fmt: skip
        assert still_masked(budget, proposal, torch.zeros(1, 3), masked, limit).tolist() == [left]


@pytest.mark.parametrize("budget, limit", [("entropy", 1e9), ("threshold", 0.0)])
def test_a_budget_without_a_limit_commits_everything(budget, limit):
    proposal = a_proposal()
    assert not still_masked(budget, proposal, proposal.log_probability, a_mask(proposal), limit).any()


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_is_known_does_not_count(budget):
    """The same masked positions among others that are known, sure or unsure."""
    proposal = a_proposal(images=1)
    masked = torch.arange(16)[None] < 9
    limit = {"entropy": 1.0, "threshold": 0.5}[budget]
    right = still_masked(budget, proposal, proposal.log_probability, masked, limit)
    for sharpness in (0.0, 100.0):
        known = (sharpness * torch.randn(1, 16, 5, generator=seeded(6))).log_softmax(dim=-1)
        log_probabilities = torch.where(masked[..., None], proposal.log_probabilities, known)
        other = proposal._replace(log_probabilities=log_probabilities)
        assert torch.equal(still_masked(budget, other, other.log_probability, masked, limit), right)
