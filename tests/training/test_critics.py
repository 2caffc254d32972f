"""Judges of pictures: a distance between features, and a critic that learns along."""

import copy

import torch
from stubs import seeded
from torch import nn

from lab5.data.dataset import denormalise
from lab5.training.critics import PatchCritic, PerceptualDistance


def pictures(seed: int, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=seeded(seed))


def critic(**settings) -> PatchCritic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PatchCritic(width=8, **settings)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(list(a.parameters()), list(b.parameters()), rtol=0, atol=0)


def test_the_perceptual_distance_sees_directions_of_activations_and_not_their_length():
    """After a single layer without bias, doubled weights double all activations and change no direction."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU())
    nn.init.normal_(network[0].weight, generator=seeded())
    judge = PerceptualDistance([network])
    before = judge(pictures(0), pictures(1))
    assert judge(pictures(0), pictures(0)).item() == 0 and before.item() > 0.1
    with torch.no_grad():
        network[0].weight.mul_(2)
    torch.testing.assert_close(judge(pictures(0), pictures(1)), before)


def test_the_perceptual_distance_counts_every_stage_by_the_cosine_between_its_maps():
    """|a - b|^2 of unit vectors is 2 - 2 cos."""
    stages = [nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 4, 3, stride=2)]
    made, real = pictures(0), pictures(1)
    a, b = (2 * denormalise(x) - 1 for x in (made, real))
    expected = 0
    with torch.no_grad():
        for stage in stages:
            a, b = stage(a), stage(b)
            expected += (2 - 2 * nn.functional.cosine_similarity(a, b)).mean()
        torch.testing.assert_close(PerceptualDistance(stages)(made, real), expected)


def test_the_perceptual_network_is_frozen_and_passes_the_gradient_on():
    stages = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU()), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())]
    judge = PerceptualDistance(stages)
    made = pictures(0).requires_grad_()
    judge(made, pictures(1)).backward()
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())


def test_the_critic_learns_to_tell_real_from_made():
    judge = critic(lr=2e-3)
    for step in range(30):
        judge(0.3 * pictures(2 * step), pictures(2 * step + 1))
    with torch.no_grad():
        real, made = judge.layers(pictures(1000)).mean(), judge.layers(0.3 * pictures(1001)).mean()
    assert real > made + 0.5


def test_the_critic_moves_pictures_and_is_not_moved_by_their_maker():
    judge, made = critic(), pictures(0).requires_grad_()
    loss = judge(made, pictures(1))
    before = copy.deepcopy(judge)
    loss.backward()
    assert made.grad.abs().sum() > 0
    assert_same_weights(judge, before)
    assert all(not p.requires_grad for p in judge.parameters())


def test_the_critic_does_not_learn_while_gradients_are_off():
    judge = critic()
    with torch.no_grad():
        judge(pictures(0), pictures(1))
    assert_same_weights(judge, critic())


def test_the_critic_goes_on_from_its_state_as_if_it_had_not_been_stopped():
    straight, stopped, resumed = critic(), critic(), critic()
    for judge in (straight, stopped):
        judge(pictures(0), pictures(1))
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    for judge in (straight, resumed):
        judge(pictures(2), pictures(3))
    assert_same_weights(straight, resumed)
