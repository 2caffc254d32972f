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

from lab5.cli.arguments import INPAINT, NEEDLESS, TRAIN
from lab5.config import Config, TransformerConfig

Settings = dict[str, Any]

# What solutions call the falls of the learning rate; our own names are understood too.
SCHEDULERS = {"cosine": "warmup_cosine", "linear": "warmup_linear", "constant": "constant", "none": "constant"}

# What entries of MaskGit.yml stand for.
ENTRIES = {
    "dim": ["transformer.width"],
    "n_layers": ["transformer.layers"],
    "hidden_dim": ["transformer.hidden"],
    "num_codebook_vectors": ["vqgan.codes", "transformer.codes"],
    "choice_temperature": ["decode.choice_temperature"],
    "gamma_type": ["stage2.masking", "decode.schedule"],
}


# Where the lab's scripts and their solutions look, from the folder that they are started in.
TRUTH, CONFIG = Path("test_gt.csv"), Path("config/MaskGit.yml")
ROOTS = [Path(root, faces) for root in ("", "lab5_dataset", "lab3_dataset", "dataset") for faces in ("", "cat_face")]
# Flags of `train` by which one knows that the lab's command was meant.
OF_TRAINING = ("epochs", "warmup_epochs", "partial", "save_per_epoch", "ckpt_interval", "start_from_epoch",
               "stage2.accumulate", "stage2.lr")  # fmt: skip


# --- flags ------------------------------------------------------------------------------------------------------


def take_defaults(args: Namespace) -> list[str]:
    """What a script of the lab's takes where its flags are left out, if it is there; a line for each that is taken.

    Of `fid` the ground truth; of `inpaint` with a transformer that is given the test images and masks; of `train` with
    a flag of the lab's the dataset; of both MaskGit.yml.
    """
    defaults: dict[str, str | Path] = {}
    if args.command == "fid":
        if args.predicted_path is not None and args.second is None and args.save_stats is None and TRUTH.is_file():
            defaults["--gtcsv-path"] = str(TRUTH)
    elif args.data is None and not any(text.startswith("data.path=") for text in args.set):
        if args.command == "train" and any(vars(args)[name] is not None for name in OF_TRAINING):
            train = next((root / "train" for root in ROOTS if _is_lab(root)), None)
            if args.train_d_path is None and args.val_d_path is None and train:
                defaults["--train_d_path"] = train
        elif args.command == "inpaint" and args.transformer is not None and args.split == "test":
            masked = args.test_maskedimage_path or next(filter(Path.is_dir, (r / "masked_image" for r in ROOTS)), None)
            above = [masked.parent, masked.parent.parent] if masked else []
            masks = args.test_mask_path or next(filter(Path.is_dir, (root / "mask64" for root in above)), None)
            if masked and masks:
                defaults = {"--test-maskedimage-path": masked, "--test-mask-path": masks}
        if (defaults or getattr(args, "train_d_path", None)) and args.vqgan is None and CONFIG.is_file():
            defaults["--MaskGitConfig"] = CONFIG
    taken = {flag: value for flag, value in defaults.items() if vars(args)[_name(flag)] is None}
    vars(args).update({_name(flag): value for flag, value in taken.items()})
    return [f"{flag} {value} is taken, as by the lab's script, because it is here" for flag, value in taken.items()]


def _is_lab(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "masked_image").is_dir()


def _name(flag: str) -> str:
    """Under which a parsed flag stands."""
    return flag.strip("-").replace("-", "_")


def settings(args: Namespace) -> Settings:
    """What the given flags of `train` or `inpaint` stand for. Raises ValueError for values that mean nothing."""
    names = (TRAIN if args.command == "train" else INPAINT).values()
    settings = {name: value for name in names if (value := vars(args)[name]) is not None}
    if args.partial is not None and not 0 < args.partial <= 1:
        raise ValueError(f"--partial must lie above 0 and be at most 1, the share of images to use, not {args.partial}")
    if args.command == "inpaint":
        # The setting knows 0 as "all the steps"; as a sweet spot it would be a silent no-op.
        spot, steps = settings.get("decode.stop_at"), settings.get("decode.steps")
        if spot is not None and not 1 <= spot <= (steps or spot):
            end = f"{steps}, which is --total-iter" if steps else "T, the number of steps"
            raise ValueError(f"--sweet-spot must lie in 1..{end}, not {spot}; leave it out to take all the steps")
        return settings
    if args.scheduler is not None:
        settings["stage2.schedule"] = SCHEDULERS.get(args.scheduler, args.scheduler.replace("-", "_"))
    if args.betas is not None:
        settings["stage2.betas"] = _betas(" ".join(args.betas))
    if args.train_d_path is not None or args.val_d_path is not None:
        settings["data.path"] = str(_dataset_root(args.train_d_path, args.val_d_path))
    if (start := _start(args)) is not None:
        settings["stage2.start"] = start
    return settings


