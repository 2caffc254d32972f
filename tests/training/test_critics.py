"""Judges of pictures: a distance between features, and a critic that learns along."""

import torch
from torch import nn

from lab5.training.critics import PatchCritic, PerceptualDistance


def pictures(seed: int, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())


def test_a_picture_is_at_no_perceptual_distance_from_itself():
    judge = PerceptualDistance(layers())
    assert judge(pictures(0), pictures(0)).item() == 0
    assert judge(pictures(0), pictures(1)).item() > 0.1


def test_the_perceptual_distance_does_not_see_the_length_of_activations():
    """After a single layer without bias, doubled weights double all activations and change no direction."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU())
    before = PerceptualDistance(network)(pictures(0), pictures(1))
    with torch.no_grad():
        network[0].weight.mul_(2)
    after = PerceptualDistance(network)(pictures(0), pictures(1))
    torch.testing.assert_close(after, before)


def test_the_perceptual_network_is_frozen_and_passes_the_gradient_on():
    judge = PerceptualDistance(layers())
    made = pictures(0).requires_grad_()
    judge(made, pictures(1)).backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())


def test_the_critic_learns_to_tell_real_from_made():
    torch.manual_seed(0)
    critic = PatchCritic(width=8, lr=2e-3)
    for step in range(30):
        critic(0.3 * pictures(2 * step), pictures(2 * step + 1))
    with torch.no_grad():
        real, made = critic.layers(pictures(1000)).mean(), critic.layers(0.3 * pictures(1001)).mean()
    assert real > made + 0.5


def test_the_critic_moves_pictures_and_is_not_moved_by_their_maker():
    critic = PatchCritic(width=8)
    made = pictures(0).requires_grad_()
    loss = critic(made, pictures(1))
    weights = [p.clone() for p in critic.parameters()]
    loss.backward()
    assert made.grad.abs().sum() > 0
    assert all(torch.equal(p, w) for p, w in zip(critic.parameters(), weights, strict=True))
    assert all(not p.requires_grad for p in critic.parameters())


def test_the_critic_does_not_learn_while_gradients_are_off():
    critic = PatchCritic(width=8)
    weights = [p.clone() for p in critic.parameters()]
    with torch.no_grad():
        critic(pictures(0), pictures(1))
    assert all(torch.equal(p, w) for p, w in zip(critic.parameters(), weights, strict=True))
