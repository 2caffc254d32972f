"""Each of the lab's eighteen mistakes is caught by its check, and the package's own passes it."""

import math
import re
from pathlib import Path

import pytest
import torch

from lab5.attention import MultiHeadAttention
from lab5.pitfalls import decoding, training
from lab5.pitfalls.catalogue import PITFALLS
from lab5.pitfalls.effects import AT, SHOWN, Tempted, decoding_numbers, pictures, table_rows, training_numbers, verdict
from lab5.scoring.scores import psnr_db
from lab5.trainer import fit

# What the line of each effect says, in the order of their numbers.
EFFECTS = {
    "shrinking-mask": "[83, 80, 75, 68, 60, 49, 38, 26, 13, 0]",
    "original-tokens": "at the end: 13",
    "known-redrawn": "4%, 26% and 47%",
    "missing-transpose": "0.14 with a bare view",
    "softmax-axis": "0.75 .. 1.48",
    "dropout-in-forward": "should be 0%",
    "class-axis": "1.386 = ln(256) / 4, should be 6.93",
    "ignore-nothing": "loses 3.47 with half of the tokens masked, should be 6.93",
    "inverted-mask": "36% of the tokens are masked on average, should be 64%",
    "drowned-order": "probability: 0.05, with log-probabilities 0.23, with noise of 0.1 on the probability 0.92",
    "compounding-count": "[83, 78, 69, 55, 38, 22, 9, 2, 0, 0], should be [83, 80, 75, 68, 60, 49, 38, 26, 13, 0]",
    "step-from-zero": "13, 1 and 8",
    "mask-id-as-a-class": ": 0, should be 85",
    "silent-sweet-spot": "10, 10 and 10",
    "deaf-schedule": "[85, 83, 80, 75, 68, 60, 49, 38, 26, 13], should be [85, 76, 68, 59, 51, 42, 34, 25, 17, 8]",
    "loose-validation": "± 0.000, fresh masks",
    "loose-schedule": "planned 8e-04 and 1e-05, never stepped 1e-03 and 1e-03, counts batches 1e-05 and 1e-05",
    "grey-leak": "Navier-Stokes",
}


def test_all_eighteen_are_there_in_order_and_say_where_they_were_found():
    assert [pitfall.number for pitfall in PITFALLS.values()] == list(range(1, 19)) and list(PITFALLS) == list(EFFECTS)
    assert all(pitfall.title and pitfall.source for pitfall in PITFALLS.values())


@pytest.mark.parametrize("name", EFFECTS)
def test_the_check_fails_on_every_form_of_the_mistake_with_a_number_and_passes_on_the_packages_own(name):
    pitfall, state = PITFALLS[name], torch.get_rng_state()
    for mistake in (pitfall.wrong, *pitfall.variants):
        with pytest.raises(AssertionError, match=r"\A.*\d|\Athe first step must follow all"):
            pitfall.check(mistake)
    pitfall.check(pitfall.right)
    assert torch.equal(torch.get_rng_state(), state), "no check touches the global random state"


@pytest.mark.parametrize("name", EFFECTS)
def test_the_effect_is_one_line_with_its_numbers(name):
    effect = PITFALLS[name].effect()
    assert EFFECTS[name] in effect and "\n" not in effect


def test_grey_changes_most_known_tokens_at_the_hole_and_costs_them_a_decibel():
    grey, smooth, none = (
        decoding.leak(encode)
        for encode in (decoding.encode_grey, decoding.encode_smooth, lambda t, images, holes: t.encode(images))
    )
    assert none[0] == 0 and smooth[0] < 0.35 < 0.5 < grey[0]
    assert grey[1] + 1 < smooth[1] < none[1]


def test_the_lab_loop_with_its_line_filled_in_rightly_is_sound():
    """The mistakes are the one line that differs, and not the loop around it."""

    def right(model, tokens, unknown, **settings):
        return decoding.lab_loop(model, tokens, unknown, change=decoding.Change(decoding.in_the_mask), **settings)

    for check in (decoding.check_committed_stay, decoding.check_steps_build_on_steps, decoding.check_known_stay,
                  decoding.check_mask_id_is_no_class, decoding.check_schedule_arrives):  # fmt: skip
        check(right)


def test_counted_from_the_current_mask_the_shares_compound_until_steps_are_left_without_work():
    shown = decoding.masks_shown(decoding.compounding_count, "cosine")
    assert shown == [85, *decoding.of_the_current_mask("cosine", 10, 85)[:-1]] == [85, 83, 78, 69, 55, 38, 22, 9, 2, 0]


def test_the_plain_loop_of_the_training_mistakes_is_sound():
    def right(model, objective, config, *, seed):
        return training._loop(model, objective, config, seed, training.learning_rate)

    training.check_loop(right)
    weights = []
    for train in (right, fit):
        model = training.Stub(training.without_opinion)
        for _ in train(model, training.tug_of_war, training.LOOP, seed=0):
            pass
        weights.append(float(model.weight.detach()))
    assert weights[0] == pytest.approx(weights[1])


