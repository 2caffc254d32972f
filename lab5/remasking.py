"""Second thoughts: which generated tokens go back under the mask, to be decoded once more.

Both rules look only at tokens that the decoding has generated: what was known from the start is never touched.

It does not know the steps, nor how the tokens are decoded again.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.gamma import ROUND_OFF
from lab5.samplers import Generators, lowest, uniform


def taken_back(
    generated: Bool[Tensor, "B N"], left: Int[Tensor, "B"], eta: float, generator: Generators
) -> Bool[Tensor, "B N"]:
    """During the decoding: each generated token with probability eta (1 - alpha_s) / alpha_t, at most 1.

    ReMDM (Wang et al. 2025, arXiv 2503.00307) as in its code for MaskGIT, where alpha_t is the share generated before
    the step and 1 - alpha_s the share masked after it; here both are counted. Early on, when few are generated, that
    is far more than eta. Never more than `left`, the number of tokens that the plan has masked after the step.
    """
    chance = eta * left / generated.sum(dim=1).clamp(min=1)
    draw = uniform(tuple(generated.shape), generator, generated.device).masked_fill(~generated, torch.inf)
    return (draw < chance.clamp(max=1).unsqueeze(1)) & lowest(draw, left)


def doubtful(
    log_probabilities: Float[Tensor, "B N K"], tokens: Int[Tensor, "B N"], generated: Bool[Tensor, "B N"], share: float
) -> Bool[Tensor, "B N"]:
    """After the decoding: the share whose codes are least probable to a model that sees them, rounded up.

    What the self-planning of P2 (Peng et al. 2025, arXiv 2502.03540) takes back during the decoding. It mends what was
    drawn carelessly, but round after round it leans to likely pictures. A model that is trained on masked tokens
    alone has learnt nothing about the tokens that it sees.
    """
    probability = log_probabilities.gather(-1, tokens[..., None]).squeeze(-1).masked_fill(~generated, torch.inf)
    return lowest(probability, (share * generated.sum(dim=1).double() - ROUND_OFF).ceil().long())
