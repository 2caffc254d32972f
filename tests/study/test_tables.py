"""A finished study as tables: every number from the room that measures it, and nothing that was not measured."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from stubs import Blocks, cats, untrained_pair

from lab5.config import DecodeConfig, StudyConfig
from lab5.data.dataset import token_mask
from lab5.data.holes import fill_holes
from lab5.inpainting.fill import baselines, decode_holes
from lab5.inpainting.pair import Pair
from lab5.runtime import files
from lab5.scoring.predictions import calibration_error
from lab5.scoring.scores import Scorer, Scores
from lab5.show.study_figures import calibration_figure, claims_figure, study_figures
from lab5.study import plans
from lab5.study.claims import Direction, Verdict
from lab5.study.networks import Network, validation_loss
from lab5.study.run import GIVEN, SETTINGS, Plan, Result, run_study
from lab5.study.tables import (
    Findings,
    artefacts,
    baseline_table,
    claim_table,
    diversity,
    effect_table,
    find,
    halves,
    losses_along,
    luck,
    network_table,
    prediction_table,
    predictions,
    read_table,
    result_table,
    schedule_differences,
    summary,
    verdict_text,
    write_table,
)

STUDY = StudyConfig(schedules=("cosine", "linear"), steps=(1, 3), seeds=2)
DECODE = DecodeConfig(batch=4)
GRID = plans.quick(STUDY, DECODE)
COLUMNS = ["network", *SETTINGS, "seed", "n", "weights", "data", "score_name", "code", "device", "stop_at", "seconds"]
COLUMNS += [name for name in Scores._fields if name != "n"]


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
def results(pair, scorer) -> list[Result]:
    return list(run_study(pair, scorer, GRID.plans, seeds=2))


@pytest.fixture(scope="module")
def findings(results, scorer, pair) -> Findings:
    return find(GRID, results, scorer, pair)


def records(table: pd.DataFrame, key: str) -> dict[str, dict]:
    """The rows of a table by one of their columns."""
    return {row[key]: row for row in table.to_dict("records")}


# --- results --------------------------------------------------------------------------------------------------------


def test_a_table_of_results_has_a_row_for_every_stop(results):
    table = result_table(results)
    assert list(table) == COLUMNS
    assert len(table) == sum(len(result.rows) for result in results)
    assert table["stop_at"].tolist() == 2 * [1, 1, 2, 3, 1, 2, 3] and table["seed"].tolist() == 7 * [0] + 7 * [1]
    for column in ("score", "kid", "schedule"):
        assert table[column].tolist() == [row[column] for result in results for row in result.rows]


def test_a_table_is_read_as_it_was_written(results, tmp_path):
    table, file = result_table(results), tmp_path / "new" / "study.csv"
    write_table(file, table)
    never = table["attribute_accuracy"]
    assert never.isna().all(), "nothing reads attributes here"
    assert_frame_equal(read_table(file), table.assign(attribute_accuracy=never.astype(float)), check_exact=True)
    for code in ("12345678", "00123456", "1234e567"):
        write_table(file, table.assign(code=code))
        assert set(read_table(file)["code"]) == {code}
    assert [path.name for path in file.parent.iterdir()] == ["study.csv"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(results, tmp_path, monkeypatch):
    table, file = result_table(results[:1]), tmp_path / "study.csv"
    write_table(file, table)
    before = file.read_bytes()
    monkeypatch.setattr(files.os, "replace", lambda *args: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="study.csv could not be written"):
        write_table(file, pd.concat([table, table]))
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["study.csv"]


TABLE = pd.DataFrame([
    {"schedule": schedule, "steps": 4, "seed": seed, "score": score, "hole_psnr_db": 10.0}
    for schedule, scores in {"cosine": (1.0, 3.0), "linear": (2.0, 5.0)}.items()
    for seed, score in enumerate(scores)
])  # fmt: skip


def test_a_summary_is_mean_and_sample_deviation_in_order_of_appearance():
    cosine, linear = summary(TABLE, ("schedule", "steps")).to_dict("records")
    assert cosine == {
        "schedule": "cosine", "steps": 4, "seeds": 2, "score_mean": 2.0, "score_sd": pytest.approx(2**0.5),
        "hole_psnr_db_mean": 10.0, "hole_psnr_db_sd": 0.0,
    }  # fmt: skip
    assert linear["score_mean"] == 3.5
    assert summary(TABLE[::-1], ["schedule"])["schedule"].tolist() == ["linear", "cosine"]
    assert summary(TABLE[TABLE["seed"] == 0], ["schedule"])["score_sd"].tolist() == [0, 0], "one seed has no deviation"


def test_differences_are_paired_by_seed():
    (line,) = schedule_differences(TABLE[::-1]).to_dict("records")
    # linear minus cosine: 1 and 2, so 1.5 with a deviation of sqrt(1/2) and an error of 1/2
    assert (line["steps"], line["first"], line["second"], line["seeds"]) == (4, "linear", "cosine", 2)
    assert line["mean"] == 1.5 and line["standard_error"] == pytest.approx(0.5)
    (alone,) = schedule_differences(TABLE[:3]).to_dict("records")
    assert (alone["seeds"], alone["mean"]) == (1, -1) and pd.isna(alone["standard_error"]), "of the seed that both have"


# --- effects and claims ---------------------------------------------------------------------------------------------


def test_effects_are_the_mean_differences_of_the_rows(findings, results):
    table = result_table(results)
    ends = table[table["stop_at"] == table["steps"]].groupby("schedule")
    row = records(effect_table(findings), "comparison")["cosine − linear, T = 3"]
    for column in ("kid", "score", "hole_psnr_db"):
        mean = ends[column].mean()
        assert row[column] == pytest.approx(mean["cosine"] - mean["linear"], rel=1e-4, abs=1e-6)
        assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
    assert (row["n"], row["seeds"], row["question"]) == (6, 2, "schedule")
    assert luck(findings).comparisons == len(findings.effects) == len(GRID.comparisons) == len(effect_table(findings))


def test_baselines_are_the_scores_of_their_pictures(findings, scorer, pair):
    rows = records(baseline_table(findings), "method")
    pictures = baselines(scorer.truth, scorer.holes, pair.tokenizer)
    assert list(rows) == list(pictures)
    for name, images in pictures.items():
        assert rows[name] == {"method": name} | scorer(images)._asdict()
    assert findings.margin == pytest.approx(0.05 * abs(rows["do_nothing"]["kid"] - rows["reconstruction"]["kid"]))


def test_claims_that_were_not_measured_have_no_numbers(findings):
    table = claim_table(findings)
    rows = records(table, "claim")
    measured, missing = rows["cosine is the best schedule"], rows["a loss on all tokens trains better"]
    assert not any(pd.isna(value) for value in measured.values())
    assert all(pd.isna(missing[name]) for name in ("n", "seeds", "kid", "kid_low", "score", "hole_psnr_db_high"))
    assert missing["verdict"] == Verdict.NOT_MEASURED and missing["comparisons"] == 0
    assert table["n"].dropna().unique().tolist() == [6] and (table["n"].dtype, table["seeds"].dtype) == ("Int64",) * 2


def test_of_several_findings_the_first_that_has_measured_a_claim_counts(findings, pair, scorer):
    nothing = find(GRID, [], scorer, pair)
    assert_frame_equal(claim_table(nothing, findings), claim_table(findings))
    assert_frame_equal(claim_table(findings, nothing), claim_table(findings))
    assert "kid" not in claim_table(nothing) and effect_table(nothing).empty
    assert luck(nothing, findings) == luck(findings)


def test_only_a_claim_that_does_not_hold_is_an_artefact_and_only_where_the_mistake_makes_it():
    helps, hurts = "stopping early, at a sweet spot, helps", "iterating hurts: all at once is better"
    claims = pd.DataFrame({"claim": [helps, hurts], "verdict": ["does not hold", "holds"],
                           "direction": ["no effect", "worse"], "pitfall": 0})  # fmt: skip
    before = claims.copy()
    changed = artefacts(claims, {1: True, 3: True})
    assert changed["verdict"].tolist() == [Verdict.ARTEFACT, Verdict.HOLDS] and changed["pitfall"].tolist() == [1, 0]
    for made_by in ({1: False}, {}):
        assert_frame_equal(artefacts(claims, made_by), before)
    assert_frame_equal(claims, before)


@pytest.mark.parametrize("row, text", [
    ({"verdict": Verdict.HOLDS, "direction": Direction.BETTER}, "holds"),
    ({"verdict": Verdict.FAILS, "direction": Direction.WORSE}, "does not hold: worse"),
    ({"verdict": "does not hold", "direction": "no effect"}, "does not hold: no effect"),
    ({"verdict": Verdict.OPEN, "direction": Direction.UNKNOWN}, "not decided at this n"),
    ({"verdict": Verdict.NOT_MEASURED, "direction": Direction.UNKNOWN}, "not measured by this grid"),
    ({"verdict": "artefact", "direction": "no effect", "pitfall": 14}, "artefact of pitfall 14"),
])  # fmt: skip
def test_a_verdict_is_told_in_words(row, text):
    assert verdict_text({"pitfall": 0} | row) == text


def test_the_tables_say_in_plain_words_what_the_findings_hold(findings, tmp_path):
    claims, effects = claim_table(findings), effect_table(findings)
    for table, column in ((claims, "verdict"), (claims, "direction"), (effects, "verdict"), (effects, "question")):
        assert {type(word) for word in table[column]} == {str}
    assert claims["verdict"].tolist() == [one.verdict for one in findings.judgements]
    write_table(tmp_path / "claims.csv", claims)
    again = read_table(tmp_path / "claims.csv")
    assert [verdict_text(row) for row in again.to_dict("records")] == [
        verdict_text(row) for row in claims.to_dict("records")
    ]  # fmt: skip


# --- a network by itself --------------------------------------------------------------------------------------------


def test_predictions_tell_of_one_shot_guesses_at_the_true_tokens(pair, scorer):
    predicted = predictions(pair, scorer, DECODE)
    tokens, unknown = pair.tokenizer.encode(fill_holes(scorer.truth, scorer.holes, "grey")), token_mask(scorer.holes)
    true = pair.tokenizer.encode(scorer.truth)
    with torch.no_grad():
        logits = pair.transformer(tokens.masked_fill(unknown, pair.transformer.mask_id))
    log_p = logits[..., : pair.transformer.mask_id].log_softmax(-1)[unknown]
    nats = -log_p.gather(1, true[unknown][:, None]).mean()
    assert predicted.bits_one_shot == pytest.approx(float(nats / torch.tensor(2.0).log()), rel=1e-4)
    assert sum(b.n for b in predicted.bins) == int(unknown.sum())
    assert predicted.calibration_error == calibration_error(predicted.bins)
    alike, one_by_one = (predictions(pair, scorer, replace(DECODE, batch=batch)) for batch in (100, 1))
    for other in (alike, one_by_one):
        assert other.bits_one_shot == pytest.approx(predicted.bits_one_shot), "whatever the batch"
        assert other.bits_in_steps == pytest.approx(predicted.bits_in_steps)
    (row,) = prediction_table({"tokens": predicted}).to_dict("records")
    assert row["bits per token, one shot"] == predicted.bits_one_shot
    assert calibration_figure({"tokens": predicted}, "").axes


def test_diversity_is_of_the_last_stop_of_plans_with_two_seeds(pair, scorer, results):
    rows = diversity(results, scorer).to_dict("records")
    assert [(row["schedule"], row["T"], row["seeds"]) for row in rows] == [
        ("one_shot", 1, 2), ("cosine", 3, 2), ("linear", 3, 2),
    ]  # fmt: skip
    decode = replace(DECODE, schedule="linear", steps=3)
    first, second = (list(decode_holes(pair, scorer.truth, scorer.holes, decode, seed))[-1].filled for seed in (0, 1))
    apart = (first != second)[token_mask(scorer.holes)].double().mean()
    assert rows[2]["share of tokens that differ"] == pytest.approx(float(apart))
    assert diversity(results[:3], scorer).empty


def test_halves_of_the_truth_are_far_apart_in_one_distance_only(scorer):
    kid, score = halves(scorer).to_dict("records")
    assert kid["images in a half"] == score["images in a half"] == 3
    assert abs(kid["mean"]) < 2 * kid["SD"] + 1e-6 and score["mean"] > 0


def test_networks_stand_with_their_loss_and_steps(pair, scorer, dataset):
    pairs = {GIVEN: pair, "a @ 2": pair, "a": pair, "b": pair}
    networks = [Network("a", {}, stops=(2,)), Network("b", {})]
    plan = Plan(replace(DECODE, steps=2))
    results = list(run_study(pairs, scorer, [plan._replace(network=name) for name in pairs], seeds=2))
    table = network_table(networks, pairs, results, dataset, steps=9)
    rows = table.to_dict("records")
    assert [(row["network"], row["training"], row["steps"], row["seeds"]) for row in rows] == [
        ("a @ 2", "a", 2, 2), ("a", "a", 9, 2), ("b", "b", 9, 2),
    ]  # fmt: skip
    assert rows[0]["val_loss_nats"] == validation_loss(pair, dataset)
    assert rows[0]["kid"] == pytest.approx((results[1].rows[0]["kid"] + results[5].rows[0]["kid"]) / 2)
    (name, looks), *others = losses_along(table).items()
    assert (name, others) == ("a", [])
    assert looks[["steps", "val_loss_nats", "kid"]].to_numpy().tolist() == [
        [step, rows[0]["val_loss_nats"], rows[0]["kid"]] for step in (2, 9)
    ]  # fmt: skip
    assert losses_along(table[2:]) == {} == losses_along(network_table([], pairs, [], dataset, steps=9))


def test_looks_along_a_training_are_those_of_one_way_of_decoding_in_the_order_of_the_steps(pair, scorer, dataset):
    pairs = {GIVEN: pair, "a @ 2": pair, "a @ 5": pair, "a": pair}
    way = Plan(replace(DECODE, steps=2))
    several = [way._replace(network=name) for name in ("a", "a @ 5", "a @ 2")]
    several += [Plan(replace(DECODE, steps=2, schedule="linear"), network="a"), Plan(DECODE, (1, 2), "a")]
    several += [Plan(DECODE, (1, 3), "a")]
    results = list(run_study(pairs, scorer, several, seeds=1))
    table = network_table([Network("a", {}, stops=(2, 5))], pairs, results, dataset, steps=9)
    assert len(table) == len(several), "another schedule or another last stop is another way of decoding"
    looks = losses_along(table[:4])["a"]
    assert looks["steps"].tolist() == [2, 5, 9] and set(looks["schedule"]) == {"cosine"}


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_drawn_of_what_there_is(findings):
    effects, claims = effect_table(findings), claim_table(findings)
    few = effects.assign(n=[3, *effects["n"][1:]], seeds=[1, *effects["seeds"][1:]])
    figures = study_figures(few, claims, pd.DataFrame(), "weights of ours")
    assert list(figures) == ["claims", "schedules"]
    captions = [" ".join(text.get_text() for text in figure.texts) for figure in figures.values()]
    assert "n = 6, 2 seeds, weights of ours" in captions[0]
    assert "n = 6 and 3, 2 and 1 seeds, weights of ours" in captions[1]
    texts = {artist.get_text() for artist in figures["schedules"].axes[0].texts}
    assert any("cosine − linear, T = 3" in line for line in texts)
    lines = " ".join(artist.get_text() for artist in claims_figure(claims, "").axes[0].texts)
    assert all(claim in lines for claim in claims.dropna(subset="kid")["claim"]) and "loss on all" not in lines


def test_without_results_there_are_no_figures(pair, scorer):
    nothing = find(GRID, [], scorer, pair)
    assert study_figures(effect_table(nothing), claim_table(nothing), pd.DataFrame(), "weights of ours") == {}
