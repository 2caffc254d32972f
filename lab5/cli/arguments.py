"""The words of the command line: what each command takes, with its defaults and its --help.

An option is a row: its flag, its metavar ("" for a switch), from which its type follows, and what it does, with
whatever else argparse is to know. Flags of the lab say the setting that they stand for, in the words of its field in
`lab5.config`.
"""

from argparse import SUPPRESS, ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

from lab5.config import meanings
from lab5.profiles import PROFILES
from lab5.runtime.folders import ROOT, data_folder, is_checkout

TYPES = {"FILE": Path, "FOLDER": Path, "N": int, "SEED": int, "E": int, "P": float}  # of other metavars: text

HOLES = ("colour of what is missing in the masks, if that is unlike the lab's (default: black; asks if the masks hide "
         "more than half)")  # fmt: skip
LAB = "the lab's names"
LAB_ABOUT = "As in the lab's scripts. Each stands for a setting of this package; left out, that of the profile holds."

# Flags of the lab that are a setting by another name; the parsed value has the name of the setting.
TRAIN = {
    "--device": "device",
    "--batch-size": "stage2.batch",
    "--accum-grad": "stage2.accumulate",
    "--learning-rate": "stage2.lr",
    "--weight-decay": "stage2.weight_decay",
    "--gamma-type": "stage2.masking",
}
INPAINT = {
    "--device": "device",
    "--batch-size": "decode.batch",
    "--total-iter": "decode.steps",
    "--sweet-spot": "decode.stop_at",
    "--mask-func": "decode.schedule",
}
# Flags of the lab that have no counterpart, and what this package does instead.
SAVING = "the state of a training is saved every two minutes and whenever it stops; the file of the network, at its end"
NEEDLESS = {
    "--true-scheduling": "the schedule always takes shares of the hole as it was",
    "--num_workers": "images are decoded once and kept in memory, so no process loads them",
    "--save-per-epoch": SAVING,
    "--ckpt-interval": SAVING,
}


class Parser(ArgumentParser):
    """Errors in a line or two; what the lab's own parsers would understand of a shortened flag is understood."""

    def error(self, message: str) -> NoReturn:
        text = message if len(message) < 500 else f"{message[:250]} ... {message[-250:]}"
        self.exit(2, f"{self.prog}: error: {text} ({self.prog} --help says more)\n")

    def _get_option_tuples(self, option_string: str) -> list:
        found = super()._get_option_tuples(option_string)
        lab = {id(action) for group in self._action_groups if group.title == LAB for action in group._group_actions}
        # Two names of one option are no ambiguity, nor are a name of the lab's and others that its scripts do not have.
        for some in (found, [one for one in found if id(one[0]) in lab]):
            if len({id(one[0]) for one in some}) == 1:
                return some[:1]
        return found


