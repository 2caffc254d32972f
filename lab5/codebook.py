"""The codes of stage one: finding the nearest, and keeping them where the latents are.

It knows no image and no network: latents are rows of numbers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Codebook(nn.Module):
    """K vectors; a latent becomes the index of the nearest in squared Euclidean distance."""

    def __init__(self, codes: int, latent: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, latent)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def nearest(self, latents: Float[Tensor, "M C"]) -> Int[Tensor, " M"]:
        codes = self.embedding.weight
        # |z - e|^2 less |z|^2, which is the same for every code. In half precision, codes would tie or swap.
        with torch.autocast(latents.device.type, enabled=False):
            return torch.addmm((codes * codes).sum(1), latents, codes.T, alpha=-2).argmin(1)


class CodeAverages(nn.Module):
    """Codes as the moving average of the latents assigned to them (van den Oord et al. 2017, appendix A.1).

    Codes that nothing has been assigned to for a while are set on latents of the current batch.
    """

    def __init__(self, codes: int, latent: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("count", torch.zeros(codes))  # all zero: not started
        self.register_buffer("total", torch.zeros(codes, latent))

    @torch.no_grad()
    def start(
        self, codebook: Codebook, latents: Float[Tensor, "M C"], generator: torch.Generator, rounds: int = 12
    ) -> None:
        """Set the codes by k-means on some latents."""
        codes = len(codebook.embedding.weight)
        pick = torch.randint(len(latents), (codes,), generator=generator)
        codebook.embedding.weight.copy_(latents[pick])
        for _ in range(rounds):
            nearest = codebook.nearest(latents)
            count = torch.bincount(nearest, minlength=codes).float()
            total = torch.zeros_like(self.total).index_add_(0, nearest, latents)
            used = count > 0
            codebook.embedding.weight[used] = total[used] / count[used, None]
            self._reseed(codebook, latents, ~used, generator)
        self.count.fill_(len(latents) / codes)
        self.total.copy_(codebook.embedding.weight * self.count[:, None])

    @torch.no_grad()
    def update(self, codebook: Codebook, latents: Float[Tensor, "M C"], tokens: Int[Tensor, " M"], generator) -> None:
        count = torch.bincount(tokens, minlength=len(self.count)).float()
        total = torch.zeros_like(self.total).index_add_(0, tokens, latents)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        codebook.embedding.weight.copy_(self.total / self.count.clamp(min=1e-3)[:, None])
        dead = self.count < 0.03 * self.count.mean()
        if bool(dead.any()):
            self._reseed(codebook, latents, dead, generator)
            self.count[dead] = self.count.mean()
            self.total[dead] = codebook.embedding.weight[dead] * self.count.mean()

    def _reseed(self, codebook: Codebook, latents: Tensor, dead: Tensor, generator: torch.Generator) -> None:
        if bool(dead.any()):
            pick = torch.randint(len(latents), (int(dead.sum()),), generator=generator)
            codebook.embedding.weight[dead] = latents[pick]
