"""The command line: `python -m lab5` with report, train, inpaint, fid, study, check, export, data, settings and doctor.

Results go to stdout, progress and complaints to stderr. Exit codes: 0 done, 1 a report that stopped or a doctor
that misses something, 2 bad input, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).

Files are imported where they are used, so that --help answers at once, and doctor also where a package is missing.
"""

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lab5.cli import lab_flags
from lab5.cli.arguments import parser
from lab5.config import Config
from lab5.profiles import configure
from lab5.runtime.folders import is_checkout

# What stops a command without being a mistake of the program: it is told in one sentence.
BAD_INPUT = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)
LONGEST = 480  # letters of a message, three lines of a wide terminal


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. With --debug errors are raised, otherwise they are one sentence."""
    words = sys.argv[1:] if words is None else words
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        if not (value if equals and flag.startswith("--") else word).strip():
            _say(f"an argument is empty: {before} {word!r}")
            return 2
    args = parser().parse_args(words)
    try:
        with _ranks(args):
            return COMMANDS[args.command](args) or 0
    except KeyboardInterrupt as stop:
        if not _rank():  # all of them are interrupted together
            _say("interrupted; given again, the command goes on from the last saved state of a training")
        return 143 if stop.args == ("SIGTERM",) else 130
    except Exception as error:
        # torch's error by its name: to import torch takes seconds that --help does not need
        gpu_is_full = type(error).__name__ == "OutOfMemoryError"
        if args.debug or isinstance(error, BrokenPipeError) or not (gpu_is_full or isinstance(error, BAD_INPUT)):
            raise
        before = "the GPU's memory is full, a smaller batch takes less: " if gpu_is_full else ""
        after = "; python -m lab5 doctor says what is missing" if isinstance(error, ImportError) else ""
        if not (_rank() and isinstance(error, FloatingPointError)):  # which all ranks have in the same step
            _say(f"{_rank()}{before}{error}{after}")
        return 2


def _say(line: object) -> None:
    text = " ".join(str(line).split())
    if len(text) > LONGEST:  # the middle is of a name, or of a list
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    print(f"lab5: {text}".encode(errors="backslashreplace").decode(), file=sys.stderr)  # names that are no text


# --- the commands -----------------------------------------------------------------------------------------------


def _report(args: Namespace) -> int:
    if not is_checkout():
        missing = "which an installed lab5 does not have: clone the repository"
        raise ValueError(f"report runs the notebooks of a checkout, {missing}")
    from lab5.cli.datasets import check_report
    from lab5.report.run import ReportError, run_report
    from lab5.report.sweep import read_grid, run_sweep

    parameters = dict(args.parameter)
    if args.data is not None:
        parameters = {"dataset": args.data} | parameters
    if args.holes is not None:
        parameters["dataset"] = _with_holes(args.holes, parameters.get("dataset", "toycats"))
    if parameters.get("dataset", "toycats") != "toycats":
        parameters = {"weights": "trained"} | parameters  # the committed pair knows toy cats alone
    grid = read_grid(args.grid) if args.grid else {}
    for path in grid.get("dataset", [parameters.get("dataset", "toycats")]):
        check_report(args.profile, path, parameters.get("weights", "trained"), args.only)
    if args.grid:
        overview, failed = run_sweep(
            args.profile, grid, out=args.out, only=args.only, parameters=parameters, jobs=args.jobs
        )
        print(overview)
        if failed:
            _say("; ".join(failed))
        return 1 if failed else 0
    try:
        print(run_report(args.profile, only=args.only, parameters=parameters, out=args.out))
    except ReportError as error:
        if args.debug:
            raise
        _say(error)
        return 1
    return 0


def _train(args: Namespace) -> None:
    from lab5.cli.datasets import get_dataset
    from lab5.cli.train import train

    _take_defaults(args)
    given, lab = _given(args), lab_flags.settings(args)
    config = _configure(args, given, lab)
    if lab_flags.counts_images(args):
        lab |= lab_flags.in_steps(args, given, config, len(get_dataset(config).train))
        if "data.train" in lab:
            given.pop("data.train", None)  # it was the number of which --partial is a share
        config = _configure(args, given, lab)
    _translate(args, lab)
    train(config, args.stage, args.out, lab_flags.stage_one(args), args.log)


def _inpaint(args: Namespace) -> None:
    from lab5.cli.inpaint import Job, inpaint

    _take_defaults(args)
    lab = lab_flags.settings(args)
    config = _configure(args, _given(args), lab)
    _translate(args, lab)
    job = Job(
        args.out, args.split, (args.test_maskedimage_path, args.test_mask_path), args.n, args.partial, args.seed,
        args.show_steps, args.overwrite,
    )  # fmt: skip
    inpaint(config, job, _networks(args))


def _fid(args: Namespace) -> None:
    from lab5.cli.fid import Sides, fid

    _take_defaults(args)
    _translate(args, {})
    config = _configure(args, {}, {} if args.device is None else {"device": args.device})
    if args.damages is not None:
        return _damages(args, config)
    if args.vqgan is not None:
        raise ValueError("--vqgan is for --damages: two sets are compared without a VQGAN")
    fid(
        Sides(*lab_flags.fid_sets(args), args.n), config, features=args.features, weights=args.weights,
        download=args.download, batch=args.batch_size, save_stats=args.save_stats,
    )  # fmt: skip


def _damages(args: Namespace, config: Config) -> None:
    from lab5.cli.damages import damages
    from lab5.cli.fid import open_network

    sets = [args.first, args.second, args.predicted_path, args.gtcsv_path, args.save_stats]
    if any(given is not None for given in sets):
        raise ValueError("--damages takes its pictures from a dataset: leave out the two sets and --save-stats")
    if args.n is not None and args.n < 2:
        raise ValueError(f"--n must be at least 2 with --damages, not {args.n}")
    network = open_network(args.features, args.weights, args.download).to(config.device)
    config = configure(config.profile, **{"device": config.device, "data.path": args.damages})
    damages(config, args.features, network, n=args.n, vqgan=args.vqgan)


def _study(args: Namespace) -> None:
    from lab5.cli.study import study

    config, also = _configure(args, _given(args)), args.classifier
    study(config, args.table, grid=args.grid, jobs=args.jobs, networks=_networks(args), also=also)


def _check(args: Namespace) -> None:
    from lab5.cli.check import check

    check(args.paths, run=args.run, seconds=args.seconds, jobs=args.jobs, out=args.json, page=args.page)


def _export(args: Namespace) -> None:
    from lab5.cli.export import export
    from lab5.pitfalls.fitting import parse_reading

    export(
        args.network, args.file, args.out, layout=args.layout, wrapper=args.wrapper, overwrite=args.overwrite,
        reading=parse_reading(args.read) if args.read else None,
    )  # fmt: skip


def _data(args: Namespace) -> None:
    from lab5.cli.datasets import enough_for, get_dataset
    from lab5.cli.tables import print_table
    from lab5.data.dataset import summary

    if args.folder is not None and args.data is not None:
        raise ValueError(f"the dataset is given twice, as {args.folder} and by --data: give one of them")
    args.data = args.data if args.folder is None else args.folder
    config = _configure(args, _given(args))
    data = get_dataset(config)
    print(f"{data.name}: {config.data.path}")
    print_table(summary(data))
    print(*enough_for(config, data), sep="\n")


def _settings(args: Namespace) -> None:
    from lab5.cli.tables import print_settings

    print_settings(_configure(args, _given(args)))


def _doctor(args: Namespace) -> int:
    from lab5.cli.doctor import examine

    return 0 if examine(args.data) else 1


COMMANDS = {
    "report": _report,
    "train": _train,
    "inpaint": _inpaint,
    "fid": _fid,
    "study": _study,
    "check": _check,
    "export": _export,
    "data": _data,
    "settings": _settings,
    "doctor": _doctor,
}


# --- ranks ------------------------------------------------------------------------------------------------------


def _ranks(args: Namespace) -> AbstractContextManager[None]:
    """This process by itself, or among those that torchrun has started."""
    if not {"RANK", "WORLD_SIZE"} & os.environ.keys():
        return nullcontext()
    from lab5.runtime import ranks

    world = ranks.from_environment()[1]
    if world > 1 and args.command not in ("train", "study"):
        raise ValueError(f"{args.command} runs in one process: torchrun is for train and study")
    if world > 1 and (jobs := getattr(args, "jobs", 1)) > 1:
        raise ValueError(f"--jobs {jobs} is for one process, and there are {world}, which share the work as jobs do")
    return ranks.joined()


def _rank() -> str:
    """Which of several ranks complains, other than the first."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank}: "


