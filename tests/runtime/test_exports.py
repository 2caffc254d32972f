"""What a wing gives under its own name: all that it lists is there, and nothing is imported before it is asked for."""

import subprocess
import sys

import pytest

import lab5.pitfalls
import lab5.scoring
import lab5.show
from lab5.runtime.exports import lazily
from lab5.runtime.folders import ROOT


def test_names_come_from_the_file_that_is_named_and_others_are_refused_with_a_list():
    look_up = lazily("lab5.runtime", folders=("ROOT",), files=("write",))
    assert look_up("ROOT") == ROOT
    with pytest.raises(AttributeError, match="lab5.runtime has no 'nothing'; it gives ROOT, write"):
        look_up("nothing")


@pytest.mark.parametrize("wing", [lab5.pitfalls, lab5.scoring, lab5.show], ids=lambda wing: wing.__name__)
def test_every_name_that_a_wing_lists_is_defined_in_its_file(wing):
    with pytest.raises(AttributeError) as refusal:
        wing.nothing  # noqa: B018, the refusal lists the names
    names = str(refusal.value).partition("gives ")[2].split(", ")
    assert all(getattr(wing, name).__module__.startswith(f"{wing.__name__}.") for name in names)


def test_a_wing_imports_nothing_before_it_is_asked():
    code = "import sys, lab5.show, lab5.scoring; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
