"""A study's rows against decodings made one by one, and its table: nothing repeated, nothing confused."""

import itertools
from dataclasses import replace

import pytest
import torch

from lab5 import study as study_module
from lab5.config import DecodeConfig, StudyConfig, configure
from lab5.data import open_dataset
from lab5.pasting import paste_known
from lab5.pipeline import Pair
from lab5.scores import Scorer
from lab5.study import (
    baselines,
    decode_holes,
    inpaint_images,
    len_study,
    paired_differences,
    plans,
    run_study,
    summary,
)
from lab5.tokenizer import Tokenizer
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

N = 6
STUDY = StudyConfig(schedules=("cosine", "linear"), steps=(1, 3), seeds=2, images=N)
DECODE = DecodeConfig(steps=3, batch=4)


class Blocks:
    """Stub features: the means of 16x16 blocks."""

    score_name = "Frechet distance on block means"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2)).flatten(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset("toycats", n_train=1, n_val=1, n_test=N, seed=0, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Untrained, but with codes far apart and logits far from flat: each token shows in the picture."""
    config = configure("smoke", device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqgan = VQGAN(config.vqgan)
        torch.nn.init.normal_(vqgan.codebook.embedding.weight)
    transformer = BidirectionalTransformer(config.transformer, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(transformer.bias, generator=torch.Generator().manual_seed(2))
    return Pair(Tokenizer(vqgan), transformer.eval(), "stub 1")


@pytest.fixture
def scorer(dataset) -> Scorer:
    return Scorer(dataset, Blocks())


def run(pair, scorer, study=STUDY, decode=DECODE, **settings) -> list[list[dict]]:
    return list(run_study(pair, scorer, study, decode, **settings))


def without_time(rows: list[list[dict]]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in itertools.chain(*rows)]


# --- decoding ---------------------------------------------------------------------------------------------------


def filled(pair, images, holes, decode, seed=0) -> torch.Tensor:
    return list(decode_holes(pair, images, holes, decode, seed))[-1].filled


@pytest.mark.parametrize("evidence", [0.0, 2.0])
def test_the_result_does_not_depend_on_the_batch(pair, dataset, evidence):
    decode = replace(DECODE, evidence=evidence)
    results = [filled(pair, dataset.test, dataset.holes, replace(decode, batch=batch)) for batch in (1, 4, 64)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_an_image_is_filled_alike_alone_and_in_company(pair, dataset):
    together = filled(pair, dataset.test, dataset.holes, DECODE)
    assert torch.equal(filled(pair, dataset.test[:2], dataset.holes[:2], DECODE), together[:2])


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
    tokens, unknown = pair.tokenizer.encode_holed(dataset.test, dataset.holes, decode.fill)
    assert len(seen) == 2 and all(torch.equal(x[~unknown], tokens[~unknown]) for x in seen)
    together = paste_known(whole(pair.tokenizer, seen[0]), dataset.test, dataset.holes, "poisson")
    assert torch.equal(seen[1][unknown], pair.tokenizer.encode(together)[unknown])
    hidden = torch.where(dataset.holes[:, None], 255 - dataset.test, dataset.test)
    assert torch.equal(inpaint_images(pair, hidden, dataset.holes, decode, 0), ours)


def test_a_batch_below_one_is_refused(pair, dataset):
    with pytest.raises(ValueError, match="decode.batch must be at least 1, not 0"):
        filled(pair, dataset.test, dataset.holes, replace(DECODE, batch=0))


def test_baselines_read_the_hole_only_for_the_reconstruction_floor(pair, dataset):
    ours = baselines(dataset.test, dataset.holes, pair.tokenizer)
    hidden = torch.where(dataset.holes[:, None], 255 - dataset.test, dataset.test)
    others = baselines(hidden, dataset.holes, pair.tokenizer)
    assert {name for name in ours if not torch.equal(ours[name], others[name])} == {"reconstruction"}
    known = ~dataset.holes[:, None].expand_as(dataset.test)
    for name in ("grey_fill", "mean_colour", "telea", "navier_stokes"):
        assert torch.equal(ours[name][known], dataset.test[known]), name


# --- rows -------------------------------------------------------------------------------------------------------


def test_the_row_of_a_stop_equals_a_decoding_that_stops_there(pair, scorer):
    rows = {(r["schedule"], r["steps"], r["seed"], r["stop_at"]): r for r in itertools.chain(*run(pair, scorer))}
    distinct = set()
    for (schedule, steps, seed, stop_at), row in rows.items():
        decode = replace(DECODE, schedule=schedule, steps=steps, stop_at=stop_at)
        expected = scorer(inpaint_images(pair, scorer.truth, scorer.holes, decode, seed))
        assert {name: row[name] for name in expected._fields} == expected._asdict()
        distinct.add(row["score"])
    stops = [("one_shot", 1, 1)] + [(s, 3, t) for s in ("cosine", "linear") for t in (1, 2, 3)]
    assert list(rows) == [(s, steps, seed, t) for seed in (0, 1) for s, steps, t in stops]
    # All plans propose the same codes at their first step, so a stop at t = 1 is a decoding in one shot.
    assert len(distinct) == 2 * (1 + 4), "other schedules and stops give other pictures"


def test_rows_are_of_pictures_after_all_passes(pair, scorer):
    study, stop = replace(STUDY, steps=(3,), seeds=1), replace(DECODE, stop_at=2)
    one, two = (run(pair, scorer, study, replace(DECODE, passes=passes))[0][1] for passes in (1, 2))
    expected = inpaint_images(pair, scorer.truth, scorer.holes, replace(stop, passes=2), 0)
    assert two["stop_at"] == 2 and two["score"] == scorer(expected).score != one["score"]


def test_one_step_is_one_shot_under_every_schedule(pair, scorer):
    assert plans(STUDY) == [("one_shot", 1), ("cosine", 3), ("linear", 3)]
    assert plans(replace(STUDY, steps=(3,))) == [("cosine", 3), ("linear", 3)]
    (row,) = run(pair, scorer, replace(STUDY, steps=(1,), seeds=1))[0]
    for schedule in ("one_shot", "cosine", "square"):
        decode = replace(DECODE, schedule=schedule, steps=1)
        assert row["score"] == scorer(inpaint_images(pair, scorer.truth, scorer.holes, decode, 0)).score


def test_len_study_counts_the_decodings(pair, scorer):
    assert len(run(pair, scorer)) == len_study(STUDY) == 2 * 3
    assert [len(rows) for rows in run(pair, scorer)] == [1, 3, 3, 1, 3, 3]


def test_a_stop_in_the_settings_does_not_cut_the_study_short(pair, scorer):
    stopped = replace(DECODE, stop_at=1)
    assert without_time(run(pair, scorer, decode=stopped)) == without_time(run(pair, scorer))


def test_an_unknown_schedule_is_refused_before_anything_is_decoded(pair, scorer, monkeypatch):
    monkeypatch.setattr(study_module, "decode_holes", None)
    with pytest.raises(ValueError, match="must be among linear, .*but it has sine"):
        run(pair, scorer, replace(STUDY, schedules=("cosine", "sine")))


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
    (rows,) = run(
        pair._replace(transformer=ticking), Scorer(dataset, SlowScore()), replace(STUDY, steps=(3,), seeds=1),
        replace(DECODE, batch=N),
    )[:1]  # fmt: skip
    assert [row["seconds"] for row in rows] == [1, 2, 3]


# --- the table --------------------------------------------------------------------------------------------------


@pytest.fixture
def decodings(monkeypatch) -> list:
    """The settings of every decoding that was really made."""
    made, real = [], decode_holes

    def spy(pair, images, holes, decode, seed):
        made.append((decode.schedule, decode.steps, seed))
        return real(pair, images, holes, decode, seed)

    monkeypatch.setattr(study_module, "decode_holes", spy)
    return made


def test_a_study_goes_on_from_its_table_row_for_row(pair, scorer, decodings, tmp_path):
    table = tmp_path / "new" / "study.csv"
    first = run(pair, scorer, replace(STUDY, seeds=1), table=table)
    assert len(decodings) == 3
    whole = run(pair, scorer, table=table)
    assert decodings[3:] == [("one_shot", 1, 1), ("cosine", 3, 1), ("linear", 3, 1)]
    assert whole[:3] == first and len(whole) == 6
    assert run(pair, scorer, table=table) == whole and len(decodings) == 6
    assert whole == [list(rows) for rows in whole] and without_time(whole) == without_time(run(pair, scorer))
    assert [path.name for path in table.parent.iterdir()] == ["study.csv"]


def test_a_study_that_was_stopped_keeps_its_finished_decodings(pair, scorer, decodings, tmp_path):
    table = tmp_path / "study.csv"
    running = run_study(pair, scorer, STUDY, DECODE, table=table)
    finished = [next(running), next(running)]
    running.close()
    again = run(pair, scorer, table=table)
    assert again[:2] == finished and len(decodings) == len_study(STUDY)


def test_a_decoding_of_which_rows_are_missing_is_made_again_once(pair, scorer, decodings, tmp_path):
    table = tmp_path / "study.csv"
    whole = run(pair, scorer, table=table)
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    assert without_time(run(pair, scorer, table=table)) == without_time(whole) and len(decodings) == 7
    assert without_time(run(pair, scorer, table=table)) == without_time(whole) and len(decodings) == 7
    assert len(table.read_text().splitlines()) == len(lines)


def test_rows_of_other_settings_weights_or_data_are_not_taken(pair, scorer, dataset, decodings, tmp_path):
    table, one = tmp_path / "study.csv", replace(STUDY, steps=(1,), seeds=1)
    black = replace(dataset, test=dataset.test * 0)
    variants = [
        (pair, scorer, DECODE),
        (pair._replace(weights="stub 2"), scorer, DECODE),
        (pair, Scorer(black, Blocks()), DECODE),
        (pair, Scorer(dataset, Blocks(), n=5), DECODE),
        *[(pair, scorer, replace(DECODE, **change)) for change in (
            {"fill": "mean"}, {"codes": "argmax"}, {"order": "random"}, {"temperature": 0.5},
            {"choice_temperature": 0.0}, {"evidence": 1.0}, {"passes": 2},
        )],
    ]  # fmt: skip
    for number, (p, s, decode) in enumerate(variants, 1):
        run(p, s, one, decode, table=table)
        assert len(decodings) == number
    for p, s, decode in variants:
        run(p, s, one, replace(decode, batch=2), table=table)
    assert len(decodings) == len(variants), "all are in the table, and the batch makes no difference"


def test_a_table_of_other_columns_is_refused_and_stays_as_it_is(pair, scorer, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("name,age\ncat,3\n")
    with pytest.raises(ValueError, match="mine.csv is no table of this study"):
        run(pair, scorer, table=table)
    assert table.read_text() == "name,age\ncat,3\n"


# --- what a table says ------------------------------------------------------------------------------------------


ROWS = [
    {"schedule": schedule, "steps": 4, "seed": seed, "score": score, "hole_psnr_db": 10.0}
    for schedule, scores in {"cosine": (1.0, 3.0), "linear": (2.0, 5.0)}.items()
    for seed, score in enumerate(scores)
]


def test_summary_is_mean_and_sample_deviation():
    cosine, linear = summary(ROWS, ("schedule", "steps"))
    assert cosine == {
        "schedule": "cosine", "steps": 4, "seeds": 2, "score_mean": 2.0, "score_sd": pytest.approx(2**0.5),
        "hole_psnr_db_mean": 10.0, "hole_psnr_db_sd": 0.0,
    }  # fmt: skip
    assert linear["score_mean"] == 3.5


def test_differences_are_paired_by_seed():
    (line,) = paired_differences(ROWS[::-1], "schedule", within="steps")
    # linear minus cosine: 1 and 2, so 1.5 with a deviation of sqrt(1/2) and an error of 1/2
    assert (line["first"], line["second"], line["seeds"]) == ("linear", "cosine", 2)
    assert line["mean"] == 1.5 and line["standard_error"] == pytest.approx(0.5)
