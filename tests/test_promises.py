"""Start here: what the package promises, each as one short test that says where the details are tested."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from stubs import Blocks, K, Table, a_batch, cats, named, per_image, seeded, untrained_pair, walk
from torch import nn
from torch.nn import functional as F

from lab5.attention import MultiHeadAttention, PerHeadAttention
from lab5.checkpoint import load_transformer
from lab5.cli.main import main
from lab5.config import DecodeConfig, TrainConfig
from lab5.data.dataset import token_mask
from lab5.data.holes import fill_holes
from lab5.decoder import decode_steps, inpaint
from lab5.fid import frechet_distance, kid
from lab5.gamma import SCHEDULES, gamma, masked_counts
from lab5.inpainting.fill import inpaint_images
from lab5.masking import mvtm_mask
from lab5.objectives import masked_cross_entropy
from lab5.pitfalls.catalogue import PITFALLS
from lab5.profiles import configure
from lab5.samplers import ORDERS
from lab5.scoring.classifier import EncoderFeatures, ToyFeatures
from lab5.scoring.imagenet import ImageNetFeatures
from lab5.scoring.scores import Scorer
from lab5.trainer import fit
from lab5.variants import decode

# --- decoding ---------------------------------------------------------------------------------------------------------

EVERY_WAY = [{"order": order} for order in ORDERS] + [{"budget": "entropy"}, {"remask": 0.1}, {"rounds": 1}]


@pytest.mark.parametrize("settings", EVERY_WAY, ids=lambda settings: "-".join(map(str, *settings.items())))
def test_known_tokens_never_change_and_in_the_end_nothing_is_masked(settings):
    """Details: test_decoder.py, test_variants.py, test_properties.py"""
    tokens, unknown = a_batch()
    states = walk(decode, Table(), tokens, unknown, **settings)
    assert all(torch.equal(state.tokens[~unknown], tokens[~unknown]) for state in states)
    assert not states[-1].masked.any()


def test_the_mask_id_is_never_predicted_however_sure_the_model_is_of_it():
    """Details: test_decoder.py"""
    sure_of_it = named(lambda tokens: F.pad(Table()(tokens), (0, 1), value=1e9))
    assert inpaint(sure_of_it, *a_batch(), generator=seeded()).max() < K


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_image_keeps_as_many_tokens_masked_as_the_schedule_says(schedule):
    """Details: test_gamma.py, test_decoder.py"""
    tokens, unknown = a_batch()
    counts = masked_counts(schedule, 5, unknown.sum(1))
    states = walk(decode_steps, Table(), tokens, unknown, schedule=schedule, steps=5)
    assert [state.masked.sum(1).tolist() for state in states[1:]] == [count.tolist() for count in counts]


def test_a_schedule_falls_from_all_to_nothing_and_the_cosine_is_maskgits():
    """Details: test_gamma.py"""
    assert all(gamma(name, 0.0) == 1 and gamma(name, 1.0) == 0 for name in SCHEDULES)
    assert gamma("cosine", 1 / 3) == pytest.approx(math.cos(math.pi / 6))
    assert masked_counts("cosine", 4, 100) == [92, 70, 38, 0]


def test_what_lies_under_the_hole_is_never_looked_at():
    """Details: test_properties.py, inpainting/test_fill.py"""
    tokens, unknown = a_batch()
    right = inpaint(Table(), tokens, unknown, generator=seeded())
    assert torch.equal(inpaint(Table(), tokens.masked_fill(unknown, 0), unknown, generator=seeded()), right)


def test_one_image_gets_the_same_fill_in_any_batch():
    """Details: test_decoder.py, inpainting/test_fill.py"""
    tokens, unknown = a_batch()
    together = inpaint(Table(), tokens, unknown, generator=per_image())
    alone = [inpaint(Table(), tokens[i : i + 1], unknown[i : i + 1], generator=[seeded(i)]) for i in range(len(tokens))]
    assert torch.equal(together, torch.cat(alone))


def test_the_seed_alone_decides_and_the_callers_tensors_stay_as_they_are():
    """Details: test_repeatable.py"""
    tokens, unknown = a_batch()
    before, stream = (tokens.clone(), unknown.clone()), torch.get_rng_state()
    first, again, other = (inpaint(Table(), tokens, unknown, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(tokens, before[0]) and torch.equal(unknown, before[1])
    assert torch.equal(torch.get_rng_state(), stream), "nothing is drawn from the stream of the process"


# --- attention and training -------------------------------------------------------------------------------------------


def test_attention_by_hand_is_torchs_own():
    """Details: test_attention.py"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = MultiHeadAttention(12, heads=3)
    x = torch.randn(2, 5, 12, generator=seeded())
    right = ours.to_torch()(x, x, x)[0]
    torch.testing.assert_close(ours(x), right)
    torch.testing.assert_close(PerHeadAttention.from_fused(ours)(x), right)


def test_a_training_hides_exactly_as_many_tokens_as_were_drawn_for_each_image():
    """Details: test_masking.py"""
    tokens = torch.zeros(50, 16, dtype=torch.int64)
    assert mvtm_mask(tokens, "count:0.25", seeded()).sum(1).tolist() == [4] * 50
    assert len(mvtm_mask(tokens, "cosine", seeded()).sum(1).unique()) > 8


class Answers(nn.Module):
    """A transformer that gives these logits, whatever it is shown."""

    mask_id = K

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.logits[hidden]