# --- settings ---------------------------------------------------------------------------------------------------


def _given(args: Namespace) -> dict[str, Any]:
    """The settings that are given by name: --set, --data, --seeds and --paste."""
    given: dict[str, Any] = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"--set takes KEY=VALUE such as decode.steps=12, not {text!r}")
        if key == "profile":
            raise ValueError("--set cannot change the profile: that is what --profile is for")
        given[key] = value
    for flag, name in {"data": "data.path", "seeds": "study.seeds", "paste": "decode.paste"}.items():
        if getattr(args, flag, None) is not None:
            given[name] = getattr(args, flag)
    if args.holes is not None and getattr(args, "test_mask_path", None) is not None:
        args.test_mask_path = Path(_with_holes(args.holes, str(args.test_mask_path)))
    elif args.holes is not None:
        given["data.path"] = _with_holes(args.holes, given.get("data.path", "toycats"))
    return given


def _with_holes(colour: str, path: str) -> str:
    """The dataset with its masks read so."""
    from lab5.data.layouts import HOLES

    if path == "toycats":
        raise ValueError(f"--holes {colour} says how the masks of a dataset are to be read: --data has to name it")
    return HOLES[colour] + path


def _take_defaults(args: Namespace) -> None:
    """What the lab's scripts take where their flags name nothing, and a line for each."""
    for note in lab_flags.take_defaults(args):
        _say(note)


