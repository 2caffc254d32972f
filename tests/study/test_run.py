"""A study's rows against decodings made one by one, and its files: nothing repeated, nothing confused, nothing lost."""

from dataclasses import replace

import pytest
import torch
from stubs import Blocks, cats, untrained_pair

from lab5.config import DecodeConfig
from lab5.inpainting.fill import decode_holes, inpaint_images
from lab5.inpainting.pair import Pair
from lab5.runtime.files import save_tensors
from lab5.scoring.scores import Scorer
from lab5.study import run as study_module
from lab5.study.run import GIVEN, Plan, Point, by_point, len_study, of_training, ordered, run_study
from lab5.transformer import BidirectionalTransformer

N = 6
DECODE = DecodeConfig(steps=3, batch=4)
ONE = Plan(replace(DECODE, schedule="one_shot", steps=1))
COSINE, LINEAR = (Plan(replace(DECODE, schedule=name), (1, 2, 3)) for name in ("cosine", "linear"))
PLANS = [ONE, COSINE, LINEAR]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return cats(N, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return untrained_pair()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A sum may differ in its last bit with the number of threads, which a study divides among its processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scorer(dataset) -> Scorer:
    return Scorer(dataset, Blocks())


@pytest.fixture(scope="module")
def whole(pair, scorer) -> list:
    return run(pair, scorer)


def run(pair, scorer, plans=PLANS, seeds=2, **settings) -> list:
    return list(run_study(pair, scorer, plans, seeds=seeds, **settings))


def rows_of(results) -> list[dict]:
    return [row for result in results for row in result.rows]


def without_time(results) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows_of(results)]


# --- rows -------------------------------------------------------------------------------------------------------


def test_the_row_of_a_stop_equals_a_decoding_that_stops_there(pair, scorer, whole):
    assert [(r.seed, r.plan) for r in whole] == [(seed, plan) for seed in (0, 1) for plan in PLANS]
    assert [row["stop_at"] for row in rows_of(whole)] == 2 * [1, 1, 2, 3, 1, 2, 3]
    for result in whole:
        for row, outcome in zip(result.rows, result.outcomes, strict=True):
            decode = replace(DECODE, schedule=row["schedule"], steps=row["steps"], stop_at=row["stop_at"])
            expected = scorer(inpaint_images(pair, scorer.truth, scorer.holes, decode, row["seed"]))
            assert {name: row[name] for name in expected._fields} == expected._asdict()
            assert scorer.scores(outcome) == expected
    # All plans propose the same codes at their first step, so a stop at t = 1 is a decoding in one shot.
    assert len({row["score"] for row in rows_of(whole)}) == 2 * (1 + 4), "other schedules and stops: other pictures"


def test_only_the_stops_that_are_asked_for_are_scored_and_seconds_are_those_of_decoding_up_to_there(
    pair, dataset, monkeypatch
):
    clock = [0]
    monkeypatch.setattr(study_module.time, "monotonic", lambda: clock[0])

    class SlowScore(Blocks):
        def features(self, images):
            clock[0] += 100
            return super().features(images)

    class Ticking(BidirectionalTransformer):
        def forward(self, tokens, where=None, hints=None):
            clock[0] += 1
            return super().forward(tokens, where, hints)

    ticking = pair._replace(transformer=Ticking(pair.transformer.config).eval())
    plan = Plan(replace(DECODE, batch=N, steps=9), (2, 4))
    (result,) = run(ticking, Scorer(dataset, SlowScore()), [plan], 1)
    assert [(row["stop_at"], row["seconds"]) for row in result.rows] == [(2, 2), (4, 4)]
    assert clock[0] % 100 == 4, "nothing is decoded behind the last"
    clock[0] = 0
    again = replace(plan.decode, schedule="linear")
    one, two = run(ticking, Scorer(dataset, SlowScore()), [plan, plan._replace(decode=again)], 1)
    assert [(row["stop_at"], row["seconds"]) for row in two.rows] == [(2, 2), (4, 4)]
    assert clock[0] % 100 == 4 + 3, "both share their first answer, whose second each row has"
    assert Plan(DECODE).scored() == (3,) and Plan(replace(DECODE, rounds=2)).scored() == (5,)


