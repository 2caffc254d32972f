"""Bytes become tokens and come back; nobody looks under a hole; the cache is the encoding, and its own."""

import os

import numpy as np
import pytest
import torch

from lab5.config import VQGANConfig
from lab5.data.dataset import denormalise, normalise, token_mask
from lab5.data.holes import FILLS, fill_holes
from lab5.data.toycats import random_holes, render
from lab5.inpainting import tokenizer as tokenizing
from lab5.inpainting.tokenizer import Tokenizer, reconstruction_psnr_db
from lab5.vqgan import VQGAN

CONFIG = VQGANConfig(
    codes=32, latent=6, stem=4, encoder=((4,), (6,)), middle=(8,), decoder=((8,), (6,), (4,)), groups=0, attention=False
)


@pytest.fixture(scope="module")
def images():
    return render(1, 7).images


@pytest.fixture(scope="module")
def holes():
    return random_holes(2, 7)


@torch.no_grad()
def vqgan(seed=0):
    """A network whose codes are latents of cats: as new, one of them would be the nearest to all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQGAN(CONFIG)
    latents = model.latents(normalise(render(3, 4).images)).permute(0, 2, 3, 1).flatten(0, 2)
    pick = torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))[: CONFIG.codes]
    model.codebook.embedding.weight.copy_(latents[pick])
    return model


@pytest.fixture
def tokenizer():
    return Tokenizer(vqgan(), batch=3)


# --- to tokens and back -----------------------------------------------------------------------------------------------


def test_encode_is_the_networks_in_the_labs_units_whatever_the_batches(tokenizer, images):
    tokens = tokenizer.encode(images)
    assert tokens.shape == (7, 256) and tokens.dtype == torch.int64
    with torch.no_grad():
        assert torch.equal(tokens, tokenizer.vqgan.encode(normalise(images)))
        assert not torch.equal(tokens, tokenizer.vqgan.encode(images.float() / 255))
    assert torch.equal(Tokenizer(tokenizer.vqgan, batch=100).encode(images), tokens)
    assert 0 <= tokens.min() and tokens.max() < tokenizer.codes == CONFIG.codes
    assert len(tokens.unique()) > CONFIG.codes // 2  # else the tests below could not fail


def test_decode_gives_bytes_of_the_networks_pictures(tokenizer, images):
    tokens = tokenizer.encode(images)
    pictures = tokenizer.decode(tokens)
    assert pictures.shape == (7, 3, 64, 64) and pictures.dtype == torch.uint8
    with torch.no_grad():
        exact = denormalise(tokenizer.vqgan.decode(tokens)) * 255
    assert (pictures - exact).abs().max() <= 0.5 + 1e-3  # rounded, not cut off


def test_tokenizing_is_done_in_full_precision_whatever_is_on_around_it(tokenizer, images):
    tokens = tokenizer.encode(images)
    pictures = tokenizer.decode(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), tokens)
        assert torch.equal(tokenizer.decode(tokens), pictures)


def test_the_convolutions_of_a_gpu_are_not_rounded_to_ten_bits(tokenizer, images, holes, monkeypatch):
    seen, before = [], torch.backends.cudnn.allow_tf32
    for name in ("encode", "decode", "latents"):
        real = getattr(tokenizer.vqgan, name)
        spy = lambda x, real=real: seen.append(torch.backends.cudnn.allow_tf32) or real(x)  # noqa: E731
        monkeypatch.setattr(tokenizer.vqgan, name, spy)
    tokenizer.decode(tokenizer.encode(images))
    tokenizer.hints(images, holes)
    tokenizer.evidence(images, holes, 1.0)
    assert len(seen) >= 4 and not any(seen) and torch.backends.cudnn.allow_tf32 == before


def test_the_network_is_frozen_and_in_evaluation_mode():
    model = vqgan().train()
    Tokenizer(model)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_mask_id_cannot_be_decoded(tokenizer, images):
    tokens = tokenizer.encode(images)
    tokens[3, 5] = CONFIG.codes
    with pytest.raises(ValueError, match="masked positions have to be filled"):
        tokenizer.decode(tokens)


def test_the_reconstructions_psnr_is_that_of_the_bytes_nearly(tokenizer, images):
    error = (tokenizer.decode(tokenizer.encode(images)) / 255 - images / 255).square().mean().item()
    found = reconstruction_psnr_db(tokenizer.vqgan, images, batch=3)
    assert found == pytest.approx(-10 * np.log10(error), abs=0.01)


# --- holes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", FILLS)
def test_pixels_under_a_hole_that_is_filled_are_never_read(fill, tokenizer, images, holes, generator):
    junk = torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
    other = torch.where(holes[:, None], junk, images)
    ours, theirs = (fill_holes(x, holes, fill) for x in (images, other))
    assert torch.equal(tokenizer.encode(ours), tokenizer.encode(theirs))
    assert torch.equal(tokenizer.hints(ours, holes), tokenizer.hints(theirs, holes))
    assert torch.equal(tokenizer.evidence(ours, holes, 1.0), tokenizer.evidence(theirs, holes, 1.0))
    assert not torch.equal(tokenizer.encode(other), tokenizer.encode(images))  # who reads them sees a difference


def test_evidence_favours_the_code_of_what_is_seen_and_says_nothing_of_what_is_not(tokenizer, images, holes):
    filled = fill_holes(images, holes, "telea")
    rows = tokenizer.evidence(filled, holes, strength=2.0)
    tokens, unknown = tokenizer.encode(filled), token_mask(holes)
    assert rows.shape == (7, 256, CONFIG.codes) and (rows <= 0).all()
    assert torch.equal(rows.argmax(2)[~unknown], tokens[~unknown])
    blind = token_mask(~holes).logical_not()  # not one pixel of the token is known
    assert blind.any() and (rows[blind] == 0).all() and (rows[~blind] < 0).any(1).all()
    torch.testing.assert_close(tokenizer.evidence(filled, holes, strength=1.0), rows / 2)


def test_evidence_is_each_images_own(tokenizer, images, holes):
    grey = fill_holes(images, holes, "grey")
    rows = tokenizer.evidence(grey, holes, strength=1.0)
    alone = torch.cat([tokenizer.evidence(grey[i : i + 1], holes[i : i + 1], 1.0) for i in range(7)])
    torch.testing.assert_close(alone, rows, rtol=1e-2, atol=1e-2)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_cached_tokens_are_the_encoding_and_the_file_is_used_again(tokenizer, images, tmp_path, monkeypatch):
    file = tokenizer.cache_file(images, tmp_path / "cache", "train")
    assert not file.exists()
    first = tokenizer.cached(images, tmp_path / "cache", "train")
    assert torch.equal(first.long(), tokenizer.encode(images)) and first.dtype == torch.int16
    assert list(file.parent.iterdir()) == [file]  # and nothing half-written beside it
    os.utime(file, ns=(1, 1))
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("encoded again"))
    again = tokenizer.cached(images, tmp_path / "cache", "train")
    assert torch.equal(again, first) and file.stat().st_mtime_ns == 1
    assert torch.equal(Tokenizer(vqgan()).cached(images, tmp_path / "cache", "train"), first)  # in another process


def test_writing_into_cached_tokens_does_not_change_the_file(tokenizer, images, tmp_path):
    tokenizer.cached(images, tmp_path, "train").zero_()
    assert torch.equal(tokenizer.cached(images, tmp_path, "train").long(), tokenizer.encode(images))


def test_other_images_other_weights_and_other_names_have_files_of_their_own(tokenizer, images, tmp_path):
    other_images = images.clone()
    other_images[6, 2, 63, 63] ^= 1
    model = vqgan()
    model.decoder.model[-1].bias.data[2] += 1e-6  # even of the half that does not encode
    files = {
        tokenizer.cache_file(images, tmp_path, "train"),
        tokenizer.cache_file(other_images, tmp_path, "train"),
        tokenizer.cache_file(images.flip(3), tmp_path, "train"),
        tokenizer.cache_file(images, tmp_path, "val"),
        Tokenizer(model).cache_file(images, tmp_path, "train"),
        Tokenizer(vqgan(seed=1)).cache_file(images, tmp_path, "train"),
    }
    assert len(files) == 6
    assert tokenizer.cache_file(images, tmp_path, "train") in files
    for file_images in (images, other_images):
        tokenizer.cached(file_images, tmp_path, "train")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_hash_of_the_weights_is_theirs_alone_and_not_their_layouts():
    plain = Tokenizer(vqgan()).weights_hash
    assert len(plain) == 12 and int(plain, 16) >= 0
    assert Tokenizer(vqgan().to(memory_format=torch.channels_last), batch=1).weights_hash == plain
    assert Tokenizer(vqgan(seed=1)).weights_hash != plain


def test_an_encoding_that_fails_leaves_no_file(tokenizer, images, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Tokenizer, "encode", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        tokenizer.cached(images, tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_was_cut_short_goes_on_from_the_last_piece(tokenizer, images, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "PIECE", 2)
    images, encode, asked = torch.cat([images[:3], 255 - images[:4]]), tokenizer.encode, []

    def killed_later(piece):
        asked.append(len(piece))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(piece)

    monkeypatch.setattr(tokenizer, "encode", killed_later)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.cached(images, tmp_path, "train")
    assert len(list(tmp_path.iterdir())) == 2 and not tokenizer.cache_file(images, tmp_path, "train").exists()
    tokens = tokenizer.cached(images, tmp_path, "train")
    assert asked == [2, 2, 2, 2, 1], "the first two were not encoded again"
    assert torch.equal(tokens, encode(images).short())
    assert list(tmp_path.iterdir()) == [tokenizer.cache_file(images, tmp_path, "train")]


def not_tokens(path):
    np.save(path, np.full((2, 256), 9999, np.int16))


def fewer(path):
    np.save(path, np.zeros((1, 256), np.int16))


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:300]),
    lambda path: path.write_bytes(b"something else"), not_tokens, fewer,
    lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
], ids=["empty", "cut short", "foreign", "other numbers", "fewer", "a pickle"])  # fmt: skip
def test_a_damaged_token_cache_is_told_and_made_again(spoil, tokenizer, images, tmp_path):
    tokens = tokenizer.cached(images[:2], tmp_path, "train").clone()
    file = tokenizer.cache_file(images[:2], tmp_path, "train")
    spoil(file)
    with pytest.warns(UserWarning, match="tokens-train-.* is damaged and made again"):
        assert torch.equal(tokenizer.cached(images[:2], tmp_path, "train"), tokens)
    assert list(tmp_path.iterdir()) == [file]
    assert torch.equal(torch.from_numpy(np.load(file)), tokens)


def test_a_full_disk_leaves_no_token_cache_and_is_told(disk_of, tokenizer, images, tmp_path):
    with disk_of(100), pytest.raises(OSError, match="tokens-train-.* could not be written"):
        tokenizer.cached(images[:2], tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_one_pair_of_statistics_goes_both_ways():
    """The lab has two; a tokenizer that mixed them would shift every picture's colours."""
    ramp = torch.linspace(0, 1, 256).expand(1, 3, 1, 256)
    torch.testing.assert_close(denormalise(normalise(ramp)), ramp, rtol=0, atol=1e-6)


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_without_a_hole_the_evidence_is_for_the_tokens_of_the_encoder(tokenizer, images):
    weights = tokenizer.evidence(images, torch.zeros(len(images), 64, 64, dtype=torch.bool), 1.0)
    assert torch.equal(weights.argmax(-1), tokenizer.encode(images))
    assert (weights <= 0).all()


