"""A mistake is made in the source of right code, shown as the lines that differ, and told by its check."""

import traceback

import pytest

from lab5.pitfalls.checks import check_attention, check_gamma, check_loss
from lab5.pitfalls.edits import Mistakes, changed, mistake


def attend(query, key, value, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def loss(logits, tokens, hidden):
    return -logits.log_softmax(-1).gather(-1, tokens[..., None])[hidden].mean()


def half(x):
    if x < 0:
        raise ValueError("below zero")
    return x / 2


def test_a_function_is_changed_in_its_source_and_stays_as_it_was():
    double, removed, added = changed(half, ("x / 2", "x * 2"), ("    if x < 0:", "    if x < -1:"))
    assert (half(3), double(3)) == (1.5, 6)
    assert removed == ("if x < 0:", "return x / 2") and added == ("if x < -1:", "return x * 2")


def test_a_line_may_come_in_between_and_a_traceback_shows_the_changed_source():
    third, removed, added = changed(half, ("    return", "    x = x - 1 / 0\n    return"))
    assert removed == () and added == ("x = x - 1 / 0",)
    with pytest.raises(ZeroDivisionError) as error:
        third(1)
    assert "x = x - 1 / 0" in "".join(traceback.format_tb(error.value.__traceback__)[-1:])


@pytest.mark.parametrize("text", ["x", "nowhere"])
def test_a_text_that_is_not_there_once_is_refused(text):
    with pytest.raises(ValueError, match=f"once in half, found [03] times: '{text}'"):
        changed(half, (text, "y"))


def test_a_mistake_shows_its_lines_what_its_check_says_and_what_it_does():
    one = mistake(5, attend, check_attention, ("dim=-1", "dim=-2"))
    assert one.told and one.finding.startswith(
        "“softmax axis” fails: a query's weights sum to 0.40 .. 2.30, should be 1."
    )
    text = repr(one)
    assert text.startswith("5. The softmax runs over the queries") and "0.75 .. 1.48" in text
    assert "  − weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)\n  + weights" in text
    other = mistake(5, attend, check_attention, ("dim=-1", "dim=1"))
    html = Mistakes((one, other))._repr_html_()
    assert html.count("<strong>5. ") == html.count("What it does: ") == 1 and html.count("<pre") == 2


def test_a_choice_and_a_sentence_of_an_assertion_are_findings_too():
    one = mistake(8, loss, check_loss, ("[hidden]", ""))
    assert one.finding.startswith("“counted” is a choice: 160 of 160 hidden and 352 of 352 known tokens count.")

    def check(function):
        if function(1) != 0.5:
            raise AssertionError(f"a half is not {function(1)}")

    assert mistake(17, half, check, ("x / 2", "x / 4")).finding == "a half is not 0.25"
    assert not mistake(17, half, check, ("x < 0", "x < -1")).told


def test_code_that_has_the_mistake_already_is_refused():
    with pytest.raises(ValueError, match="gamma has pitfall 9 before it is made"):
        mistake(9, gamma, check_gamma, ("x", "y"))


def gamma(x):
    return x