def notes(args: Namespace) -> list[str]:
    """A sentence for every given flag that sets nothing here."""
    given = vars(args)
    lines = [f"{flag} sets nothing here: {why}" for flag, why in NEEDLESS.items()
             if given.get(_name(flag))]  # fmt: skip
    if given.get("resume") is True and args.checkpoint_path is None:
        lines.append("--resume sets nothing here: a training that was cut short goes on by itself, if called as before")
    if given.get("MaskGitConfig") and (unread := _read_config(args.MaskGitConfig)[2]):
        lines.append(f"{args.MaskGitConfig}: not read are {', '.join(unread)}")
    return lines


def _betas(text: str) -> tuple[float, ...]:
    """Two numbers, with or without a comma and brackets; the setting says which numbers it takes."""
    try:
        first, second = (float(word) for word in text.replace(",", " ").strip("() ").split())
    except ValueError:
        raise ValueError(f"--betas takes two numbers, such as 0.9 0.96, not {text!r}") from None
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
    files = sorted({str(file) for file in (args.checkpoint_path, args.resume) if file not in (None, True)})
    if len(files) > 1:
        raise ValueError(f"--checkpoint-path and --resume name two files, {' and '.join(files)}: give one")
    if args.start_from_epoch and not files:
        raise ValueError(
            f"--start-from-epoch {args.start_from_epoch} needs the --checkpoint-path that was trained so far; "
            "a training of this package that was cut short goes on by itself"
        )
    return files[0] if files else None


def fid_sets(args: Namespace) -> tuple[list[str], bool | None]:
    """The two sets that `fid` compares, or the one whose statistics it saves, and whether they are paired.

    By the lab's flags a result is compared with its original, image by image, where the names allow it (None).
    """
    if args.dims not in (None, 2048):
        raise ValueError(f"--dims must be 2048, the features that define FID, not {args.dims}")
    sets = []
    for name, word, flag, by_flag in (
        ("FIRST", args.first, "--predicted-path", args.predicted_path),
        ("SECOND", args.second, "--gtcsv-path", args.gtcsv_path),
    ):
        if word is not None and by_flag is not None:
            raise ValueError(f"{name} is given twice, as {word} and by {flag}: give one of them")
        sets.append(by_flag if word is None else word)
    if sets[0] is not None and sets[1] is None and args.save_stats is not None:
        return sets[:1], False
    if None in sets:
        raise ValueError("fid compares two sets: give FIRST and SECOND, or --predicted-path and --gtcsv-path")
    by_the_labs_flags = args.predicted_path is not None and args.gtcsv_path is not None
    return sets, args.paired or (None if by_the_labs_flags else False)


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
    sections = {name: content.pop(name, {}) for name in ("Transformer_param", "VQ_Configs")}
    entries: dict[str, Any] = {}
    for where, section in {"model_param": content, **sections}.items():
        if not isinstance(section, dict):
            raise ValueError(f"{path}: {where} must be a section with entries of its own, not {section!r}")
        for name, value in section.items():
            if entries.setdefault(name, value) != value:
                raise ValueError(f"{path}: {name} is both {entries[name]} and {value}")
    if (tokens := entries.pop("num_image_tokens", 256)) != 256:
        raise ValueError(f"{path}: num_image_tokens must be 256, because an image is 16x16 tokens, not {tokens!r}")
    lab = asdict(TransformerConfig()) if sections["Transformer_param"] else {}
    settings = {f"transformer.{name}": value for name, value in lab.items()}
    for name, ours in ENTRIES.items():
        if name in entries:
            settings |= dict.fromkeys(ours, entries.pop(name))
    entries.pop("VQ_config_path", None)  # the lab's network, which is the only one that its files can hold
    file = Path(str(entries.get("VQ_CKPT_path")))
    if file.is_file():
        entries.pop("VQ_CKPT_path")
    return settings, file if file.is_file() else None, [str(name) for name in entries]


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
