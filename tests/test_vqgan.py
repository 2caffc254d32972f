"""Stage one is the lab's, key for key; its tokens are the nearest codes and its gradient passes them by."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lab5.config import VQGANConfig
from lab5.profiles import PROFILES
from lab5.vqgan import VQGAN, Codebook

TABLE = Path(__file__).parent / "lab_contract" / "vqgan_state_dict.tsv"
SMALL = VQGANConfig(
    codes=24, latent=6, stem=4, encoder=((4,), (6,)), middle=(8,), decoder=((8,), (6,), (4,)), groups=0, attention=False
)
WIDE = replace(SMALL, encoder=((4,), (8,)), middle=(8, 8), decoder=((8,), (8,), (4,)))


def images_of(n, generator):
    return torch.randn(n, 3, 64, 64, generator=generator)


@torch.no_grad()
def model_of(config=SMALL):
    """A network whose codes are latents of some images: as new, one of them would be the nearest to all."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQGAN(config).eval()
    latents = model.latents(images_of(2, generator)).permute(0, 2, 3, 1).flatten(0, 2)
    pick = torch.randint(len(latents), (config.codes,), generator=generator)
    model.codebook.embedding.weight.copy_(latents[pick])
    return model


def test_parameters_have_the_labs_names_shapes_and_number():
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    expected = {row["key"]: tuple(int(size) for size in row["shape"].split("x")) for row in rows}
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == 70_775_299
    assert not list(model.buffers())


SIZES = {name: profile.vqgan for name, profile in PROFILES.items()} | {
    "small": SMALL, "with groups and attention": replace(WIDE, groups=2, attention=True)
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_a_network_of_the_promised_shapes(size):
    config = SIZES[size]
    with torch.device("meta"):  # shapes without numbers: the lab's network too in no time
        model = VQGAN(config)
        latents = model.latents(torch.empty(2, 3, 64, 64))
        assert latents.shape == (2, config.latent, 16, 16)
        assert model.decode_latents(latents).shape == (2, 3, 64, 64)
        assert model.decode(torch.empty(2, 256, dtype=torch.int64)).shape == (2, 3, 64, 64)
    keys = list(model.state_dict())
    assert any(".proj_out." in key for key in keys) == config.attention
    assert any(".gn." in key for key in keys) == bool(config.groups)


def test_encode_gives_ids_of_codes_and_forward_is_encode_then_decode(generator):
    model, images = model_of(), images_of(3, generator)
    with torch.no_grad():
        tokens, out = model.encode(images), model(images)
        pictures = model.decode(tokens)
    assert tokens.shape == (3, 256) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < model.codes
    assert len(tokens.unique()) > 3  # else the tests below could not fail
    assert pictures.shape == (3, 3, 64, 64) and pictures.dtype == torch.float32
    assert torch.equal(out.tokens, tokens) and torch.equal(out.codes, model.look_up(tokens))
    torch.testing.assert_close(out.images, pictures, rtol=1e-4, atol=1e-5)


def test_the_nearest_code_is_the_one_that_a_search_finds(generator):
    codebook = Codebook(50, 7)
    codes = codebook.embedding.weight.data.normal_(0, 1, generator=generator)
    latents = torch.randn(400, 7, generator=generator)
    assert torch.equal(codebook.nearest(latents), torch.cdist(latents.double(), codes.double()).argmin(1))
    assert torch.equal(codebook.nearest(codes), torch.arange(50))


def test_the_nearest_code_is_found_in_full_precision_under_autocast(generator):
    codebook = Codebook(512, 32)
    codebook.embedding.weight.data.normal_(0, 1, generator=generator)
    latents = torch.randn(2000, 32, generator=generator)
    expected = codebook.nearest(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.nearest(latents), expected)


def test_tokens_are_in_row_major_order_of_the_grid(generator):
    model = model_of()
    with torch.no_grad():
        latents = model.latents(images_of(2, generator))
        tokens = model.quantise(latents)
        for image, row, column in ((0, 0, 0), (0, 0, 15), (1, 3, 2), (1, 15, 15)):
            alone = model.codebook.nearest(latents[image, :, row, column][None])
            assert tokens[image, 16 * row + column] == alone[0]
            vector = model.look_up(tokens)[image, :, row, column]
            assert torch.equal(vector, model.codebook.embedding.weight[alone[0]])


def test_the_gradient_passes_straight_through_the_quantisation(generator):
    model = model_of()
    out = model(images_of(2, generator))
    out.latents.retain_grad()
    out.images.square().mean().backward()
    # What the decoder asks of its codes, computed without any quantisation, is what the latents are told.
    codes = out.codes.detach().requires_grad_()
    model.decode_latents(codes).square().mean().backward()
    torch.testing.assert_close(out.latents.grad, codes.grad)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters())
    assert model.codebook.embedding.weight.grad is None


@pytest.mark.parametrize("wrong", [-1, SMALL.codes])
def test_ids_that_are_no_code_and_tokens_of_another_grid_are_refused(wrong):
    tokens = torch.zeros(1, 256, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"tokens must be \(B,256\), not \(1, 255\)"):
        model_of().decode(tokens[:, 1:])
    tokens[0, 100] = wrong
    with pytest.raises(ValueError, match=rf"0\.\.{SMALL.codes - 1}, found .*{wrong}"):
        model_of().decode(tokens)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 64, 64), (2, 3, 64, 63)], ids=str)
def test_images_of_another_shape_are_refused(shape):
    # As users call it: in these tests an import hook would refuse the shape before the method does.
    latents = getattr(VQGAN.latents, "__wrapped__", VQGAN.latents)
    with pytest.raises(ValueError, match=r"images must be \(B,3,64,64\), not \(" + str(shape[0])):
        latents(model_of(), torch.zeros(shape))


def test_a_shape_that_does_not_lead_to_16x16_is_refused():
    with pytest.raises(ValueError, match="2 encoder and 3 decoder levels, not 1 and 3"):
        VQGAN(replace(SMALL, encoder=((4,),)))


def changed_tokens(model, generator):
    """Latents, as a grid of booleans, that feel another pixel in the image's upper left corner."""
    images = images_of(1, generator)
    other = images.clone()
    other[:, :, 0, 0] += 3.0
    with torch.no_grad():
        return (model.latents(images) != model.latents(other)).any(1)[0]


def test_without_normalisation_a_far_pixel_cannot_change_a_token(generator):
    # By hand, along one axis: three 3x3 convolutions carry pixel 0 to pixel 3, the step to 32x32 makes that 1, two
    # convolutions 3, the step to 16x16 makes that 1, and three convolutions token 4.
    reached = torch.arange(16) <= 4
    changed = changed_tokens(model_of(), generator)
    assert torch.equal(changed, reached[:, None] & reached)


def test_normalisation_and_attention_see_the_whole_image(generator):
    assert changed_tokens(model_of(replace(WIDE, groups=2)), generator).all()
    assert changed_tokens(model_of(replace(WIDE, attention=True)), generator).all()
    assert not changed_tokens(model_of(WIDE), generator).all()
