"""The words of the command line: what each command takes, with its defaults and its --help.

It knows names and types, and nothing of what is done with them.
"""

from argparse import SUPPRESS, ArgumentParser
from pathlib import Path
from typing import Any

from lab5.config import ROOT, data_folder
from lab5.profiles import PROFILES

LAB = "the lab's names"
LAB_ABOUT = "As in the lab's scripts. Each stands for a setting of this package; left out, that of the profile holds."


def parser() -> ArgumentParser:
    top = ArgumentParser(prog="python -m lab5", description="Teach, train and measure MaskGIT inpainting.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    debug = ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error (default: one sentence)")
    profile = ArgumentParser(add_help=False, parents=[debug])
    profile.add_argument(
        "--profile", default="auto", metavar="NAME",
        help=f"size of the run: {', '.join(PROFILES)}, or auto: full on a GPU, quick without one (default: auto)",
    )  # fmt: skip
    settings = ArgumentParser(add_help=False, parents=[profile])
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change a setting of the profile, such as decode.steps=12 or seed=3; may be repeated (default: none)",
    )  # fmt: skip
    settings.add_argument(
        "--data", metavar="PATH",
        help="toycats, the lab's zip or folder, or any folder of images (default: as the profile, which is toycats)",
    )  # fmt: skip
    settings.add_argument(
        "--recipe", metavar="NAME",
        help="settings of a report, of the paper or of this project, as listed in lab5/recipes.py (default: none)",
    )  # fmt: skip
    pair = ArgumentParser(add_help=False, parents=[settings])
    pair.add_argument(
        "--weights", choices=("pretrained", "trained"), default="pretrained",
        help="the committed networks, or those of the profile, trained first if need be (default: pretrained)",
    )  # fmt: skip
    pair.add_argument(
        "--vqgan", type=Path, metavar="FILE",
        help="stage one of a transformer, a file of lab5 or the course's VQGAN.pt (default: what LAB5_VQGAN names)",
    )  # fmt: skip
    pair.add_argument(
        "--transformer", type=Path, metavar="FILE",
        help="stage two, a file of lab5 or of the lab, in place of the weights above (default: none)",
    )  # fmt: skip
    _add_report(commands, [profile])
    _add_train(commands, [settings])
    _add_inpaint(commands, [pair])
    _add_fid(commands, [profile])
    _add_study(commands, [pair])
    _add_export(commands, [debug])
    about = "Open a dataset, verify it, and say in a table what is in it."
    commands.add_parser("data", parents=[settings], help="what is in a dataset", description=about)
    about = "Say what this machine has and what is missing: one line each; exit code 1 if something needed is missing."
    doctor = commands.add_parser("doctor", parents=[debug], help="what this machine has and lacks", description=about)
    doctor.add_argument("--data", default="toycats", metavar="PATH", help="a dataset to look for (default: toycats)")
    return top


def _add_report(commands, parents: list) -> None:
    about = "Run the notebooks in order, export them as pages, and write index.html and metrics.json."
    parser = commands.add_parser("report", parents=parents, help="run the notebooks, export pages", description=about)
    parser.add_argument(
        "--only", nargs="+", metavar="START",
        help="only notebooks whose names begin so, such as 03; the rest of an earlier report stays (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "-p", dest="parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a value for a parameter that notebooks declare; may be repeated (default: as in the notebooks)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="PATH",
        help="dataset for the notebooks; photographs are filled by networks trained on them (default: toycats)",
    )  # fmt: skip
    parser.add_argument(
        "--grid", nargs="+", metavar="NAME=VALUES",
        help="a report for every combination, such as seed=0,1,2 schedule=cosine,linear, in folders within --out, "
        "and a page that compares them (default: one report)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N",
        help="reports of a grid at once (default: one for each two cores, one alone on a GPU)",
    )  # fmt: skip
    out = ROOT / "report"
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help=f"where to write (default: {out})")


