"""The command line as its users meet it: exit codes, one sentence per mistake, files whole or not at all."""

import csv
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from PIL import Image

from lab5 import checkpoint
from lab5.cli import inpaint as inpainting
from lab5.cli import train as commands
from lab5.cli.main import main
from lab5.config import TransformerConfig
from lab5.data.dataset import get_dataset
from lab5.inpainting.fill import inpaint_images
from lab5.profiles import configure
from lab5.report.run import ReportError
from lab5.runtime import files
from lab5.runtime.attentions import Reading
from lab5.runtime.files import load_tensors
from lab5.runtime.folders import ROOT
from lab5.scoring.scores import Scores
from lab5.study.claims import CLAIMS
from lab5.study.plans import CONTROLLED
from lab5.study.recipes import RECIPES
from lab5.trainer import TrainStep
from lab5.training import networks as pipeline
from lab5.training import session as training
from lab5.transformer import BidirectionalTransformer

SETTINGS = {
    "device": "cpu",
    "data.train": 32, "data.val": 8, "data.test": 8,
    "stage1.steps": 6, "stage1.batch": 4, "stage1.warmup": 1,
    "stage2.steps": 4, "stage2.batch": 4, "stage2.warmup": 1,
    "classifier.steps": 3, "classifier.batch": 4, "classifier.images": 16,
    "decode.steps": 3, "study.steps": "1,3", "study.schedules": "cosine,linear", "study.images": 8,
}  # fmt: skip
TINY = ["--profile", "smoke", *[word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]]
CONFIG = configure("smoke", **SETTINGS)
NAMES = ["classifier", "transformer", "vqgan"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A data folder with all networks trained, and copies of them in `pretrained`."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB5_DATA", str(home))
        assert main(["train", *TINY, "--out", str(home / "pretrained")]) == 0
    return home


@pytest.fixture
def pretrained(home, monkeypatch) -> Path:
    """The command line finds the trained networks, and takes the copies in this folder for the committed ones."""
    monkeypatch.setenv("LAB5_DATA", str(home))
    monkeypatch.delenv("LAB5_VQGAN", raising=False)
    monkeypatch.setattr(pipeline, "pretrained_folder", lambda: home / "pretrained")
    return home / "pretrained"


never = Mock(side_effect=AssertionError("nothing should be trained"))


def entries(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def networks(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.safetensors"))


# --- arguments and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, message", [
    ("train --profile huge", "unknown profile 'huge'"),
    ("train --set stage1.steps", "--set takes KEY=VALUE such as decode.steps=12, not 'stage1.steps'"),
    ("train --set =3", "--set takes KEY=VALUE"),
    ("train --set profile=full", "--set cannot change the profile"),
    ("train --set device=abacus", "device 'abacus' cannot be used here"),
    ("inpaint TINY --vqgan a.pt", "--vqgan and --transformer belong together"),
    ("inpaint TINY --vqgan a.pt --transformer b.pt", "there is no checkpoint at a.pt"),
    ("inpaint TINY --transformer b.pt", "LAB5_VQGAN can name the vqgan"),
    ("settings --set decode.order=luck", "decode.order must be one of"),
    ("export vqgan /nowhere.pt out.pt", "there is no checkpoint at /nowhere.pt"),
    ("export vqgan any.pt out.pt --wrapper model", "--layout and --wrapper are the transformer's"),
    ("export vqgan {home}/vqgan.safetensors out.pt", "codes = 64 where the lab has 1024"),
    ("export transformer {home}/transformer.safetensors out.pt", "heads = 1 where the lab has 16"),
    ("data --data /nowhere", "/nowhere does not exist"),
    ("study TINY --set study.schedules=cosine,sine", "study.schedules must be one of linear, cosine"),
])  # fmt: skip
def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_2(line, message, pretrained, capsys):
    words = [TINY if word == "TINY" else [word.format(home=pretrained)] for word in line.split()]
    assert main([*chain(*words)]) == 2 and not Path("out.pt").exists()
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith("lab5: ") and message in line and "Traceback" not in printed.err and printed.out == ""


