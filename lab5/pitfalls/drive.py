"""Within the fence: a solution of the lab is run with stand-ins in the place of its networks, and observed.

`main` is called by `lab5.runtime.fence`; it writes what was observed, numbers and texts alone, to a JSON file after
each stage. Verdicts are given outside, by `lab5.pitfalls.judge`.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lab5.pitfalls import observe, standins
from lab5.pitfalls.judge import ENDLESS, TEMPERATURES
from lab5.pitfalls.readings import check_attention
from lab5.pitfalls.standins import GRID, HOLES, ONE_LAYER, STEPS, Anything, Bare, K, MissingPackages, N, NoGPU, World

HEADS = 16
EPOCHS, BATCH, ACCUMULATE = 6, 4, 4  # with 32 images: 8 batches and 2 steps of the optimiser an epoch
SCHEDULES = ("cosine", "linear", "square")
SECONDS = {"attention": 20, "gamma": 5, "training": 20, "run": 10}  # of computing, for a stage or a run of decoding
DATA, TRANSFORMER, VQGAN = "lab5_dataset", "transformer_checkpoint.pt", "models/VQGAN/checkpoints/VQGAN.pt"
# The same data, where defaults look for it.
PLACES = {"lab3_dataset": "", "dataset": "", "cat_face": "cat_face", "mask64": "mask64"}
MODEL, TRAINING, INPAINTING = "models/VQGAN_Transformer.py", "training_transformer.py", "inpainting.py"
LAYERS = "models/Transformer/modules/layers.py"


class OutOfTime(BaseException):
    """What an alarm raises: `except Exception` of a solution does not catch it."""


def main(kept: list[str], folder: str, result: str, seconds: str) -> None:
    """Observe the solution in `folder`, its copy, and write JSON to `result`; it is given so many `seconds` in all."""
    driver = Driver(Path(folder), time.monotonic() + float(seconds))
    facts: dict[str, Any] = {"fence": kept, "stages": {}}
    stages = {
        "attention": driver.attention, "gamma": driver.gamma, "training": driver.training, "decoding": driver.decoding
    }  # fmt: skip
    for name, stage in stages.items():
        facts["stages"][name] = {"error": "the process ended in the midst of it"}
        _write(Path(result), facts)  # so that an end without a word is one
        facts["stages"][name] = driver.guarded(stage, SECONDS.get(name))
        facts["missing"], facts["filled"] = driver.missing.names, driver.filled
        _write(Path(result), facts)


def _write(path: Path, facts: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(facts), encoding="utf-8")
    part.replace(path)


class Driver:
    """One solution, its stand-ins, and the stages in which it is observed."""

    def __init__(self, root: Path, deadline: float):
        self.root, self.deadline = root, deadline
        self.options: set[str] = set()  # of the script that ran last
        self.filled: list[str] = []  # files of the template that are not there
        self.world = World()
        for name in (DATA, *PLACES, "wandb"):  # what is left of its data and logs, which would be found in their place
            if (root / name).is_dir() and not any((root / name).rglob("*.py")):
                shutil.rmtree(root / name)
        self.missing = MissingPackages({path.stem for path in root.iterdir()} | {"models", "utils"})
        os.chdir(root)
        sys.path.insert(0, str(root))
        sys.meta_path.append(self.missing)
        sys.dont_write_bytecode = True
        warnings.simplefilter("ignore")
        self.world.write(root / DATA)
        self._fill_in()
        self._patch()
        self.maskgit = self._import()

    # --- the stage around the solution

    def _fill_in(self) -> None:
        """Files that the lab hands out, where the solution lacks them, and files that stand for weights."""
        config = self.root / "config" / "MaskGit.yml"
        sizes = {"num_image_tokens": N, "num_codebook_vectors": K}
        model = {
            "VQ_Configs": {"VQ_config_path": "models/VQGAN/config/VQGAN.yml", "VQ_CKPT_path": VQGAN}, **sizes,
            "choice_temperature": 4.5, "gamma_type": "cosine",
            "Transformer_param": {**sizes, "dim": 768, "n_layers": 15, "hidden_dim": 1536},
        }  # fmt: skip
        if not config.exists():
            self._make(config, yaml.safe_dump({"MODEL_NAME": "MaskGit", "model_param": model}))
        with contextlib.suppress(Exception):
            model = yaml.safe_load(config.read_text(encoding="utf-8"))["model_param"]
        paths = model.get("VQ_Configs") or {}
        for key, text in (("VQ_config_path", "model_param: {}\n"), ("VQ_CKPT_path", "")):
            if isinstance(paths.get(key), str) and not Path(self.root, paths[key]).exists():
                with contextlib.suppress(OSError):
                    self._make(self.root / paths[key], text, note=False)
        self._make(self.root / TRANSFORMER, "", note=False)
        self.configs = model
        for name in ("train", "val", "masked_image"):  # the other of the two layouts
            (self.root / DATA / "cat_face").mkdir(exist_ok=True)
            (self.root / DATA / "cat_face" / name).symlink_to(self.root / DATA / name)
        for name, place in PLACES.items():
            if not (self.root / name).exists():
                (self.root / name).symlink_to(self.root / DATA / place)

    def _make(self, path: Path, text: str, note: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if note:
            self.filled.append(path.relative_to(self.root).as_posix())

    def _import(self) -> Any:
        """The solution's MaskGit class, with stand-ins for its networks; or the error in its place."""
        sys.modules["models.VQGAN"] = sys.modules["models.VQGAN.VQGAN"] = vqgan = ModuleType("models.VQGAN")
        vqgan.__path__ = []
        vqgan.VQGAN = standins.vqgan_of(self.world)
        if not (self.root / "utils.py").exists() and not (self.root / "utils").exists():
            sys.modules["utils"] = _utils()
            self.filled.append("utils.py")
        try:
            self._import_transformer()
            models = importlib.import_module("models") if (self.root / "models" / "__init__.py").exists() else None
            module = importlib.import_module("models.VQGAN_Transformer")
            maskgit = getattr(module, "MaskGit", None) or next(
                c for c in vars(module).values() if isinstance(c, type) and hasattr(c, "inpainting")
            )
            package = models or sys.modules["models"]
            if not hasattr(package, "MaskGit"):
                package.MaskGit = maskgit
                self.filled.append("models/__init__.py")
            _wrap_gamma(maskgit, self.world)
            _wrap_inpainting(maskgit, self.world)
            _wrap_temperature(maskgit, self.world)
            return maskgit
        except (Exception, SystemExit) as error:
            return self.sentence(error)

    def _import_transformer(self) -> None:
        """Its own transformer, by a package `models` that imports nothing, and the oracle in its place."""
        package = sys.modules["models"] = ModuleType("models")
        package.__path__ = [str(self.root / "models")]
        names = [name for name in ("models.Transformer", "models.Transformer.transformer") if self._has(name)]
        modules = []
        for name in names:
            with contextlib.suppress(ImportError):
                modules.append(importlib.import_module(name))
        own = next(
            (m.BidirectionalTransformer for m in reversed(modules) if hasattr(m, "BidirectionalTransformer")), None
        )
        if own is None:
            self.filled.append("models/Transformer/transformer.py")
            module = sys.modules["models.Transformer"] = ModuleType("models.Transformer")
            module.__path__ = [str(self.root / "models" / "Transformer")]
            module.BidirectionalTransformer = own = Bare
            sys.modules["models.Transformer.transformer"] = module
        else:
            self._count_classes(own)
        for module in modules:
            module.BidirectionalTransformer = own
        standins.become_oracle(own, self.world)
        if (self.root / "models" / "__init__.py").exists():
            del sys.modules["models"]

    def _has(self, name: str) -> bool:
        path = self.root / name.replace(".", "/")
        return path.is_dir() or path.with_suffix(".py").exists()

    def _count_classes(self, own: type[nn.Module]) -> None:
        """How many classes its transformer predicts: 1025 where the mask id is among them."""
        configs = self.configs.get("Transformer_param", {})
        with contextlib.suppress(Exception), torch.no_grad():
            small = own(configs | {key: 1 for key in ONE_LAYER if key in configs}).eval()
            logits = small(torch.zeros(1, N, dtype=torch.long))
            if logits.shape[:2] == (1, N) and logits.shape[2] in (K, K + 1):
                self.world.classes = logits.shape[2]

    def _patch(self) -> None:
        """Seams at which a solution is seen: files, losses, optimisers, learning rates, gradients."""
        import torchvision.utils

        world = self.world
        NoGPU().__enter__()
        nn.Module.cuda = lambda module, *_, **__: module
        for name in ("synchronize", "set_device", "reset_peak_memory_stats"):
            setattr(torch.cuda, name, lambda *_, **__: None)
        torch.cuda.get_device_name = lambda *_: "none"
        torch.compile = lambda function=None, *_, **__: function or (lambda later: later)
        torch.load, torch.save = (lambda *_, **__: Anything()), (lambda *_, **__: None)
        nn.Module.load_state_dict = lambda *_, **__: nn.modules.module._IncompatibleKeys([], [])
        torch.optim.Optimizer.load_state_dict = lambda *_, **__: None
        torchvision.utils.save_image = _recorder_of_pictures(world)
        loader = torch.utils.data.DataLoader.__init__

        def in_this_process(self, dataset, *arguments, **settings):
            plain = {"num_workers": 0, "pin_memory": False, "persistent_workers": False, "prefetch_factor": None}
            arguments = arguments[:4]  # batch_size, shuffle, sampler, batch_sampler; what follows begins with workers
            loader(self, dataset, *arguments, **(settings | plain | {"timeout": 0, "multiprocessing_context": None}))

        torch.utils.data.DataLoader.__init__ = in_this_process
        if any("matplotlib" in path.read_text(encoding="utf-8", errors="replace") for path in self.root.glob("*.py")):
            from matplotlib.figure import Figure

            Figure.savefig = lambda *_, **__: None
        for name, value in {
            "float": float,
            "int": int,
            "bool": bool,
            "Inf": np.inf,
            "infty": np.inf,
            "float_": float,
        }.items():
            if name not in vars(np):
                setattr(np, name, value)

    # --- running its pieces

    def guarded(self, stage: Callable[[], Any], seconds: float | None) -> Any:
        """What the stage returns, or {"error": a sentence}. It may compute for so long, and take half of what is left;
        without `seconds` its parts look after themselves."""
        left = self.deadline - time.monotonic() - 1
        if left <= 1:
            return {"error": "no time was left for it"}
        try:
            with _alarm(seconds, left / 2) if seconds else contextlib.nullcontext():
                return stage()
        except OutOfTime:
            return {"error": ENDLESS}
        except (Exception, SystemExit) as error:
            return {"error": self.sentence(error), "type": type(error).__name__}

    def sentence(self, error: BaseException) -> str:
        """The error and the line of the solution at which it arose."""
        root = str(self.root) + os.sep
        at = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
        place = f" ({at[-1].filename.removeprefix(root)}:{at[-1].lineno})" if at else ""
        if isinstance(error, SystemExit):
            return f"it ends itself by exit({error.code if error.code is not None else ''}){place}"
        text = " ".join(str(error).replace(root, "").split())[:300]
        return f"{type(error).__name__}: {text}{place}"

    def script(self, name: str, given: dict[str, Any]) -> None:
        """Run a script as `python name`, its options answered by `given`; `options` is then which of them it has."""
        used = self.options = set()
        if isinstance(self.maskgit, str):
            raise ImportError(self.maskgit)
        if not (self.root / name).exists():
            raise FileNotFoundError(f"there is no {name}")
        parse = argparse.ArgumentParser.parse_known_args

        def answered(parser, args=None, namespace=None):  # parse_args calls it
            words, fixed = [], {}
            for action in parser._actions:
                action.required = False
                key = _option(action)
                if key not in given or action.nargs == 0:
                    continue
                used.add(key)
                value = _choice(action.choices, given[key])
                if action.type is str and isinstance(action.default, int):
                    fixed[action.dest] = value
                else:
                    words.append(f"{action.option_strings[-1]}={value}" if action.option_strings else str(value))
            parsed, rest = parse(parser, words, namespace)
            vars(parsed).update(fixed)
            return parsed, rest

        argparse.ArgumentParser.parse_known_args = answered
        arguments, sys.argv = sys.argv, [name]
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            runpy.run_path(str(self.root / name), run_name="__main__")
        finally:
            sys.argv = arguments
            argparse.ArgumentParser.parse_known_args = parse

    # --- attention and schedules

    def attention(self) -> dict[str, Any]:
        """The rows of `check_attention` on its layer."""
        path = self.root / LAYERS
        if not path.exists():
            raise FileNotFoundError(f"there is no {LAYERS}")
        with contextlib.suppress(ImportError):
            importlib.import_module("models.Transformer.modules.layers")
        module = sys.modules.get("models.Transformer.modules.layers")
        if module is None:
            spec = importlib.util.spec_from_file_location("solution_layers", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        if any(isinstance(part, standins.Inert) for part in vars(module).values()):
            raise ImportError("its attention needs a package that is missing")
        try:
            layer = module.MultiHeadAttention()
        except TypeError:  # it has no defaults
            layer = module.MultiHeadAttention(768, HEADS, 0.1)
        return {"rows": [asdict(row) | {"verdict": row.verdict.name} for row in check_attention(layer)]}

    def gamma(self) -> dict[str, Any]:
        """Values of its schedules at 0, 1/4, 1/2, 3/4 and 1."""
        if isinstance(self.maskgit, str):
            raise ImportError(self.maskgit)
        model = self.maskgit(self.configs)
        at = (0.0, 0.25, 0.5, 0.75, 1.0)
        values: dict[str, Any] = {}
        for name in SCHEDULES:
            try:
                made = model.gamma_func(name)
                values[name] = [_number(made, x) for x in at]
            except Exception as error:
                values[name] = self.sentence(error)
        if all(isinstance(value, str) for value in values.values()):
            with contextlib.suppress(Exception):
                values = {self.configs.get("gamma_type", "cosine"): [_number(model.gamma_func, x) for x in at]}
        return {"values": values}

    # --- training

    def training(self) -> dict[str, Any]:
        """Train with an oracle without opinion, and condense what was seen."""
        world = self.world
        world.events, world.answer, world.calls = [], world.without_opinion, 0
        checkpoints = self.root / "checkpoints_of_the_check"
        checkpoints.mkdir(exist_ok=True)
        given = {
            "device": "cpu", "num_workers": 0, "batch_size": BATCH, "train_batch_size": BATCH, "val_batch_size": BATCH,
            "partial": 1.0, "accum_grad": ACCUMULATE, "epochs": EPOCHS, "learning_rate": 1e-3, "lr": 1e-3,
            "start_from_epoch": 0, "save_per_epoch": 1, "ckpt_interval": 1, "warmup_epochs": 1,
            "train_d_path": f"./{DATA}/train/", "val_d_path": f"./{DATA}/val/",
            "checkpoint_path": f"./{checkpoints.name}",
        }  # fmt: skip
        error = ""
        with observe.watching(world):
            try:
                self.script(TRAINING, given)
            except (Exception, SystemExit) as stop:
                error = self.sentence(stop)
            except OutOfTime:
                _silence()
                error = ENDLESS
        source = (
            (self.root / TRAINING).read_text(encoding="utf-8", errors="replace")
            if (self.root / TRAINING).exists()
            else ""
        )
        facts = observe.training_facts(world) | {"error": error, "options": sorted(self.options)}
        facts.get("steps", {})["in the source"] = bool(re.search(r"^[^#\n]*sched\w*\.step\(", source, re.MULTILINE))
        return facts

    # --- decoding

    def decoding(self) -> dict[str, Any]:
        """Fill the test images with several oracles, schedules and sweet spots."""
        world, runs = self.world, {}

        def run(
            name: str, oracle: Callable[[Tensor], Tensor], schedule: str, sweet_spot: int, n: int = 1
        ) -> dict[str, Any]:
            world.events, world.answer, world.picture, world.enough = [], oracle, -1, n
            given = {
                "device": "cpu", "num_workers": 0, "batch_size": 1, "partial": 1.0, "total_iter": STEPS,
                "sweet_spot": sweet_spot, "mask_func": schedule, "load_transformer_ckpt_path": TRANSFORMER,
                "test_maskedimage_path": f"./{DATA}/masked_image", "test_mask_path": f"./{DATA}/mask64",
            }  # fmt: skip
            begun = time.process_time()
            error = self.guarded(lambda: self._until_enough(given), SECONDS["run"]) or {}
            runs[name] = error | observe.decoding_facts(world) | {
                "options": sorted(self.options), "sweet_spot": sweet_spot, "seconds": time.process_time() - begun,
            }  # fmt: skip
            return runs[name]

        first = run("cosine", world.sure, "cosine", STEPS, 2)
        end = STEPS
        for other in (STEPS + 1, -1, STEPS - 1):  # at sweet spot = T some write nothing or crash
            if (first["pictures"] and first["pictures"][0]["final"]) or first.get("error") == ENDLESS:
                break
            end, first = other, run("cosine", world.sure, "cosine", other, 2)
        if first.get("error") == ENDLESS and not first["pictures"]:  # the others would not end either
            return {"error": ENDLESS}
        for schedule in SCHEDULES[1:]:
            run(schedule, world.sure, schedule, end)
        run("order", world.in_two_minds, "cosine", end, len(HOLES))
        for world.temperature in TEMPERATURES:
            run(f"temperature {world.temperature}", world.in_two_minds, "cosine", end, len(HOLES))
        world.temperature = None
        run("mask id", world.tempted_by_the_mask_id, "cosine", end, 3)
        for sweet_spot in (STEPS + 1, -1, STEPS // 2):
            run(f"sweet spot {sweet_spot}", world.sure, "cosine", sweet_spot)
        return {"runs": runs, "end": end}

    def _until_enough(self, given: dict[str, Any]) -> None:
        with contextlib.suppress(standins.Enough):
            self.script(INPAINTING, given)


# --- small things ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alarm(seconds: float, wall: float) -> Iterator[None]:
    """OutOfTime after so many seconds of computing, or of waiting: on a busy machine the two are far apart."""

    def ring(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 2.0)  # once more, should a bare `except` have caught it
        raise OutOfTime

    handlers = {kind: signal.signal(kind, ring) for kind in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall)
    try:
        yield
    finally:
        _silence()
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def _silence() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _option(action: argparse.Action) -> str:
    """`--accum-grad` and `--accum_grad` are one, under the template's names."""
    name = (max(action.option_strings, key=len) if action.option_strings else action.dest).lstrip("-").lower()
    name = re.sub(r"[-.]", "_", name)
    return {
        "bs": "batch_size", "batch": "batch_size", "batchsize": "batch_size", "accum_steps": "accum_grad",
        "gradient_accumulation_steps": "accum_grad", "epoch": "epochs", "num_epochs": "epochs",
        "warmup": "warmup_epochs",
        "mask_schedule": "mask_func", "schedule": "mask_func", "mask_function": "mask_func",
        "total_iters": "total_iter", "load_transformer_checkpoint_path": "load_transformer_ckpt_path",
    }.get(name, name)  # fmt: skip


def _choice(choices: Any, value: Any) -> Any:
    """The choice that begins as the value does: `cos` for cosine."""
    if choices is None or not isinstance(value, str) or value in choices:
        return value
    return next((c for c in choices if isinstance(c, str) and c[:3].lower() == value[:3]), value)


def _number(function: Any, x: float) -> float:
    """function(x) as a float, whatever kind of number it wants."""
    if not callable(function):
        raise TypeError("gamma_func returns no function")
    for kind in (float, torch.tensor):
        try:
            return float(function(kind(x)))
        except (TypeError, AttributeError):
            continue
    return float(function(x))


def _floats(value: Any) -> list[float]:
    value = value.detach().reshape(-1).tolist() if isinstance(value, Tensor) else value
    return [float(v) for v in (value if hasattr(value, "__iter__") else [value])]


def _wrap_gamma(maskgit: type, world: World) -> None:
    """Record which schedules are asked for and what values they are called for."""
    raw = maskgit.__dict__.get("gamma_func")
    if raw is None:
        return
    function = getattr(raw, "__func__", raw)

    def note(value: Any, arguments: tuple) -> Any:
        with contextlib.suppress(Exception):
            values = _floats(value)
            at = next((_floats(a) for a in arguments if not isinstance(a, str | nn.Module)), [])
            linear = len(at) == len(values) and all(abs(1 - x - v) < 0.02 for x, v in zip(at, values, strict=True))
            world.events.append({"kind": "gamma", "values": values, "linear": linear})
        return value

    def recorded(*arguments: Any, **named: Any) -> Any:
        made = function(*arguments, **named)
        if not callable(made):
            return note(made, arguments)
        return lambda *inner, **more: note(made(*inner, **more), inner)

    maskgit.gamma_func = type(raw)(recorded) if isinstance(raw, staticmethod | classmethod) else recorded


def _wrap_inpainting(maskgit: type, world: World) -> None:
    """Record the masks that a step returns."""
    step = maskgit.__dict__.get("inpainting")
    if not callable(step):
        return

    def inpainting(*arguments: Any, **named: Any) -> Any:
        answer = step(*arguments, **named)
        for part in answer if isinstance(answer, tuple) else (answer,):
            if isinstance(part, Tensor) and part.dtype == torch.bool and part.numel() == N:
                world.events.append({"kind": "returned", "mask": part.detach().flatten().clone()})
        return answer

    maskgit.inpainting = inpainting


def _wrap_temperature(maskgit: type, world: World) -> None:
    """`world.temperature` is the model's choice_temperature, where it is set."""
    make = maskgit.__init__

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        if world.temperature is not None and hasattr(self, "choice_temperature"):
            self.choice_temperature = world.temperature

    maskgit.__init__ = __init__


def _recorder_of_pictures(world: World) -> Callable[..., None]:
    def save_image(tensor: Any, path: Any = "", *_: Any, **__: Any) -> None:
        """In the place of torchvision's: nothing is written."""
        pictures = torch.stack(list(tensor)) if isinstance(tensor, list | tuple) else tensor.detach()
        pictures = pictures.reshape(-1, *pictures.shape[-3:]).float().cpu()
        kind = {GRID: "masks", GRID * 4: "images"}.get(pictures.shape[-1])
        if kind is not None and pictures.shape[-1] == pictures.shape[-2]:
            world.events.append({"kind": kind, "pictures": pictures.clone(), "path": str(path)})

    return save_image


def _utils() -> ModuleType:
    """The data sets of the lab's utils.py."""
    from torch.utils.data import Dataset
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader

    def of(name: str, *normalised: Any) -> type:
        class Images(Dataset):
            def __init__(self, root, partial=1.0):
                self.files = sorted(os.path.join(root, file) for file in os.listdir(root))
                self.transform = transforms.Compose([transforms.ToTensor(), *normalised])
                self.partial = partial

            def __len__(self):
                return int(len(self.files) * self.partial)

            def __getitem__(self, index):
                return self.transform(default_loader(self.files[index]))

        return type(name, (Images,), {})

    module = ModuleType("utils")
    train = transforms.Normalize([0.4816, 0.4324, 0.3845], [0.2602, 0.2518, 0.2537])
    test = transforms.Normalize(standins.MEAN.tolist(), standins.STD.tolist())
    for name, normalised in (("LoadTrainData", [train]), ("LoadTestData", [test]), ("LoadMaskData", [])):
        setattr(module, name, of(name, *normalised))
    return module
