"""README and docs keep what they promise: the code runs, links lead somewhere, command lines are understood."""

import ast
import os
import re
import runpy
import shlex
import subprocess
from functools import cache
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from lab5.cli.arguments import parser
from lab5.cli.main import COMMANDS
from lab5.profiles import configure
from lab5.runtime.folders import ROOT
from lab5.study.recipes import RECIPES

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "report" / "README.md", ROOT / "notebooks" / "README.md"]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def lines_of_code(text: str) -> list[str]:
    """The lines that one would type: indented by four spaces, with continuations joined and comments cut."""
    joined = text.replace("\\\n", " ")
    code = [line.strip() for line in joined.splitlines() if line.startswith("    ")]
    return [re.split(r"\s#\s", line)[0].strip() for line in code]


def typed(start: str) -> list[tuple[str, str]]:
    """Each page and command line in it that begins so, in code or between backticks in the text."""
    found = []
    for page, text in TEXTS.items():
        spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
        found += [(page, line) for line in lines_of_code(text) + spans if line.startswith(f"{start} ")]
    return found


def test_readme_is_a_screen_and_a_bit():
    assert len(README.read_bytes()) <= 7168
    assert len(re.findall(r"!\[", TEXTS["README.md"])) == 1, "one picture; docs have the others"