GPU_IS_FULL = "CUDA out of memory.\nTried to allocate 2.00 GiB."


@pytest.mark.parametrize("error, code, message", [
    (OSError(28, "No space left on device"), 2, "No space left on device"),
    (FloatingPointError("the loss is nan\nat step 3"), 2, "the loss is nan at step 3"),
    (ModuleNotFoundError("No module named 'cv2'"), 2, "No module named 'cv2'; python -m lab5 doctor says"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (KeyboardInterrupt("SIGTERM"), 143, "interrupted"),
    (MemoryError("lower stage1.batch, which is 32"), 2, "lab5: lower stage1.batch"),
    (torch.OutOfMemoryError(GPU_IS_FULL), 2, "lab5: the GPU's memory is full, a smaller batch takes less: CUDA out of "
     "memory. Tried to allocate 2.00 GiB."),
])  # fmt: skip
def test_what_stops_a_command_is_told_in_one_line(error, code, message, monkeypatch, capsys):
    monkeypatch.setattr(commands, "train", Mock(side_effect=error))
    assert main(["train", *TINY]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lab5: ") and message in line


def test_an_error_of_the_program_itself_is_not_hidden_and_with_debug_none_is(monkeypatch):
    monkeypatch.setattr(commands, "train", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["train", *TINY])
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        main(["train", "--debug", "--profile", "huge"])


# --- report -----------------------------------------------------------------------------------------------------


def test_report_passes_on_its_arguments_and_prints_where_the_index_is(monkeypatch, capsys):
    run_report = Mock(return_value=Path("there/index.html"))
    monkeypatch.setattr("lab5.report.run.run_report", run_report)
    line = "report --profile smoke --only 03 04 -p seed 3 -p weights trained --out there"
    assert main(line.split()) == main(["report"]) == 0
    assert capsys.readouterr().out == "there/index.html\n" * 2
    parameters = {"seed": "3", "weights": "trained"}
    assert run_report.call_args_list == [
        call("smoke", only=["03", "04"], parameters=parameters, out=Path("there")),
        call("auto", only=None, parameters={}, out=ROOT / "report"),
    ]


def test_a_report_that_stopped_is_exit_code_1(monkeypatch, capsys):
    stopped = ReportError("02_b stopped in code cell 3 of 9.")
    monkeypatch.setattr("lab5.report.run.run_report", Mock(side_effect=stopped))
    assert main(["report"]) == 1 and capsys.readouterr().err == f"lab5: {stopped}\n"
    with pytest.raises(ReportError):
        main(["report", "--debug"])


# --- train ------------------------------------------------------------------------------------------------------


def test_train_hands_over_networks_with_a_record_of_how_they_came_about(home):
    out = home / "pretrained"
    assert networks(out) == sorted(entries(out)) == NAMES and len(list(out.iterdir())) == 4
    for name, entry in entries(out).items():
        content = (out / f"{name}.safetensors").read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["seed"] == 0 and entry["config"]["stage1"]["steps"] == 6
        runs = [file.parent for file in home.glob(f"runs/{name}-*/{name}.safetensors") if file.read_bytes() == content]
        history = [TrainStep(*row) for row in json.loads((runs[0] / "history.json").read_text())]
        assert entry["seconds"] == round(history[-1].seconds, 1) >= 0
    quality = {name: entry["quality"] for name, entry in entries(out).items()}
    assert quality["vqgan"]["n"] == 8 and 0 < quality["transformer"]["val_loss"] < 6
    assert 0 <= quality["transformer"]["val_accuracy"] < 1
    assert {"fur", "eye_left", "mean"} < quality["classifier"].keys() and 0 < quality["classifier"]["mean"] < 1


def test_the_reached_psnr_is_that_of_the_file_on_validation_images(pretrained):
    tokenizer = pipeline.Tokenizer(checkpoint.load_vqgan(pretrained / "vqgan.safetensors"))
    val = get_dataset(CONFIG).val
    error = (tokenizer.decode(tokenizer.encode(val)).double() - val.double()).square().mean() / 255**2
    reached = entries(pretrained)["vqgan"]["quality"]["val_psnr_db"]
    assert reached == pytest.approx(-10 * torch.log10(error).item(), abs=0.05)


def test_what_is_trained_already_is_reused_and_says_so(pretrained, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(training, "fit", never)
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert all(f"{name}: reused" in printed.err for name in NAMES)
    for file in tmp_path.glob("*.safetensors"):
        assert file.read_bytes() == (pretrained / file.name).read_bytes()
    assert entries(tmp_path) == entries(pretrained), "the seconds of the training, too, and not those of looking it up"


def test_a_transformer_brings_the_vqgan_whose_tokens_it_learned_and_other_entries_stay(pretrained, tmp_path):
    (tmp_path / "training.json").write_text('{"classifier": {"seed": 7}}')
    assert main(["train", *TINY, "--stage", "transformer", "--out", str(tmp_path)]) == 0
    assert sorted(entries(tmp_path)) == NAMES and entries(tmp_path)["classifier"] == {"seed": 7}
    assert networks(tmp_path) == ["transformer", "vqgan"]


def test_photographs_go_without_the_classifier_of_toy_cats(pretrained, tmp_path, monkeypatch):
    photographs = replace(get_dataset(CONFIG), name="toycats", attributes={})  # whatever their folder is called
    monkeypatch.setattr(commands, "get_dataset", lambda config: photographs)
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    assert networks(tmp_path) == ["transformer", "vqgan"]


def test_an_interrupted_training_leaves_the_folder_as_it_was_and_goes_on(own_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)  # a narrow terminal cuts the bar
    (tmp_path / "vqgan.safetensors").write_bytes(b"old")
    words, real = ["train", *TINY, "--stage", "vqgan", "--out", str(tmp_path)], training.fit

    def interrupted(*arguments, **settings):
        for step in real(*arguments, **settings):
            yield step
            if step.step == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    assert main(words) == 130
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("vqgan.safetensors", b"old")]
    assert capsys.readouterr().err.splitlines()[-1].startswith("lab5: interrupted")
    monkeypatch.setattr(training, "fit", real)
    assert main(words) == 0
    printed = capsys.readouterr()
    assert re.search(r"vqgan: 100%.*6/6 \[[\d:]+<[\d:?]+.*loss=\d.*lr=1.0e-05", printed.err), "progress is on stderr"
    assert printed.out.startswith("vqgan: ") and "val_psnr_db" in printed.out
    (history,) = (own_folders / "data").rglob("history.json")
    assert [row[0] for row in json.loads(history.read_text())] == [1, 2, 3, 4, 5, 6]
    checkpoint.load_vqgan(tmp_path / "vqgan.safetensors")


def test_a_record_that_is_damaged_is_told_before_anything_is_trained(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", never)
    (tmp_path / "training.json").write_text('{"vqgan": ')
    assert main(["train", *TINY, "--set", "seed=9", "--out", str(tmp_path)]) == 2
    assert "training.json is not JSON any more" in capsys.readouterr().err


def test_a_copy_that_fails_leaves_what_was_there(pretrained, tmp_path, monkeypatch):
    (tmp_path / "vqgan.safetensors").write_bytes(b"old")
    monkeypatch.setattr(files.os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    assert main(["train", *TINY, "--stage", "vqgan", "--out", str(tmp_path)]) == 2
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("vqgan.safetensors", b"old")]


def test_a_training_is_logged_for_tensorboard_network_by_network(pretrained, tmp_path, monkeypatch):
    written = []

    def writer(folder):
        return nullcontext(SimpleNamespace(add_scalar=lambda name, _, step: written.append((name, folder.name, step))))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer))
    short = ["--set", "stage1.steps=2", "--set", "stage2.steps=3"]
    assert main(["train", *TINY, *short, "--stage", "transformer", "--log", str(tmp_path / "log")]) == 0
    steps = [("vqgan", 1), ("vqgan", 2), ("transformer", 1), ("transformer", 2), ("transformer", 3)]
    assert [(network, step) for name, network, step in written if name == "loss"] == steps


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_control_c_and_sigterm_end_a_real_process_with_one_line_and_a_saved_state(
    number, code, own_folders, monkeypatch
):
    monkeypatch.delenv("COLUMNS", raising=False)
    words = [sys.executable, "-m", "lab5", "train", *TINY, "--stage", "vqgan", "--set", "stage1.steps=100000"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}

    def heed():  # a shell that runs the tests in the background has told all its children to ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    told, shown = [], 0
    with subprocess.Popen(words, cwd=ROOT, preexec_fn=heed, **pipes) as process:
        hangs = threading.Timer(1800, process.kill)
        hangs.daemon = True
        hangs.start()
        for line in process.stderr:  # a line each time that the bar is drawn: at most every second, after whole steps
            told.append(line)
            shown += "loss=" in line
            # One that arrives within a callback of compiled code is lost: where the bar goes on, people press again.
            if "loss=" in line and shown % 10 == 1:
                process.send_signal(number if shown < 50 else signal.SIGKILL)
        hangs.cancel()
    assert process.returncode == code, told
    assert told[-1].startswith("lab5: interrupted") and "Traceback" not in "".join(told)
    (state,) = (own_folders / "data" / "runs").glob("vqgan-*/vqgan.state-*")
    assert load_tensors(state)[1]["step"] == int(state.name.rpartition("-")[2]) > 0


# --- train, with the lab's flags --------------------------------------------------------------------------------


TRANSFORMER = ["train", "--profile", "smoke", "--stage", "transformer", "--set", "data.val=8", "--set", "data.test=8"]
BY_SET = [*TRANSFORMER, "--set", "data.train=32"]


def test_train_takes_the_labs_flags_and_a_vqgan_that_is_given(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "train_vqgan", never)
    vqgan = ["--vqgan", str(pretrained / "vqgan.safetensors")]
    flags = ("--epochs 3 --warmup-epochs 1 --batch-size 4 --accum-grad 2 --learning-rate 1e-3 --gamma-type square "
             "--partial 0.5 --num_workers 4 --device cpu").split()  # fmt: skip
    assert main([*BY_SET, *vqgan, *flags, "--out", str(tmp_path)]) == 0
    config = entries(tmp_path)["transformer"]["config"]
    expected = {"steps": 3 * 16 // 8, "warmup": 16 // 8, "batch": 4, "accumulate": 2, "lr": 1e-3, "masking": "square"}
    assert expected.items() <= config["stage2"].items() and config["data"]["train"] == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.json", "transformer.safetensors"]
    printed = capsys.readouterr()
    assert "vqgan: " in printed.out and "val_psnr_db" in printed.out
    translated, needless = [line for line in printed.err.splitlines() if line.startswith("lab5: ")]
    assert "the lab's flags stand for" in translated and "--num_workers sets nothing here" in needless
    monkeypatch.setattr(training, "fit", never)
    assert main([*TRANSFORMER, *vqgan, *translated.partition("stand for ")[2].split()]) == 0
    assert "transformer: reused" in capsys.readouterr().err, "the translation is the same training"


def test_a_training_begins_with_the_checkpoint_that_is_named(pretrained, tmp_path, monkeypatch, capsys):
    began, real = [], pipeline.checkpoint.load_transformer
    monkeypatch.setattr(pipeline.checkpoint, "load_transformer", lambda path: began.append(path) or real(path))
    file = shutil.copy(pretrained / "transformer.safetensors", tmp_path / "begin.safetensors")
    flags = f"--epochs 3 --start-from-epoch 2 --batch-size 16 --checkpoint-path {file}"
    assert main([*BY_SET, "--vqgan", str(pretrained / "vqgan.safetensors"), *flags.split()]) == 0
    assert "2/2" in capsys.readouterr().err, "one epoch of 32 images"
    assert began.count(file) == 2, "to look at its shape, and to begin"


def test_epochs_of_a_number_of_images_that_is_set_are_trained_on_as_many(pretrained, monkeypatch):
    monkeypatch.setattr(commands, "train", trained := Mock(return_value=None))
    words = [*BY_SET, "--epochs", "3", "--batch-size", "16"]
    assert main(words) == 0 and main([*words, "--partial", "0.5"]) == 0
    configs = [asked.args[0] for asked in trained.call_args_list]
    assert [(config.data.train, config.stage2.steps) for config in configs] == [(32, 6), (16, 3)]


@pytest.mark.parametrize("line, message", [
    ("--set stage2.lr=1 --learning-rate 2", "stage2.lr is set twice"),
    ("--data toycats --train_d_path {here}/train", "data.path is set twice"),
    ("--set stage2.steps=4 --epochs 1", "stage2.steps is set twice"),
    ("--scheduler cosmic", "stage2.schedule must be one of constant, warmup_cosine"),
    ("--gamma-type sine", "stage2.masking: unknown masking 'sine'; there are"),
    ("--stage vqgan --vqgan a.pt", "--stage vqgan trains stage one, and --vqgan says"),
    ("--vqgan /nowhere.pt", "there is no checkpoint at /nowhere.pt"),
    ("--vqgan {home}/vqgan.safetensors --set transformer.codes=9 --set vqgan.codes=9",
     "vqgan.safetensors has 64 codes, but transformer.codes = 9"),
    ("--vqgan {home}/vqgan.safetensors --set vqgan.latent=8 --set transformer.hints=24",
     "transformer.hints = 24 must be 0 or 48 for"),
    ("--checkpoint-path {home}/transformer.safetensors --set transformer.width=32",
     "is no transformer to begin with: it has width = 64, not 32"),
    ("--checkpoint-path {home}/vqgan.safetensors", "has no TransformerConfig"),
    ("--checkpoint-path nowhere.pt", "there is no checkpoint at nowhere.pt"),
    ("--MaskGitConfig {here}/a.yml", "transformer.width takes values such as"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_is(line, message, pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", never)
    (tmp_path / "train").mkdir()
    (tmp_path / "a.yml").write_text("{Transformer_param: {dim: wide}}")
    words = [word.format(home=pretrained, here=tmp_path) for word in line.split()]
    assert main([*BY_SET, "--set", "seed=77", *words]) == 2
    assert message in capsys.readouterr().err


# --- inpaint, whose pictures are in test_inpaint ------------------------------------------------------------------


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_inpaint_writes_the_pictures_and_prints_them_beside_the_baselines(pretrained, tmp_path, capsys):
    assert main(["inpaint", *TINY, "--out", str(tmp_path), "--n", "5", "--set", "decode.passes=2"]) == 0
    data = get_dataset(CONFIG)
    pair = pipeline.open_pair(CONFIG, data)
    expected = inpaint_images(pair, data.test[:5], data.holes[:5], replace(CONFIG.decode, passes=2), 0)
    pictures = sorted(tmp_path.rglob("*.png"))
    assert [path.relative_to(tmp_path).as_posix() for path in pictures] == [
        f"test_results/image_00{i}.png" for i in range(5)
    ]  # fmt: skip
    for picture, path in zip(expected, pictures, strict=True):
        assert np.array_equal(read(path), picture.permute(1, 2, 0).numpy())
    out = capsys.readouterr().out
    assert pair.weights in out and "Frechet distance on toy-attribute features" in out
    head, *rows = [line.split() for line in out.splitlines()[-8:]]
    assert head == ["images", "method", *Scores._fields] and {(row[0], row[-1]) for row in rows} == {("all", "5")}


def test_inpaint_passes_on_its_arguments(monkeypatch):
    monkeypatch.setattr(inpainting, "inpaint", asked := Mock())
    words = "--split val --n 3 --partial 0.5 --seed 5 --out there --show-steps 2 --overwrite --paste hard"
    pair = "--test-maskedimage-path a --test-mask-path b --weights trained --vqgan v.pt --transformer t.pt"
    pair += " --read rows=h3d --read heads=8 --refiner r"
    assert main(["inpaint", *TINY, *f"{words} {pair}".split()]) == 0
    config, job, networks = asked.call_args.args
    assert config == replace(CONFIG, decode=replace(CONFIG.decode, paste="hard"))
    assert job == (Path("there"), "val", (Path("a"), Path("b")), 3, 0.5, 5, 2, True)
    assert networks == ("trained", Path("v.pt"), Path("t.pt"), Reading(rows="h3d", heads=8), Path("r"))


def test_weights_can_be_the_profiles_own_or_two_files(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", never)
    own = shutil.copy(pretrained / "transformer.safetensors", tmp_path / "own.safetensors")
    choices = {
        "trained": ["--weights", "trained"],
        "own": ["--vqgan", str(pretrained / "vqgan.safetensors"), "--transformer", str(own)],
    }
    for name, words in choices.items():
        assert main(["inpaint", *TINY, "--n", "1", "--out", str(tmp_path / name), *words]) == 0
        assert f"weights {name} " in capsys.readouterr().out
    pictures = [read(tmp_path / name / "test_results" / "image_000.png") for name in choices]
    assert np.array_equal(*pictures), "they are the same networks"


# --- study ------------------------------------------------------------------------------------------------------


def rows_of(table: Path) -> list[dict]:
    with table.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_study_prints_mean_and_deviation_per_plan_and_keeps_its_results(pretrained, tmp_path, capsys):
    words = ["study", *TINY, "--seeds", "2", "--table", str(tmp_path / "rows.csv")]
    assert main(words) == 0
    out = capsys.readouterr().out
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()[2:]]
    assert lines[0] == ["schedule", "T", "t", "kid", "score", "hole_psnr_db"]
    plans = [["one_shot", "1", "1"]] + [[s, "3", str(t)] for s in ("cosine", "linear") for t in (1, 2, 3)]
    assert [line[:3] for line in lines[1:8]] == plans
    assert all(re.fullmatch(r"-?\d+\.\d{4} ± \d+\.\d{4}", value) for line in lines[1:8] for value in line[3:])
    assert ["schedule", "cosine − linear, T = 3"] in [line[:2] for line in lines[8:]]
    assert "cosine is the best schedule" in [line[0] for line in lines[8:]]
    (unmeasured,) = (line for line in lines if line[0] == "a loss on all tokens trains better")
    assert unmeasured[1:] == ["B, C, E", "not measured by this grid", "-"]
    rows = rows_of(tmp_path / "rows.csv")
    assert len(rows) == 2 * len(plans) and {row["n"] for row in rows} == {"8"}
    names = {"rows.csv", "rows-baselines.csv", "rows-effects.csv", "rows-claims.csv"}
    names |= {f"rows-{figure}.{kind}" for figure in ("claims", "schedules") for kind in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {row["verdict"] for row in rows_of(tmp_path / "rows-claims.csv")} > {"not measured"}
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(words) == 0
    assert capsys.readouterr().out == out, "nothing was decoded anew"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before, "figures too, to the last byte"


def test_one_seed_has_no_deviation(pretrained, tmp_path, capsys):
    assert main(["study", *TINY, "--seeds", "1", "--set", "study.steps=1", "--table", str(tmp_path / "a.csv")]) == 0
    assert re.search(r"\none_shot +1 +1 +-?\d+\.\d{4} +\d+\.\d{4} +\d+\.\d{4}\n", capsys.readouterr().out)


def test_a_study_does_not_train_on_a_tokenizer_with_another_number_of_codes(pretrained, tmp_path, capsys):
    other = ["--set", "vqgan.codes=16", "--set", "transformer.codes=16"]
    assert main(["study", *TINY, *other, "--grid", "claims", "--table", str(tmp_path / "a.csv")]) == 2
    message = "trains transformers of 16 codes, but the tokenizer has 64: take --weights trained"
    assert message in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.slow  # a dozen trainings and over a hundred ways of decoding
def test_the_wide_study_runs_and_decides_or_declines_every_claim(pretrained, tmp_path):
    table = tmp_path / "wide.csv"
    tiny = [*TINY, "--set", "stage2.steps=6", "--weights", "trained"]
    assert main(["study", *tiny, "--grid", "wide", "--jobs", "2", "--seeds", "2", "--table", str(table)]) == 0
    claims = rows_of(tmp_path / "wide-claims.csv")
    of_all = [row["claim"] for row in claims if row["way"] == ""]
    assert of_all == [claim.says for claim in CLAIMS] and {row["way"] for row in claims} > {"best", "sampled", "argmax"}
    assert all(row["n"] == "8" for row in claims)
    networks = {row["network"] for row in rows_of(tmp_path / "wide-networks.csv")}
    assert networks >= {*RECIPES, *CONTROLLED} and len(networks) == len(RECIPES) + len(CONTROLLED) + 5
    figures = ("claims", "schedules", "samplers", "surroundings", "trainings", "loss", "recipes")
    assert all((tmp_path / f"wide-{name}.png").stat().st_size > 10_000 for name in figures)


# --- data, settings and export ----------------------------------------------------------------------------------


def test_data_prints_what_is_in_a_dataset(pretrained, capsys):
    assert main(["data", *TINY]) == 0
    out = capsys.readouterr().out
    assert out.startswith("toycats: toycats\n")
    (used,) = [line.split() for line in out.splitlines() if line.startswith("images used")]
    assert used[-3:] == ["32", "8", "8"]


def test_settings_are_those_of_the_profile_with_what_is_changed(capsys):
    assert main(["settings", *TINY, "--recipe", "paper", "--set", "decode.batch=7"]) == 0
    by_name = dict(line.split(" = ", 1) for line in capsys.readouterr().out.splitlines())
    values = {name: by_name[name].split()[0] for name in ("data.train", "stage2.label_smoothing", "decode.batch")}
    assert values == {"data.train": "32", "stage2.label_smoothing": "0.1", "decode.batch": "7"}


def test_export_writes_what_the_lab_reads_and_only_once(tmp_path, capsys):
    model, out = BidirectionalTransformer(TransformerConfig(12, width=32, layers=1, hidden=16)), tmp_path / "lab.pt"
    checkpoint.save_transformer(tmp_path / "mine.safetensors", model)
    words = ["export", "transformer", str(tmp_path / "mine.safetensors"), str(out)]
    assert main([*words, "--layout", "fused", "--wrapper", "model"]) == 0
    assert f"{out}: the transformer of" in capsys.readouterr().out
    assert "blocks.0.Attention.qkv.weight" in torch.load(out, weights_only=True)["model"]
    before = out.read_bytes()
    assert main(words) == 2 and "is there already" in capsys.readouterr().err and out.read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
    assert "blocks.0.Attention.query.weight" in torch.load(out, weights_only=True)
    converted = ["export", "transformer", str(out), str(tmp_path / "other.pt"), "--layout", "fused"]
    assert main(converted) == 0, "the lab's own files change their layout"
