"""Solutions are found, run and judged: every planted mistake is told, and nothing else."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pitfalls.synthetic import INPAINT, LAYERS, MISTAKES, MODEL, RIGHT, SOURCE, TRAIN, WRONG, Variant, make

from lab5.pitfalls.judge import CHECKS, findings
from lab5.pitfalls.solutions import (
    PITFALL_NUMBERS,
    Result,
    Solution,
    as_json,
    check_folder,
    found_solutions,
    function_lines,
    verdicts_by_pitfall,
)  # fmt: skip
from lab5.pitfalls.verdicts import Checks, Verdict
from lab5.runtime.folders import ROOT

TEN_MINUTES = 600  # however busy the machine is
# Those that `make test` tries; all of them take minutes.
FEW = {
    "sampling, old super, fused by heads", "pandas, wandb, tensorboard, a GPU, folders and NumPy of old",
    "1 shrinking mask",
    "5 softmax over queries, 16 dropout on", "8 ignore_index of no label, 15 the flag is not handed on",
    "2 original tokens", "11 of the current mask", "14 a silent sweet spot, 18 grey encoded", "17 never stepped",
}  # fmt: skip
ALL = RIGHT | WRONG


def observed(variants: dict[str, Variant], folder: Path) -> dict[str, dict]:
    """What is seen of each, in processes without a fence that share what they import."""
    folders = [make(folder.resolve() / str(i), variant.changes) for i, variant in enumerate(variants.values())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("synthetic.py")
    subprocess.run([sys.executable, script, *folders], check=True, env=environment, cwd=folder)
    return {
        name: json.loads(place.with_suffix(".json").read_text())
        for name, place in zip(variants, folders, strict=True)
    }  # fmt: skip


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> dict[str, dict]:
    return observed({name: ALL[name] for name in sorted(FEW)}, tmp_path_factory.mktemp("few"))


def check_verdicts(name: str, facts: dict) -> None:
    rows = findings(facts, lambda file, function: file)
    assert {row.key for row in rows if row.verdict is Verdict.FAILS} == ALL[name].fails
    unseen = {row.key: row.evidence for row in rows if row.verdict is Verdict.NOT_TESTED}
    assert len(unseen) <= 3, unseen
    if len(ALL[name].fails) == 1 and name[0].isdigit():
        assert {row.pitfall for row in rows if row.verdict is Verdict.FAILS} == {int(name.split()[0])}
    for row in rows:
        assert row.check and row.evidence and "\n" not in row.evidence
        assert (row.verdict is not Verdict.FAILS) or (row.meaning and row.where in row.remedy)


@pytest.mark.parametrize("name", sorted(FEW))
def test_every_planted_mistake_is_told_and_nothing_else(name, few):
    check_verdicts(name, few[name])


@pytest.mark.slow  # minutes
def test_every_planted_mistake_of_all_solutions_is_told_and_nothing_else(tmp_path):
    assert len(ALL) >= 20 and {CHECKS[key].pitfall for variant in WRONG.values() for key in variant.fails} >= {
        n for n in PITFALL_NUMBERS if n != 2  # which has the row of 1
    }  # fmt: skip
    for name, facts in observed(ALL, tmp_path).items():
        check_verdicts(name, facts)


def test_stand_ins_and_files_that_lack_are_named(few):
    facts = few["pandas, wandb, tensorboard, a GPU, folders and NumPy of old"]
    assert facts["missing"] == ["wandb"] and facts["filled"] == []
    einops = importlib.util.find_spec("einops")
    assert few["sampling, old super, fused by heads"]["missing"] == ([] if einops else ["einops"])


def test_the_notebooks_solution_has_five_mistakes_and_loses_each_by_what_its_row_says(tmp_path):
    """Within the fence, as it is meant to be run."""
    before = sorted(SOURCE.rglob("*"))
    (result,) = check_folder(SOURCE, TEN_MINUTES)
    assert {row.key for row in result.checks.failed} == MISTAKES and sorted(SOURCE.rglob("*")) == before
    lines = function_lines(SOURCE)
    for row in result.checks.failed:
        assert row.remedy.startswith(f"{row.where}, in {CHECKS[row.key].function}: ") and row.where in lines.values()
    verdicts = verdicts_by_pitfall(result)
    assert {n for n in PITFALL_NUMBERS if verdicts[n] is Verdict.FAILS} == {3, 10, 12, 13, 17}
    (entry,) = as_json([result])
    assert json.loads(json.dumps(entry))["checks"][0]["verdict"] == "PASSES" and len(entry["checks"]) == len(CHECKS)


def test_what_a_solution_must_not_do_is_a_row_with_a_sentence(tmp_path):
    outside, folder = tmp_path / "treasure", tmp_path / "class"
    outside.write_text("gold")
    folder.mkdir()
    script = "    args = parser.parse_args()\n"
    make(folder / "endless", [(INPAINT, script, f"{script}    while True:\n        pass\n")])
    make(folder / "leaves", [
        (TRAIN, script, f"{script}    __import__('socket').create_connection(('127.0.0.1', 9))\n"),
        (INPAINT, script, f"{script}    os._exit(3)\n"),
    ])  # fmt: skip
    make(
        folder / "writes",
        [(LAYERS, "import torch.nn as nn\n", f"import torch.nn as nn\nopen({str(outside)!r}, 'w')\n")],
    )
    endless, leaves, writes = check_folder(folder, TEN_MINUTES)
    assert outside.read_text() == "gold"
    assert reasons(endless, "decoding") == {"it had not ended in its time"} and not endless.checks.failed
    assert reasons(leaves, "decoding") == {"the process ended itself with exit code 3"} and not leaves.checks.failed
    (reason,) = reasons(leaves, "training")
    assert "it wants to use the network (training_transformer.py:" in reason
    (reason,) = reasons(writes, "gamma")
    assert f"it wants to write {outside}, outside its folder (models/Transformer/modules/layers.py:" in reason


def reasons(result: Result, stage: str) -> set[str]:
    """Why the checks of a stage are not tested; all of them are not."""
    rows = [row for row in result.checks if CHECKS[row.key].stage == stage]
    assert {row.verdict for row in rows} == {Verdict.NOT_TESTED}
    return {row.evidence for row in rows}


# --- finding, without running ---------------------------------------------------------------------------------------


def names(*paths: Path) -> dict[str, str]:
    with found_solutions(paths) as solutions:
        return {solution.name: solution.reason for solution in solutions}


def test_solutions_are_found_in_folders_of_folders_and_zips(tmp_path):
    make(tmp_path / "anna" / "lab5", [])
    make(tmp_path / "bert", [])
    (tmp_path / "carl").mkdir()
    (tmp_path / "carl" / "notes.py").write_text("")
    with zipfile.ZipFile(tmp_path / "dora.zip", "w") as archive:
        for file in (tmp_path / "bert").rglob("*.py"):
            archive.write(file, Path("Dora Lab5", file.relative_to(tmp_path / "bert")))
    found = names(tmp_path)
    assert found == {"anna/lab5": "", "bert": "", "carl": f"it has no {MODEL}", "dora.zip/Dora Lab5": ""}
    assert list(found) == sorted(found)
    assert names(tmp_path / "bert") == {"bert": ""} and names(tmp_path / "dora.zip") == {"dora.zip/Dora Lab5": ""}
    assert "by which a solution" in names(tmp_path / "carl")["carl"]


def test_a_zip_that_leads_out_or_is_none_is_a_row_with_its_reason(tmp_path):
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("../escaped.py", "")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    found = names(tmp_path / "out.zip", tmp_path / "broken.zip")
    assert "leads out of it" in found["out.zip"] and "cannot be unpacked" in found["broken.zip"]
    with pytest.raises(ValueError, match="must be a folder or a .zip"):
        names(Path(__file__))
    with pytest.raises(ValueError, match="does not exist"):
        names(tmp_path / "nowhere")


def test_stages_that_never_began_are_not_tested():
    rows = findings({"stages": {}}, lambda file, function: "")
    assert len(rows) == len(CHECKS) and {row.verdict for row in rows} == {Verdict.NOT_TESTED}
    result = Result(Solution("x", Path()), Checks(rows))
    assert set(verdicts_by_pitfall(result).values()) == {Verdict.NOT_TESTED}
    assert not result.checks.ok and "not tested" in str(result)
