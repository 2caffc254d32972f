"""From holes to pictures: the same in any batch, deaf to what is under a hole, and known tokens as they were."""

from dataclasses import replace

import pytest
import torch
from stubs import cats, untrained_pair

from lab5.config import DecodeConfig
from lab5.data.dataset import token_mask
from lab5.data.holes import dilate, fill_holes, paste_known
from lab5.inpainting.fill import baselines, decode_holes, in_precision, inpaint_images
from lab5.inpainting.pair import Pair

DECODE = DecodeConfig(steps=3, batch=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return cats(6, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return untrained_pair()


def filled(pair, images, holes, decode, seed=0) -> torch.Tensor:
    return list(decode_holes(pair, images, holes, decode, seed))[-1].filled


def encoded(pair, dataset, fill) -> tuple[torch.Tensor, torch.Tensor]:
    return pair.tokenizer.encode(fill_holes(dataset.test, dataset.holes, fill)), token_mask(dataset.holes)


@pytest.mark.parametrize("evidence", [0.0, 2.0])
def test_an_image_is_filled_alike_in_any_batch_and_any_company(pair, dataset, evidence):
    decode = replace(DECODE, evidence=evidence)
    results = [filled(pair, dataset.test, dataset.holes, replace(decode, batch=batch)) for batch in (1, 4, 64)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.equal(filled(pair, dataset.test[:2], dataset.holes[:2], decode), results[0][:2])


def test_another_seed_and_another_image_have_other_noise(pair, dataset):
    one, hole = dataset.test[:1].repeat(2, 1, 1, 1), dataset.holes[:1].repeat(2, 1, 1)
    first, second = filled(pair, one, hole, DECODE)
    assert not torch.equal(first, second), "two copies of one image"
    assert not torch.equal(filled(pair, one, hole, DECODE, seed=1)[0], first)


def test_what_is_under_a_hole_is_never_read(pair, dataset):
    hidden = torch.where(dataset.holes[:, None], 255 - dataset.test, dataset.test)
    for fill, evidence in (("grey", 0.0), ("telea", 0.0), ("telea", 2.0)):
        decode = replace(DECODE, fill=fill, evidence=evidence)
        assert torch.equal(
            inpaint_images(pair, hidden, dataset.holes, decode, 0),
            inpaint_images(pair, dataset.test, dataset.holes, decode, 0),
        )


def test_a_second_pass_keeps_known_tokens_and_reads_nothing_under_the_hole(pair, dataset, monkeypatch):
    decode = replace(DECODE, passes=2)
    seen = []
    whole = type(pair.tokenizer).decode
    monkeypatch.setattr(type(pair.tokenizer), "decode", lambda self, tokens: seen.append(tokens) or whole(self, tokens))
    ours = inpaint_images(pair, dataset.test, dataset.holes, decode, 0)
    tokens, unknown = encoded(pair, dataset, decode.fill)
    assert len(seen) == 2 and all(torch.equal(x[~unknown], tokens[~unknown]) for x in seen)
    together = paste_known(whole(pair.tokenizer, seen[0]), dataset.test, dataset.holes, "poisson")
    assert torch.equal(seen[1][unknown], pair.tokenizer.encode(together)[unknown])
    hidden = torch.where(dataset.holes[:, None], 255 - dataset.test, dataset.test)
    assert torch.equal(inpaint_images(pair, hidden, dataset.holes, decode, 0), ours)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_the_precision_keeps_what_is_known_and_nearly_the_models_answer(pair, dataset, amp):
    model = in_precision(pair.transformer, amp)
    tokens, unknown = encoded(pair, dataset, "grey")
    asked = tokens.masked_fill(unknown, model.mask_id)
    hints = pair.tokenizer.hints(fill_holes(dataset.test, dataset.holes, "grey"), dataset.holes)
    with torch.no_grad():
        half, right = model(asked, hints=hints.to(model.pos_emb.dtype)), pair.transformer(asked, hints=hints)
    assert half.dtype != right.dtype == torch.float32 == pair.transformer.pos_emb.dtype, "a copy"
    torch.testing.assert_close(half.float(), right, rtol=0.02, atol=0.05)
    *_, last = decode_holes(pair, dataset.test, dataset.holes, replace(DECODE, amp=amp, hints=True), 0)
    assert torch.equal(last.filled[~unknown], tokens[~unknown]) and last.confidence.dtype == torch.float32
    assert in_precision(pair.transformer, "off") is pair.transformer


def test_a_batch_below_one_is_refused(pair, dataset):
    with pytest.raises(ValueError, match="decode.batch must be at least 1, not 0"):
        filled(pair, dataset.test, dataset.holes, replace(DECODE, batch=0))


def test_a_gpu_without_enough_memory_is_told_with_the_setting_to_lower(pair, dataset, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total ...")

    monkeypatch.setattr("lab5.runtime.machine.machine", lambda device: "a GPU")
    monkeypatch.setattr(type(pair.transformer), "_embed", too_large)
    with pytest.raises(MemoryError, match=r"lower decode\.batch, which is 4, .*\"decode\.batch\": 2"):
        filled(pair, dataset.test, dataset.holes, DECODE)


def test_baselines_read_the_hole_only_for_the_reconstruction_floor(pair, dataset):
    ours = baselines(dataset.test, dataset.holes, pair.tokenizer)
    hidden = torch.where(dataset.holes[:, None], 255 - dataset.test, dataset.test)
    others = baselines(hidden, dataset.holes, pair.tokenizer)
    assert {name for name in ours if not torch.equal(ours[name], others[name])} == {"reconstruction"}
    known = ~dataset.holes[:, None].expand_as(dataset.test)
    for name in ("grey_fill", "mean_colour", "telea", "navier_stokes"):
        assert torch.equal(ours[name][known], dataset.test[known]), name


def test_a_grown_hole_is_filled_whole_and_the_rest_is_kept(pair, dataset):
    decode = replace(DECODE, dilate=1)
    tokens, unknown = encoded(pair, dataset, decode.fill)
    grown = dilate(unknown, 1)
    first, *_, last = decode_holes(pair, dataset.test, dataset.holes, decode, 0)
    assert torch.equal(first.masked, grown) and grown.sum() > unknown.sum()
    assert torch.equal(last.filled[~grown], tokens[~grown])
    assert not torch.equal(last.filled[grown & ~unknown], tokens[grown & ~unknown])