def test_a_budget_goes_to_its_end_and_the_steps_that_were_used_are_counted(pair, scorer):
    budget = replace(DECODE, budget="threshold", limit=0.3)
    fixed, free = run(pair, scorer, [Plan(replace(DECODE, schedule="linear"), (2, 3)), Plan(budget)], 1)
    assert [row["steps_used"] for row in fixed.rows] == [2, 3]
    (row,) = free.rows
    states = list(decode_holes(pair, scorer.truth, scorer.holes, budget, 0))
    assert len({state.masked.any(1).sum() for state in states}) > 2, "some images are done before others"
    assert row["stop_at"] == 0 and not states[-1].masked.any()
    assert row["steps_used"] == pytest.approx(sum(float(s.masked.any(1).double().mean()) for s in states), abs=0.01)
    assert row["score"] == scorer(inpaint_images(pair, scorer.truth, scorer.holes, budget, 0)).score


def test_what_depends_on_the_images_alone_is_made_once(pair, scorer, monkeypatch):
    encoded = []
    real = type(pair.tokenizer).encode
    monkeypatch.setattr(type(pair.tokenizer), "encode", lambda self, x: encoded.append(len(x)) or real(self, x))
    run(pair, scorer, [ONE, COSINE, LINEAR], 3)
    assert encoded == [N]
    run(pair, scorer, [ONE, Plan(replace(DECODE, fill="mean")), Plan(replace(DECODE, dilate=1))], 2)
    assert encoded == [N] * 4


def test_each_seed_decodes_with_a_training_of_its_own(pair, scorer):
    pairs = {GIVEN: pair}
    for seed in (0, 1, 2):
        other = pair._replace(weights=f"stub {seed}", transformer=untrained_pair(seed).transformer)
        pairs[of_training("trained", seed)] = other
    results = run(pairs, scorer, [ONE, ONE._replace(network="trained")], 3)
    trained = [row for row in rows_of(results) if row["network"] == "trained"]
    assert [row["weights"] for row in trained] == ["stub 0", "stub 1", "stub 2"]
    assert len({row["score"] for row in trained}) == 3


def test_rows_are_of_pictures_after_all_passes(pair, scorer):
    plans = [Plan(replace(DECODE, passes=passes), (2,)) for passes in (1, 2)]
    one, two = rows_of(run(pair, scorer, plans, 1))
    expected = inpaint_images(pair, scorer.truth, scorer.holes, replace(DECODE, stop_at=2, passes=2), 0)
    assert two["score"] == scorer(expected).score != one["score"]


def test_len_study_counts_the_decodings_of_which_some_plans_have_fewer_seeds(pair, scorer):
    plans = [ONE, COSINE._replace(seeds=1)]
    assert [(r.seed, r.plan) for r in run(pair, scorer, plans, 3)] == [
        (0, plans[0]), (0, plans[1]), (1, plans[0]), (2, plans[0]),
    ]  # fmt: skip
    assert len_study(plans, 3) == 4


def test_a_stop_in_the_settings_does_not_cut_a_plan_short(pair, scorer, whole):
    stopped = [plan._replace(decode=replace(plan.decode, stop_at=1)) for plan in PLANS]
    assert without_time(run(pair, scorer, stopped)) == without_time(whole)


def test_every_network_of_the_plans_is_decoded_with(pair, scorer):
    other = pair._replace(transformer=BidirectionalTransformer(pair.transformer.config).eval(), weights="stub 2")
    plans = [ONE, ONE._replace(network="other")]
    ours, theirs = rows_of(run({GIVEN: pair, "other": other}, scorer, plans, 1))
    assert (ours["weights"], theirs["weights"]) == ("stub 1", "stub 2") and ours["score"] != theirs["score"]


def test_results_are_found_by_point_and_put_in_order(whole):
    assert without_time(ordered(whole[::-1], PLANS)) == without_time(whole)
    outcomes = by_point(whole)
    assert list(outcomes) == [Point(ONE.decode, 1), *(Point(p.decode, t) for p in (COSINE, LINEAR) for t in (1, 2, 3))]
    assert all(list(of_seed) == [0, 1] for of_seed in outcomes.values())
    assert outcomes[Point(LINEAR.decode, 2)][1] is whole[5].outcomes[1]


