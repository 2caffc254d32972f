"""The lab's command lines in this package's settings: `--batch-size 10` is `stage2.batch=10`.

Flags that have no counterpart are answered with a sentence, never passed over in silence: `notes` says what this
package does instead.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab5.cli.arguments import INPAINT, TRAIN
from lab5.config import Config, TransformerConfig

Settings = dict[str, Any]

# What solutions call the falls of the learning rate; our own names are understood too.
SCHEDULERS = {"cosine": "warmup_cosine", "linear": "warmup_linear", "constant": "constant", "none": "constant"}

SAVING = "the state of a training is saved every two minutes and whenever it stops; the file of the network, at its end"
INSTEAD = {
    "true_scheduling": ("--true-scheduling", "the schedule always takes shares of the hole as it was"),
    "num_workers": ("--num_workers", "images are decoded once and kept in memory, so no process loads them"),
    "save_per_epoch": ("--save-per-epoch", SAVING),
    "ckpt_interval": ("--ckpt-interval", SAVING),
}

# What MaskGit.yml calls the sizes of the transformer.
TRANSFORMER_PARAM = {"dim": "width", "n_layers": "layers", "hidden_dim": "hidden"}


# --- flags ------------------------------------------------------------------------------------------------------


def settings(args: Namespace) -> Settings:
    """What the given flags of `train` or `inpaint` stand for. Raises ValueError for values that mean nothing."""
    names = TRAIN if args.command == "train" else INPAINT
    given = {name: getattr(args, flag.strip("-").replace("-", "_")) for flag, name in names.items()}
    settings = {name: value for name, value in given.items() if value is not None}
    _check_share(args.partial)
    if args.command == "inpaint":
        _check_sweet_spot(args)
        return settings
    if args.learning_rate is not None and not args.learning_rate > 0:
        raise ValueError(f"--learning-rate must be above 0, not {args.learning_rate}")
    if args.scheduler is not None:
        settings["stage2.schedule"] = SCHEDULERS.get(args.scheduler, args.scheduler.replace("-", "_"))
    if args.betas is not None:
        settings["stage2.betas"] = _betas(args.betas)
    if args.train_d_path is not None or args.val_d_path is not None:
        settings["data.path"] = str(_dataset_root(args.train_d_path, args.val_d_path))
    if (start := _start(args)) is not None:
        settings["stage2.start"] = start
    return settings


def notes(args: Namespace) -> list[str]:
    """A sentence for every given flag that sets nothing here."""
    given = vars(args)
    lines = [f"{flag} sets nothing here: {why}" for name, (flag, why) in INSTEAD.items() if given.get(name)]
    if given.get("resume") is True and args.checkpoint_path is None:
        lines.append("--resume sets nothing here: a training that was cut short goes on by itself, if called as before")
    if given.get("MaskGitConfig") and (unread := _read_config(args.MaskGitConfig)[2]):
        lines.append(f"{args.MaskGitConfig}: not read are {', '.join(unread)}")
    return lines


def _check_share(partial: float | None) -> None:
    if partial is not None and not 0 < partial <= 1:
        raise ValueError(f"--partial must lie above 0 and be at most 1, the share of the images to use, not {partial}")


def _check_sweet_spot(args: Namespace) -> None:
    """The setting `decode.stop_at` knows 0 as "all the steps"; as a sweet spot it would be a silent no-op."""
    spot, steps = args.sweet_spot, args.total_iter
    if spot is not None and not 1 <= spot <= (steps or spot):
        end = "T, the number of steps" if steps is None else f"{steps}, which is --total-iter"
        raise ValueError(f"--sweet-spot must lie in 1..{end}, not {spot}; leave it out to take all the steps")


def _betas(words: list[str]) -> tuple[float, float]:
    """Two numbers, in two words or in one with a comma."""
    try:
        first, second = (float(word) for word in " ".join(words).replace(",", " ").strip("() ").split())
    except ValueError:
        first = second = -1.0
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(f"--betas takes two numbers from 0 to below 1, such as 0.9 0.96, not {' '.join(words)!r}")
    return first, second


def _dataset_root(train: Path | None, val: Path | None) -> Path:
    """The folder to give as --data: it holds train and val, and the masks beside or above them."""
    for folder, name in ((train, "train"), (val, "val")):
        if folder is not None and (folder.resolve().name != name or not folder.is_dir()):
            raise ValueError(f"--{name}_d_path must be a folder called {name} in the lab's dataset, not {folder}")
    roots = {folder.resolve().parent for folder in (train, val) if folder is not None}
    if len(roots) > 1:
        raise ValueError(
            f"--train_d_path {train} and --val_d_path {val} lie in two datasets; both must lie in one folder, "
            "which --data can name instead"
        )
    (root,) = roots
    beside, above = ((folder / "mask64").is_dir() for folder in (root, root.parent))
    return root.parent if above and not beside else root


def _start(args: Namespace) -> str | None:
    """The file of a transformer to begin with, by whatever flag it was named."""
    files = {str(file) for file in (args.checkpoint_path, args.resume) if file not in (None, True)}
    if len(files) > 1:
        raise ValueError(f"--checkpoint-path and --resume name two files, {' and '.join(sorted(files))}: give one")
    if not files:
        if args.start_from_epoch:
            raise ValueError(
                f"--start-from-epoch {args.start_from_epoch} needs the --checkpoint-path that was trained so far; "
                "a training of this package that was cut short goes on by itself"
            )
        return None
    (file,) = files
    if not Path(file).is_file():
        raise ValueError(
            f"there is no checkpoint at {file} to begin with; the networks that are trained here go to --out, and a "
            "training that was cut short goes on by itself"
        )
    return file


def fid_sets(args: Namespace) -> list[str]:
    """The two sets that `fid` compares, or the one whose statistics it saves."""
    if args.dims not in (None, 2048):
        raise ValueError(f"--dims must be 2048, the features that define FID, not {args.dims}")
    sets = []
    for name, word, flag in (("FIRST", args.first, "predicted_path"), ("SECOND", args.second, "gtcsv_path")):
        by_flag = getattr(args, flag)
        if word is not None and by_flag is not None:
            raise ValueError(f"{name} is given twice, as {word} and by --{flag.replace('_', '-')}: give one of them")
        sets.append(by_flag if word is None else word)
    if sets[0] is not None and sets[1] is None and args.save_stats is not None:
        return sets[:1]
    if None in sets:
        raise ValueError("fid compares two sets: give FIRST and SECOND, or --predicted-path and --gtcsv-path")
    return sets


# --- epochs -----------------------------------------------------------------------------------------------------


def counts_images(args: Namespace) -> bool:
    """Whether some flag can be translated only once the number of training images is known."""
    return any(value is not None for value in (args.epochs, args.warmup_epochs, args.partial))


def in_steps(args: Namespace, given: Mapping[str, Any], config: Config, images: int) -> Settings:
    """Epochs and shares in steps and images. An epoch sees each of the distinct training images once.

    `config` has the batch, and `given` what was set by name, which stays. Without --warmup-epochs a warm-up is cut to
    a tenth of the steps. Raises ValueError for a number of epochs that leaves nothing to do.
    """
    settings: Settings = {}
    if args.partial is not None:
        settings["data.train"] = images = max(1, int(args.partial * images))
    per_step = config.stage2.batch * config.stage2.accumulate
    if args.epochs is not None:
        if (left := args.epochs - (args.start_from_epoch or 0)) < 1:
            raise ValueError(f"--epochs must be at least 1 more than --start-from-epoch, not {args.epochs}")
        steps = settings["stage2.steps"] = max(1, left * images // per_step)
        if "stage2.warmup" not in given:
            settings["stage2.warmup"] = min(config.stage2.warmup, steps // 10)
    if args.warmup_epochs is not None:
        if args.warmup_epochs < 0:
            raise ValueError(f"--warmup-epochs must be at least 0, not {args.warmup_epochs}")
        settings["stage2.warmup"] = args.warmup_epochs * images // per_step
    return settings


# --- MaskGit.yml ------------------------------------------------------------------------------------------------


def settings_of_file(args: Namespace) -> Settings:
    """What --MaskGitConfig says; {} without it. Settings given by name come before those of a file."""
    file = getattr(args, "MaskGitConfig", None)
    return {} if file is None else _read_config(file)[0]


def stage_one(args: Namespace) -> Path | None:
    """The file of stage one: --vqgan; else the VQ_CKPT_path of --MaskGitConfig, if it is there; else, for a
    transformer that is given, what LAB5_VQGAN names. None where it is to be trained, or to come with the weights."""
    given, config = getattr(args, "transformer", None), getattr(args, "MaskGitConfig", None)
    named = None
    if config is not None and (given is not None or args.command == "train"):
        named = _read_config(config)[1]
    if given is not None and (variable := os.environ.get("LAB5_VQGAN")):
        named = named or Path(variable)
    return args.vqgan or named


def _read_config(path: Path) -> tuple[Settings, Path | None, list[str]]:
    """Settings, the file of stage one, and the entries that were not read.

    The file describes the lab's transformer, so whatever it leaves open is as in the lab: 16 heads, post-norm.
    """
    content = _load_yaml(path)
    content = dict(content.get("model_param", content))
    param, vq = (_section(path, content, name) for name in ("Transformer_param", "VQ_Configs"))
    for where in (content, param):
        if (tokens := where.pop("num_image_tokens", 256)) != 256:
            raise ValueError(f"{path}: num_image_tokens must be 256, because an image is 16x16 tokens, not {tokens!r}")
    settings: Settings = {}
    if param:
        settings |= {f"transformer.{name}": value for name, value in asdict(TransformerConfig()).items()}
        sizes = {name: ours for name, ours in TRANSFORMER_PARAM.items() if name in param}
        settings |= {f"transformer.{ours}": param.pop(name) for name, ours in sizes.items()}
    codes = [where.pop("num_codebook_vectors") for where in (content, param) if "num_codebook_vectors" in where]
    if len(codes) == 2 and codes[0] != codes[1]:
        raise ValueError(f"{path}: num_codebook_vectors is both {codes[0]} and {codes[1]}")
    if codes:
        settings |= {"vqgan.codes": codes[0], "transformer.codes": codes[0]}
    if "choice_temperature" in content:
        settings["decode.choice_temperature"] = content.pop("choice_temperature")
    if "gamma_type" in content:
        settings |= dict.fromkeys(("stage2.masking", "decode.schedule"), content.pop("gamma_type"))
    checkpoint = vq.pop("VQ_CKPT_path", None)
    file = Path(checkpoint) if isinstance(checkpoint, str) and Path(checkpoint).is_file() else None
    unread = {"VQ_CKPT_path": checkpoint} if checkpoint is not None and file is None else {}
    vq.pop("VQ_config_path", None)  # the lab's network, which is the only one that its files can hold
    return settings, file, [str(name) for name in content | param | vq | unread]


def _section(path: Path, content: dict, name: str) -> dict:
    section = content.pop(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"{path}: {name} must be a section with entries of its own, not {section!r}")
    return dict(section)


def _load_yaml(path: Path) -> dict:
    import yaml  # here alone: --help needs none

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--MaskGitConfig {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not plain YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_param", {}), dict):
        raise ValueError(f"{path} is not the lab's MaskGit.yml: it has no model_param with entries")
    return content