def _add_train(commands, parents: list) -> None:
    about = "Train the networks, or find them trained with the same settings; a run that was cut short goes on."
    parser = commands.add_parser("train", parents=parents, help="train the networks", description=about)
    parser.add_argument(
        "--stage", choices=("vqgan", "transformer", "classifier", "all"), default="all",
        help="what to train; transformer and classifier need the vqgan, which comes before them (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--vqgan", type=Path, metavar="FILE",
        help="a stage one that is trained already, such as the course's VQGAN.pt (default: it is trained here)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="copy the finished networks there, with training.json beside them (default: they stay in data/runs)",
    )  # fmt: skip
    parser.add_argument(
        "--log", type=Path, metavar="FOLDER",
        help="also write losses and learning rates there, for TensorBoard, or Weights & Biases offline, to show; "
        "needs the package tensorboard (default: none)",
    )  # fmt: skip
    lab = _Lab(parser)
    lab.add("--train_d_path", Path, "FOLDER", "= --data: the folder that holds this one and that of --val_d_path")
    lab.add("--val_d_path", Path, "FOLDER", "= --data, likewise")
    lab.add("--partial", float, "P", "= data.train: this share of the training images")
    lab.add("--batch-size", int, "B", "= stage2.batch")
    lab.add("--accum-grad", int, "A", "= stage2.accumulate, batches per step")
    lab.add("--epochs", int, "E", "= stage2.steps: E times the distinct training images, over B times A")
    lab.add("--learning-rate", float, "LR", "= stage2.lr")
    lab.add("--scheduler", str, "NAME", "= stage2.schedule: cosine, linear, constant; what follows the warm-up")
    lab.add("--warmup-epochs", int, "E", "= stage2.warmup; without it a warm-up takes at most a tenth of --epochs")
    lab.add("--weight-decay", float, "W", "= stage2.weight_decay")
    lab.add("--betas", str, "B", "= stage2.betas, two numbers", nargs="+")
    lab.add("--gamma-type", str, "NAME", "= stage2.masking: cosine, linear, square, or another of this package")
    lab.add("--checkpoint-path", Path, "FILE", "= stage2.start: the transformer to begin with; results go to --out")
    lab.add("--start-from-epoch", int, "E", "= fewer stage2.steps: of --epochs, those after the first E")
    lab.add("--resume", str, "FILE", "= stage2.start; without FILE nothing: a run that was cut short goes on by itself",
            nargs="?", const=True)  # fmt: skip
    lab.add_config()
    lab.add("--device", str, "NAME", "= device, such as cpu or cuda:0")
    lab.add_needless("--num_workers", "--num-workers")
    lab.add_needless("--save-per-epoch")
    lab.add_needless("--ckpt-interval")


