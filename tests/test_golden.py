"""Results do not change unseen: a change counts up the constant that names what is kept on disk."""

import json

import golden
import pytest
from golden import FILE, PARTS, versions

KEPT = json.loads(FILE.read_text(encoding="utf-8"))
AGAIN = "python tests/golden.py computes them anew"


def differences(kept, now, place: str = "") -> list[str]:
    """Where two nested results differ by more than two processors would: 2 % of a number, 5 % of the tokens."""
    if isinstance(kept, dict):
        assert kept.keys() == now.keys(), place
        return [line for key in kept for line in differences(kept[key], now[key], f"{place} {key}")]
    if isinstance(kept, list) and kept and isinstance(kept[0], int):
        other = sum(a != b for a, b in zip(kept, now, strict=True))
        return [f"{place}: {other} of {len(kept)} differ"] if other > 0.05 * len(kept) else []
    return [] if now == pytest.approx(kept, rel=0.02, abs=1e-4) else [f"{place}: {now} in place of {kept}"]


@pytest.mark.parametrize("part", PARTS)
def test_results_are_those_of_their_version(part):
    assert KEPT[part]["version"] == versions()[part], f"golden results of {part} are of another version: {AGAIN}"
    changed = differences(KEPT[part]["results"], PARTS[part]())
    assert not changed, f"results changed: count up the constant of {part}, and {AGAIN}: {changed[:5]}"


def test_a_change_is_noticed(monkeypatch):
    decodings = KEPT["decodings and scores"]["results"]
    other = json.loads(json.dumps(decodings))
    name = next(iter(other["tokens"]))
    other["tokens"][name] = [token + 1 for token in other["tokens"][name]]
    assert len(differences(decodings, other)) == 1
    assert differences({"weights": 100.0}, {"weights": 103.0})
    assert set(golden.versions()) == set(KEPT)
