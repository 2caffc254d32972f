"""Stage one: the network that turns a 64x64 image into 16x16 tokens and back.

One class in two sizes: `VQGANConfig()` is the lab's network, whose state-dict keys it reproduces one by one,
so the course's checkpoint loads strictly; a few small numbers make the one that a CPU trains in minutes.

Images are in the lab's normalised units throughout.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.config import VQGANConfig
from lab5.runtime.machine import exact_float32
from lab5.runtime.ranks import here
from lab5.runtime.transfers import sent

GRID = 16  # tokens on a side


class GroupNorm(nn.Module):
    """GroupNorm under the lab's key `gn`; with 0 groups the identity.

    Normalisation mixes the whole image into every position: a hole then changes all tokens a little. The small
    networks leave it out.
    """

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.gn = nn.GroupNorm(groups, width, eps=1e-6) if groups else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(x)


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, groups: int):
        super().__init__()
        self.block = nn.Sequential(
            GroupNorm(width_in, groups),
            nn.SiLU(),
            nn.Conv2d(width_in, width_out, 3, padding=1),
            GroupNorm(width_out, groups),
            nn.SiLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
        )
        self.channel_up = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.channel_up is None else self.channel_up(x)
        return skip + self.block(x)


class NonLocalBlock(nn.Module):
    """Self-attention over the positions of a feature map, one head, 1x1 convolutions as projections."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2) for project in (self.q, self.k, self.v))  # (B, C, HW)
        scores = q.transpose(1, 2) @ k * x.shape[1] ** -0.5
        mixed = v @ scores.softmax(dim=-1).transpose(1, 2)
        return x + self.proj_out(mixed.view_as(x))


