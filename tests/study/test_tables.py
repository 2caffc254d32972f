"""A finished study as tables: every number from the room that measures it, and nothing that was not measured."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from stubs import Blocks, cats, untrained_pair
from torch.nn.functional import cross_entropy

from lab5.config import DecodeConfig, StudyConfig
from lab5.data.dataset import token_mask
from lab5.data.holes import fill_holes
from lab5.inpainting.fill import baselines, decode_holes
from lab5.inpainting.pair import Pair
from lab5.scoring.predictions import calibration_error
from lab5.scoring.scores import Scorer, Scores
from lab5.show.study_figures import calibration_figure, claims_figure, study_figures
from lab5.study import plans, tables
from lab5.study.claims import Direction, Verdict
from lab5.study.networks import Network, validation_loss
from lab5.study.run import GIVEN, SETTINGS, Plan, Result, of_training, run_study
from lab5.study.tables import Findings

STUDY = StudyConfig(schedules=("cosine", "linear"), steps=(1, 3), seeds=2)
DECODE = DecodeConfig(batch=4)
GRID = plans.quick(STUDY, DECODE)
COLUMNS = ["network", *SETTINGS, "seed", "n", "weights", "data", "score_name", "code", "device"]
COLUMNS += ["stop_at", "seconds", "steps_used", *(name for name in Scores._fields if name != "n")]


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
    return tables.find(GRID, results, scorer, pair)


def records(table: pd.DataFrame, key: str) -> dict[str, dict]:
    """The rows of a table by one of their columns."""
    return {row[key]: row for row in table.to_dict("records")}


# --- results --------------------------------------------------------------------------------------------------------


def test_a_table_of_results_has_a_row_for_every_stop(results):
    table = tables.result_table(results)
    assert list(table) == COLUMNS
    assert table["stop_at"].tolist() == 2 * [1, 1, 2, 3, 1, 2, 3] and table["seed"].tolist() == 7 * [0] + 7 * [1]
    for column in ("score", "schedule"):
        assert table[column].tolist() == [row[column] for result in results for row in result.rows]


def test_a_ranking_paints_the_same_pictures_again_and_scores_them_by_another_network(results, scorer, dataset, pair):
    class Brightness:
        score_name = "brightness"

        def features(self, images):
            return images.mean(dim=(2, 3)) ** 2

    rows = result_of(0, results)
    same = tables.ranking(results, Scorer(dataset, Blocks()), pair.tokenizer)
    assert len(same) == len(rows) and same["kid_also"].tolist() == pytest.approx(same["kid"].tolist())
    assert same["kid"].tolist() == [row["kid"] for row in rows]
    other = tables.ranking(results, also := Scorer(dataset, Brightness()), pair.tokenizer)
    *_, last = decode_holes(pair, also.truth, also.holes, replace(GRID.plans[-1].decode, stop_at=0), 0)
    assert other["kid_also"].iloc[-1] == pytest.approx(also(pair.tokenizer.decode(last.filled)).kid)
    assert other["kid_also"].tolist() != pytest.approx(same["kid"].tolist())


def result_of(seed: int, results: list[Result]) -> list[dict]:
    return [row for result in results if result.seed == seed for row in result.rows]


def test_a_table_is_read_as_it_was_written(results, tmp_path):
    table, file = tables.result_table(results), tmp_path / "new" / "study.csv"
    tables.write_table(file, table)
    never = table["attribute_accuracy"]
    assert never.isna().all(), "nothing reads attributes here"
    assert_frame_equal(tables.read_table(file), table.assign(attribute_accuracy=never.astype(float)), check_exact=True)
    for code in ("12345678", "00123456", "1234e567"):
        tables.write_table(file, table.assign(code=code))
        assert set(tables.read_table(file)["code"]) == {code}


def test_a_table_that_cannot_be_written_leaves_the_old_one(results, tmp_path, disk_of):
    file = tmp_path / "study.csv"
    tables.write_table(file, tables.result_table(results[:1]))
    before = file.read_bytes()
    with disk_of(len(before)), pytest.raises(OSError, match="study.csv could not be written"):
        tables.write_table(file, tables.result_table(results))
    assert file.read_bytes() == before


TABLE = pd.DataFrame([
    {"schedule": schedule, "steps": 4, "seed": seed, "score": score, "hole_psnr_db": 10.0}
    for schedule, scores in {"cosine": (1.0, 3.0), "linear": (2.0, 5.0)}.items()
    for seed, score in enumerate(scores)
])  # fmt: skip


def test_a_summary_is_mean_and_sample_deviation_in_order_of_appearance():
    cosine, linear = tables.summary(TABLE, ("schedule", "steps")).to_dict("records")
    assert cosine == {
        "schedule": "cosine", "steps": 4, "seeds": 2, "score_mean": 2.0, "score_sd": pytest.approx(2**0.5),
        "hole_psnr_db_mean": 10.0, "hole_psnr_db_sd": 0.0,
    }  # fmt: skip
    assert linear["score_mean"] == 3.5
    assert tables.summary(TABLE[::-1], ["schedule"])["schedule"].tolist() == ["linear", "cosine"]
    alone = tables.summary(TABLE[TABLE["seed"] == 0], ["schedule"])
    assert alone["score_sd"].tolist() == [0, 0], "one seed has no deviation"


def test_differences_are_paired_by_seed():
    (line,) = tables.schedule_differences(TABLE[::-1]).to_dict("records")
    # linear minus cosine: 1 and 2, so 1.5 with a deviation of sqrt(1/2) and an error of 1/2
    assert (line["steps"], line["first"], line["second"], line["seeds"]) == (4, "linear", "cosine", 2)
    assert line["mean"] == 1.5 and line["standard_error"] == pytest.approx(0.5)
    (alone,) = tables.schedule_differences(TABLE[:3]).to_dict("records")
    assert (alone["seeds"], alone["mean"]) == (1, -1) and pd.isna(alone["standard_error"]), "of the seed that both have"


# --- effects and claims ---------------------------------------------------------------------------------------------


def test_effects_are_the_mean_differences_of_the_rows(findings, results):
    table = tables.result_table(results)
    ends = table[table["stop_at"] == table["steps"]].groupby("schedule")
    row = records(tables.effect_table(findings), "comparison")["cosine − linear, T = 3"]
    for column in ("kid", "score", "hole_psnr_db"):
        mean = ends[column].mean()
        assert row[column] == pytest.approx(mean["cosine"] - mean["linear"], rel=1e-4, abs=1e-6)
        assert row[f"{column}_low"] <= row[column] <= row[f"{column}_high"]
    assert (row["n"], row["seeds"], row["question"]) == (6, 2, "schedule")
    assert tables.luck(findings).comparisons == len(findings.effects) == len(GRID.comparisons)


def test_baselines_are_the_scores_of_their_pictures(findings, scorer, pair):
    rows = records(tables.baseline_table(findings), "method")
    pictures = baselines(scorer.truth, scorer.holes, pair.tokenizer)
    assert list(rows) == list(pictures)
    for name, images in pictures.items():
        assert rows[name] == {"method": name} | scorer(images)._asdict()
    assert findings.margin == pytest.approx(0.05 * abs(rows["do_nothing"]["kid"] - rows["reconstruction"]["kid"]))


def test_claims_have_verdicts_in_plain_words_and_those_that_were_not_measured_no_numbers(findings):
    claims, effects = tables.claim_table(findings), tables.effect_table(findings)
    for table, column in ((claims, "verdict"), (claims, "direction"), (effects, "verdict"), (effects, "question")):
        assert {type(word) for word in table[column]} == {str}
    assert claims["verdict"].tolist() == [one.verdict for one in findings.judgements]
    rows = records(claims, "claim")
    measured, missing = rows["cosine is the best schedule"], rows["a loss on all tokens trains better"]
    assert not any(pd.isna(value) for value in measured.values())
    assert all(pd.isna(missing[name]) for name in ("n", "seeds", "kid", "kid_low", "score", "hole_psnr_db_high"))
    assert missing["verdict"] == Verdict.NOT_MEASURED and missing["comparisons"] == 0
    assert claims["n"].dropna().unique().tolist() == [6] and claims["n"].dtype == claims["seeds"].dtype == "Int64"


def test_of_several_findings_the_first_that_has_measured_a_claim_counts(findings, pair, scorer):
    nothing = tables.find(GRID, [], scorer, pair)
    for several in ((nothing, findings), (findings, nothing)):
        assert_frame_equal(tables.claim_table(*several), tables.claim_table(findings))
        assert tables.luck(*several) == tables.luck(findings)
    effects, claims = tables.effect_table(nothing), tables.claim_table(nothing)
    assert "kid" not in claims and effects.empty
    assert study_figures(effects, claims, pd.DataFrame(), "weights of ours") == {}


def test_only_a_claim_that_does_not_hold_is_an_artefact_and_only_where_the_mistake_makes_it():
    helps, hurts = "stopping early, at a sweet spot, helps", "iterating hurts: all at once is better"
    claims = pd.DataFrame({"claim": [helps, hurts], "verdict": ["does not hold", "holds"],
                           "direction": ["no effect", "worse"], "pitfall": 0})  # fmt: skip
    before = claims.copy()
    changed = tables.artefacts(claims, {1: True, 3: True})
    assert changed["verdict"].tolist() == [Verdict.ARTEFACT, Verdict.HOLDS] and changed["pitfall"].tolist() == [1, 0]
    for made_by in ({1: False}, {}):
        assert_frame_equal(tables.artefacts(claims, made_by), before)
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
    assert tables.verdict_text({"pitfall": 0} | row) == text


# --- a network by itself --------------------------------------------------------------------------------------------


def test_predictions_tell_of_one_shot_guesses_at_the_true_tokens(pair, scorer):
    predicted = tables.predictions(pair, scorer, DECODE)
    tokens, unknown = pair.tokenizer.encode(fill_holes(scorer.truth, scorer.holes, "grey")), token_mask(scorer.holes)
    mask_id = pair.transformer.mask_id
    with torch.no_grad():
        logits = pair.transformer(tokens.masked_fill(unknown, mask_id))[unknown][:, :mask_id]
    nats = cross_entropy(logits, pair.tokenizer.encode(scorer.truth)[unknown])
    assert predicted.bits_one_shot == pytest.approx(float(nats) / math.log(2), rel=1e-4)
    assert sum(b.n for b in predicted.bins) == int(unknown.sum())
    assert predicted.calibration_error == calibration_error(predicted.bins)
    for batch in (100, 1):
        other = tables.predictions(pair, scorer, replace(DECODE, batch=batch))
        assert other[:2] == pytest.approx(predicted[:2]), "bits, whatever the batch"
    (row,) = tables.prediction_table({"tokens": predicted}).to_dict("records")
    assert row["bits per token, one shot"] == predicted.bits_one_shot
    assert calibration_figure({"tokens": predicted}, "").axes


def test_diversity_is_of_the_last_stop_of_plans_with_two_seeds(pair, scorer, results):
    table = tables.diversity(results, scorer)
    assert table[["schedule", "T", "seeds"]].to_numpy().tolist() == [
        ["one_shot", 1, 2], ["cosine", 3, 2], ["linear", 3, 2],
    ]  # fmt: skip
    decode = replace(DECODE, schedule="linear", steps=3)
    first, second = (list(decode_holes(pair, scorer.truth, scorer.holes, decode, seed))[-1].filled for seed in (0, 1))
    apart = (first != second)[token_mask(scorer.holes)].double().mean()
    assert table["share of tokens that differ"][2] == pytest.approx(float(apart))
    assert tables.diversity(results[:3], scorer).empty


def test_halves_of_the_truth_are_far_apart_in_one_distance_only(scorer):
    kid, score = tables.halves(scorer).to_dict("records")
    assert kid["images in a half"] == score["images in a half"] == 3
    assert abs(kid["mean"]) < 2 * kid["SD"] + 1e-6 and score["mean"] > 0


def test_networks_stand_with_their_loss_and_steps(pair, scorer, dataset):
    names = ["a @ 2", "a", "b"]
    pairs = {GIVEN: pair} | {of_training(name, seed): pair for name in names for seed in (0, 1)}
    networks = [Network("a", {}, stops=(2,)), Network("b", {})]
    plan = Plan(replace(DECODE, steps=2))
    results = list(run_study(pairs, scorer, [plan._replace(network=name) for name in (GIVEN, *names)], seeds=2))
    table = tables.network_table(networks, pairs, results, dataset, steps=9)
    assert table[["network", "training", "steps", "trainings"]].to_numpy().tolist() == [
        ["a @ 2", "a", 2, 2], ["a", "a", 9, 2], ["b", "b", 9, 2],
    ]  # fmt: skip
    loss, kid = validation_loss(pair, dataset), table["kid"][0]
    assert (table["val_loss_nats"] == loss).all() and not table["val_loss_nats_sd"].any()
    kids = [results[number].rows[0]["kid"] for number in (1, 5)]
    assert (kid, table["kid_sd"][0]) == pytest.approx((sum(kids) / 2, abs(kids[0] - kids[1]) / 2**0.5))
    (looks,) = tables.losses_along(table).values()
    assert looks[["training", "steps", "val_loss_nats", "kid"]].to_numpy().tolist() == [
        ["a", 2, loss, kid], ["a", 9, loss, kid],
    ]  # fmt: skip
    assert tables.losses_along(table[2:]) == {} == tables.losses_along(pd.DataFrame())


def test_looks_along_a_training_are_those_of_one_way_of_decoding_in_the_order_of_the_steps(pair, scorer, dataset):
    pairs = {GIVEN: pair} | {of_training(name, 0): pair for name in ("a @ 2", "a @ 5", "a")}
    way = Plan(replace(DECODE, steps=2), network="a")
    several = [way._replace(network=name) for name in ("a", "a @ 5", "a @ 2")]
    several += [way._replace(decode=replace(way.decode, schedule="linear"))]
    several += [Plan(DECODE, stops, "a") for stops in ((1, 2), (1, 3))]
    results = list(run_study(pairs, scorer, several, seeds=1))
    table = tables.network_table([Network("a", {}, stops=(2, 5))], pairs, results, dataset, steps=9)
    assert len(table) == len(several), "another schedule or another last stop is another way of decoding"
    looks = tables.losses_along(table[:4])["a"]
    assert looks["steps"].tolist() == [2, 5, 9] and set(looks["schedule"]) == {"cosine"}


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_drawn_of_what_there_is(findings):
    effects, claims = tables.effect_table(findings), tables.claim_table(findings)
    few = effects.assign(n=[3, *effects["n"][1:]], seeds=[1, *effects["seeds"][1:]])
    figures = study_figures(few, claims, pd.DataFrame(), "weights of ours")
    captions = {name: " ".join(text.get_text() for text in figure.texts) for name, figure in figures.items()}
    assert list(captions) == ["claims", "schedules"]
    assert "n = 6, 2 seeds, weights of ours" in captions["claims"]
    assert "n = 6 and 3, 2 and 1 seeds, weights of ours" in captions["schedules"]
    of_effects, of_claims = (
        " ".join(artist.get_text() for artist in figure.axes[0].texts)
        for figure in (figures["schedules"], claims_figure(claims, ""))
    )
    assert "cosine − linear, T = 3" in of_effects
    assert all(claim in of_claims for claim in claims.dropna(subset="kid")["claim"]) and "loss on all" not in of_claims
