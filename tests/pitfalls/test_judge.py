"""What observations mean: verdicts from numbers, without running anything."""

import math
from typing import Any

import pytest

from lab5.gamma import gamma
from lab5.pitfalls import judge
from lab5.pitfalls.judge import CHECKS, findings
from lab5.pitfalls.standins import STEPS
from lab5.pitfalls.verdicts import Verdict

PASSES, FAILS, CHOICE, NOT_TESTED = Verdict.PASSES, Verdict.FAILS, Verdict.CHOICE, Verdict.NOT_TESTED
SHARES = [float(gamma("cosine", t / STEPS)) for t in range(1, STEPS + 1)]


def counts(after: list[int]) -> Verdict:
    picture = {"hole": 85, "calls": len(after), "masked after": after, "masked before": [85, *after[:-1]]}
    return judge._counts(picture, "cosine")[0]


def test_any_way_to_round_the_plan_passes_and_what_compounds_fails():
    for rounded in (math.floor, math.ceil, round):
        assert counts([rounded(share * 85 - 1e-9) for share in SHARES]) is PASSES
    late = [85, *(math.floor(share * 85) for share in SHARES[:-1])]
    assert counts(late) is PASSES, "a step late is the mistake of another row"
    compounded, now = [], 85
    for share in SHARES:
        now = math.floor(share * now)
        compounded.append(now)
    assert compounded == [83, 78, 69, 55, 38, 22, 9, 2, 0, 0] and counts(compounded) is FAILS
    assert counts([min(85, math.floor(share * 256)) for share in SHARES]) is FAILS
    assert counts([80, 70, 60, 50, 40, 30, 20, 10, 5, 0]) is NOT_TESTED, "another schedule is no mistake"


def test_known_tokens_that_only_the_picture_loses_are_not_put_down_to_the_steps():
    picture = {"final": (0, 171, 171), "calls": STEPS, "known changed": [0] * (STEPS - 1)}
    verdict, evidence, other = judge._known(picture)
    assert verdict is FAILS and "171 of 171" in evidence and "picture" in other["meaning"]
    assert len(judge._known(picture | {"known changed": [171] * (STEPS - 1)})) == 2, "the steps lose them"


@pytest.mark.parametrize("left, remedy", [(1, "math.floor"), (13, None)])
def test_one_token_left_is_a_rounding_and_many_are_a_step_too_few(left, remedy):
    picture = {"hole": 85, "calls": STEPS, "masked after": [*range(80, 62, -2), left], "masked before": []}
    verdict, evidence, *other = judge._last_step(picture)
    assert verdict is FAILS and f"{left} of 85" in evidence
    assert remedy in other[0]["remedy"] if remedy else not other


def test_a_wrong_way_to_join_heads_is_told_by_its_cause_with_the_symptom_beside_it():
    names = ("permutation", "images apart", "heads cut", "heads joined")
    rows = [{"check": name, "verdict": "FAILS" if name in ("permutation", "heads joined") else "PASSES",
             "evidence": f"<{name}>", "meaning": f"of {name}", "remedy": name, "pitfall": 4}
            for name in names]  # fmt: skip
    verdict, evidence, other = dict(judge._attention({"rows": rows}))["heads"]
    assert verdict is FAILS and evidence == "<heads joined>; <permutation>" and other["remedy"] == "heads joined"


def steps(**changes: Any) -> dict[str, Any]:
    rates = [1e-3 * (1 - i / 12) for i in range(12)]
    facts = {"sizes": [4] * 12, "since cleared": [4] * 12, "rates": rates, "left out": [], "backwards": 48,
             "schedulers": [["CosineAnnealingLR", 6, 6]], "in the source": True}  # fmt: skip
    return facts | changes


@pytest.mark.parametrize("changes, verdict", [
    ({}, PASSES),
    ({"sizes": [1] + [4] * 11}, FAILS),
    ({"sizes": [1] * 12, "since cleared": [1] * 12}, CHOICE),
    ({"since cleared": [1] * 12}, FAILS),
    ({"since cleared": list(range(4, 52, 4))}, FAILS),
    ({"sizes": [4, 4, 7] * 4, "since cleared": [4, 4, 4] * 4}, CHOICE),  # what is left of an epoch is thrown away
    ({"sizes": [4, 4]}, NOT_TESTED),
])  # fmt: skip
def test_accumulation(changes, verdict):
    assert judge._accumulation(steps(**changes), asked=True)[0] is verdict


@pytest.mark.parametrize("changes, error, verdict", [
    ({}, "", PASSES),
    ({"schedulers": []}, "", CHOICE),
    ({"schedulers": [["CosineAnnealingLR", 12, 12]]}, "", PASSES),  # made for steps and stepped in steps
    ({"schedulers": [["CosineAnnealingLR", 48, 6]]}, "", FAILS),
    ({"schedulers": [["CosineAnnealingLR", 6, 12]]}, "", FAILS),
    ({"schedulers": [["CosineAnnealingLR", 6, 200]]}, "", PASSES),  # a number written into it for a longer training
    ({"schedulers": [["LambdaLR", 0, 0]], "in the source": False}, "", FAILS),
    ({"schedulers": [["LambdaLR", 0, 0]]}, "", NOT_TESTED),  # under a condition that did not arise
])  # fmt: skip
def test_the_learning_rate(changes, error, verdict):
    assert judge._rate(steps(**changes), {"calls": 12, "batches": 2}, error)[0] is verdict


@pytest.mark.parametrize("ratio, verdict", [
    (1.0, PASSES), (4.0, FAILS), (0.125, FAILS), (1e-9, NOT_TESTED), (147.9, NOT_TESTED),
])  # fmt: skip
def test_a_number_that_is_no_loss_is_no_wrong_divisor(ratio, verdict):
    val = {"training": 0, "calls": 12, "seen again": 8, "fresh": 0, "returned": 6.93 * ratio, "ratio": ratio}
    assert dict(judge._validation(val))["validation mean"][0] is verdict


def test_a_schedule_that_is_upside_down_may_make_an_inverted_mask_right():
    upside_down = {"values": {"cosine": [0.0, 0.38, 0.71, 0.92, 1.0]}}
    masks = {"mean": 0.36, "low": 0.0, "high": 1.0, "within": 0.0, "binomial": 59.0, "batches": 48, "wrong ids": [],
             "changed": 0, "linear": False, "gamma": {"kept": 40, "hidden": 0, "neither": 0, "both": 8}}  # fmt: skip
    loss = {"batches": 8, "hidden": [9, 9], "known": [0, 9], "right": 9, "mask labels": 0, "uneven": 0, "weight": 1.0,
            "value": math.log(1025), "backward": None, "ignore": -100, "ignored": 0, "classes": 1025}  # fmt: skip
    training = {"train calls": 48, "masks": masks, "loss": loss, "steps": steps(), "options": [], "error": ""}
    for values, verdict in ((upside_down, NOT_TESTED), ({"values": {"cosine": [1.0, *SHARES[1:9:3], 0.0]}}, FAILS)):
        stages = {"training": training, "gamma": values}
        rows = {row.key: row.verdict for row in findings({"stages": stages}, lambda file, function: file)}
        assert rows["share"] is verdict and rows["counted"] is PASSES and rows["order"] is NOT_TESTED


def test_every_check_says_what_it_does_and_how_to_mend_it():
    assert {check.pitfall for check in CHECKS.values()} == {0, 1, *range(3, 19)}, "2 is told by the row of 1"
    for check in CHECKS.values():
        assert check.meaning.endswith(".") and check.remedy
        assert check.stage in ("attention", "gamma", "training", "decoding")