class Down(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


def _middle(width: int, config: VQGANConfig) -> list[nn.Module]:
    """The residual blocks at 16x16, with attention between them; the same in encoder and decoder."""
    layers: list[nn.Module] = []
    for i, out in enumerate(config.middle):
        if i > 0 and config.attention:
            layers.append(NonLocalBlock(width, config.groups))
        layers.append(ResidualBlock(width, out, config.groups))
        width = out
    return layers


class Encoder(nn.Module):
    """(B,3,64,64) -> (B,latent,16,16)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        width = config.stem
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for widths in config.encoder:
            for out in widths:
                layers.append(ResidualBlock(width, out, config.groups))
                width = out
            layers.append(Down(width))
        layers += _middle(width, config)
        width = config.middle[-1]
        layers += [GroupNorm(width, config.groups), nn.SiLU(), nn.Conv2d(width, config.latent, 3, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Decoder(nn.Module):
    """(B,latent,16,16) -> (B,3,64,64). No activation before the last convolution and none after: as in the lab."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(config.latent, config.middle[0], 3, padding=1)]
        layers += _middle(config.middle[0], config)
        width = config.middle[-1]
        for level, widths in enumerate(config.decoder):
            if level > 0:
                layers.append(Up(width))
            for out in widths:
                layers.append(ResidualBlock(width, out, config.groups))
                width = out
                if level == 0 and config.attention:
                    layers.append(NonLocalBlock(width, config.groups))
        layers += [GroupNorm(width, config.groups), nn.Conv2d(width, 3, 3, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Quantised(NamedTuple):
    """One pass through the bottleneck, as the loss needs it."""

    images: Float[Tensor, "B 3 64 64"]
    tokens: Int[Tensor, "B N"]
    latents: Float[Tensor, "B C 16 16"]  # before quantisation
    codes: Float[Tensor, "B C 16 16"]  # after


class VQGAN(nn.Module):
    """van den Oord et al. 2017 and Esser et al. 2021; the shape of the lab's stage one."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        if len(config.encoder) != 2 or len(config.decoder) != 3:
            raise ValueError(
                "a VQGAN from 64x64 to 16x16 has 2 encoder and 3 decoder levels, "
                f"not {len(config.encoder)} and {len(config.decoder)}"
            )
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.codebook = Codebook(config.codes, config.latent)
        self.quant_conv = nn.Conv2d(config.latent, config.latent, 1)
        self.post_quant_conv = nn.Conv2d(config.latent, config.latent, 1)

    @property
    def codes(self) -> int:
        return self.config.codes

    def latents(self, images: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B C 16 16"]:
        if images.shape[1:] != (3, 64, 64):
            raise ValueError(f"images must be (B,3,64,64), not {tuple(images.shape)}")
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Float[Tensor, "B 3 64 64"]) -> Int[Tensor, "B N"]:
        """Tokens 0..K-1 in row-major order."""
        return self.quantise(self.latents(images))

    def quantise(self, latents: Float[Tensor, "B C 16 16"]) -> Int[Tensor, "B N"]:
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        return self.codebook.nearest(flat.float()).view(len(latents), -1)

    def look_up(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B C 16 16"]:
        return self.codebook.embedding(tokens).view(len(tokens), GRID, GRID, -1).permute(0, 3, 1, 2)

    def decode(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B 3 64 64"]:
        if tokens.shape[1:] != (GRID * GRID,):
            raise ValueError(f"tokens must be (B,{GRID * GRID}), not {tuple(tokens.shape)}")
        if tokens.device.type == "cpu" and tokens.numel():  # on a GPU the look would cost a synchronisation
            low, high = (int(end) for end in tokens.aminmax())
            if low < 0 or high >= self.codes:
                raise ValueError(
                    f"tokens must lie in 0..{self.codes - 1}, found {low}..{high}: "
                    "masked positions have to be filled before decoding"
                )
        return self.decode_latents(self.look_up(tokens))

    def decode_latents(self, latents: Float[Tensor, "B C 16 16"]) -> Float[Tensor, "B 3 64 64"]:
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, images: Float[Tensor, "B 3 64 64"]) -> Quantised:
        """Encode, quantise, decode; the gradient passes straight through the quantisation."""
        latents = self.latents(images)
        tokens = self.quantise(latents.detach())
        codes = self.look_up(tokens).to(latents.dtype)
        straight = latents + (codes - latents).detach()
        return Quantised(self.decode_latents(straight), tokens, latents, codes)


class Codebook(nn.Module):
    """K vectors; a latent becomes the index of the nearest in squared Euclidean distance."""

    def __init__(self, codes: int, latent: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, latent)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def nearest(self, latents: Float[Tensor, "M C"]) -> Int[Tensor, " M"]:
        codes = self.embedding.weight
        # |z - e|^2 less |z|^2, which is the same for every code. In less than float32, codes would tie or swap.
        with exact_float32(latents.device):
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
        self.register_buffer("sums", torch.zeros(codes, latent + 1), persistent=False)  # and counts, of a step so far

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
            if unused := int((~used).sum()):
                codebook.embedding.weight[~used] = latents[torch.randint(len(latents), (unused,), generator=generator)]
        self.count.fill_(len(latents) / codes)
        self.total.copy_(codebook.embedding.weight * self.count[:, None])

    @torch.no_grad()
    def update(
        self, codebook: Codebook, latents: Float[Tensor, "M C"], tokens: Int[Tensor, " M"], generator, last: bool = True
    ) -> None:
        """Take in a batch; the codes follow with the `last` one of a step, on whose latents dead ones are set."""
        self.sums.index_add_(0, tokens, F.pad(latents, (0, 1), value=1.0))
        if not last:
            return
        here().sum_([self.sums])
        self.total.lerp_(self.sums[:, :-1], 1 - self.decay)
        self.count.lerp_(self.sums[:, -1], 1 - self.decay)
        self.sums.zero_()
        codes = codebook.embedding.weight.copy_(self.total / self.count.clamp(min=1e-3)[:, None])
        dead = self.count < 0.03 * self.count.mean()
        # A latent is drawn for every code, and as many are taken, in order, as are dead: a GPU need not say how many.
        pick = sent(torch.randint(len(latents), dead.shape, generator=generator), latents.device)
        fresh = latents[pick[(dead.cumsum(0) - 1).clamp(min=0)]]
        codes.copy_(torch.where(dead[:, None], fresh, codes))
        self.count.copy_(torch.where(dead, self.count.mean(), self.count))
        here().from_last([codes])
        self.total.copy_(torch.where(dead[:, None], codes * self.count.mean(), self.total))
