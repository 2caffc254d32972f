"""What a study found, as rows: every number from the room that measures it, and nothing that was not measured."""

from dataclasses import replace

import pytest
import torch
from stubs import Blocks, cats, untrained_pair

from lab5.config import DecodeConfig, StudyConfig
from lab5.data.dataset import token_mask
from lab5.inpainting.fill import baselines, decode_holes
from lab5.inpainting.pair import Pair
from lab5.scoring.predictions import calibration_error
from lab5.scoring.scores import Scorer
from lab5.show.study_figures import calibration_figure, claims_figure, study_figures
from lab5.study import plans as grids
from lab5.study.findings import (
    artefacts,
    baseline_rows,
    claim_rows,
    diversity,
    effect_rows,
    find,
    halves,
    losses_along,
    luck,
    network_rows,
    prediction_rows,
    predictions,
)
from lab5.study.networks import validation_loss
from lab5.study.run import GIVEN, Plan, run_study

STUDY = StudyConfig(schedules=("cosine", "linear"), steps=(1, 3), seeds=2)
DECODE = DecodeConfig(batch=4)
GRID = grids.quick(STUDY, DECODE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return cats(6, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return untrained_pair()


@pytest.fixture(scope="module")
def scorer(dataset, pair) -> Scorer:
    return Scorer(dataset, Blocks(), tokenizer=pair.tokenizer)


@pytest.fixture(scope="module")
def results(pair, scorer) -> list:
    return list(run_study(pair, scorer, GRID.plans, seeds=2))


@pytest.fixture(scope="module")
def found(results, scorer, pair):
    return find(GRID, results, scorer, pair)


def test_effects_are_the_mean_differences_of_the_rows(found, results):
    rows = [row for result in results for row in result.rows if row["stop_at"] == row["steps"]]

    def mean(schedule, column):
        values = [row[column] for row in rows if row["schedule"] == schedule]
        return sum(values) / len(values)

    (row,) = [row for row in effect_rows(found) if row["comparison"] == "cosine − linear, T = 3"]
    for column in ("kid", "score", "hole_psnr_db"):
        assert row[column] == pytest.approx(mean("cosine", column) - mean("linear", column), rel=1e-4, abs=1e-6)
        assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
    assert (row["n"], row["seeds"], row["question"]) == (6, 2, "schedule")
    assert luck(found).comparisons == len(found.effects) == len(GRID.comparisons)


def test_baselines_are_the_scores_of_their_pictures(found, scorer, pair):
    rows = {row["method"]: row for row in baseline_rows(found)}
    pictures = baselines(scorer.truth, scorer.holes, pair.tokenizer)
    assert list(rows) == list(pictures)
    for name, images in pictures.items():
        assert rows[name] == {"method": name} | scorer(images)._asdict()
    assert found.margin == pytest.approx(0.05 * abs(rows["do_nothing"]["kid"] - rows["reconstruction"]["kid"]))


def test_claims_that_were_not_measured_have_no_numbers(found):
    rows = {row["claim"]: row for row in claim_rows(found)}
    assert rows["cosine is the best schedule"].keys() >= {"kid", "kid_low", "verdict", "n", "margin"}
    assert "kid" not in rows["a loss on all tokens trains better"]
    assert rows["a loss on all tokens trains better"]["verdict"] == "not measured by this grid"


def test_of_several_findings_the_first_that_has_measured_a_claim_counts(found, pair, scorer):
    nothing = find(GRID, [], scorer, pair)
    assert claim_rows(nothing, found) == claim_rows(found) == claim_rows(found, nothing)
    assert not any("kid" in row for row in claim_rows(nothing))
    assert luck(nothing, found) == luck(found)


def test_only_a_claim_that_does_not_hold_is_an_artefact_and_only_where_the_mistake_makes_it():
    helps, hurts = "stopping early, at a sweet spot, helps", "iterating hurts: all at once is better"
    rows = [{"claim": helps, "verdict": "does not hold: no effect"}, {"claim": hurts, "verdict": "holds"}]
    assert [row["verdict"] for row in artefacts(rows, {1: True, 3: True})] == ["artefact of pitfall 1", "holds"]
    assert artefacts(rows, {1: False}) == rows == artefacts(rows, {})


def test_predictions_tell_of_one_shot_guesses_at_the_true_tokens(pair, scorer):
    told = predictions(pair, scorer, DECODE)
    holed, unknown = pair.tokenizer.encode_holed(scorer.truth, scorer.holes, "grey")
    true = pair.tokenizer.encode(scorer.truth)
    with torch.no_grad():
        logits = pair.transformer(holed.masked_fill(unknown, pair.transformer.mask_id))
    log_p = logits[..., : pair.transformer.mask_id].log_softmax(-1)[unknown]
    nats = -log_p.gather(1, true[unknown][:, None]).mean()
    assert told.bits_one_shot == pytest.approx(float(nats / torch.tensor(2.0).log()), rel=1e-4)
    assert sum(b.n for b in told.bins) == int(unknown.sum())
    assert told.calibration_error == calibration_error(told.bins)
    alike, one_by_one = (predictions(pair, scorer, replace(DECODE, batch=batch)) for batch in (100, 1))
    for other in (alike, one_by_one):
        assert other.bits_one_shot == pytest.approx(told.bits_one_shot), "whatever the batch"
        assert other.bits_in_steps == pytest.approx(told.bits_in_steps)
    (row,) = prediction_rows({"tokens": told})
    assert row["bits per token, one shot"] == told.bits_one_shot
    assert calibration_figure({"tokens": told}, "").axes


def test_diversity_is_of_the_last_stop_of_plans_with_two_seeds(pair, scorer, results):
    rows = diversity(results, scorer)
    assert [(row["schedule"], row["T"], row["seeds"]) for row in rows] == [
        ("one_shot", 1, 2), ("cosine", 3, 2), ("linear", 3, 2),
    ]  # fmt: skip
    decode = replace(DECODE, schedule="linear", steps=3)
    first, second = (list(decode_holes(pair, scorer.truth, scorer.holes, decode, seed))[-1].filled for seed in (0, 1))
    apart = (first != second)[token_mask(scorer.holes)].double().mean()
    assert rows[2]["share of tokens that differ"] == pytest.approx(float(apart))
    assert diversity(results[:3], scorer) == []


def test_halves_of_the_truth_are_far_apart_in_one_distance_only(scorer):
    kid, score = halves(scorer)
    assert kid["images in a half"] == score["images in a half"] == 3
    assert abs(kid["mean"]) < 2 * kid["SD"] + 1e-6 and score["mean"] > 0


def test_networks_stand_with_their_loss_and_steps(pair, scorer, dataset):
    pairs = {GIVEN: pair, "a @ 2": pair, "a": pair, "b": pair}
    plan = Plan(replace(DECODE, steps=2))
    results = list(run_study(pairs, scorer, [plan._replace(network=name) for name in pairs], seeds=1))
    rows = network_rows(pairs, results, dataset, steps=9)
    assert [(row["network"], row["steps"]) for row in rows] == [("a @ 2", 2), ("a", 9), ("b", 9)]
    assert rows[0]["val_loss_nats"] == validation_loss(pair, dataset) and rows[0]["kid"] == results[1].rows[0]["kid"]
    along = losses_along(rows)
    assert along == {"a": [(step, rows[0]["val_loss_nats"], rows[0]["kid"]) for step in (2, 9)]}
    assert losses_along(rows[2:]) == {}


def test_figures_are_drawn_of_what_there_is(found):
    rows = effect_rows(found)
    few = [rows[0] | {"n": 3, "seeds": 1}, *rows[1:]]
    drawn = study_figures(few, claim_rows(found), [], "weights of ours")
    assert list(drawn) == ["claims", "schedules"]
    captions = [" ".join(text.get_text() for text in figure.texts) for figure in drawn.values()]
    assert "n = 6, 2 seeds, weights of ours" in captions[0]
    assert "n = 6 and 3, 2 and 1 seeds, weights of ours" in captions[1]
    text = {artist.get_text() for artist in drawn["schedules"].axes[0].texts}
    assert any("cosine − linear, T = 3" in line for line in text)
    measured = [row for row in claim_rows(found) if "kid" in row]
    lines = " ".join(artist.get_text() for artist in claims_figure(claim_rows(found), "").axes[0].texts)
    assert all(row["claim"] in lines for row in measured) and "loss on all" not in lines
