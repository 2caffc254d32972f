"""The command check: what it announces, prints and writes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lab5.cli import check as command
from lab5.cli.main import main
from lab5.pitfalls.judge import CHECKS, Finding
from lab5.pitfalls.solutions import Result, Solution
from lab5.pitfalls.verdicts import Checks, Verdict
from lab5.runtime.folders import ROOT

SOLUTION = ROOT / "notebooks" / "solution_with_mistakes"
pytestmark = pytest.mark.skipif(not SOLUTION.is_dir(), reason="not a checkout")


def rows(*failed: str) -> Checks:
    verdicts = dict.fromkeys(failed, Verdict.FAILS)
    return Checks(tuple(
        Finding(check.title, verdicts.get(key, Verdict.PASSES), f"<{key}>", pitfall=check.pitfall, key=key)
        for key, check in CHECKS.items()
    ))  # fmt: skip


@pytest.fixture
def judged(monkeypatch) -> list[Result]:
    """Three results, in the place of running anything."""
    results = [
        Result(Solution("anna", Path()), rows("order", "known")),
        Result(Solution("bert", Path()), rows("order", "redrawn"), notes=("not installed: wandb",)),
        Result(Solution("carl", Path()), reason="it could not be run: exit 3"),
    ]
    monkeypatch.setattr(command, "check_solutions", lambda solutions, seconds, jobs: iter(results))
    return results


def test_without_run_nothing_is_run_and_it_says_what_would_be(monkeypatch, capsys):
    monkeypatch.setattr(command, "check_solutions", None)
    assert main(["check", str(SOLUTION)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("solution_with_mistakes: found models/VQGAN_Transformer.py") and "Nothing was run" in out


def test_a_class_is_a_matrix_with_counts_json_and_a_page(judged, tmp_path, capsys):
    words = ["check", str(SOLUTION), "--run", "--json", str(tmp_path / "a.json"), "--page", str(tmp_path / "a.html")]
    assert main(words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    columns = lines[0]
    assert columns == ["solution", *map(str, range(1, 19)), "others"]
    by_name = {line[0]: dict(zip(columns, line, strict=True)) for line in lines[1:4]}
    assert by_name["anna"]["10"] == "x" and by_name["anna"]["3"] == "x" and by_name["anna"]["others"] == "ok"
    assert by_name["bert"]["others"] == "x" and by_name["bert"]["3"] == "ok" and by_name["carl"]["3"] == "?"
    assert lines[4][:2] == ["have", "it"] and [int(word) for word in lines[4][2:]] == [
        *[{10: 2, 3: 1}.get(n, 0) for n in range(1, 19)], 1,
    ]  # fmt: skip
    assert lines[-1] == "carl: it could not be run: exit 3".split()

    entries = json.loads((tmp_path / "a.json").read_text())
    assert [entry["solution"] for entry in entries] == ["anna", "bert", "carl"]
    assert {row["key"] for row in entries[0]["checks"] if row["verdict"] == "FAILS"} == {"order", "known"}
    page = (tmp_path / "a.html").read_text()
    assert "&lt;order&gt;" in page and "<order>" not in page, "what a solution says is text"
    assert "it could not be run: exit 3" in page and "not installed: wandb" in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page), "it opens offline"
    assert len(re.findall(r'<td class="fails"><span', page)) == 4
    assert balanced(page)


def test_a_solution_of_which_little_was_tested_is_not_praised(judged, tmp_path, capsys):
    seen, *others = judged[0].checks
    unseen = [replace(row, verdict=Verdict.NOT_TESTED) for row in others]
    judged[0] = replace(judged[0], checks=Checks((replace(seen, verdict=Verdict.PASSES), *unseen)))
    assert main(["check", str(SOLUTION), str(SOLUTION), "--run", "--page", str(tmp_path / "a.html")]) == 0
    assert f"anna: nothing fails; {len(unseen)} of {len(CHECKS)} not tested" in capsys.readouterr().err
    page = (tmp_path / "a.html").read_text()
    rows = page[page.index('id="solution-1"') : page.index('id="solution-2"')]
    assert rows.index("not tested</td>") < rows.index("passes</td>"), "what was not tested comes before what passes"
    assert f"nothing fails; {len(unseen)} of" in page and "fails: committed tokens are drawn once, likely" in page


def test_one_solution_is_its_rows(judged, capsys):
    del judged[1:]
    assert main(["check", str(SOLUTION), "--run"]) == 0
    assert "fails       known tokens stay: <known>" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    (["/nowhere", "--run"], "/nowhere does not exist"),
    ([__file__], "must be a folder or a .zip"),
    ([str(SOLUTION), "--run", "--seconds", "1"], "--seconds must be at least 10"),
    ([str(SOLUTION), "--run", "--json", "/nowhere/a.json"], "there is no folder /nowhere for a.json"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(words, message, capsys):
    assert main(["check", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def balanced(page: str) -> bool:
    """Whether every element that is opened is closed, in order."""
    void, stack = {"meta", "link", "br", "img"}, []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in void:
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Reader().feed(page)
    return not stack