# --- kept results -----------------------------------------------------------------------------------------------


@pytest.fixture
def decodings(monkeypatch) -> list:
    """The settings of every decoding that was really made."""
    made, real = [], decode_holes

    def spy(pair, images, holes, decode, seed, holed):
        made.append((decode.schedule, decode.steps, seed))
        return real(pair, images, holes, decode, seed, holed)

    monkeypatch.setattr(study_module, "decode_holes", spy)
    return made


def same(a, b) -> bool:
    """Row for row, and picture by picture."""
    tensors = [[x for result in one for outcome in result.outcomes for x in outcome] for one in (a, b)]
    return rows_of(a) == rows_of(b) and all(map(torch.equal, *tensors))


def test_a_study_that_was_stopped_goes_on_from_its_files_row_for_row(pair, scorer, whole, decodings, tmp_path):
    folder = tmp_path / "new" / "study"
    running = run_study(pair, scorer, PLANS, seeds=2, folder=folder)
    finished = [next(running), next(running)]
    running.close()
    assert decodings == [("one_shot", 1, 0), ("cosine", 3, 0)]
    kept = run(pair, scorer, folder=folder)
    assert decodings[2:] == [("linear", 3, 0), ("one_shot", 1, 1), ("cosine", 3, 1), ("linear", 3, 1)]
    assert same(kept[:2], finished) and same(run(pair, scorer, folder=folder), kept)
    assert len(decodings) == len(list(folder.iterdir())) == 6
    assert without_time(kept) == without_time(whole)


SPOILED = {
    "cut short": lambda file, other: file.write_bytes(file.read_bytes()[:-10]),
    "of another decoding": lambda file, other: file.write_bytes(other.read_bytes()),
    "of something else": lambda file, other: save_tensors(file, {"x": torch.zeros(2)}, {}),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_file_or_one_of_something_else_is_made_again_once(spoil, pair, scorer, whole, decodings, tmp_path):
    run(pair, scorer, folder=tmp_path)
    spoil(*sorted(tmp_path.iterdir())[2:4])
    for _ in range(2):
        assert without_time(run(pair, scorer, folder=tmp_path)) == without_time(whole) and len(decodings) == 7


def test_two_processes_give_the_rows_of_one(pair, scorer, whole, tmp_path):
    together = ordered(run(pair, scorer, folder=tmp_path, jobs=2), PLANS)
    assert without_time(together) == without_time(whole)
    assert same(run(pair, scorer, folder=tmp_path), together)


def test_rows_of_other_settings_weights_data_or_code_are_not_taken(
    pair, scorer, dataset, decodings, tmp_path, monkeypatch
):
    black = replace(dataset, test=dataset.test * 0)
    several = [(pair._replace(weights="stub 2"), scorer, ONE)]
    several += [(pair, other, ONE) for other in (Scorer(black, Blocks()), Scorer(dataset, Blocks(), n=5))]
    several += [(pair, scorer, Plan(replace(ONE.decode, **change))) for change in (
        {}, {"fill": "mean"}, {"codes": "argmax"}, {"order": "random"}, {"temperature": 0.5}, {"dilate": 1},
        {"choice_temperature": 0.0}, {"evidence": 1.0}, {"passes": 2}, {"rounds": 1}, {"paste": "hard"},
    )]  # fmt: skip
    for kept, (*work, plan) in enumerate(several, 1):
        run(*work, [plan], 1, folder=tmp_path)
        assert len(list(tmp_path.iterdir())) == kept
    made = len(decodings)
    for *work, plan in several:
        run(*work, [Plan(replace(plan.decode, batch=2))], 1, folder=tmp_path)
    assert len(decodings) == made, "all are kept, and the batch makes no difference"
    monkeypatch.setattr(study_module, "CODE", 99)
    run(pair, scorer, [ONE], 1, folder=tmp_path)
    assert len(decodings) == made + 1
