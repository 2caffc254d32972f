"""The command line as its users meet it: exit codes, one sentence per mistake, files whole or not at all."""

import contextlib
import csv
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lab5 import checkpoint
from lab5.cli import doctor
from lab5.cli import inpaint as inpainting
from lab5.cli import train as commands
from lab5.cli.main import main
from lab5.config import TransformerConfig
from lab5.data.dataset import get_dataset
from lab5.inpainting.fill import inpaint_images
from lab5.profiles import configure
from lab5.report.run import ReportError
from lab5.runtime import files
from lab5.runtime.files import load_tensors
from lab5.runtime.folders import ROOT
from lab5.scoring.classifier import load_classifier
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
def at_home(home, monkeypatch) -> Path:
    """The command line finds the trained networks, and takes the copies for the committed ones."""
    monkeypatch.setenv("LAB5_DATA", str(home))
    monkeypatch.setattr(pipeline, "pretrained_folder", lambda: home / "pretrained")
    monkeypatch.setattr(doctor, "pretrained_folder", lambda: home / "pretrained")
    return home


def never(*_, **__):
    raise AssertionError("nothing should be trained")


# --- arguments and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, message", [
    (["train", "--profile", "huge"], "unknown profile 'huge'"),
    (["train", "--set", "stage1.stpes=3"], "there is no setting 'stage1.stpes'"),
    (["train", "--set", "stage1.steps"], "--set takes KEY=VALUE such as decode.steps=12, not 'stage1.steps'"),
    (["train", "--set", "seed=x"], "seed takes values such as 0 (int), not 'x'"),
    (["train", "--set", "profile=full"], "--set cannot change the profile"),
    (["train", "--set", "device=abacus"], "device 'abacus' cannot be used here"),
    (["train", *TINY, "--data", "/nowhere"], "/nowhere does not exist"),
    (["inpaint", *TINY, "--vqgan", "a.pt"], "--vqgan and --transformer belong together"),
    (["inpaint", *TINY, "--vqgan", "a.pt", "--transformer", "b.pt"], "there is no checkpoint at a.pt"),
    (["inpaint", *TINY, "--n", "9"], "--n must lie in 1..8, the number of test images, not 9"),
    (["inpaint", *TINY, "--transformer", "b.pt"], "LAB5_VQGAN can name the vqgan"),
    (["inpaint", *TINY, "--set", "decode.order=luck"], "decode.order must be one of"),
    (["fid", "/nowhere", "toycats-test"], "/nowhere is no folder"),
    (["export", "vqgan", "/nowhere.pt", "out.pt"], "there is no checkpoint at /nowhere.pt"),
    (["data", "--data", "/nowhere"], "/nowhere does not exist"),
    (["study", *TINY, "--set", "study.schedules=cosine,sine"], "study.schedules must be one of linear, cosine"),
])  # fmt: skip
def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_2(words, message, at_home, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith("lab5: ") and message in line and "Traceback" not in printed.err and printed.out == ""


def test_debug_raises_the_error_itself():
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        main(["train", "--debug", "--profile", "huge"])


@pytest.mark.parametrize("error, code, message", [
    (OSError(28, "No space left on device"), 2, "No space left on device"),
    (FloatingPointError("the loss is nan\nat step 3"), 2, "the loss is nan at step 3"),
    (ModuleNotFoundError("No module named 'cv2'"), 2, "No module named 'cv2'; python -m lab5 doctor says"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (KeyboardInterrupt("SIGTERM"), 143, "interrupted"),
    (MemoryError("lower stage1.batch, which is 32"), 2, "lower stage1.batch"),
])  # fmt: skip
def test_what_stops_a_command_is_told_in_one_line(error, code, message, monkeypatch, capsys):
    def stop(*_):
        raise error

    monkeypatch.setattr(commands, "train", stop)
    assert main(["train", *TINY]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lab5: ") and message in line


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch):
    monkeypatch.setattr(commands, "train", never)
    with pytest.raises(AssertionError):
        main(["train", *TINY])


# --- report -----------------------------------------------------------------------------------------------------


def test_report_passes_on_its_arguments_and_prints_where_the_index_is(monkeypatch, capsys, tmp_path):
    asked = {}

    def run_report(profile, **settings):
        asked.update(settings, profile=profile)
        return tmp_path / "index.html"

    monkeypatch.setattr("lab5.report.run.run_report", run_report)
    words = ["--profile", "smoke", "--only", "03", "04", "-p", "seed", "3", "-p", "weights", "trained", "--out"]
    assert main(["report", *words, str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    assert asked == {
        "profile": "smoke", "only": ["03", "04"], "parameters": {"seed": "3", "weights": "trained"}, "out": tmp_path,
    }  # fmt: skip
    main(["report"])
    assert asked == {"profile": "auto", "only": None, "parameters": {}, "out": ROOT / "report"}


def test_a_report_that_stopped_is_exit_code_1(monkeypatch, capsys):
    def run_report(*_, **__):
        raise ReportError("02_b stopped in code cell 3 of 9.")

    monkeypatch.setattr("lab5.report.run.run_report", run_report)
    assert main(["report"]) == 1
    assert capsys.readouterr().err == "lab5: 02_b stopped in code cell 3 of 9.\n"
    with pytest.raises(ReportError):
        main(["report", "--debug"])


# --- train ------------------------------------------------------------------------------------------------------


def test_train_hands_over_networks_with_a_record_of_how_they_came_about(home):
    out = home / "pretrained"
    assert sorted(path.name for path in out.iterdir()) == ["classifier.safetensors", "training.json",
                                                           "transformer.safetensors", "vqgan.safetensors"]  # fmt: skip
    entries = json.loads((out / "training.json").read_text())
    assert sorted(entries) == NAMES
    for name, entry in entries.items():
        content = (out / f"{name}.safetensors").read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["seed"] == 0 and entry["config"]["stage1"]["steps"] == 6
        runs = [file.parent for file in home.glob(f"runs/{name}-*/{name}.safetensors") if file.read_bytes() == content]
        history = [TrainStep(*row) for row in json.loads((runs[0] / "history.json").read_text())]
        assert entry["seconds"] == round(history[-1].seconds, 1) and history[-1].seconds > 0
    assert entries["vqgan"]["quality"]["val_psnr_db"] > 5 and entries["vqgan"]["quality"]["n"] == 8
    assert 0 < entries["transformer"]["quality"]["val_loss"] < 6
    assert 0 <= entries["transformer"]["quality"]["val_accuracy"] < 1
    accuracy = entries["classifier"]["quality"]
    assert {"fur", "eye_left", "mean"} < accuracy.keys() and 0 < accuracy["mean"] < 1
    checkpoint.load_vqgan(out / "vqgan.safetensors")
    checkpoint.load_transformer(out / "transformer.safetensors")
    load_classifier(out / "classifier.safetensors")


def test_the_reached_psnr_is_that_of_the_file_on_validation_images(at_home):
    entry = json.loads((at_home / "pretrained" / "training.json").read_text())["vqgan"]
    tokenizer = pipeline.Tokenizer(checkpoint.load_vqgan(at_home / "pretrained" / "vqgan.safetensors"))
    val = get_dataset(CONFIG).val
    error = (tokenizer.decode(tokenizer.encode(val)).double() - val.double()).square().mean() / 255**2
    assert entry["quality"]["val_psnr_db"] == pytest.approx(-10 * torch.log10(error).item(), abs=0.05)


def test_what_is_trained_already_is_reused_and_says_so(at_home, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(training, "fit", never)
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert all(f"{name}: reused" in printed.err for name in NAMES)
    for name in NAMES:
        file = f"{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (at_home / "pretrained" / file).read_bytes()
    first, again = (json.loads((folder / "training.json").read_text()) for folder in (at_home / "pretrained", tmp_path))
    assert first == again, "the seconds of the training, too, and not those of looking it up"


def test_a_transformer_brings_the_vqgan_whose_tokens_it_learned_and_other_entries_stay(at_home, tmp_path, capsys):
    (tmp_path / "training.json").write_text('{"classifier": {"seed": 7}}')
    assert main(["train", *TINY, "--stage", "transformer", "--out", str(tmp_path)]) == 0
    entries = json.loads((tmp_path / "training.json").read_text())
    assert sorted(entries) == NAMES and entries["classifier"] == {"seed": 7}
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["transformer", "vqgan"]


def test_photographs_go_without_the_classifier_of_toy_cats(at_home, tmp_path, monkeypatch, capsys):
    photographs = replace(get_dataset(CONFIG), name="toycats", attributes={})  # whatever their folder is called
    monkeypatch.setattr(commands, "get_dataset", lambda config: photographs)
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["transformer", "vqgan"]


def test_progress_shows_loss_rate_and_time_left_and_stays_off_stdout(capsys):
    assert main(["train", *TINY, "--stage", "vqgan"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"vqgan: 100%.*6/6 \[\d+:\d+<\d+:\d+.*loss=\d.*lr=1.0e-05", printed.err)
    assert printed.out.startswith("vqgan: ") and "val_psnr_db" in printed.out


def test_an_interrupted_training_leaves_the_folder_as_it_was_and_goes_on(own_folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "vqgan.safetensors").write_bytes(b"old")
    real = training.fit

    def interrupted(*arguments, **settings):
        for step in real(*arguments, **settings):
            yield step
            if step.step == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    assert main(["train", *TINY, "--stage", "vqgan", "--out", str(out)]) == 130
    assert [path.name for path in out.iterdir()] == ["vqgan.safetensors"]
    assert (out / "vqgan.safetensors").read_bytes() == b"old"
    assert capsys.readouterr().err.splitlines()[-1].startswith("lab5: interrupted")
    monkeypatch.setattr(training, "fit", real)
    assert main(["train", *TINY, "--stage", "vqgan", "--out", str(out)]) == 0
    assert "6/6" in capsys.readouterr().err
    (history,) = (own_folders / "data").rglob("history.json")
    assert [row[0] for row in json.loads(history.read_text())] == [1, 2, 3, 4, 5, 6]
    checkpoint.load_vqgan(out / "vqgan.safetensors")


def test_a_record_that_is_damaged_is_told_before_anything_is_trained(at_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", never)
    (tmp_path / "training.json").write_text('{"vqgan": ')
    assert main(["train", *TINY, "--set", "seed=9", "--out", str(tmp_path)]) == 2
    assert "training.json is not JSON any more" in capsys.readouterr().err


def test_a_copy_that_fails_leaves_what_was_there(at_home, tmp_path, monkeypatch, capsys):
    (tmp_path / "vqgan.safetensors").write_bytes(b"old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert main(["train", *TINY, "--stage", "vqgan", "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["vqgan.safetensors"]
    assert (tmp_path / "vqgan.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_control_c_and_sigterm_end_a_real_process_with_one_line_and_a_saved_state(number, code, own_folders):
    words = [sys.executable, "-m", "lab5", "train", *TINY, "--stage", "vqgan", "--set", "stage1.steps=100000"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def heed():  # a shell that runs the tests in the background has told all its children to ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(words, cwd=ROOT, preexec_fn=heed, **pipes) as process:
        progress = ""
        while "loss=" not in progress:  # the training is running
            progress += process.stderr.read(1)
        for _ in range(3):  # one that arrives within a callback of compiled code is lost, and people press again
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, rest = process.communicate(timeout=40)
                break
        else:
            process.kill()
    assert process.returncode == code
    assert rest.splitlines()[-1].startswith("lab5: interrupted") and "Traceback" not in rest
    (state,) = (own_folders / "data" / "runs").glob("vqgan-*/vqgan.state-*")
    assert load_tensors(state)[1]["step"] == int(state.name.rpartition("-")[2]) > 0


# --- train, with the lab's flags --------------------------------------------------------------------------------


BY_SET = ["--profile", "smoke", "--stage", "transformer", "--set", "data.train=32", "--set", "data.val=8",
          "--set", "data.test=8"]  # fmt: skip


def test_train_takes_the_labs_flags_and_a_vqgan_that_is_given(at_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "train_vqgan", never)
    flags = "--epochs 3 --warmup-epochs 1 --batch-size 4 --accum-grad 2 --learning-rate 1e-3 --gamma-type square"
    words = [*BY_SET, "--vqgan", str(at_home / "pretrained" / "vqgan.safetensors"), *flags.split(), "--partial", "0.5",
             "--num_workers", "4", "--device", "cpu"]  # fmt: skip
    assert main(["train", *words, "--out", str(tmp_path)]) == 0
    entry = json.loads((tmp_path / "training.json").read_text())["transformer"]
    stage2 = entry["config"]["stage2"]
    assert (stage2["steps"], stage2["warmup"], stage2["batch"], stage2["accumulate"]) == (3 * 16 // 8, 16 // 8, 4, 2)
    assert (stage2["lr"], stage2["masking"], entry["config"]["data"]["train"]) == (1e-3, "square", 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.json", "transformer.safetensors"]
    printed = capsys.readouterr()
    assert "vqgan: " in printed.out and "val_psnr_db" in printed.out
    translated, needless = [line for line in printed.err.splitlines() if line.startswith("lab5: ")]
    assert "the lab's flags stand for" in translated and "--num_workers sets nothing here" in needless
    again = translated.partition("stand for ")[2].split()
    monkeypatch.setattr(training, "fit", never)
    plain = [word for word in BY_SET if word != "data.train=32"]
    plain.remove("--set")
    assert main(["train", *plain, "--vqgan", str(at_home / "pretrained" / "vqgan.safetensors"), *again]) == 0
    assert "transformer: reused" in capsys.readouterr().err, "the translation is the same training"


def test_a_training_begins_with_the_checkpoint_that_is_named(at_home, tmp_path, monkeypatch, capsys):
    began, real = [], pipeline.checkpoint.load_transformer
    monkeypatch.setattr(pipeline.checkpoint, "load_transformer", lambda path: began.append(path) or real(path))
    file = tmp_path / "begin.safetensors"
    shutil.copy(at_home / "pretrained" / "transformer.safetensors", file)
    flags = f"--epochs 3 --start-from-epoch 2 --batch-size 16 --checkpoint-path {file}"
    assert main(["train", *BY_SET, "--vqgan", str(at_home / "pretrained" / "vqgan.safetensors"), *flags.split()]) == 0
    assert "2/2" in capsys.readouterr().err, "one epoch of 32 images"
    assert began.count(file) == 2, "to look at its shape, and to begin"


def test_epochs_of_a_number_of_images_that_is_set_are_trained_on_as_many(at_home, monkeypatch):
    trained = []
    monkeypatch.setattr("lab5.cli.train.train", lambda config, *_: trained.append(config))
    words = ["train", *BY_SET, "--epochs", "3", "--batch-size", "16"]
    assert main(words) == 0 and main([*words, "--partial", "0.5"]) == 0
    assert [(config.data.train, config.stage2.steps) for config in trained] == [(32, 6), (16, 3)]


def test_a_gpu_whose_memory_is_full_is_told_in_a_sentence(monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    monkeypatch.setattr("lab5.cli.fid.fid", full)
    assert main(["fid", "a", "b"]) == 2
    assert capsys.readouterr().err == (
        "lab5: the GPU's memory is full, a smaller batch takes less: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    )
    monkeypatch.setattr("lab5.cli.fid.fid", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["fid", "a", "b"])


@pytest.mark.parametrize("words, message", [
    (["--set", "stage2.lr=1", "--learning-rate", "2"], "stage2.lr is set twice"),
    (["--data", "toycats", "--train_d_path", "{here}/train"], "data.path is set twice"),
    (["--set", "stage2.steps=4", "--epochs", "1"], "stage2.steps is set twice"),
    (["--scheduler", "cosmic"], "stage2.schedule must be one of constant, warmup_cosine"),
    (["--gamma-type", "sine"], "stage2.masking: unknown masking 'sine'; there are"),
    (["--stage", "vqgan", "--vqgan", "a.pt"], "--stage vqgan trains stage one, and --vqgan says"),
    (["--vqgan", "/nowhere.pt"], "there is no checkpoint at /nowhere.pt"),
    (["--vqgan", "{home}/vqgan.safetensors", "--set", "transformer.codes=9", "--set", "vqgan.codes=9"],
     "vqgan.safetensors has 64 codes, but transformer.codes = 9"),
    (["--vqgan", "{home}/vqgan.safetensors", "--set", "vqgan.latent=8", "--set", "transformer.hints=24"],
     "transformer.hints = 24 must be 0 or 48 for"),
    (["--checkpoint-path", "{home}/transformer.safetensors", "--set", "transformer.width=32"],
     "is no transformer to begin with: it has width = 64, not 32"),
    (["--checkpoint-path", "{home}/vqgan.safetensors"], "has no TransformerConfig"),
    (["--checkpoint-path", "nowhere.pt"], "there is no checkpoint at nowhere.pt"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_is(words, message, at_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", never)
    (tmp_path / "train").mkdir()
    words = [word.format(home=at_home / "pretrained", here=tmp_path) for word in words]
    assert main(["train", *BY_SET, "--set", "seed=77", *words]) == 2
    assert message in capsys.readouterr().err


# --- inpaint ----------------------------------------------------------------------------------------------------


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_inpaint_writes_the_pictures_and_prints_them_beside_the_baselines(at_home, tmp_path, capsys):
    assert main(["inpaint", *TINY, "--out", str(tmp_path), "--n", "5", "--set", "decode.passes=2"]) == 0
    files = sorted(tmp_path.rglob("*"))
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "test_results", *[f"test_results/image_00{i}.png" for i in range(5)],
    ]  # fmt: skip
    data = get_dataset(CONFIG)
    pair = pipeline.open_pair(CONFIG, data)
    expected = inpaint_images(pair, data.test[:5], data.holes[:5], replace(CONFIG.decode, passes=2), 0)
    for picture, path in zip(expected, files[1:], strict=True):
        assert np.array_equal(read(path), picture.permute(1, 2, 0).numpy())
    out = capsys.readouterr().out
    assert pair.weights in out and "Frechet distance on toy-attribute features" in out
    table = [line.split() for line in out.splitlines()[-8:]]
    assert table[0] == ["images", "method", *Scores._fields]
    names = ["this", "reconstruction", "do_nothing", "grey_fill", "mean_colour", "telea", "navier_stokes"]
    assert [line[1] for line in table[1:]] == names
    assert {line[0] for line in table[1:]} == {"all"} and {line[-1] for line in table[1:]} == {"5"}


@pytest.mark.parametrize("words, seed", [([], 0), (["--set", "seed=3"], 3), (["--set", "seed=3", "--seed", "5"], 5)])
def test_inpaint_decodes_with_its_seed_and_never_sees_the_truth(words, seed, at_home, tmp_path, monkeypatch):
    seen, real = [], inpainting.decode_holes

    def spy(*arguments):
        seen.extend(arguments)
        return real(*arguments)

    monkeypatch.setattr(inpainting, "decode_holes", spy)
    assert main(["inpaint", *TINY, "--n", "3", "--out", str(tmp_path), "--set", "decode.stop_at=2", *words]) == 0
    data = get_dataset(CONFIG)
    assert torch.equal(seen[1], data.masked_test[:3]) and torch.equal(seen[2], data.holes[:3])
    assert seen[3] == replace(CONFIG.decode, stop_at=2) and seen[4] == seed


def test_results_are_replaced_only_when_asked_and_as_a_whole(at_home, tmp_path, capsys):
    assert main(["inpaint", *TINY, "--out", str(tmp_path), "--n", "4"]) == 0
    first = (tmp_path / "test_results" / "image_000.png").read_bytes()
    (tmp_path / "test_results" / "notes.txt").write_text("mine")
    assert main(["inpaint", *TINY, "--out", str(tmp_path), "--n", "2", "--seed", "5"]) == 2
    assert "holds results already" in capsys.readouterr().err
    assert (tmp_path / "test_results" / "image_000.png").read_bytes() == first
    assert main(["inpaint", *TINY, "--out", str(tmp_path), "--n", "2", "--overwrite"]) == 0
    left = sorted(path.name for path in (tmp_path / "test_results").iterdir())
    assert left == ["image_000.png", "image_001.png", "notes.txt"]
    assert (tmp_path / "test_results" / "image_000.png").read_bytes() == first, "the same seed, the same picture"
    assert [path.name for path in tmp_path.iterdir()] == ["test_results"]


def test_a_run_that_fails_on_the_way_leaves_earlier_results(at_home, tmp_path, monkeypatch, capsys):
    assert main(["inpaint", *TINY, "--out", str(tmp_path), "--n", "2"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "test_results").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["inpaint", *TINY, "--out", str(tmp_path), "--n", "1", "--overwrite"]) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "test_results").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["test_results"]


def test_weights_can_be_the_profiles_own_or_two_files(at_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", never)
    files = [at_home / "pretrained" / f"{name}.safetensors" for name in ("vqgan", "transformer")]
    choices = {
        "trained": ["--weights", "trained"],
        "own": ["--vqgan", str(files[0]), "--transformer", str(shutil.copy(files[1], tmp_path / "own.safetensors"))],
    }
    for name, words in choices.items():
        assert main(["inpaint", *TINY, "--n", "2", "--out", str(tmp_path / name), *words]) == 0
        assert f"weights {name} " in capsys.readouterr().out
    pictures = [read(tmp_path / name / "test_results" / "image_001.png") for name in choices]
    assert np.array_equal(*pictures), "they are the same networks"


def test_without_known_truth_there_are_pictures_and_no_scores(at_home, tmp_path, monkeypatch, capsys):
    data = get_dataset(CONFIG)
    unknown = replace(data, whole=torch.arange(8) >= 3)  # of the first four images one is known
    monkeypatch.setattr(inpainting, "get_dataset", lambda config: unknown)
    assert main(["inpaint", *TINY, "--n", "4", "--out", str(tmp_path)]) == 0
    assert "no scores" in capsys.readouterr().out
    assert main(["inpaint", *TINY, "--n", "5", "--out", str(tmp_path), "--overwrite"]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()[-6:]} == {"2"}, "two of five are known"


def test_logging_without_its_package_is_refused_in_a_sentence(at_home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", *TINY, "--set", "seed=9", "--stage", "vqgan", "--log", str(tmp_path / "log")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err and not (tmp_path / "log").exists()


def test_a_training_is_logged_for_tensorboard_network_by_network(at_home, tmp_path, monkeypatch):
    written = {}

    class Writer:
        def __init__(self, folder):
            self.rows = written.setdefault(Path(folder).name, [])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def add_scalar(self, name, value, step):
            self.rows.append((name, step))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    assert main(["train", *TINY, "--set", "seed=9", "--stage", "transformer", "--log", str(tmp_path / "log")]) == 0
    steps = {name: [step for what, step in rows if what == "loss"] for name, rows in written.items()}
    assert steps == {"vqgan": [1, 2, 3, 4, 5, 6], "transformer": [1, 2, 3, 4]}


# --- study ------------------------------------------------------------------------------------------------------


def rows_of(table: Path) -> list[dict]:
    with table.open() as file:
        return list(csv.DictReader(file))


def test_study_prints_mean_and_deviation_per_plan_and_keeps_its_results(at_home, tmp_path, capsys):
    table = tmp_path / "rows.csv"
    words = ["study", *TINY, "--seeds", "2", "--table", str(table)]
    assert main(words) == 0
    out = capsys.readouterr().out
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()[2:]]
    assert lines[0] == ["schedule", "T", "t", "kid", "score", "hole_psnr_db"]
    plans = [["one_shot", "1", "1"]] + [[s, "3", str(t)] for s in ("cosine", "linear") for t in (1, 2, 3)]
    assert [line[:3] for line in lines[1:8]] == plans
    assert all(re.fullmatch(r"-?\d+\.\d{4} ± \d+\.\d{4}", value) for line in lines[1:8] for value in line[3:])
    assert any(line[0] == "schedule" and line[1] == "cosine − linear, T = 3" for line in lines[8:])
    assert any(line[0] == "cosine is the best schedule" for line in lines[8:])
    rows = rows_of(table)
    assert len(rows) == 2 * len(plans) and {row["n"] for row in rows} == {"8"}
    names = {"rows.csv", "rows-baselines.csv", "rows-effects.csv", "rows-claims.csv"}
    names |= {f"rows-{figure}.{kind}" for figure in ("claims", "schedules") for kind in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {row["verdict"] for row in rows_of(tmp_path / "rows-claims.csv")} > {"not measured"}
    (unmeasured,) = (line for line in lines if line[0] == "a loss on all tokens trains better")
    assert unmeasured[1:] == ["B, C, E", "not measured by this grid", "-"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(words) == 0
    assert capsys.readouterr().out == out, "nothing was decoded anew"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before, "figures too, to the last byte"


def test_one_seed_has_no_deviation(at_home, tmp_path, capsys):
    assert main(["study", *TINY, "--seeds", "1", "--set", "study.steps=1", "--table", str(tmp_path / "a.csv")]) == 0
    assert re.search(r"\none_shot +1 +1 +-?\d+\.\d{4} +\d+\.\d{4} +\d+\.\d{4}\n", capsys.readouterr().out)


@pytest.mark.slow  # a dozen trainings and over a hundred ways of decoding
def test_the_wide_study_runs_and_decides_or_declines_every_claim(at_home, tmp_path, capsys):
    table = tmp_path / "wide.csv"
    tiny = [*TINY, "--set", "stage2.steps=6", "--weights", "trained"]
    assert main(["study", *tiny, "--grid", "wide", "--jobs", "2", "--seeds", "2", "--table", str(table)]) == 0
    claims = rows_of(tmp_path / "wide-claims.csv")
    assert len(claims) == len(CLAIMS) and all(row["n"] == "8" for row in claims)
    networks = {row["network"] for row in rows_of(tmp_path / "wide-networks.csv")}
    assert networks >= {*RECIPES, *CONTROLLED} and len(networks) == len(RECIPES) + len(CONTROLLED) + 5
    figures = ("claims", "schedules", "samplers", "surroundings", "trainings", "loss", "recipes")
    assert all((tmp_path / f"wide-{name}.png").stat().st_size > 10_000 for name in figures)


# --- data, settings and export -------------------------------------------------------------------------------------


def test_data_prints_what_is_in_a_dataset(at_home, capsys):
    assert main(["data", *TINY]) == 0
    out = capsys.readouterr().out
    assert out.startswith("toycats: toycats\n")
    (used,) = [line.split() for line in out.splitlines() if line.startswith("images used")]
    assert used[-3:] == ["32", "8", "8"]


def test_settings_are_those_of_the_profile_with_what_is_changed(at_home, tmp_path, capsys):
    assert main(["settings", *TINY, "--recipe", "paper", "--set", "decode.batch=7"]) == 0
    by_name = dict(line.split(" = ", 1) for line in capsys.readouterr().out.splitlines())
    values = {name: by_name[name].split()[0] for name in ("data.train", "stage2.label_smoothing", "decode.batch")}
    assert values == {"data.train": "32", "stage2.label_smoothing": "0.1", "decode.batch": "7"}
    assert main(["settings", "--set", "decode.order=luck"]) == 2
    assert "decode.order must be one of" in capsys.readouterr().err


def test_export_writes_what_the_lab_reads_and_only_once(at_home, tmp_path, capsys):
    model = BidirectionalTransformer(TransformerConfig(12, width=32, layers=1, hidden=16))
    checkpoint.save_transformer(tmp_path / "mine.safetensors", model)
    words = ["export", "transformer", str(tmp_path / "mine.safetensors"), str(tmp_path / "lab.pt")]
    assert main([*words, "--layout", "fused", "--wrapper", "model"]) == 0
    assert f"{tmp_path / 'lab.pt'}: the transformer of" in capsys.readouterr().out
    assert "blocks.0.Attention.qkv.weight" in torch.load(tmp_path / "lab.pt", weights_only=True)["model"]
    before = (tmp_path / "lab.pt").read_bytes()
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert (tmp_path / "lab.pt").read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
    assert "blocks.0.Attention.query.weight" in torch.load(tmp_path / "lab.pt", weights_only=True)
    converted = ["export", "transformer", str(tmp_path / "lab.pt"), str(tmp_path / "other.pt"), "--layout", "fused"]
    assert main(converted) == 0, "the lab's own files change their layout"


def test_what_the_lab_cannot_read_is_not_exported(at_home, tmp_path, capsys):
    for network in ("transformer", "vqgan"):
        file = at_home / "pretrained" / f"{network}.safetensors"
        assert main(["export", network, str(file), str(tmp_path / "lab.pt")]) == 2
    error = capsys.readouterr().err
    assert "heads = 1 where the lab has 16" in error and "codes = 64 where the lab has 1024" in error
    assert main(["export", "vqgan", "any", str(tmp_path / "lab.pt"), "--wrapper", "model"]) == 2
    assert "--layout and --wrapper are the transformer's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- doctor -----------------------------------------------------------------------------------------------------


def test_doctor_has_a_line_for_everything_and_is_content(at_home, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    assert main(["doctor"]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["python", "packages", "torch", "device", "memory", "disk", "vqgan",
                                           "transformer", "classifier", "dataset", "inception", "browser",
                                           "cache"]  # fmt: skip
    absent = {line[1]: line[0] for line in lines if line[0] != "ok"}
    assert absent | {"browser": "none"} == {"inception": "none", "browser": "none"}, "which are not needed"
    sentences = {line[1]: line[2] for line in lines}
    assert torch.__version__ in sentences["torch"] and "cached arrays" in sentences["cache"]


def test_doctor_misses_weights(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "pretrained_folder", lambda: tmp_path)
    assert main(["doctor"]) == 1
    missing = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("MISSING")]
    assert missing == ["vqgan", "transformer", "classifier"]


def test_doctor_misses_packages_and_works_without_them(at_home, monkeypatch, capsys):
    real = doctor.importlib.metadata.version

    def version(name):
        if name == "safetensors":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "scipy" else real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it could not be imported
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    missing = [line.split()[1] for line in out.splitlines() if line.startswith("MISSING")]
    assert missing == ["packages", "torch"] and "safetensors: make setup" in out
    assert "scipy 0.0.1 instead" not in out, "what is missing comes first"


def test_doctor_tells_of_a_data_folder_that_cannot_be_written(at_home, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAB5_DATA", str(tmp_path / "file"))
    assert main(["doctor"]) == 1
    assert "cannot be written to" in capsys.readouterr().out