def test_tokens_without_a_visible_pixel_weigh_all_codes_alike(tokenizer, images, holes):
    weights = tokenizer.evidence(fill_holes(images, holes, "grey"), holes, 5.0)
    unseen = holes.unflatten(2, (16, 4)).unflatten(1, (16, 4)).all(4).all(2).flatten(1)
    assert unseen.any() and (weights[unseen] == 0).all()
    assert (weights[~unseen].amin(-1) < 0).all()


def test_evidence_grows_in_proportion_to_its_strength(tokenizer, images, holes):
    filled = fill_holes(images, holes, "mean")
    one, three = (tokenizer.evidence(filled, holes, strength) for strength in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


# --- hints ------------------------------------------------------------------------------------------------------------


def test_hints_are_the_latents_of_the_filled_image_and_the_missing_pixels_of_each_block(tokenizer, images, holes):
    filled = fill_holes(images, holes, "telea")
    hints = tokenizer.hints(filled, holes)
    latent = tokenizer.vqgan.config.latent
    assert hints.shape == (len(images), 256, latent + 16)
    maps = tokenizer.vqgan.latents(normalise(filled)) / tokenizer.vqgan.codebook.embedding.weight.std()
    row, column = 5, 9
    torch.testing.assert_close(hints[:, 16 * row + column, :latent], maps[:, :, row, column], rtol=1e-4, atol=1e-5)
    block = holes[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1).float()
    assert torch.equal(hints[:, 16 * row + column, latent:], block)
    assert torch.equal(hints[:, :, latent:].any(2), token_mask(holes))
