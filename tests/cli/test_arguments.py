"""The words of the command line: help that explains each of them, and the lab's own command lines."""

import re
from collections.abc import Callable

import pytest

from lab5.cli.arguments import parser
from lab5.cli.main import COMMANDS, main

# LAB_CONTRACT section 3: the lab's three scripts and what solutions have added.
LAB_FLAGS = {
    "train": "--train_d_path --val_d_path --checkpoint-path --device --num_workers --batch-size --partial --accum-grad "
    "--epochs --save-per-epoch --start-from-epoch --ckpt-interval --learning-rate --MaskGitConfig "
    "--scheduler --gamma-type --warmup-epochs --weight-decay --betas --resume",
    "inpaint": "--device --load-transformer-ckpt-path --test-maskedimage-path --test-mask-path --sweet-spot "
    "--total-iter --mask-func --partial --batch-size --num_workers --MaskGitConfig --output-path --true-scheduling",
    "fid": "--predicted-path --gtcsv-path --batch-size --device --num-workers --dims",
}


@pytest.fixture
def help_of(capsys, monkeypatch) -> Callable[[str], str]:
    def call(command: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "100")  # whatever the terminal has
    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_with_its_default_in_a_hundred_columns(command, help_of):
    text = help_of(command)
    assert text.startswith(f"usage: python -m lab5 {command}") and max(map(len, text.splitlines())) <= 100
    own = " ".join(text.split("options:")[1].split("the lab's names:")[0].split())
    options = re.split(r" (?=--?[a-z]+ )", own.partition("show this help message and exit")[2])
    assert options and all("default" in option for option in options if option.strip())


@pytest.mark.parametrize("command", LAB_FLAGS)
def test_help_says_of_every_flag_of_the_lab_what_it_stands_for(command, help_of):
    group = help_of(command).split("the lab's names:")[1]
    for flag in LAB_FLAGS[command].split():
        (explained,) = re.findall(rf"^  (?:--[\w-]+ \w+, )?{flag}\b([^\n]*(?:\n {{4,}}[^\n]*)*)", group, re.MULTILINE)
        assert re.search(r"=|sets nothing|2048|images at a time|with --test-mask-path|paired", explained), flag


@pytest.mark.parametrize("line", [
    "train --train_d_path ./lab3_dataset/train --val_d_path ./lab3_dataset/val --device cuda:0 --num_workers 4 "
    "--batch-size 48 --partial 1.0 --accum-grad 1 --epochs 10 --save-per-epoch 3 --start-from-epoch 0 "
    "--learning-rate 1e-4 --MaskGitConfig config/MaskGit.yml --warmup-epochs 10",
    "train --gamma-type cosine --batch-size 40 --scheduler cosine --betas 0.9 0.96 --weight-decay 0.045 --resume",
    "train --resume last.pt --checkpoint-path last.pt --ckpt-interval 5 --num-workers 4",
    "inpaint --load-transformer-ckpt-path epoch_185.pt --sweet-spot 10 --total-iter 10 --mask-func square",
    "inpaint --device cuda --batch-size 1 --partial 1.0 --num_workers 4 --MaskGitConfig config/MaskGit.yml "
    "--test-maskedimage-path ./lab3_dataset/masked_image --test-mask-path ./lab3_dataset/mask64 --sweet-spot -1",
    "inpaint --total-iter 12 --sweet-spot 6 --mask-func cosine --output-path filled --true-scheduling",
    "fid --predicted-path ../test_results --gtcsv-path test_gt.csv --device cuda:0 --batch-size 50 --num-workers 8",
])  # fmt: skip
def test_the_labs_command_lines_are_understood(line):
    assert parser().parse_args(line.split())


def test_two_names_of_one_thing_are_one_value():
    args = parser().parse_args("inpaint --load-transformer-ckpt-path a.pt --output-path there".split())
    assert (str(args.transformer), str(args.out)) == ("a.pt", "there")
    left_out = parser().parse_args(["inpaint"])
    assert left_out.transformer is None and left_out.out.name == "inpainted"


def test_steps_are_shown_of_none_of_all_or_of_the_first():
    lines = ("inpaint", "inpaint --show-steps", "inpaint --show-steps 3")
    assert [parser().parse_args(line.split()).show_steps for line in lines] == [0, None, 3]
