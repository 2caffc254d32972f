"""A study's rows against decodings made one by one, and its files: nothing repeated, nothing confused, nothing lost."""

import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from stubs import Blocks, cats, untrained_pair

from lab5.config import DecodeConfig
from lab5.inpainting.fill import decode_holes, inpaint_images
from lab5.inpainting.pair import Pair
from lab5.runtime.files import save_tensors
from lab5.runtime.folders import ROOT
from lab5.scoring.scores import Scorer
from lab5.study import run as study_module
from lab5.study.run import GIVEN, Plan, Point, by_point, len_study, ordered, run_study
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


@pytest.fixture
def scorer(dataset) -> Scorer:
    return Scorer(dataset, Blocks())


def run(pair, scorer, plans=PLANS, seeds=2, **settings) -> list:
    return list(run_study(pair, scorer, plans, seeds=seeds, **settings))


def rows_of(results) -> list[dict]:
    return [row for result in results for row in result.rows]


def without_time(results) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows_of(results)]


# --- rows -------------------------------------------------------------------------------------------------------


def test_the_row_of_a_stop_equals_a_decoding_that_stops_there(pair, scorer):
    results, distinct = run(pair, scorer), set()
    for result in results:
        for row, outcome in zip(result.rows, result.outcomes, strict=True):
            decode = replace(DECODE, schedule=row["schedule"], steps=row["steps"], stop_at=row["stop_at"])
            expected = scorer(inpaint_images(pair, scorer.truth, scorer.holes, decode, row["seed"]))
            assert {name: row[name] for name in expected._fields} == expected._asdict()
            assert scorer.scores(outcome) == expected
            distinct.add(row["score"])
    assert [(r.seed, r.plan) for r in results] == [(seed, plan) for seed in (0, 1) for plan in PLANS]
    assert [row["stop_at"] for row in rows_of(results)] == 2 * [1, 1, 2, 3, 1, 2, 3]
    # All plans propose the same codes at their first step, so a stop at t = 1 is a decoding in one shot.
    assert len(distinct) == 2 * (1 + 4), "other schedules and stops give other pictures"


def test_only_the_stops_that_are_asked_for_are_scored_and_nothing_is_decoded_behind_the_last(pair, scorer):
    class Counting(BidirectionalTransformer):
        calls = 0

        def forward(self, *args, **more):
            Counting.calls += 1
            return super().forward(*args, **more)

    model = Counting(pair.transformer.config).eval()
    (result,) = run(pair._replace(transformer=model), scorer, [Plan(replace(DECODE, batch=N, steps=9), (2, 4))], 1)
    assert [row["stop_at"] for row in result.rows] == [2, 4] and Counting.calls == 4
    assert Plan(DECODE).scored() == (3,) and Plan(replace(DECODE, rounds=2)).scored() == (5,)


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


def test_a_stop_in_the_settings_does_not_cut_a_plan_short(pair, scorer):
    stopped = [plan._replace(decode=replace(plan.decode, stop_at=1)) for plan in PLANS]
    assert without_time(run(pair, scorer, stopped)) == without_time(run(pair, scorer))


def test_every_network_of_the_plans_is_decoded_with(pair, scorer):
    other = pair._replace(transformer=BidirectionalTransformer(pair.transformer.config).eval(), weights="stub 2")
    plans = [ONE, ONE._replace(network="other")]
    ours, theirs = rows_of(run({GIVEN: pair, "other": other}, scorer, plans, 1))
    assert (ours["weights"], theirs["weights"]) == ("stub 1", "stub 2") and ours["score"] != theirs["score"]