def test_the_loss_is_the_cross_entropy_of_the_hidden_tokens_over_the_codes():
    """Details: test_objectives.py"""
    tokens, hidden = a_batch()
    logits = torch.randn(*tokens.shape, K + 1, generator=seeded())
    loss, _ = masked_cross_entropy(Answers(logits), tokens, hidden)
    assert loss.item() == pytest.approx(F.cross_entropy(logits[hidden][:, :K], tokens[hidden]).item())
    loss, _ = masked_cross_entropy(Answers(torch.zeros_like(logits)), tokens, hidden)
    assert loss.item() == pytest.approx(math.log(K)), "a guess among the K codes, the mask id not among them"


def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path):
    """Details: runtime/test_states.py, runtime/test_kill.py"""

    def objective(model, draw, generator):
        return model(torch.randn(4, 3, generator=generator)).square().mean(), {}

    def train(until: int, path: Path) -> nn.Module:
        model = nn.Linear(3, 3, bias=False)
        nn.init.eye_(model.weight)
        settings = TrainConfig(steps=6, batch=4, warmup=1)
        for step in fit(model, objective, settings, seed=0, save_to=path, save_every=0.0):
            if step.step == until:
                break
        return model

    train(3, tmp_path / "stopped")
    stopped, whole = train(6, tmp_path / "stopped"), train(6, tmp_path / "whole")
    assert torch.equal(stopped.weight, whole.weight)


# --- images -----------------------------------------------------------------------------------------------------------


def test_a_token_with_one_missing_pixel_is_unknown():
    """Details: test_properties.py, data/test_dataset.py"""
    hole = torch.zeros(1, 64, 64, dtype=torch.bool)
    hole[0, 7, 4] = True  # a corner of the token in row 1, column 1
    assert token_mask(hole).nonzero().tolist() == [[0, 16 + 1]]


def test_hidden_pixels_change_no_picture_and_known_ones_can_be_kept(tmp_path):
    """Details: inpainting/test_fill.py, data/test_holes.py"""
    data, pair = cats(2, tmp_path), untrained_pair()
    decoding = DecodeConfig(steps=2, fill="telea", paste="poisson")
    filled = inpaint_images(pair, data.test, data.holes, decoding, seed=0)
    grey = fill_holes(data.test, data.holes, "grey")
    assert torch.equal(inpaint_images(pair, grey, data.holes, decoding, seed=0), filled)
    known = ~data.holes[:, None].expand_as(filled)
    assert torch.equal(filled[known], data.test[known])


# --- scores -----------------------------------------------------------------------------------------------------------


def test_the_frechet_distance_is_the_formula_computed_with_scipy():
    """Details: test_fid.py, test_properties.py"""
    a, b = (torch.randn(n, 5, generator=seeded(n), dtype=torch.float64).numpy() for n in (40, 30))
    (m, s), (o, r) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    expected = ((m - o) ** 2).sum() + np.trace(s + r - 2 * scipy.linalg.sqrtm(s @ r).real)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_a_set_has_no_distance_to_itself():
    """Details: test_fid.py"""
    a = torch.randn(20, 5, generator=seeded(), dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9) and kid(a, a, paired=True) == pytest.approx(0, abs=1e-9)


def test_nothing_is_called_fid_that_inception_has_not_measured(tmp_path):
    """Details: scoring/test_inception.py, scoring/test_imagenet.py, scoring/test_classifier.py"""
    ours = [ToyFeatures, EncoderFeatures, ImageNetFeatures, Scorer(cats(2, tmp_path), Blocks())]
    names = [network.score_name for network in ours]
    assert not [name for name in names if "FID" in name]


def test_the_eighteen_pitfalls_of_the_lab_are_all_caught():
    """Details: pitfalls/test_catalogue.py"""
    for pitfall in PITFALLS.values():
        with pytest.raises(AssertionError):
            pitfall.check(pitfall.wrong)
    assert len(PITFALLS) == 18


# --- files and commands -----------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence_and_exit_code_2_and_nothing_is_written(tmp_path, capsys):
    """Details: test_malformed.py, test_fuzz.py, cli/test_main.py"""
    assert main(["inpaint", "--data", str(tmp_path / "no cats"), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(r"lab5: .*no cats does not exist[^\n]*\n", err) and out == ""
    assert list(tmp_path.iterdir()) == []


class Harmful:
    def __reduce__(self):
        return (sys.exit, (3,))


def test_a_file_from_outside_never_runs_code(tmp_path):
    """Details: test_checkpoint.py, test_malformed.py"""
    torch.save(Harmful(), tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load_transformer(tmp_path / "theirs.pt")


def test_a_setting_is_refused_at_the_door_by_what_its_own_field_says():
    """Details: test_config.py, test_decoder.py"""
    with pytest.raises(ValueError, match="decode.steps must be at least 1, not 0"):
        configure("smoke", **{"decode.steps": 0})
    with pytest.raises(ValueError, match="decode.schedule must be one of .*cosine"):
        configure("smoke", **{"decode.schedule": "cosinus"})


def test_the_notebooks_are_stored_without_outputs_and_numbered():
    """Details: report/test_notebooks.py, report/test_browser.py"""
    notebooks = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
    cells = [cell for path in notebooks for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert [path.name[:2] for path in notebooks] == ["01", "02", "03", "04", "05"]
    assert not any(cell.get("outputs") for cell in cells)


def test_every_promise_on_this_page_says_where_its_details_are():
    here, named_files = Path(__file__).parent, []
    promises = {name: test for name, test in globals().items() if name.startswith("test_")}
    for test in list(promises.values())[:-1]:
        named_files += test.__doc__.removeprefix("Details: ").split(", ")
    assert not [name for name in named_files if not (here / name).exists()]