def _add_inpaint(commands, parents: list) -> None:
    about = (
        "Fill the holes of test images, write test_results/image_XXX.png (XXX: the image's number), and score them "
        "beside the baselines. Known tokens stay; known pixels are decoded like all others, as the lab's rule asks."
    )
    parser = commands.add_parser("inpaint", parents=parents, help="fill the test images' holes", description=about)
    parser.add_argument(
        "--split", choices=("test", "val"), default="test",
        help="test images, or validation images with holes drawn for them, in val_results (default: test)",
    )  # fmt: skip
    parser.add_argument("--n", type=int, metavar="N", help="only the first N images (default: all)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="of the decoding (default: the setting seed, 0)")
    out = data_folder() / "runs" / "inpainted"
    parser.add_argument(
        "--out", type=Path, default=out, metavar="FOLDER", help=f"where to put test_results (default: {out})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there (default: refuse)")
    parser.add_argument(
        "--show-steps", nargs="?", type=int, const=None, default=0, metavar="N",
        help="of the first N images (all without N) also mask_scheduling/test_X.png, the masked tokens after every "
        "step in black, and imga/test_X.png, the input and the picture after every step (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--paste", metavar="NAME",
        help="= decode.paste: known pixels back over the result, hard, blurred or poisson, in test_results_pasted; "
        "the lab forbids it for the images that it scores (default: none)",
    )  # fmt: skip
    lab = _Lab(parser)
    lab.add("--load-transformer-ckpt-path", Path, "FILE", "= --transformer", dest="transformer", default=SUPPRESS)
    lab.add("--test-maskedimage-path", Path, "FOLDER", "the test images, with --test-mask-path, in place of --data's")
    lab.add("--test-mask-path", Path, "FOLDER", "their masks, paired by number")
    lab.add("--total-iter", int, "T", "= decode.steps")
    lab.add("--sweet-spot", int, "T", "= decode.stop_at, 1 to --total-iter")
    lab.add("--mask-func", str, "NAME", "= decode.schedule: cosine, linear, square, or another of this package")
    lab.add("--partial", float, "P", "= --n: this share of the test images")
    lab.add("--batch-size", int, "B", "= decode.batch, images at a time; it does not change them")
    lab.add("--output-path", Path, "FOLDER", "= --out", dest="out", default=SUPPRESS)
    lab.add_config()
    lab.add("--device", str, "NAME", "= device, such as cpu or cuda:0")
    about = "accepted; the schedule always takes shares of the hole as it was"
    lab.group.add_argument("--true-scheduling", action="store_true", help=about)
    lab.add_needless("--num_workers", "--num-workers")


def _add_fid(commands, parents: list) -> None:
    about = (
        "The Frechet distance and the KID of two sets of equally many images. A set is a folder of images; the lab's "
        "ground truth, a .csv with a header and 12288 values a row; an .npz of statistics (mu, sigma and perhaps n) as "
        "pytorch-fid writes them; or toycats-test, as many toy test images as the other set has."
    )
    parser = commands.add_parser("fid", parents=parents, help="distance of two sets of images", description=about)
    parser.add_argument("first", nargs="?", metavar="FIRST", help="a set, such as the results (no default)")
    parser.add_argument("second", nargs="?", metavar="SECOND", help="the reference, whose features stay in data/cache")
    parser.add_argument(
        "--features", choices=("inception", "toy"), default="inception",
        help="Inception, which alone makes it FID, or the toy-attribute classifier (default: inception)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="the Inception weights (default: what LAB5_INCEPTION_WEIGHTS names, then torch hub's cache)",
    )  # fmt: skip
    parser.add_argument(
        "--download", action="store_true", help="fetch the Inception weights if they are nowhere (default: refuse)"
    )
    parser.add_argument("--n", type=int, metavar="N", help="only the first N images of each set (default: all)")
    parser.add_argument(
        "--save-stats", type=Path, metavar="FILE",
        help="write mu, sigma and n of SECOND, or of FIRST where it is alone, into an .npz file (default: none)",
    )  # fmt: skip
    lab = _Lab(parser)
    lab.add("--predicted-path", str, "FOLDER", "= FIRST")
    lab.add("--gtcsv-path", str, "FILE", "= SECOND, a .csv or any other set")
    lab.add("--batch-size", int, "B", "images at a time, 16; it does not change the result")
    lab.add("--device", str, "NAME", "= device, such as cpu or cuda:0")
    lab.add("--dims", int, "F", "2048, the features that define FID; others are refused")
    lab.add_needless("--num-workers", "--num_workers")


def _add_study(commands, parents: list) -> None:
    about = (
        "Decode test images in many ways with several seeds, score every result, and print what each way is worth, "
        "with its interval, and what that says to the claims of five reports. Finished decodings are kept."
    )
    parser = commands.add_parser("study", parents=parents, help="compare ways of decoding", description=about)
    parser.add_argument(
        "--grid", choices=("quick", "wide", "claims"), default="quick",
        help="quick: schedules, T and every t; wide: also samplers, orders, temperatures, what is done around the "
        "hole, recipes and trainings, which takes up to an hour in the quick profile; claims: what the reports claim "
        "alone, on twice as many images as there (default: quick)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N", help="decodings of each plan (default: as the profile)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="processes that share the work, and the threads (default: 1)",
    )  # fmt: skip
    table = data_folder() / "runs" / "study-GRID.csv"
    parser.add_argument(
        "--table", type=Path, metavar="FILE",
        help="the rows as a CSV file; with FILE = x.csv there are also x-effects.csv and x-claims.csv "
        f"(default: {table})",
    )  # fmt: skip


def _add_export(commands, parents: list) -> None:
    about = "Write a network for the lab's own code: a PyTorch file with a state dict under the lab's names."
    parser = commands.add_parser("export", parents=parents, help="write the lab's format", description=about)
    parser.add_argument("network", choices=("transformer", "vqgan"), help="what FILE holds")
    parser.add_argument("file", type=Path, metavar="FILE", help="a file of lab5, or of the lab in another layout")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write, such as transformer.pt")
    parser.add_argument(
        "--layout", choices=("separate", "fused"), default="separate",
        help="the transformer's attention as query, key, value and out, or as qkv and proj (default: separate)",
    )  # fmt: skip
    parser.add_argument(
        "--wrapper", choices=("none", "transformer_state_dict", "model"), default="none",
        help="the transformer's state dict bare, or as an entry of that name (default: none)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there (default: refuse)")


class _Lab:
    """A command's flags under the lab's names, in a group of their own."""

    def __init__(self, parser: ArgumentParser):
        self.group = parser.add_argument_group(LAB, LAB_ABOUT)

    def add(self, flag: str, kind: type, metavar: str, about: str, **more: Any) -> None:
        self.group.add_argument(flag, type=kind, metavar=metavar, help=about, **more)

    def add_config(self) -> None:
        about = "the lab's MaskGit.yml: sizes of the transformer, number of codes, choice_temperature, gamma_type"
        self.add("--MaskGitConfig", Path, "FILE", f"= transformer.*, vqgan.codes and others, as read from {about}")

    def add_needless(self, *flags: str) -> None:
        about = "accepted; sets nothing, and says what happens instead"
        self.group.add_argument(*flags, type=int, metavar="N", help=about)
