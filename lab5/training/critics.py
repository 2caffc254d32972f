"""Judges of a picture other than its pixels: a perceptual distance, and a critic that learns to tell fakes.

Each is called with (pictures, images), both in normalised units, and returns a loss for whoever made the pictures.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.data.dataset import denormalise

MEMORY = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each parameter


class PerceptualDistance(nn.Module):
    """Mean squared difference of the unit-length maps after each stage of a frozen network, summed over its stages.

    LPIPS without its learned weights (Zhang et al. 2018). The first of `stages` takes images in [-1,1].
    """

    def __init__(self, stages: Iterable[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages).eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pictures: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
        a, b = (2 * denormalise(x.float()) - 1 for x in (pictures, images))
        total = a.new_zeros(())
        for stage in self.stages:
            a, b = stage(a), stage(b)
            total = total + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
        return total


class PatchCritic(nn.Module):
    """A small PatchGAN with the hinge loss (Isola et al. 2017; Esser et al. 2021), which trains itself when called.

    Its optimiser lives here, so that `lab5.trainer` needs no second one, and goes with it in its state dict.
    """

    def __init__(self, width: int = 32, lr: float = 2e-4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 4, padding=1),
        )
        self.lr, self._optimiser, self._memory = lr, None, torch.zeros(0)

    def forward(self, pictures: Float[Tensor, "B 3 H W"], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
        """One step of the critic on (images, pictures); then what the pictures' maker has to lower."""
        if torch.is_grad_enabled():
            self._learn(pictures.detach().float(), images.float())
        self.requires_grad_(False)  # the maker's gradient passes through and leaves nothing here
        return -self.layers(pictures.float()).mean()

    def _learn(self, pictures: Tensor, images: Tensor) -> None:
        self.requires_grad_(True)
        if self._optimiser is None:  # made late, when the weights are on their device
            self._optimiser = self._restored(torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.5, 0.9)))
        loss = F.relu(1 - self.layers(images)).mean() + F.relu(1 + self.layers(pictures)).mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()

    def get_extra_state(self) -> Tensor:
        """What the optimiser remembers, in one row: a part of every `state_dict`."""
        if self._optimiser is None:
            return self._memory
        memories = self._optimiser.state_dict()["state"].values()
        return torch.cat([memory[name].detach().float().cpu().flatten() for memory in memories for name in MEMORY])

    def set_extra_state(self, state: Tensor) -> None:
        self._memory, self._optimiser = state, None

    def _restored(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """With the memory of the state dict that was loaded, if any."""
        if len(row := self._memory):
            state = {}
            for i, p in enumerate(self.parameters()):
                step, first, second, row = row.split([1, p.numel(), p.numel(), len(row) - 1 - 2 * p.numel()])
                state[i] = dict(zip(MEMORY, (step[0], first.view_as(p), second.view_as(p)), strict=True))
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        return optimiser