def _configure(args: Namespace, given: dict[str, Any], lab: dict[str, Any] | None = None) -> Config:
    """The profile with what the lab's file says, what is set by name, and what the lab's flags stand for.

    The device is refused here if it is not there, and the threads are set here and nowhere else.
    """
    lab = lab or {}
    if twice := sorted(given.keys() & lab.keys()):
        raise ValueError(f"{twice[0]} is set twice, by its own name and by one of the lab's flags: give one of them")
    settings = lab_flags.settings_of_file(args) | given | lab
    config = configure(args.profile, **settings)
    if getattr(args, "recipe", None) is not None:
        from lab5.study.recipes import changes

        config = configure(args.profile, **(changes(config, args.recipe) | settings))
    import torch

    from lab5.runtime.ranks import here

    here().check_device(config.device)
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {config.device!r} cannot be used here: {error}") from error
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    return config


def _translate(args: Namespace, lab: dict[str, Any]) -> None:
    """Say what the lab's flags have become."""
    if settings := lab_flags.settings_of_file(args) | lab:
        pairs = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in settings.items()}
        _say(f"the lab's flags stand for {' '.join(f'--set {name}={value}' for name, value in pairs.items())}")
    for note in lab_flags.notes(args):
        _say(note)


def _networks(args: Namespace) -> Any:
    from lab5.cli.train import Networks
    from lab5.pitfalls.fitting import parse_reading

    return Networks(args.weights, lab_flags.stage_one(args), args.transformer, parse_reading(args.read), args.refiner)


# --- the program ------------------------------------------------------------------------------------------------


def run() -> None:
    """`main`, with SIGTERM as Ctrl-C, so that what is under way ends cleanly; any name of a file can be printed."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever reads the lines has had enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt("SIGTERM")
