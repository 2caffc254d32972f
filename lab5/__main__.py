"""The command line: `python -m lab5` with report, train, inpaint, fid, study and doctor; each has a --help.

Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 a report that stopped or a doctor
that misses something, 2 bad input, 130 interrupted.

It knows the arguments and nothing of what is done with them. Rooms are imported where they are used, so that
--help answers at once, and doctor also where a package is missing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lab5.config import PROFILES, ROOT, Config, configure, data_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. With --debug errors are raised, otherwise told in a sentence."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return _complain("interrupted; given again, the command goes on from the last saved state of a training", 130)
    except ImportError as error:
        if args.debug:
            raise
        return _complain(f"{error}; python -m lab5 doctor says what is missing", 2)
    except (ValueError, OSError, FloatingPointError) as error:
        if args.debug:
            raise
        return _complain(error, 2)


def _run(args: argparse.Namespace) -> int:
    if args.command == "doctor":
        from lab5.doctor import examine

        return 0 if examine() else 1
    if args.command == "report":
        return _report(args)
    from lab5 import commands

    if args.command == "fid":
        commands.fid(args.first, args.second, args.features, configure(args.profile), args.n)
        return 0
    config = _settings(args)
    if args.command == "train":
        commands.train(config, args.stage, args.out)
        return 0
    pair = {"weights": args.weights, "vqgan": args.vqgan, "transformer": args.transformer}
    if args.command == "inpaint":
        commands.inpaint(config, args.out, n=args.n, seed=args.seed, overwrite=args.overwrite, **pair)
    else:
        commands.study(config, args.table, **pair)
    return 0


def _report(args: argparse.Namespace) -> int:
    from lab5.report import ReportError, run_report

    try:
        print(run_report(args.profile, only=args.only, parameters=dict(args.parameter), out=args.out))
    except ReportError as error:
        if args.debug:
            raise
        return _complain(error, 1)
    return 0


def _settings(args: argparse.Namespace) -> Config:
    """The profile with the changes of --set, --data and --seeds; threads are set here and nowhere else."""
    changes = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"--set takes KEY=VALUE such as decode.steps=12, not {text!r}")
        if key == "profile":
            raise ValueError("--set cannot change the profile: that is what --profile is for")
        changes[key] = value
    if args.data is not None:
        changes["data.path"] = args.data
    if getattr(args, "seeds", None) is not None:
        changes["study.seeds"] = args.seeds
    config = configure(args.profile, **changes)
    import torch

    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {config.device!r} cannot be used here: {error}") from error
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    return config


def _complain(error: Exception | str, code: int) -> int:
    print(f"lab5: {' '.join(str(error).split())}", file=sys.stderr)
    return code


# --- the arguments ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab5", description="Teach, train and measure MaskGIT inpainting.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error (default: one sentence)")
    profile = argparse.ArgumentParser(add_help=False, parents=[debug])
    profile.add_argument(
        "--profile", default="auto", metavar="NAME",
        help=f"size of the run: {', '.join(PROFILES)}, or auto: full on a GPU, quick without one (default: auto)",
    )  # fmt: skip
    settings = argparse.ArgumentParser(add_help=False, parents=[profile])
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change a setting of the profile, such as decode.steps=12 or seed=3; may be repeated (default: none)",
    )  # fmt: skip
    settings.add_argument(
        "--data", metavar="PATH",
        help="toycats, the lab's zip or folder, or any folder of images (default: as the profile, which is toycats)",
    )  # fmt: skip
    pair = argparse.ArgumentParser(add_help=False, parents=[settings])
    pair.add_argument(
        "--weights", choices=("pretrained", "trained"), default="pretrained",
        help="the committed networks, or those of the profile, trained first if need be (default: pretrained)",
    )  # fmt: skip
    for name in ("vqgan", "transformer"):
        pair.add_argument(
            f"--{name}", type=Path, metavar="FILE",
            help=f"a {name} of lab5 or of the lab, in place of --weights; both files or neither (default: neither)",
        )  # fmt: skip
    _add_report(commands, [profile])
    _add_train(commands, [settings])
    _add_inpaint(commands, [pair])
    _add_fid(commands, [profile])
    _add_study(commands, [pair])
    about = "Say what this machine has and what is missing: one line each; exit code 1 if something needed is missing."
    commands.add_parser("doctor", parents=[debug], help="what this machine has, and what is missing", description=about)
    return parser


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
        "--out", type=Path, metavar="FOLDER",
        help="copy the finished networks there, with training.json beside them (default: they stay in data/runs)",
    )  # fmt: skip


def _add_inpaint(commands, parents: list) -> None:
    about = "Fill the holes of test images, write test_results/image_XXX.png, and score them beside the baselines."
    parser = commands.add_parser("inpaint", parents=parents, help="fill the test images' holes", description=about)
    parser.add_argument("--n", type=int, metavar="N", help="only the first N test images (default: all)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="of the decoding (default: the setting seed, 0)")
    out = data_folder() / "runs" / "inpainted"
    parser.add_argument(
        "--out", type=Path, default=out, metavar="FOLDER", help=f"where to put test_results (default: {out})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there (default: refuse)")


def _add_fid(commands, parents: list) -> None:
    about = "The Frechet distance and the KID of two sets of equally many images."
    parser = commands.add_parser("fid", parents=parents, help="distance of two sets of images", description=about)
    what = "a folder of images, or toycats-test: as many toy test images as the other set has (no default)"
    parser.add_argument("first", metavar="FIRST", help=what)
    parser.add_argument("second", metavar="SECOND", help=what)
    parser.add_argument(
        "--features", choices=("inception", "toy"), default="inception",
        help="Inception, which alone makes it FID, or the toy-attribute classifier (default: inception)",
    )  # fmt: skip
    parser.add_argument("--n", type=int, metavar="N", help="only the first N images of each set (default: all)")


def _add_study(commands, parents: list) -> None:
    about = "Decode with every schedule, T and seed, and print mean and SD over seeds for every T and stop t."
    parser = commands.add_parser("study", parents=parents, help="compare mask schedules", description=about)
    parser.add_argument("--seeds", type=int, metavar="N", help="decodings of each plan (default: as the profile)")
    table = data_folder() / "runs" / "study.csv"
    parser.add_argument(
        "--table", type=Path, default=table, metavar="FILE",
        help=f"a CSV file that keeps the rows; what is in it is not computed again (default: {table})",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
