"""The refiner: what is known stays, what was in the hole is not seen, and it learns to correct what is painted."""

import numpy as np
import pytest
import torch
from stubs import seeded, untrained_pair

from lab5.config import DecodeConfig, RefinerConfig
from lab5.data.dataset import normalise
from lab5.data.holes import fill_holes, paste_known
from lab5.data.toycats import random_holes, render
from lab5.inpainting.fill import best_paste, inpaint_images, keep_known
from lab5.inpainting.refiner import Refiner, load_refiner, refine, save_refiner
from lab5.runtime.files import save_tensors
from lab5.scoring.scores import hole_psnr_db
from lab5.trainer import fit
from lab5.training.refining import RefinerObjective

IMAGES, HOLES = render(7, 24).images, random_holes(8, 24)


def refiner(seed: int = 0, widths: tuple[int, int, int] = (8, 8, 8)) -> Refiner:
    """One that changes what it sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Refiner(widths)
    with torch.no_grad():
        model.end.weight.normal_(std=0.3, generator=seeded(seed))
    return model.eval()


def test_it_begins_as_the_identity():
    assert torch.equal(refine(Refiner((8, 8, 8)), IMAGES, HOLES), IMAGES)


def test_known_pixels_stay_and_holes_do_not():
    refined = refine(refiner(), IMAGES, HOLES)
    known = ~HOLES[:, None].expand_as(IMAGES)
    assert torch.equal(refined[known], IMAGES[known])
    assert (refined != IMAGES)[~known].float().mean() > 0.5


def test_a_hole_is_corrected_by_what_is_around_it_up_to_twenty_pixels_away():
    """The receptive field: the known pixels beside a hole matter, and so do some further off."""
    hole = torch.zeros(1, 64, 64, dtype=torch.bool)
    hole[:, 32, 32] = True
    pictures = normalise(IMAGES[:1]).requires_grad_()
    refiner()(pictures, hole)[0, :, 32, 32].sum().backward()
    seen = pictures.grad[0].abs().sum(0) > 0
    assert seen[32, 12] and seen[12, 32] and seen[32, 33]


def test_pictures_are_the_same_in_any_batch():
    assert torch.equal(refine(refiner(), IMAGES, HOLES, batch=5), refine(refiner(), IMAGES, HOLES, batch=64))


def test_it_learns_to_take_back_a_known_damage():
    """Holes are painted one shade too dark: what is to be learned is a constant."""
    damaged = torch.where(HOLES[:, None], (IMAGES.float() * 0.5).to(torch.uint8), IMAGES)
    config = RefinerConfig(steps=60, batch=8, lr=5e-3, warmup=5, ema=0.0)
    model = Refiner((8, 8, 8))
    losses = [step.loss for step in fit(model, RefinerObjective(damaged, IMAGES, HOLES, config, 0), config, seed=0)]
    before, after = (hole_psnr_db(x, IMAGES, HOLES) for x in (damaged, refine(model, damaged, HOLES)))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]) and after > before + 4


def test_the_loss_is_the_mean_absolute_error_of_missing_pixels_alone():
    config = RefinerConfig(steps=1, batch=24)
    objective = RefinerObjective(255 - IMAGES, IMAGES, HOLES, config, 0)
    loss, metrics = objective(Refiner((8, 8, 8)), 1, seeded())
    difference = (normalise(255 - IMAGES) - normalise(IMAGES)).abs().mean(1)
    torch.testing.assert_close(loss, difference[HOLES].mean())
    assert metrics.keys() == {"absolute"}


def test_it_comes_back_from_its_file(tmp_path):
    model = refiner()
    save_refiner(tmp_path / "refiner.safetensors", model, dataset="toycats")
    again = load_refiner(tmp_path / "refiner.safetensors")
    assert again.widths == (8, 8, 8) and not any(p.requires_grad for p in again.parameters())
    assert torch.equal(refine(again, IMAGES, HOLES), refine(model, IMAGES, HOLES))


@pytest.mark.parametrize(("meta", "message"), [
    ({"kind": "vqgan"}, "is not a refiner but 'vqgan'"),
    ({"kind": "refiner"}, "how wide the refiner's three levels are; found None"),
    ({"kind": "refiner", "widths": [8, 8]}, r"found \[8, 8\]"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, meta, message):
    save_tensors(tmp_path / "other.safetensors", refiner().state_dict(), meta)
    with pytest.raises(ValueError, match=message):
        load_refiner(tmp_path / "other.safetensors")


def test_refined_fills_see_no_pixel_under_the_hole_and_keep_all_others():
    pair, decode = untrained_pair(), DecodeConfig(steps=2, paste="refined")
    images, holes = IMAGES[:4], HOLES[:4]
    with pytest.raises(ValueError, match="decode.paste = refined needs a refiner"):
        inpaint_images(pair, images, holes, decode, 0)
    assert best_paste(pair.tokenizer) == "poisson"
    pair.tokenizer.refiner = refiner()
    assert best_paste(pair.tokenizer) == "refined"
    filled = inpaint_images(pair, images, holes, decode, 0)
    assert torch.equal(filled, inpaint_images(pair, fill_holes(images, holes, "mean"), holes, decode, 0))
    known = ~holes[:, None].expand_as(images)
    assert torch.equal(filled[known], images[known])
    pictures = images.flip(2)
    expected = refine(pair.tokenizer.refiner, paste_known(pictures, images, holes, "poisson"), holes)
    assert torch.equal(keep_known(pair.tokenizer, pictures, images, holes, "refined"), expected)
