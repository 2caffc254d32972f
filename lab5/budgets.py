"""How many positions a step commits where no schedule says so: as many as are safe to commit together.

A budget looks at the proposals in the order in which they would be committed and says how far down the order is
safe: in every image another number. At least one is committed, so that a decoding ends.

It does not know the order's reasons, nor the steps.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.samplers import Proposal

# --- budgets: (proposal, positions in their order, limit) -> True as long as it is safe: a prefix of the order ---


def entropy(proposal: Proposal, ranking: Int[Tensor, "B N"], limit: float) -> Bool[Tensor, "B N"]:
    """While the sum of the entropies is within `limit` nats of their largest (EB-Sampler, arXiv 2505.24857).

    sum H - max H bounds how much the positions can tell about each other, which drawing them together ignores.
    """
    entropies = proposal.entropy.double().gather(1, ranking)
    return entropies.cumsum(dim=1) - entropies.cummax(dim=1).values <= limit


def threshold(proposal: Proposal, ranking: Int[Tensor, "B N"], limit: float) -> Bool[Tensor, "B N"]:
    """While the proposed codes have probability `limit` or more (Fast-dLLM, arXiv 2505.22618).

    The source ranks by that probability too: the order "confidence" at choice temperature 0.
    """
    sure = proposal.log_probability.exp().gather(1, ranking) >= limit
    return sure.cumprod(dim=1).bool()


BUDGETS: dict[str, Callable[[Proposal, Tensor, float], Tensor]] = {"entropy": entropy, "threshold": threshold}


def still_masked(
    budget: str,
    proposal: Proposal,
    scores: Float[Tensor, "B N"],
    masked: Bool[Tensor, "B N"],
    limit: float,
) -> Int[Tensor, "B"]:
    """How many positions of each image stay masked: all that are, less those that the budget commits.

    `scores` are the order's, highest committed first.
    """
    # The last of equal scores comes first, as it does in the decoder.
    ranking = scores.masked_fill(~masked, -float("inf")).argsort(dim=1, stable=True).flip(1)
    safe = BUDGETS[budget](proposal, ranking, limit).sum(dim=1)
    return (masked.sum(dim=1) - safe.clamp(min=1)).clamp(min=0)
