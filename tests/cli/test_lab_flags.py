"""The lab's flags as settings: what stands for what, in steps and images, and what is refused."""

from pathlib import Path

import pytest

from lab5.cli import lab_flags
from lab5.cli.arguments import parser
from lab5.cli.main import main
from lab5.profiles import configure

LAB_YAML = """
model_param:
  VQ_Configs:
    VQ_config_path: config/VQGAN.yml
    VQ_CKPT_path: {vqgan}
  num_image_tokens: 256
  num_codebook_vectors: 1024
  choice_temperature: 4.5
  gamma_type: cosine
  Transformer_param:
    num_image_tokens: 256
    num_codebook_vectors: 1024
    dim: 768
    n_layers: 15
    hidden_dim: 1536
"""


def parse(line: str):
    return parser().parse_args(line.split())


@pytest.fixture
def lab_yaml(tmp_path) -> Path:
    """The lab's config/MaskGit.yml, with its file of stage one."""
    (tmp_path / "VQGAN.pt").write_bytes(b"weights")
    file = tmp_path / "MaskGit.yml"
    file.write_text(LAB_YAML.format(vqgan=tmp_path / "VQGAN.pt"))
    return file


@pytest.fixture
def dataset(tmp_path) -> Path:
    """The folders of the lab's second layout: the masks one above the images."""
    for folder in ("cat_face/train", "cat_face/val", "cat_face/masked_image", "mask64"):
        (tmp_path / "lab5_dataset" / folder).mkdir(parents=True)
    return tmp_path / "lab5_dataset"


# --- flags ------------------------------------------------------------------------------------------------------


def test_flags_of_the_training_stand_for_settings_of_stage_two():
    line = (
        "train --batch-size 40 --accum-grad 5 --learning-rate 1e-4 --weight-decay 0.045 --betas 0.9 0.96 --device cpu "
        "--gamma-type square --scheduler cosine"
    )
    assert lab_flags.settings(parse(line)) == {
        "stage2.batch": 40, "stage2.accumulate": 5, "stage2.lr": 1e-4, "stage2.weight_decay": 0.045,
        "stage2.betas": (0.9, 0.96), "device": "cpu", "stage2.masking": "square", "stage2.schedule": "warmup_cosine",
    }  # fmt: skip
    configure("quick", **lab_flags.settings(parse(line)))  # every one of them is a setting, of the right type


def test_flags_of_the_inpainting_stand_for_settings_of_decoding():
    line = "inpaint --total-iter 12 --sweet-spot 6 --mask-func cosine --batch-size 1 --device cpu"
    settings = lab_flags.settings(parse(line))
    assert settings == {
        "decode.steps": 12, "decode.stop_at": 6, "decode.schedule": "cosine", "decode.batch": 1, "device": "cpu",
    }  # fmt: skip
    assert configure("quick", **settings).decode.stop_at == 6
    assert lab_flags.settings(parse("inpaint --true-scheduling")) == {}, "shares of the hole are the rule here"


def test_without_flags_nothing_is_set():
    assert lab_flags.settings(parse("train")) == lab_flags.settings(parse("inpaint")) == {}
    assert lab_flags.notes(parse("train")) == lab_flags.notes(parse("inpaint")) == lab_flags.notes(parse("fid")) == []


@pytest.mark.parametrize("name, expected", [
    ("cosine", "warmup_cosine"), ("linear", "warmup_linear"), ("constant", "constant"), ("none", "constant"),
    ("warmup_linear", "warmup_linear"), ("multi-step", "multi_step"),
])  # fmt: skip
def test_schedulers_by_the_names_of_solutions_and_by_ours(name, expected):
    assert lab_flags.settings(parse(f"train --scheduler {name}")) == {"stage2.schedule": expected}


@pytest.mark.parametrize("words", [["0.9", "0.96"], ["0.9,0.96"], ["(0.9,", "0.96)"]])
def test_betas_in_every_notation(words):
    args = parser().parse_args(["train", "--betas", *words])
    assert lab_flags.settings(args)["stage2.betas"] == (0.9, 0.96)