def parser() -> ArgumentParser:
    """The parser of all commands."""
    top = Parser(prog="python -m lab5", description="Teach, train and measure MaskGIT inpainting.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    debug = ArgumentParser(add_help=False)
    _add(debug, "--debug", "", "show the traceback of an error (default: one sentence)")
    profile = ArgumentParser(add_help=False, parents=[debug])
    _add(profile, "--profile", "NAME", f"size of the run: {', '.join(PROFILES)}, or auto: gpu on a GPU, quick without "
         "one (default: auto)", default="auto")  # fmt: skip
    settings = ArgumentParser(add_help=False, parents=[profile])
    _add(settings, "--set", "KEY=VALUE", "change a setting, such as decode.steps=12 or seed=3; may be repeated; the "
         "command settings lists them (default: none)", action="append", default=[])  # fmt: skip
    _add(settings, "--data", "PATH", "toycats, the lab's zip or folder, or any folder of images, with masks in masks/: "
         "255 = known, 0 = missing (default: as the profile, which is toycats)")  # fmt: skip
    _add(settings, "--holes", None, HOLES, choices=("black", "white"))
    _add(settings, "--recipe", "NAME", "settings of a report, the paper or lab5: lab5/study/recipes.py (default: none)")
    pair = ArgumentParser(add_help=False, parents=[settings])
    _add(pair, "--weights", None, "the committed networks, or those of the profile, trained first if need be (default: "
         "pretrained)", choices=("pretrained", "trained"), default="pretrained")  # fmt: skip
    _add(pair, "--vqgan", "FILE", "stage one, of lab5 or the course's VQGAN.pt (default: what LAB5_VQGAN names)")
    _add(pair, "--transformer", "FILE", "stage two, of lab5 or of the lab, in place of those weights (default: none)")
    _add(pair, "--refiner", "FILE", "trained on fills of those two files, for decode.paste=refined (default: none)")
    _add_read(pair)

    def command(name: str, parent: ArgumentParser, short: str, about: str) -> ArgumentParser:
        return commands.add_parser(name, parents=[parent], help=short, description=about)

    _report(command("report", profile, "run the notebooks, export pages",
                    "Run the notebooks in order, export them as pages, and write index.html and metrics.json."))
    _train(command("train", settings, "train the networks",
                   "Train the networks, or find them trained with the same settings; a run that was cut short goes "
                   "on."))  # fmt: skip
    _inpaint(command("inpaint", pair, "fill the test images' holes",
                     "Fill the holes of test images, write test_results/image_XXX.png (XXX: the image's number), and "
                     "score them beside the baselines. Known tokens stay; known pixels are decoded like all others, as "
                     "the lab's rule asks."))  # fmt: skip
    _fid(command("fid", profile, "distance of two sets of images",
                 "The Frechet distance and the KID of two sets of equally many images. A set is a folder of images; "
                 "the lab's ground truth, a .csv with a header and 12288 values a row; an .npz of statistics (mu, "
                 "sigma and perhaps n) as pytorch-fid writes them; or toycats-test, as many toy test images as the "
                 "other set has."))  # fmt: skip
    _study(command("study", pair, "compare ways of decoding",
                   "Decode test images in many ways with several seeds, score every result, and print what each way is "
                   "worth, with its interval, and what that says to the claims of five reports. Finished decodings are "
                   "kept."))  # fmt: skip
    _check(command("check", debug, "which pitfalls a solution of the lab has",
                   "Find solutions of the lab in folders and zips and, with --run, execute each in a fence, with "
                   "stand-ins for its networks, and say which of the eighteen pitfalls it has, on what evidence, and "
                   "how to mend it."))  # fmt: skip
    _export(command("export", debug, "write the lab's format",
                    "Write a network for the lab's own code: a PyTorch file with a state dict under the lab's names."))
    data = command("data", settings, "what is in a dataset",
                   "Open a dataset, verify it, and say in a table what is in it, and what it is enough for.")
    data.add_argument("folder", nargs="?", metavar="PATH", help="= --data")
    command("settings", settings, "every setting and what it means",
            "List every setting with its value in a profile, the values that it may have, and what it means.")
    doctor = command("doctor", debug, "what this machine has and lacks",
                     "Say in a line each what this machine has and what is missing; exit code 1 if it is needed.")
    _add(doctor, "--data", "PATH", "a dataset to look for (default: toycats)", default="toycats")
    return top


def _add(parser: Any, flag: str, metavar: Any, about: str, **more: Any) -> None:
    """One option, which may have two flags; a switch where the metavar is empty."""
    if metavar == "":
        parser.add_argument(flag, action="store_true", help=about)
    else:
        parser.add_argument(*flag.split(), metavar=metavar, type=TYPES.get(metavar), help=about, **more)


def _report(parser: ArgumentParser) -> None:
    out = ROOT / "report" if is_checkout() else Path("report")
    _add(parser, "--only", "START", "only notebooks whose names begin so, such as 03; the rest of an earlier report "
         "stays (default: all)", nargs="+")  # fmt: skip
    _add(parser, "-p", ("NAME", "VALUE"), "a parameter that notebooks declare; may be repeated (default: as they say)",
         dest="parameter", nargs=2, action="append", default=[])  # fmt: skip
    _add(parser, "--data", "PATH", "dataset for the notebooks; photographs are filled by networks trained on them "
         "(default: toycats)")  # fmt: skip
    _add(parser, "--holes", None, HOLES, choices=("black", "white"))
    _add(parser, "--grid", "NAME=VALUES", "a report for every combination, such as seed=0,1,2 schedule=cosine,linear, "
         "in folders within --out, and a page that compares them (default: one report)", nargs="+")  # fmt: skip
    _add(parser, "--jobs", "N", "reports of a grid at once (default: one per two cores, one alone on a GPU)", default=0)
    _add(parser, "--out", "FOLDER", f"where to write (default: {out})", default=out)


def _train(parser: ArgumentParser) -> None:
    _add(parser, "--stage", None, "what to train, and what comes before it: the vqgan, before the refiner the "
         "transformer too (default: all)", default="all",
         choices=("vqgan", "transformer", "refiner", "classifier", "all"))  # fmt: skip
    _add(parser, "--vqgan", "FILE", "a trained stage one, such as the course's VQGAN.pt (default: it is trained here)")
    _add(parser, "--out", "FOLDER", "copy the networks there, with training.json (default: they stay in data/runs)")
    _add(parser, "--log", "FOLDER", "also write losses and learning rates there, for TensorBoard, or Weights & Biases "
         "offline, to show; needs the package tensorboard (default: none)")  # fmt: skip
    lab = _lab(parser, TRAIN)
    _add(lab, "--train_d_path", "FOLDER", "= --data: the folder that holds this one and that of --val_d_path")
    _add(lab, "--val_d_path", "FOLDER", "= --data, likewise")
    _add(lab, "--partial", "P", "= data.train: this share of the training images")
    _add(lab, "--epochs", "E", "= stage2.steps: E times the distinct training images, over B times A")
    _add(lab, "--scheduler", "NAME", "= stage2.schedule: cosine, linear, constant; what follows the warm-up")
    _add(lab, "--warmup-epochs", "E", "= stage2.warmup; without it a warm-up takes at most a tenth of --epochs")
    _add(lab, "--betas", "B", "= stage2.betas, two numbers", nargs="+")
    _add(lab, "--checkpoint-path", "FILE", "= stage2.start: the transformer to begin with; results go to --out")
    _add(lab, "--start-from-epoch", "E", "= fewer stage2.steps: of --epochs, those after the first E")
    _add(lab, "--resume", "FILE", "= stage2.start; without FILE nothing: a run that was cut short goes on by itself",
         nargs="?", const=True)  # fmt: skip
    _add_needless(lab, "--num_workers --num-workers", "--save-per-epoch", "--ckpt-interval")


def _inpaint(parser: ArgumentParser) -> None:
    out = data_folder() / "runs" / "inpainted"
    _add(parser, "--split", None, "test images, or validation images with holes drawn for them, in val_results "
         "(default: test)", choices=("test", "val"), default="test")  # fmt: skip
    _add(parser, "--n", "N", "only the first N images (default: all)")
    _add(parser, "--seed", "SEED", "of the decoding (default: the setting seed, 0)")
    _add(parser, "--out", "FOLDER", f"where to put test_results (default: {out})", default=out)
    _add(parser, "--overwrite", "", "replace results that are there (default: refuse)")
    _add(parser, "--show-steps", "N", "of the first N images (all without N) also mask_scheduling/test_X.png, the "
         "masked tokens after every step in black, and imga/test_X.png, the input and the picture after every step "
         "(default: none)", nargs="?", const=None, default=0)  # fmt: skip
    _add(parser, "--paste", "NAME", "= decode.paste: known pixels back over the result, hard, blurred, poisson or "
         "refined, in test_results_pasted; the lab forbids it for what it scores (default: none)")  # fmt: skip
    lab = _lab(parser, INPAINT)
    _add(lab, "--load-transformer-ckpt-path", "FILE", "= --transformer", dest="transformer", default=SUPPRESS)
    _add(lab, "--test-maskedimage-path", "FOLDER", "the test images, with --test-mask-path, in place of --data's; left "
         "out with a transformer that is given, those of a dataset of the lab's in this folder")  # fmt: skip
    _add(lab, "--test-mask-path", "FOLDER", "their masks, paired by number")
    _add(lab, "--partial", "P", "= --n: this share of the test images")
    _add(lab, "--output-path", "FOLDER", "= --out", dest="out", default=SUPPRESS)
    _add(lab, "--true-scheduling", "", f"sets nothing: {NEEDLESS['--true-scheduling']}")
    _add_needless(lab, "--num_workers --num-workers")


def _fid(parser: ArgumentParser) -> None:
    parser.add_argument("first", nargs="?", metavar="FIRST", help="a set, such as the results (no default)")
    parser.add_argument("second", nargs="?", metavar="SECOND", help="the reference, whose features stay in data/cache")
    _add(parser, "--features", None, "Inception, which alone makes it FID; imagenet: EfficientNet-Lite0, for "
         "photographs without Inception's weights, imagenet-lite1: a second judge; or the toy-attribute classifier "
         "(default: inception)", default="inception",
         choices=("inception", "imagenet", "imagenet-lite1", "toy"))  # fmt: skip
    _add(parser, "--weights", "FILE", "Inception's (default: what LAB5_INCEPTION_WEIGHTS names or torch hub has)")
    _add(parser, "--download", "", "fetch the Inception weights if they are nowhere (default: refuse)")
    _add(parser, "--n", "N", "only the first N images of each set (default: all)")
    _add(parser, "--paired", "", "image i of FIRST was made from image i of SECOND, as the numbers in the files' names "
         "say: KID leaves out the kernels of such pairs, which would count against the distance (default: independent "
         "sets; with both of the lab's flags paired, where the names allow it)")  # fmt: skip
    _add(parser, "--save-stats", "FILE", "write mu, sigma and n of SECOND, or FIRST alone, to an .npz (default: none)")
    _add(parser, "--damages", "PATH", "in place of FIRST and SECOND: blur the test images of this dataset, add noise, "
         "fill holes and so on, each more and more, and say which scores find that order (default: none)")  # fmt: skip
    _add(parser, "--vqgan", "FILE", "stage one, with --damages: its encoder's features beside the others, and pictures "
         "that its decoder returns (default: of toycats the committed one, of others none)")  # fmt: skip
    lab = _lab(parser, {"--device": "device"}, config=False)
    _add(lab, "--predicted-path", "SET", "= FIRST")
    _add(lab, "--gtcsv-path", "SET", "= SECOND, a .csv or any other set; left out, ./test_gt.csv if it is there")
    _add(lab, "--batch-size", "N", "images at a time, 16; it does not change the result")
    _add(lab, "--dims", "N", "2048, the features that define FID; others are refused")
    _add_needless(lab, "--num_workers --num-workers")


def _study(parser: ArgumentParser) -> None:
    table = data_folder() / "runs" / "study-GRID.csv"
    _add(parser, "--grid", None, "quick: schedules, T and every t; wide: also samplers, orders, temperatures, what is "
         "done around the hole, recipes and trainings, which takes up to an hour in the quick profile; claims: what "
         "the reports claim alone, on twice as many images as there (default: quick)",
         choices=("quick", "wide", "claims"), default="quick")  # fmt: skip
    _add(parser, "--seeds", "N", "decodings of each plan (default: as the profile)")
    _add(parser, "--jobs", "N", "processes that share the work, and the threads (default: 1)", default=1)
    _add(parser, "--classifier", "FILE", "a classifier that the command train has made: say whether it ranks the "
         "results as the committed one does (default: none)")  # fmt: skip
    _add(parser, "--table", "FILE", "the rows as a CSV file; with FILE = x.csv there are also x-effects.csv and "
         f"x-claims.csv (default: {table})")  # fmt: skip


def _check(parser: ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="a solution, a folder of them, or a zip")
    _add(parser, "--run", "", "execute their code (default: say what would be done)")
    _add(parser, "--seconds", "P", "time for each solution (default: 80)", default=80.0)
    _add(parser, "--jobs", "N", "solutions at once (default: 1)", default=1)
    _add(parser, "--json", "FILE", "write all rows there (default: none)")
    _add(parser, "--page", "FILE", "write a page of HTML there, with all rows, which opens offline (default: none)")


def _export(parser: ArgumentParser) -> None:
    parser.add_argument("network", choices=("transformer", "vqgan"), help="what FILE holds")
    parser.add_argument("file", type=Path, metavar="FILE", help="a file of lab5, or of the lab in another layout")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write, such as transformer.pt")
    _add(parser, "--layout", None, "the transformer's attention as query, key, value and out, or as qkv and proj "
         "(default: separate)", choices=("separate", "fused"), default="separate")  # fmt: skip
    _add(parser, "--wrapper", None, "the transformer's state dict bare, or as an entry of that name (default: none)",
         choices=("none", "transformer_state_dict", "model"), default="none")  # fmt: skip
    _add_read(parser)
    _add(parser, "--overwrite", "", "replace OUT if it is there (default: refuse)")


def _add_read(parser: ArgumentParser) -> None:
    _add(parser, "--read", "KEY=VALUE", "what a PyTorch file leaves open: entry= names its state dict; rows=h3d says "
         "that query, key and value are fused head by head (3hd: one below another); heads=; query=, key=, value= and "
         "out= name matrices; may be repeated (default: as the tensors say)", action="append", default=[])  # fmt: skip


def _lab(parser: ArgumentParser, settings: dict[str, str], config: bool = True) -> Any:
    """A group for flags under the lab's names, with those that are `settings` by another name."""
    group, fields = parser.add_argument_group(LAB, LAB_ABOUT), meanings()
    for flag, name in settings.items():
        group.add_argument(
            flag, dest=name, metavar=flag.split("-")[-1][0].upper(), type=type(fields[name].default),
            help=f"= {name}: {fields[name].metadata['about']}".replace("%", "%%"),
        )  # fmt: skip
    if config:
        _add(group, "--MaskGitConfig", "FILE", "= transformer.*, vqgan.codes and others, as read from the lab's "
             "MaskGit.yml: sizes of the transformer, number of codes, choice_temperature, gamma_type")  # fmt: skip
    return group


def _add_needless(lab: Any, *flags: str) -> None:
    for flag in flags:
        _add(lab, flag, "N", f"sets nothing: {NEEDLESS[flag.split()[0]]}")
