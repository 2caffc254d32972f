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
from lab5.runtime.machine import _float32_ways
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


@pytest.fixture(scope="module")
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
    error = (pictures / 255 - images / 255).square().mean().item()
    found = reconstruction_psnr_db(tokenizer.vqgan, images, batch=3)
    assert found == pytest.approx(-10 * np.log10(error), abs=0.01)


def test_tokenizing_is_done_in_full_precision_whatever_is_on_around_it(tokenizer, images):
    tokens = tokenizer.encode(images)
    pictures = tokenizer.decode(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(images), tokens)
        assert torch.equal(tokenizer.decode(tokens), pictures)


def test_on_a_gpu_nothing_is_rounded_to_ten_bits_whatever_has_been_chosen(tokenizer, images, holes, monkeypatch):
    """Of 1000 tokens two or three would be others if their products were of TF32."""
    seen, before = [], [way.fp32_precision for way in _float32_ways()]
    for owner, name in ((tokenizer.vqgan, "encode"), (tokenizer.vqgan, "decode"), (tokenizer.vqgan, "latents"),
                        (tokenizer.vqgan.codebook, "nearest"), (torch, "cdist")):  # fmt: skip
        real = getattr(owner, name)

        def spy(*arguments, real=real):
            seen.extend(way.fp32_precision for way in _float32_ways())
            return real(*arguments)

        monkeypatch.setattr(owner, name, spy)
    tokenizer.decode(tokenizer.encode(images))
    tokenizer.hints(images, holes)
    tokenizer.evidence(images, holes, 1.0)
    reconstruction_psnr_db(tokenizer.vqgan, images)
    assert len(seen) > 40 and set(seen) == {"ieee"} and [way.fp32_precision for way in _float32_ways()] == before


def test_the_network_is_frozen_and_in_evaluation_mode():
    model = vqgan().train()
    Tokenizer(model)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


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


def test_evidence_is_each_codes_distance_by_what_is_seen_and_says_nothing_of_what_is_not(tokenizer, images, holes):
    filled, codes = fill_holes(images, holes, "telea"), tokenizer.vqgan.codebook.embedding.weight
    rows = tokenizer.evidence(filled, holes, strength=3.0)
    latents, missing = tokenizer.hints(filled, holes).split((CONFIG.latent, 16), dim=2)
    distance = torch.cdist(latents * codes.std(), codes.expand(7, -1, -1)).square()
    known, seen = ~token_mask(holes), 1 - missing.mean(2)
    unit = (distance.amin(2) * known).sum(1) / known.sum(1)  # of each image by itself
    expected = -3 / 2 * seen.square()[:, :, None] * distance / unit[:, None, None]
    torch.testing.assert_close(rows, expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(rows.argmax(2)[known], tokenizer.encode(filled)[known])
    assert (seen == 0).any() and not rows[seen == 0].any()
    assert not tokenizer.evidence(filled, torch.ones_like(holes), 1.0).any(), "of an image without a known token"


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


# --- the cache --------------------------------------------------------------------------------------------------------


def test_cached_tokens_are_the_encoding_and_the_file_is_used_again(tokenizer, images, tmp_path, monkeypatch):
    file = tokenizer.cache_file(images, tmp_path / "cache", "train")
    assert not file.exists()
    tokenizer.cached(images, tmp_path / "cache", "train").zero_()  # into memory, not into the file
    first = tokenizer.cached(images, tmp_path / "cache", "train")
    assert torch.equal(first.long(), tokenizer.encode(images)) and first.dtype == torch.int16
    assert list(file.parent.iterdir()) == [file]  # and nothing half-written beside it
    os.utime(file, (86400, 86400))
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("encoded again"))
    again = tokenizer.cached(images, tmp_path / "cache", "train")
    assert torch.equal(again, first) and file.stat().st_mtime == 86400
    assert torch.equal(Tokenizer(vqgan()).cached(images, tmp_path / "cache", "train"), first)  # in another process


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
    }
    assert len(files) == 5 and tokenizer.cache_file(images, tmp_path, "train") in files


def test_the_hash_of_the_weights_is_theirs_alone_and_not_their_layouts():
    plain = Tokenizer(vqgan()).weights_hash
    assert len(plain) == 12 and int(plain, 16) >= 0
    assert Tokenizer(vqgan().to(memory_format=torch.channels_last), batch=1).weights_hash == plain
    assert Tokenizer(vqgan(seed=1)).weights_hash != plain


def test_the_hash_of_the_weights_is_computed_once(images, tmp_path, monkeypatch):
    hashed, real = [], tokenizing.weights_hash
    monkeypatch.setattr(tokenizing, "weights_hash", lambda model: hashed.append(model) or real(model))
    monkeypatch.setattr(tokenizing, "PIECE", 2)
    Tokenizer(vqgan()).cached(images, tmp_path, "train")
    assert len(hashed) == 1


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


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:300]),
    lambda path: path.write_bytes(b"something else"),
    lambda path: np.save(path, np.full((2, 256), 9999, np.int16)),
    lambda path: np.save(path, np.zeros((1, 256), np.int16)),
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


def test_a_full_disk_leaves_no_token_cache_and_costs_a_line(disk_of, tokenizer, images, tmp_path, capsys):
    with disk_of(100):
        tokens = tokenizer.cached(images[:2], tmp_path, "train")
    (line,) = capsys.readouterr().err.splitlines()
    assert "could not be written" in line and "LAB5_DATA" in line
    assert list(tmp_path.iterdir()) == [] and torch.equal(tokens, tokenizer.encode(images[:2]).short())
