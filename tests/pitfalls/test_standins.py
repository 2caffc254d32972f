"""The stand-ins for networks, pictures and packages."""

import importlib
import sys

import pytest
import torch

from lab5.pitfalls.standins import (
    CODES,
    GREY,
    HOLES,
    MEAN,
    STD,
    Enough,
    Inert,
    K,
    MissingPackages,
    N,
    NoGPU,
    World,
    paint,
    read,
    rearrange,
    vqgan_of,
)  # fmt: skip


def test_every_code_in_use_is_a_colour_of_its_own_under_either_of_the_labs_normalisations():
    tokens = torch.cat([CODES, torch.tensor([GREY] * (4 * N - len(CODES)))]).view(4, N)
    pixels = paint(tokens).float() / 255
    mean, std = torch.tensor([0.4816, 0.4324, 0.3845]), torch.tensor([0.2602, 0.2518, 0.2537])  # of training images
    other = (pixels - mean[:, None, None]) / std[:, None, None] * STD[:, None, None] + MEAN[:, None, None]
    assert torch.equal(read(pixels), tokens) and torch.equal(read(other), tokens)
    assert GREY not in CODES and K - 1 not in CODES
    assert (read(torch.full((1, 3, 64, 64), 128 / 255)) == GREY).all()


def test_the_tokenizer_encodes_what_it_has_painted():
    world = World()
    vqgan = vqgan_of(world)()
    images = (paint(world.images["val"]) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    latents, indices, _ = vqgan.encode(images)
    assert torch.equal(indices.view(-1, N), world.images["val"])
    again, _, _ = vqgan.encode(vqgan.decode(latents))
    assert torch.equal(again, latents)
    assert vqgan.codebook.embedding(torch.tensor([K])).shape == (1, 256), "the mask id is looked up, and seen"
    assert world.events[-1]["tokens"].tolist() == [K]


def test_a_painted_token_tells_at_which_call_it_was_drawn():
    world = World()
    tokens = torch.full((1, N), K)
    for call in range(12):
        world.calls = call
        logits = world.sure(tokens)
        drawn = torch.distributions.Categorical(logits=logits).sample()
        assert (world.when(drawn[0]) == call).all()
        top = logits.softmax(-1).amax(-1)
        assert top.unique().numel() == N and top.min() > 0.55, "no two positions are equally sure"
    assert (world.when(world.images["test"][0]) == -1).all() and (world.when(torch.full((N,), GREY)) == -1).all()


def test_the_mask_id_tempts_at_two_positions_of_the_hole():
    world = World()
    world.picture = 0
    p = world.tempted_by_the_mask_id(torch.full((1, N), K)).softmax(-1)[0, :, K]
    assert (p > 0.5).sum() == 2 and torch.allclose(p[p > 0.5], torch.tensor(0.6))
    assert (world.unknown[0] >= (p > 0.5)).all()


def test_holes_are_of_their_sizes_and_a_run_ends_when_it_has_seen_enough():
    world = World()
    assert tuple(world.unknown.sum(1).tolist()) == HOLES
    world.enough = 1
    vqgan = vqgan_of(world)()
    images = (paint(world.images["test"]) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    vqgan.encode(images[:1])
    vqgan.encode(images[:1])  # the same picture once more
    with pytest.raises(Enough):
        vqgan.encode(images[1:2])


@pytest.mark.parametrize("pattern, sizes, expected", [
    ("b n (h d) -> b h n d", {"h": 3}, lambda x: x.view(2, 4, 3, 2).transpose(1, 2)),
    ("b n c -> b (n c)", {}, lambda x: x.flatten(1)),
    ("b (x y) c -> b c x y", {"x": 2}, lambda x: x.view(2, 2, 2, 6).permute(0, 3, 1, 2)),
    ("b n (k h d) -> k b h n d", {"k": 3, "h": 2}, lambda x: x.view(2, 4, 3, 2, 1).permute(2, 0, 3, 1, 4)),
])  # fmt: skip
def test_rearrange_is_a_view_and_a_permutation(pattern, sizes, expected):
    x = torch.arange(48.0).view(2, 4, 6)
    assert torch.equal(rearrange(x, pattern, **sizes), expected(x))


def test_missing_packages_are_inert_and_named_and_the_solutions_own_are_missing():
    finder = MissingPackages({"utils_of_theirs"})
    sys.meta_path.append(finder)
    try:
        wandb = importlib.import_module("no_such_package.deep.inside")
        with wandb.init(project="x") as run:
            run.log({"loss": 1})
        assert isinstance(wandb.Writer(), Inert) and list(wandb.rows) == [] and f"{wandb.x:.3f}" == ""
        assert finder.names == ["no_such_package"]
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("utils_of_theirs")
    finally:
        sys.meta_path.remove(finder)
        sys.modules.pop("torch.utils.tensorboard", None)
        for name in [name for name in sys.modules if name.startswith("no_such_package")]:
            del sys.modules[name]


def test_what_is_asked_for_on_a_gpu_is_made_on_the_cpu():
    with NoGPU():
        tensors = [torch.zeros(2, device="cuda"), torch.ones(2).cuda(), torch.ones(2).to("cuda:1"),
                   torch.ones(2).to(torch.device("cuda"), torch.float64)]  # fmt: skip
    assert {tensor.device.type for tensor in tensors} == {"cpu"} and tensors[-1].dtype == torch.float64