def test_seconds_are_those_of_the_decoding_and_not_of_the_scoring(pair, dataset, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(study_module.time, "monotonic", lambda: clock[0])

    class SlowScore(Blocks):
        def features(self, images):
            clock[0] += 100
            return super().features(images)

    class Ticking(BidirectionalTransformer):
        def forward(self, tokens, where=None):
            clock[0] += 1
            return super().forward(tokens, where)

    ticking = Ticking(pair.transformer.config).eval()
    plan = Plan(replace(DECODE, batch=N), (1, 2, 3))
    (result,) = run(pair._replace(transformer=ticking), Scorer(dataset, SlowScore()), [plan], 1)
    assert [row["seconds"] for row in result.rows] == [1, 2, 3]


def test_results_are_found_by_point_and_put_in_order(pair, scorer):
    results = run(pair, scorer)
    assert without_time(ordered(results[::-1], PLANS)) == without_time(results)
    outcomes = by_point(results)
    assert list(outcomes) == [Point(ONE.decode, 1), *(Point(p.decode, t) for p in (COSINE, LINEAR) for t in (1, 2, 3))]
    assert all(list(of_seed) == [0, 1] for of_seed in outcomes.values())
    assert outcomes[Point(LINEAR.decode, 2)][1] is results[5].outcomes[1]


# --- kept results -----------------------------------------------------------------------------------------------


@pytest.fixture
def decodings(monkeypatch) -> list:
    """The settings of every decoding that was really made."""
    made, real = [], decode_holes

    def spy(pair, images, holes, decode, seed):
        made.append((decode.schedule, decode.steps, seed))
        return real(pair, images, holes, decode, seed)

    monkeypatch.setattr(study_module, "decode_holes", spy)
    return made


def same(a, b) -> bool:
    """Row for row, and picture by picture."""
    return rows_of(a) == rows_of(b) and all(
        torch.equal(x, y)
        for first, second in zip(a, b, strict=True)
        for one, other in zip(first.outcomes, second.outcomes, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def test_a_study_goes_on_from_its_files_row_for_row(pair, scorer, decodings, tmp_path):
    folder = tmp_path / "new" / "study"
    first = run(pair, scorer, seeds=1, folder=folder)
    assert len(decodings) == 3
    whole = run(pair, scorer, folder=folder)
    assert decodings[3:] == [("one_shot", 1, 1), ("cosine", 3, 1), ("linear", 3, 1)]
    assert same(whole[:3], first) and len(whole) == 6
    assert same(run(pair, scorer, folder=folder), whole) and len(decodings) == 6
    assert without_time(whole) == without_time(run(pair, scorer))
    assert len(list(folder.iterdir())) == 6


def test_a_study_that_was_stopped_keeps_its_finished_decodings(pair, scorer, decodings, tmp_path):
    running = run_study(pair, scorer, PLANS, seeds=2, folder=tmp_path)
    finished = [next(running), next(running)]
    running.close()
    again = run(pair, scorer, folder=tmp_path)
    assert same(again[:2], finished) and len(decodings) == len_study(PLANS, 2)


def test_a_damaged_file_is_made_again_once(pair, scorer, decodings, tmp_path):
    whole = run(pair, scorer, folder=tmp_path)
    victim = sorted(tmp_path.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-10])
    assert without_time(run(pair, scorer, folder=tmp_path)) == without_time(whole) and len(decodings) == 7
    assert without_time(run(pair, scorer, folder=tmp_path)) == without_time(whole) and len(decodings) == 7


def test_a_file_under_the_name_of_another_is_made_again(pair, scorer, decodings, tmp_path):
    whole = run(pair, scorer, folder=tmp_path)
    made, (victim, other) = len(decodings), sorted(tmp_path.iterdir())[:2]
    victim.write_bytes(other.read_bytes())
    assert without_time(run(pair, scorer, folder=tmp_path)) == without_time(whole) and len(decodings) == made + 1
    save_tensors(victim, {"x": torch.zeros(2)}, {})
    assert without_time(run(pair, scorer, folder=tmp_path)) == without_time(whole) and len(decodings) == made + 2


def test_two_processes_give_the_rows_of_one(pair, scorer, tmp_path):
    together = ordered(run(pair, scorer, folder=tmp_path / "two", jobs=2), PLANS)
    assert without_time(together) == without_time(run(pair, scorer))
    assert same(run(pair, scorer, folder=tmp_path / "two"), together)
    with pytest.raises(ValueError, match="jobs must be at least 1, not 0"):
        run(pair, scorer, jobs=0)


def test_rows_of_other_settings_weights_data_or_code_are_not_taken(
    pair, scorer, dataset, decodings, tmp_path, monkeypatch
):
    black = replace(dataset, test=dataset.test * 0)
    variants = [
        (pair, scorer, ONE),
        (pair._replace(weights="stub 2"), scorer, ONE),
        (pair, Scorer(black, Blocks()), ONE),
        (pair, Scorer(dataset, Blocks(), n=5), ONE),
        *[(pair, scorer, Plan(replace(ONE.decode, **change))) for change in (
            {"fill": "mean"}, {"codes": "argmax"}, {"order": "random"}, {"temperature": 0.5}, {"dilate": 1},
            {"choice_temperature": 0.0}, {"evidence": 1.0}, {"passes": 2}, {"rounds": 1}, {"paste": "hard"},
        )],
    ]  # fmt: skip
    made = 0
    for p, s, plan in variants:
        before = len(decodings)
        run(p, s, [plan], 1, folder=tmp_path)
        assert len(decodings) > before
    made = len(decodings)
    for p, s, plan in variants:
        run(p, s, [Plan(replace(plan.decode, batch=2))], 1, folder=tmp_path)
    assert len(decodings) == made, "all are kept, and the batch makes no difference"
    monkeypatch.setattr(study_module, "CODE", 99)
    run(*variants[0][:2], [ONE], 1, folder=tmp_path)
    assert len(decodings) == made + 1


KILLED = """
    import sys
    import torch
    from pathlib import Path
    sys.path[:0] = {paths!r}
    from stubs import Blocks, cats, untrained_pair
    from tests.study.test_run import N, PLANS
    from lab5.scoring.scores import Scorer
    from lab5.study.run import run_study
    if __name__ == "__main__":
        torch.set_num_threads(1)
        scorer = Scorer(cats(N, Path({cache!r})), Blocks())
        for result in run_study(untrained_pair(), scorer, PLANS, seeds=2, folder=Path({folder!r})):
            print(len(result.rows), flush=True)
"""


def test_a_killed_study_goes_on_and_ends_with_the_same_rows(pair, scorer, tmp_path):
    """Killed, so that no clean-up can run, whenever another result has come."""
    folder = tmp_path / "study"
    names = {"paths": [str(ROOT), str(ROOT / "tests")], "cache": str(tmp_path / "cache"), "folder": str(folder)}
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED).format(**names))
    for kill in range(2):
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        for _ in range(len(list(folder.glob("*.safetensors"))) + 1):  # those that are found, and a new one
            process.stdout.readline()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        kept = {file: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
        assert kill < len(kept) < len_study(PLANS, 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert without_time(run(pair, scorer, folder=folder)) == without_time(run(pair, scorer))
    finally:
        torch.set_num_threads(threads)
    assert all(file.stat().st_mtime_ns == made for file, made in kept.items()), "a finished result was made again"
