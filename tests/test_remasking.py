"""Which tokens are masked again: with ReMDM's probabilities, and the least probable ones."""

import pytest
import torch

from lab5.variants import doubtful, taken_back


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("eta, left, probability", [
    (1.0, 4, 4 / 12),  # (1 - alpha_s) / alpha_t: 4 of 16 masked after the step, 12 generated before it
    (0.5, 4, 2 / 12),
    (0.25, 0, 0.0),  # nothing in the step that ends with nothing masked
    (0.0, 4, 0.0),
])  # fmt: skip
def test_each_generated_token_has_the_papers_chance(eta, left, probability):
    generated = (torch.arange(20) < 12).expand(20_000, -1)
    back = taken_back(generated, torch.full((20_000,), left), eta, seeded())
    assert not (back & ~generated).any()
    # The cap at `left` cuts the binomial's tail, which is 0.07 tokens of 4 at eta = 1.
    numbers = torch.distributions.Binomial(12, torch.tensor(probability)).sample((200_000,)).clamp(max=left)
    assert back.sum(dim=1).float().mean().item() == pytest.approx(numbers.mean().item(), abs=0.04)
    shares = back[:, :12].float().mean(dim=0)
    assert (shares - shares.mean()).abs().max() < 0.015, "all alike"


def test_never_more_than_stay_masked_after_the_step():
    generated = torch.ones(1000, 6, dtype=torch.bool)
    left = torch.arange(1000) % 7
    back = taken_back(generated, left, 1.0, seeded())
    assert (back.sum(dim=1) <= left).all()
    assert torch.equal(back.sum(dim=1)[left == 6], left[left == 6]), "6 generated, 6 to be masked: a chance of 1"


def test_nothing_is_taken_back_where_nothing_is_generated():
    assert not taken_back(torch.zeros(3, 5, dtype=torch.bool), torch.full((3,), 2), 1.0, seeded()).any()


def test_with_a_generator_per_image_the_batch_does_not_matter():
    generated, left = torch.rand(3, 16, generator=seeded(1)) < 0.5, torch.tensor([3, 5, 8])
    batch = taken_back(generated, left, 1.0, [seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(taken_back(generated[i : i + 1], left[i : i + 1], 1.0, [seeded(i)])[0], batch[i])


def test_the_least_probable_generated_tokens_are_doubtful():
    probabilities = torch.tensor([[0.9, 0.1, 0.3, 0.2, 0.05], [0.5, 0.6, 0.7, 0.8, 0.9]])
    log_probabilities = torch.stack([probabilities, 1 - probabilities], dim=-1).log()
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    generated = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    for share, right in {
        0.0: [[], []], 0.01: [[1], [0]], 0.25: [[1], [0]], 0.5: [[1, 3], [0]], 0.51: [[1, 2, 3], [0, 1]],
        1.0: [[0, 1, 2, 3], [0, 1]],
    }.items():  # fmt: skip
        found = doubtful(log_probabilities, tokens, generated, share)
        assert [row.nonzero().flatten().tolist() for row in found] == right
    # Judged by the code that is there: with the other code the order turns round.
    turned = doubtful(log_probabilities, 1 - tokens, generated, 0.25)
    assert [row.nonzero().flatten().tolist() for row in turned] == [[0], [1]]


def test_a_share_that_is_a_whole_number_of_tokens_is_not_rounded_up():
    """0.07 x 100 is 7.000000000000001 in floats."""
    generated = torch.ones(1, 100, dtype=torch.bool)
    log_probabilities = torch.randn(1, 100, 3, generator=seeded()).log_softmax(dim=-1)
    for hundredths in range(101):
        assert doubtful(log_probabilities, torch.zeros(1, 100).long(), generated, hundredths / 100).sum() == hundredths