def test_the_layer_with_the_softmax_over_queries_differs_in_that_softmax_alone():
    """Where all queries are alike each has an equal share of every key, so that a layer can be known by its sums."""
    layer, own = training.SoftmaxOverQueries(32, 2).eval(), MultiHeadAttention(32, 2).eval()
    layer.load_state_dict(own.state_dict())
    x = torch.randn(1, 5, 32, generator=training.seeded())
    q, k, v = (f(x).view(1, 5, 2, 16).transpose(1, 2) for f in (own.query, own.key, own.value))
    weights = (q @ k.mT / 4).exp()
    for axis, form in ((-2, layer), (-1, own)):
        expected = own.out(((weights / weights.sum(axis, keepdim=True)) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(form(x), expected)


# --- as notebooks show them


def test_the_table_says_of_each_mistake_that_it_fails_and_of_ours_that_it_passes():
    rows = table_rows([10, 5, 7])
    assert [row["pitfall"] for row in rows] == [5, 7, 10], "in the order of their numbers"
    for row in rows:
        assert (row["its check"], row["ours"]) == ("fails", "passes") and row["mistake"] and row["effect"]


def test_a_verdict_is_of_the_check_alone():
    def check(function):
        assert function() == 1, "must be 1"

    assert verdict(check, lambda: 1) == "passes" and verdict(check, lambda: 2) == "fails"
    with pytest.raises(ZeroDivisionError):
        verdict(check, lambda: 1 / 0)


def test_the_numbers_of_the_training_mistakes_are_those_of_the_checks():
    found = {name: (own, wrong) for name, (_, own, wrong) in training_numbers().items()}
    assert [int(name.split()[0]) for name in found] == [4, 5, 6, 7, 8, 9]
    own, wrong = found["5 softmax axis"]
    assert own.shape == wrong.shape == (256,) and torch.allclose(own, torch.ones(256))
    assert wrong.mean() == pytest.approx(1, abs=1e-4), "as many columns as rows sum to 1"
    assert [round(float(x.min()), 2) for x in found["4 missing transpose"]] == [0, 0.09]
    assert found["6 dropout in forward"][0].tolist() == [0] * 256 and found["6 dropout in forward"][1].min() > 0.1
    assert [float(x) for x in found["7 class axis"]] == pytest.approx([math.log(1024), math.log(256) / 4])
    own, wrong = found["9 inverted mask"]
    assert own.shape == (2000,) and float((own + wrong).mean()) == pytest.approx(1, abs=0.02)


def test_the_numbers_of_the_decoding_mistakes_are_those_of_the_lab():
    found = decoding_numbers()
    expected = [83, 80, 75, 68, 60, 49, 38, 26, 13, 0]
    assert found["right"]["ours"] == [85] * 10 and found["right"]["shrinking mask (1)"] == expected
    assert found["right"]["original tokens (2)"] == [85, *expected[:-1]]
    assert found["masked"]["ours"] == expected
    assert found["masked"]["compounding count (11)"] == [83, 78, 69, 55, 38, 22, 9, 2, 0, 0]
    assert found["masked"]["counted from step 0 (12)"] == [85, *expected[:-1]]
    assert [round(value, 2) for value in found["correlation"].values()] == [0.23, 0.05, 0.92]


def test_the_pictures_of_the_mistakes_show_what_each_does():
    rows = pictures()
    assert list(rows) == list(SHOWN) and all(row.shape == (2 + len(AT), 3, 64, 64) for row in rows.values())
    given, truth = rows["ours"][:1], rows["ours"][-1:]
    for row in rows.values():
        assert torch.equal(row[:1], given) and torch.equal(row[-1:], truth)
    hole = (given == 128).all(1)[0]
    colour = {name: [float((p.float() - 128).abs().mean(0)[hole].mean()) for p in row] for name, row in rows.items()}
    for name, (_, first, *_, last, _) in colour.items():
        back_to_grey = name in ("shrinking mask", "original tokens")
        assert (last < 0.5 * first) if back_to_grey else (last > 0.9 * first), name
    last = {name: row[-2:-1] for name, row in rows.items()}
    assert psnr_db(last["known redrawn"], truth) < 12 < 15 < psnr_db(last["mask id as a class"], truth) < 18
    assert min(psnr_db(last[name], truth) for name in ("ours", "compounding count")) > 20
    rows_apart = [not torch.equal(last[a], last[b]) for a in last for b in last if a < b]
    assert all(rows_apart), "each mistake is another picture"


def test_the_tempted_network_prefers_the_mask_id_and_is_otherwise_the_same():
    model = lambda tokens: torch.arange(5.0).expand(*tokens.shape, 5)  # noqa: E731
    tempted, tokens = Tempted(model, 4), torch.zeros(1, 3, dtype=torch.int64)
    assert tempted.mask_id == 4 and torch.equal(tempted(tokens)[..., :4], model(tokens)[..., :4])
    assert (tempted(tokens)[..., 4] > model(tokens)[..., 4] + 5).all()


def test_what_is_right_imports_no_mistakes():
    """Only commands and pages that tell of mistakes do."""
    package = Path(__file__).parents[2] / "lab5"
    tell = {package / name for name in ("cli/check.py", "cli/main.py", "cli/train.py", "report/solutions.py")}
    files = [file for file in package.rglob("*.py") if file.parent.name != "pitfalls" and file not in tell]
    imports = re.compile(r"^\s*(from|import)\b[^\n]*(\([^)]*)?pitfalls", re.MULTILINE)
    assert len(files) > 60 and not [file for file in files if imports.search(file.read_text(encoding="utf-8"))]
