"""The lab's flags as settings: what stands for what, in steps and images, and what is refused."""

from pathlib import Path

import pytest

from lab5.cli import lab_flags
from lab5.cli.arguments import parser
from lab5.profiles import configure

LAB_YAML = """
model_param:
  VQ_Configs:
    VQ_config_path: config/VQGAN.yml
    VQ_CKPT_path: VQGAN.pt
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
def lab_yaml(tmp_path, monkeypatch) -> Path:
    """The lab's config/MaskGit.yml, with its file of stage one, in the folder that the command line is used in."""
    monkeypatch.chdir(tmp_path)
    Path("VQGAN.pt").write_bytes(b"weights")
    Path("MaskGit.yml").write_text(LAB_YAML)
    return Path("MaskGit.yml")


@pytest.fixture
def dataset(tmp_path) -> Path:
    """The folders of the lab's second layout: the masks one above the images."""
    for folder in ("cat_face/train", "cat_face/val", "mask64", "other/val"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("line, expected", [
    ("train", {}),
    ("inpaint", {}),
    ("train --batch-size 40 --accum-grad 5 --learning-rate 1e-4 --weight-decay 0.045 --betas 0.9 0.96 --device cpu "
     "--gamma-type square --scheduler cosine", {
        "stage2.batch": 40, "stage2.accumulate": 5, "stage2.lr": 1e-4, "stage2.weight_decay": 0.045,
        "stage2.betas": (0.9, 0.96), "device": "cpu", "stage2.masking": "square", "stage2.schedule": "warmup_cosine",
    }),
    ("inpaint --total-iter 12 --sweet-spot 6 --mask-func cosine --batch-size 1 --device cpu", {
        "decode.steps": 12, "decode.stop_at": 6, "decode.schedule": "cosine", "decode.batch": 1, "device": "cpu",
    }),
    ("inpaint --true-scheduling", {}),  # shares of the hole are the rule here
    ("train --scheduler linear", {"stage2.schedule": "warmup_linear"}),
    ("train --scheduler none", {"stage2.schedule": "constant"}),
    ("train --scheduler constant", {"stage2.schedule": "constant"}),
    ("train --scheduler multi-step", {"stage2.schedule": "multi_step"}),
    ("train --betas 0.9,0.96", {"stage2.betas": (0.9, 0.96)}),
    ("train --betas (0.9, 0.96)", {"stage2.betas": (0.9, 0.96)}),
])  # fmt: skip
def test_flags_stand_for_settings(line, expected):
    assert lab_flags.settings(parse(line)) == expected
    configure("quick", **expected)  # every one of them is a setting, of the right type


@pytest.mark.parametrize("line, sentence", [
    ("inpaint --sweet-spot 0", "--sweet-spot must lie in 1..T, the number of steps, not 0"),
    ("inpaint --sweet-spot -1 --total-iter 8", "must lie in 1..8, which is --total-iter, not -1"),
    ("inpaint --sweet-spot 13 --total-iter 12", "must lie in 1..12, which is --total-iter, not 13"),
    ("inpaint --sweet-spot 9", "decode.stop_at = 9 must lie in 0..8"),
    ("inpaint --partial 0", "--partial must lie above 0"),
    ("train --partial 1.5", "--partial must lie above 0 and be at most 1, .* not 1.5"),
    ("train --betas 0.9", "--betas takes two numbers"),
    ("train --betas 0.9 1.0", "stage2.betas must be at least 0 and below 1, not "),
    ("train --learning-rate 0", "stage2.lr must be above 0, not 0.0"),
    ("train --start-from-epoch 3", "--start-from-epoch 3 needs the --checkpoint-path"),
    ("train --checkpoint-path a.pt --resume b.pt", "name two files, a.pt and b.pt"),
])  # fmt: skip
def test_values_that_mean_nothing_or_that_a_setting_may_not_have_are_refused(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        configure("quick", **lab_flags.settings(parse(line)))


@pytest.mark.parametrize("line, flags", [
    ("train", []),
    ("inpaint", []),
    ("fid", []),
    ("train --num_workers 4 --save-per-epoch 1 --ckpt-interval 2 --resume",
     ["--num_workers", "--save-per-epoch", "--ckpt-interval", "--resume"]),
    ("inpaint --true-scheduling --num_workers 4", ["--true-scheduling", "--num_workers"]),
])  # fmt: skip
def test_flags_without_a_counterpart_are_answered(line, flags):
    notes = [note.partition(" sets nothing here: ") for note in lab_flags.notes(parse(line))]
    assert [flag for flag, _, _ in notes] == flags and all(why for _, _, why in notes)


@pytest.mark.parametrize("flags", ["--resume a.pt", "--checkpoint-path a.pt", "--resume --checkpoint-path a.pt"])
def test_resume_names_the_file_to_begin_with(flags):
    args = parse(f"train {flags}")
    assert lab_flags.settings(args) == {"stage2.start": "a.pt"} and lab_flags.notes(args) == []


def test_the_folders_of_train_and_val_name_the_dataset(dataset):
    train, val = dataset / "cat_face" / "train", dataset / "cat_face" / "val"
    for line in (f"train --train_d_path {train} --val_d_path {val}/", f"train --train_d_path {train}"):
        assert lab_flags.settings(parse(line)) == {"data.path": str(dataset)}, "the masks are one above"
    (dataset / "cat_face" / "mask64").mkdir()
    assert lab_flags.settings(parse(f"train --val_d_path {val}")) == {"data.path": str(dataset / "cat_face")}


@pytest.mark.parametrize("line, sentence", [
    ("--train_d_path {at}/cat_face/train --val_d_path {at}/other/val", "lie in two datasets; .* --data"),
    ("--train_d_path {at}/cat_face/val", "--train_d_path must be a folder called train"),
    ("--val_d_path {at}/val", "--val_d_path must be a folder called val"),
])  # fmt: skip
def test_folders_of_two_datasets_are_refused(dataset, line, sentence):
    with pytest.raises(ValueError, match=sentence):
        lab_flags.settings(parse(f"train {line.format(at=dataset)}"))


def in_steps(line: str, images: int = 8000, **given):
    args = parse(f"train {line}")
    return lab_flags.in_steps(args, given, configure("full", **lab_flags.settings(args), **given), images)


@pytest.mark.parametrize("line, steps, warmup", [
    ("--epochs 50 --batch-size 40 --accum-grad 2", 5000, 500),
    ("--epochs 1 --batch-size 100 --accum-grad 100", 1, 0),
    ("--epochs 200 --batch-size 10 --warmup-epochs 10", 160_000, 8000),
    ("--epochs 200 --batch-size 10", 160_000, 1000),  # the profile's warm-up
    ("--epochs 50 --batch-size 80 --checkpoint-path a.pt --start-from-epoch 30", 2000, 200),
])  # fmt: skip
def test_an_epoch_sees_every_image_once_and_those_that_are_done_are_not_repeated(line, steps, warmup):
    assert in_steps(line) == {"stage2.steps": steps, "stage2.warmup": warmup}


def test_a_part_of_the_images_makes_shorter_epochs_and_a_warm_up_that_is_set_stays():
    short = {"data.train": 4000, "stage2.steps": 200, "stage2.warmup": 20}
    assert in_steps("--partial 0.5 --epochs 2 --batch-size 40") == short
    assert in_steps("--partial 0.00001") == {"data.train": 1}
    assert in_steps("--epochs 5 --batch-size 10", **{"stage2.warmup": 3}) == {"stage2.steps": 4000}


@pytest.mark.parametrize("line, sentence", [
    ("--epochs 0", "must be at least"),
    ("--warmup-epochs -1", "must be at least"),
    ("--epochs 50 --checkpoint-path a.pt --start-from-epoch 50",
     "--epochs must be at least 1 more than --start-from-epoch, not 50"),
])  # fmt: skip
def test_no_epochs_are_refused(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        in_steps(line)


def test_images_are_counted_only_where_it_matters():
    assert not lab_flags.counts_images(parse("train --batch-size 4"))
    for flag in ("--epochs", "--warmup-epochs", "--partial"):
        assert lab_flags.counts_images(parse(f"train {flag} 1"))


def test_the_labs_file_describes_the_labs_network(lab_yaml):
    args = parse(f"train --MaskGitConfig {lab_yaml}")
    settings = lab_flags.settings_of_file(args)
    assert configure("cats-cpu", **settings).transformer == configure("full").transformer
    assert settings["stage2.masking"] == settings["decode.schedule"] == "cosine"
    assert settings["decode.choice_temperature"] == 4.5 and settings["vqgan.codes"] == 1024
    assert lab_flags.notes(args) == []


def test_other_sizes_are_read_too(lab_yaml):
    for old, new in (("768", "256"), ("15", "4"), ("1536", "512"), ("1024", "64"), ("cosine", "square")):
        lab_yaml.write_text(lab_yaml.read_text().replace(old, new))
    config = configure("full", **lab_flags.settings_of_file(parse(f"inpaint --MaskGitConfig {lab_yaml}")))
    shape = config.transformer
    assert (shape.width, shape.layers, shape.codes, shape.heads, shape.norm) == (256, 4, 64, 16, "post")
    assert config.vqgan.codes == 64 and config.decode.schedule == "square"


@pytest.mark.parametrize("line, variable, expected", [
    ("train", None, None),
    ("train --MaskGitConfig MaskGit.yml", None, "VQGAN.pt"),
    ("train", "course.pt", None),  # it is trained
    ("inpaint --transformer t.pt", None, None),
    ("inpaint --transformer t.pt --MaskGitConfig MaskGit.yml", None, "VQGAN.pt"),
    ("inpaint --transformer t.pt --MaskGitConfig MaskGit.yml", "course.pt", "VQGAN.pt"),
    ("inpaint --transformer t.pt --MaskGitConfig MaskGit.yml --vqgan mine.pt", "course.pt", "mine.pt"),
    ("inpaint --transformer t.pt", "course.pt", "course.pt"),
    ("study --transformer t.pt", "course.pt", "course.pt"),
    ("inpaint", "course.pt", None),  # weights come in pairs
    ("inpaint --MaskGitConfig MaskGit.yml", "course.pt", None),
])  # fmt: skip
def test_stage_one_is_what_is_given_or_what_the_file_or_the_environment_names(
    line, variable, expected, lab_yaml, monkeypatch
):
    monkeypatch.setenv("LAB5_VQGAN", variable or "")
    assert lab_flags.stage_one(parse(line)) == (expected and Path(expected))


def test_what_is_not_read_is_said(lab_yaml):
    lab_yaml.write_text(LAB_YAML.replace("VQGAN.pt", "nowhere.pt") + "  n_heads: 8\n")
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
    ("{Transformer_param: {dim: wide}}", "transformer.width takes values such as"),
])  # fmt: skip
def test_other_files_are_refused_and_run_nothing(content, sentence, lab_yaml):
    lab_yaml.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        configure("quick", **lab_flags.settings_of_file(parse(f"train --MaskGitConfig {lab_yaml}")))
    assert not Path("fired").exists()


def test_a_file_that_is_missing_is_one_sentence():
    with pytest.raises(ValueError, match="--MaskGitConfig nowhere.yml cannot be read"):
        lab_flags.settings_of_file(parse("inpaint --MaskGitConfig nowhere.yml"))


@pytest.mark.parametrize("line, sets, paired", [
    ("a b", ["a", "b"], False),
    ("a b --paired", ["a", "b"], True),
    ("--predicted-path a --gtcsv-path b", ["a", "b"], None),  # where the names allow it
    ("--predicted-path a --gtcsv-path b --paired", ["a", "b"], True),
    ("a --gtcsv-path b", ["a", "b"], False),
    ("a --save-stats s.npz", ["a"], False),
    ("a b --dims 2048 --save-stats s.npz", ["a", "b"], False),
])  # fmt: skip
def test_sets_by_place_and_by_flag(line, sets, paired):
    assert lab_flags.fid_sets(parse(f"fid {line}")) == (sets, paired)


@pytest.mark.parametrize("line, sentence", [
    ("", "fid compares two sets: give FIRST and SECOND, or"),
    ("--predicted-path a", "fid compares two sets"),
    ("--save-stats s.npz", "fid compares two sets"),
    ("--gtcsv-path b --save-stats s.npz", "fid compares two sets"),
    ("a b --gtcsv-path c", "SECOND is given twice, as b and by --gtcsv-path"),
    ("a b --dims 768", "--dims must be 2048"),
])  # fmt: skip
def test_too_few_or_too_many_sets_are_refused(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        lab_flags.fid_sets(parse(f"fid {line}"))
