"""What a process within the fence cannot do, and what is known of it afterwards."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from lab5.runtime.fence import LOG, Limits, Outcome, run_fenced
from lab5.runtime.folders import is_checkout

pytestmark = pytest.mark.skipif(
    not is_checkout() or os.name != "posix", reason="the probe is imported from the checkout"
)
PROBE = "tests.runtime.fence_probe"
LIMITS = Limits(seconds=60, memory=4 << 30, file_size=1 << 20)


def run(folder: Path, deed: str, outside: Path, limits: Limits = LIMITS) -> Outcome:
    inside = folder / "inside"
    inside.mkdir()
    return run_fenced(PROBE, [deed, str(outside)], inside.resolve(), limits)


@pytest.fixture
def treasure(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "treasure").write_text("gold")
    return folder / "treasure"


def test_nothing_is_written_outside_and_the_rest_is_refused_with_a_sentence(tmp_path, treasure, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "1234")
    outcome = run(tmp_path, "all", treasure)
    assert outcome.code == 0 and outcome.in_time and outcome.log.strip().endswith("the end")
    answers = json.loads((tmp_path / "inside" / "answers.json").read_text())
    assert treasure.read_text() == "gold" and list(treasure.parent.iterdir()) == [treasure]
    assert "SECRET_TOKEN" not in answers["environment"] and "HOME" in answers["environment"]
    for deed in ("write", "append", "remove", "rename", "folder", "link out"):
        assert answers[deed].startswith("PermissionError: it wants to"), (deed, answers[deed])
    assert answers["connect"] == "PermissionError: it wants to use the network"
    assert answers["program"] == answers["fork"] == "PermissionError: it wants to start another program"
    assert answers["parent"] == "PermissionError: it wants to end another process"
    assert answers["memory"].startswith("MemoryError")
    assert answers["large file"].startswith("OSError") and (tmp_path / "inside" / "large").stat().st_size <= 1 << 20
    if "files" in answers["kept"]:
        assert answers["write in C"].startswith("PermissionError: [Errno 13]")
    if sys.platform == "linux" and os.getuid() == 0:
        assert "network" in answers["kept"]


def test_a_process_that_ends_itself_is_known_by_its_code(tmp_path, treasure):
    outcome = run(tmp_path, "exit", treasure)
    assert (outcome.code, outcome.in_time) == (7, True) and (tmp_path / "inside" / LOG).exists()


def test_a_process_that_never_ends_is_ended(tmp_path, treasure):
    begun = time.monotonic()
    outcome = run(tmp_path, "loop", treasure, LIMITS._replace(seconds=3))
    assert not outcome.in_time and outcome.code < 0 and time.monotonic() - begun < 30