def test_the_lines_of_python_run_as_they_are_written(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    Path("fill.py").write_text(code, encoding="utf-8")
    runpy.run_path("fill.py")
    picture = Image.open("filled.png")
    assert picture.size == (8 * 66 + 2, 3 * 66 + 2)
    masked, filled, true = (picture.crop((0, 66 * row, picture.width, 66 * row + 66)) for row in range(3))
    assert masked.tobytes() != filled.tobytes() != true.tobytes()


def test_every_notebook_folder_of_the_package_and_page_has_a_line():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"`{notebook.stem}`" in TEXTS["README.md"] and notebook.name in TEXTS["notebooks/README.md"]
    for wing in (ROOT / "lab5").glob("*/__init__.py"):
        assert f"| `lab5/{wing.parent.name}/` |" in TEXTS["README.md"]
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in TEXTS["README.md"]
    for folder in re.findall(r"`([\w/]+/)`", TEXTS["README.md"]):
        assert (ROOT / folder).is_dir() or (ROOT / "data" / folder).is_dir(), folder


def test_results_stand_with_what_they_were_measured_on():
    """The same rows as in docs/results.md, which has more of them."""
    text = TEXTS["README.md"]
    rows = [line for line in text.splitlines() if re.search(r"\d %\W+$", line)]
    assert len(rows) == 6 and all(row in TEXTS["docs/results.md"] for row in rows)
    for fact in ("n = 256", "seed 0", "device cpu", "profile quick", "weights 51853f1240eb", "**not** FID"):
        assert fact in text


def links(page: str) -> list[tuple[str, str]]:
    """File and anchor of each link that stays within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])
    return [target.partition("#")[::2] for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """As GitHub names headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_lead_somewhere(page):
    for name, anchor in links(page):
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists() and file.resolve().is_relative_to(ROOT), name
        assert not anchor or anchor in anchors(file), f"{name}#{anchor}"
        assert file.suffix != ".png" or Image.open(file).size > (0, 0)


def test_the_files_that_texts_name_are_there():
    """Those of Python wherever, and of all kinds between backticks, with a folder of this repository in front."""
    others = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("lab5/**/*.py")]
    for page, text in (TEXTS | {str(path): path.read_text(encoding="utf-8") for path in others}).items():
        named = re.findall(r"\b(?:lab5|tests|bench)/[\w/]+\.py\b", text)
        if page in TEXTS:
            named += re.findall(r"`((?:lab5|tests|bench|notebooks|docs|data/pretrained)/[\w./-]*)`", text)
        absent = [name for name in named if not (ROOT / name).exists() and not name.startswith("notebooks/NN")]
        assert absent == [], page


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: nothing says what is committed")
def test_nothing_that_is_linked_is_ignored_by_git():
    files = {os.path.relpath((ROOT / page).parent / name, ROOT) for page in TEXTS for name, _ in links(page) if name}
    told = subprocess.run(["git", "check-ignore", "--no-index", *files], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout == ""


@pytest.mark.parametrize("page, line", typed("python -m lab5") + typed("lab5"))
def test_a_command_line_is_understood(page, line, capsys):
    words = shlex.split(line.removeprefix("python -m ").removeprefix("lab5 "))
    words = ["doctor" if word == "COMMAND" else word for word in words]  # where any of them can stand
    try:
        args = parser().parse_args(words)
    except SystemExit as stop:
        pytest.fail(f"{page}: {line}: {capsys.readouterr().err or stop}")
    settings = dict(text.split("=", 1) for text in getattr(args, "set", []))
    configure(getattr(args, "profile", "quick"), device="cpu", **settings)
    assert getattr(args, "recipe", None) in (None, *RECIPES)
    if args.command == "report":
        assert {*dict(args.parameter), *(word.partition("=")[0] for word in args.grid or [])} <= parameters()


@cache
def parameters() -> set[str]:
    """What the notebooks' cells of parameters declare."""
    names = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if "parameters" in cell.metadata.get("tags", []):
                names |= {target.id for line in ast.parse(cell.source).body for target in line.targets}
    return names


@pytest.mark.parametrize("page, line", typed("papermill"))
def test_a_papermill_line_names_a_notebook_and_its_parameters(page, line):
    words = shlex.split(line)
    assert (ROOT / words[1]).is_file()
    assert {words[i + 1] for i, word in enumerate(words) if word == "-p"} <= parameters()


@pytest.mark.parametrize("page, line", typed("make"))
def test_a_make_line_names_a_target_and_a_variable(page, line):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in line.split()[1:]:
        name, equals, _ = word.partition("=")
        assert re.search(rf"^{name} *\?=" if equals else rf"^{name}:", makefile, re.MULTILINE), line


def test_every_command_is_described():
    text = TEXTS["docs/command-line.md"]
    assert set(re.findall(r"python -m lab5 (\w+)", text)) == set(COMMANDS) | {"COMMAND"}
    assert all(f"| `{recipe}` |" in text for recipe in RECIPES)


def test_every_environment_variable_is_listed():
    read = set()
    for file in (ROOT / "lab5").rglob("*.py"):
        read |= set(re.findall(r"LAB5_[A-Z_]+", file.read_text(encoding="utf-8")))
    listed = re.findall(r"^\| `(LAB5_[A-Z_]+)` \|", TEXTS["docs/command-line.md"], re.MULTILINE)
    assert set(listed) == read and len(listed) == len(read)


def test_every_flag_of_the_lab_is_one_of_the_command_in_its_row():
    rows = re.findall(r"^\| `(\w+\.py)` \| `(\w+)` \| (.*) \|$", TEXTS["docs/lab-files.md"], re.MULTILINE)
    assert [command for _, command, _ in rows] == ["train", "inpaint", "fid"]
    top = parser()
    commands = top._subparsers._group_actions[0].choices
    for _, command, flags in rows:
        assert set(re.findall(r"`(--[\w-]+)`", flags)) <= set(commands[command]._option_string_actions)


def test_the_order_of_imports_is_the_one_that_is_tested():
    source = (ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8")
    (order,) = re.findall(r'ORDER = """(.*?)"""', source, re.DOTALL)
    assert " ".join(order.split()) in " ".join(TEXTS["docs/contributing.md"].split())


def test_docs_name_no_folder_of_any_one_computer():
    for page, text in TEXTS.items():
        assert not re.search(r"/(home|root|Users|work|tmp)/", text), page


def test_every_test_that_the_tables_name_is_there():
    rows = re.findall(r"`([\w/]+\.py)::(test_\w+?)_?…`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8"))
    sources = {file: (ROOT / "tests" / file).read_text(encoding="utf-8") for file, _ in rows}
    assert len(rows) > 30 and not [name for file, name in rows if f"def {name}" not in sources[file]]