@pytest.mark.parametrize("line, sentence", [
    ("inpaint --sweet-spot 0", "--sweet-spot must lie in 1..T, the number of steps, not 0"),
    ("inpaint --sweet-spot -1 --total-iter 8", "must lie in 1..8, which is --total-iter, not -1"),
    ("inpaint --sweet-spot 13 --total-iter 12", "must lie in 1..12, which is --total-iter, not 13"),
    ("inpaint --partial 0", "--partial must lie above 0"),
    ("train --partial 1.5", "--partial must lie above 0 and be at most 1, .* not 1.5"),
    ("train --betas 0.9", "--betas takes two numbers"),
    ("train --start-from-epoch 3", "--start-from-epoch 3 needs the --checkpoint-path"),
    ("train --checkpoint-path a.pt --resume b.pt", "name two files, a.pt and b.pt"),
])  # fmt: skip
def test_values_that_mean_nothing_are_refused(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        lab_flags.settings(parse(line))


@pytest.mark.parametrize("line, sentence", [
    ("inpaint --sweet-spot 9", "decode.stop_at = 9 must lie in 0..8"),
    ("train --learning-rate 0", "stage2.lr must be above 0, not 0.0"),
    ("train --betas 0.9 1.0", "stage2.betas must be at least 0 and below 1, not "),
])  # fmt: skip
def test_values_that_a_setting_may_not_have_are_refused_too(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        configure("quick", **lab_flags.settings(parse(line)))


def test_flags_without_a_counterpart_are_answered():
    lines = lab_flags.notes(parse("train --num_workers 4 --save-per-epoch 1 --ckpt-interval 2 --resume"))
    assert [line.split()[0] for line in lines] == ["--num_workers", "--save-per-epoch", "--ckpt-interval", "--resume"]
    lines += (of_inpainting := lab_flags.notes(parse("inpaint --true-scheduling --num_workers 4")))
    assert [line.split()[0] for line in of_inpainting] == ["--true-scheduling", "--num_workers"]
    assert all("sets nothing here: " in line for line in lines)


def test_resume_names_the_file_to_begin_with(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"weights")
    file = str(tmp_path / "last.pt")
    for words in (f"--resume {file}", f"--checkpoint-path {file}", f"--resume --checkpoint-path {file}"):
        assert lab_flags.settings(parse(f"train {words}")) == {"stage2.start": file}
        assert lab_flags.notes(parse(f"train {words}")) == []


# --- the dataset ------------------------------------------------------------------------------------------------


def test_the_folders_of_train_and_val_name_the_dataset(dataset):
    train, val = dataset / "cat_face" / "train", dataset / "cat_face" / "val"
    for line in (f"train --train_d_path {train} --val_d_path {val}/", f"train --train_d_path {train}"):
        assert lab_flags.settings(parse(line)) == {"data.path": str(dataset)}, "the masks are one above"
    (dataset / "cat_face" / "mask64").mkdir()
    assert lab_flags.settings(parse(f"train --val_d_path {val}")) == {"data.path": str(dataset / "cat_face")}


@pytest.mark.parametrize("line, sentence", [
    ("--train_d_path {here}/cat_face/train --val_d_path {other}/val", "lie in two datasets; .* --data"),
    ("--train_d_path {here}/cat_face/val", "--train_d_path must be a folder called train"),
    ("--val_d_path {here}/val", "--val_d_path must be a folder called val"),
])  # fmt: skip
def test_folders_of_two_datasets_are_refused(dataset, tmp_path, line, sentence):
    (tmp_path / "other" / "val").mkdir(parents=True)
    with pytest.raises(ValueError, match=sentence):
        lab_flags.settings(parse(f"train {line.format(here=dataset, other=tmp_path / 'other')}"))


# --- epochs -----------------------------------------------------------------------------------------------------


def in_steps(line: str, images: int = 8000, **given):
    args = parse(f"train {line}")
    return lab_flags.in_steps(args, given, configure("full", **lab_flags.settings(args), **given), images)


def test_an_epoch_sees_every_image_once():
    assert in_steps("--epochs 50 --batch-size 40 --accum-grad 2") == {"stage2.steps": 5000, "stage2.warmup": 500}
    assert in_steps("--epochs 1 --batch-size 100 --accum-grad 100") == {"stage2.steps": 1, "stage2.warmup": 0}
    assert in_steps("--epochs 200 --batch-size 10 --warmup-epochs 10") == {
        "stage2.steps": 160_000, "stage2.warmup": 8000,
    }  # fmt: skip
    assert in_steps("--epochs 200 --batch-size 10") == {"stage2.steps": 160_000, "stage2.warmup": 1000}, "the profile's"
    assert in_steps("--epochs 5 --batch-size 10", **{"stage2.warmup": 3}) == {"stage2.steps": 4000}, "as it was set"


def test_a_part_of_the_images_makes_shorter_epochs():
    assert in_steps("--partial 0.5 --epochs 2 --batch-size 40") == {
        "data.train": 4000, "stage2.steps": 200, "stage2.warmup": 20,
    }  # fmt: skip
    assert in_steps("--partial 0.00001") == {"data.train": 1}


def test_epochs_that_are_done_are_not_repeated(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"weights")
    line = f"--batch-size 80 --epochs 50 --checkpoint-path {tmp_path / 'a.pt'} --start-from-epoch"
    assert in_steps(f"{line} 30")["stage2.steps"] == 2000
    with pytest.raises(ValueError, match="--epochs must be at least 1 more than --start-from-epoch, not 50"):
        in_steps(f"{line} 50")


@pytest.mark.parametrize("line", ["--epochs 0", "--warmup-epochs -1"])
def test_no_epochs_are_refused(line):
    with pytest.raises(ValueError, match="must be at least"):
        in_steps(line)


def test_images_are_counted_only_where_it_matters():
    assert not lab_flags.counts_images(parse("train --batch-size 4"))
    for flag in ("--epochs", "--warmup-epochs", "--partial"):
        assert lab_flags.counts_images(parse(f"train {flag} 1"))


# --- MaskGit.yml ------------------------------------------------------------------------------------------------


def test_the_labs_file_describes_the_labs_network(lab_yaml):
    args = parse(f"train --MaskGitConfig {lab_yaml}")
    settings = lab_flags.settings_of_file(args)
    assert configure("cats-cpu", **settings).transformer == configure("full").transformer
    assert settings["stage2.masking"] == settings["decode.schedule"] == "cosine"
    assert settings["decode.choice_temperature"] == 4.5 and settings["vqgan.codes"] == 1024
    assert lab_flags.notes(args) == []


def test_other_sizes_are_read_too(lab_yaml):
    text = lab_yaml.read_text().replace("768", "256").replace("15", "4").replace("1536", "512").replace("1024", "64")
    lab_yaml.write_text(text.replace("cosine", "square"))
    config = configure("full", **lab_flags.settings_of_file(parse(f"inpaint --MaskGitConfig {lab_yaml}")))
    shape = config.transformer
    assert (shape.width, shape.layers, shape.codes, shape.heads, shape.norm) == (256, 4, 64, 16, "post")
    assert config.vqgan.codes == 64 and config.decode.schedule == "square"


def test_stage_one_is_what_is_given_or_what_the_file_or_the_environment_names(lab_yaml, monkeypatch):
    named, lines = lab_yaml.parent / "VQGAN.pt", ("train", "inpaint --transformer t.pt")
    for line in lines:
        assert lab_flags.stage_one(parse(line)) is None
        assert lab_flags.stage_one(parse(f"{line} --MaskGitConfig {lab_yaml}")) == named
        assert lab_flags.stage_one(parse(f"{line} --MaskGitConfig {lab_yaml} --vqgan mine.pt")) == Path("mine.pt")
    monkeypatch.setenv("LAB5_VQGAN", "course/VQGAN.pt")
    assert lab_flags.stage_one(parse("inpaint --transformer t.pt")) == Path("course/VQGAN.pt")
    assert lab_flags.stage_one(parse("study --transformer t.pt")) == Path("course/VQGAN.pt")
    assert lab_flags.stage_one(parse("inpaint")) is lab_flags.stage_one(parse("train")) is None
    assert lab_flags.stage_one(parse(f"inpaint --MaskGitConfig {lab_yaml}")) is None, "weights come in pairs"


def test_what_is_not_read_is_said(lab_yaml):
    lab_yaml.write_text(LAB_YAML.format(vqgan="nowhere.pt") + "  n_heads: 8\n")
    (line,) = lab_flags.notes(parse(f"train --MaskGitConfig {lab_yaml}"))
    assert line.endswith("not read are n_heads, VQ_CKPT_path")


@pytest.mark.parametrize("content, sentence", [
    ("model_param: [1, 2", "is not plain YAML"),
    ("model_param: !!python/object/apply:os.mkdir [fired]", "is not plain YAML"),
    ("- a\n- b\n", "is not the lab's MaskGit.yml"),
    ("model_param: 3", "is not the lab's MaskGit.yml"),
    ("model_param: {Transformer_param: 5}", "Transformer_param must be a section"),
    ("model_param: {num_image_tokens: 64}", "num_image_tokens must be 256.* not 64"),
    ("{num_codebook_vectors: 8, Transformer_param: {num_codebook_vectors: 9}}", "is both 8 and 9"),
])  # fmt: skip
def test_other_files_are_refused_and_run_nothing(content, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yml").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        lab_flags.settings_of_file(parse("train --MaskGitConfig a.yml"))
    assert not Path("fired").exists()


def test_a_value_of_another_type_and_a_missing_file_are_one_sentence(tmp_path, capsys):
    (tmp_path / "a.yml").write_text("{Transformer_param: {dim: wide}}")
    assert main(["train", "--MaskGitConfig", str(tmp_path / "a.yml")]) == 2
    assert "transformer.width takes values such as" in capsys.readouterr().err
    assert main(["inpaint", "--MaskGitConfig", str(tmp_path / "b.yml")]) == 2
    assert "b.yml cannot be read" in capsys.readouterr().err


# --- fid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, sets", [
    ("a b", ["a", "b"]),
    ("--predicted-path a --gtcsv-path b", ["a", "b"]),
    ("a --gtcsv-path b", ["a", "b"]),
    ("a --save-stats s.npz", ["a"]),
    ("a b --dims 2048 --save-stats s.npz", ["a", "b"]),
])  # fmt: skip
def test_sets_by_place_and_by_flag(line, sets):
    assert lab_flags.fid_sets(parse(f"fid {line}")) == sets


@pytest.mark.parametrize("line, sentence", [
    ("", "fid compares two sets: give FIRST and SECOND, or"),
    ("--predicted-path a", "fid compares two sets"),
    ("--gtcsv-path b --save-stats s.npz", "fid compares two sets"),
    ("a b --gtcsv-path c", "SECOND is given twice, as b and by --gtcsv-path"),
    ("a b --dims 768", "--dims must be 2048"),
])  # fmt: skip
def test_too_few_or_too_many_sets_are_refused(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        lab_flags.fid_sets(parse(f"fid {line}"))
