"""Every setting of a run: its default, what values it may have, and in one line what it means.

A setting is written down once, as a field of a dataclass below; what checks it, `--help`, tables and the decoder read
it there. `lab5.profiles` has the values that go together.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from math import inf
from typing import Any

from lab5.runtime.limits import allowed, check, flat  # noqa: F401

SEEDS = 10**12  # times a million, for a seed of each step and image, it is still a number of 64 bits


def setting(
    default: Any, about: str, *, least: float = -inf, below: float = inf, most: float = inf, above: float = -inf,
    choices: Sequence[str] = (),
) -> Any:  # fmt: skip
    """A field with its one line, and the values it may have: of a tuple, each item. NaN and infinity are none."""
    limits = {"least": least, "above": above, "most": most, "below": below}
    return field(default=default, metadata={"about": about, "limits": limits, "choices": tuple(choices)})


def count(default: Any, about: str, least: int = 1) -> Any:
    """A setting that counts something."""
    return setting(default, about, least=least)


def share(default: Any, about: str) -> Any:
    """A setting from 0 to below 1."""
    return setting(default, about, least=0, below=1)


@dataclass(frozen=True)
class DataConfig:
    """Which images. Sizes are upper bounds where the dataset on disk is smaller."""

    path: str = setting("toycats", "toycats, the lab's zip or folder, or a folder of images")
    train: int = count(12000, "training images")
    val: int = count(512, "validation images")
    test: int = count(512, "test images")
    seed: int = setting(5, "of the toy cats, and of the holes where a dataset brings none", least=0, most=SEEDS)


@dataclass(frozen=True)
class VQGANConfig:
    """Shape of stage one; the defaults are the lab's 70.8 M parameters.

    `encoder` and `decoder` list, per resolution, the output width of each residual block; between
    resolutions the grid is halved (encoder, from 64x64) or doubled (decoder, from 16x16).
    """

    codes: int = count(1024, "K, the vectors of the codebook")
    latent: int = count(256, "numbers in each of them")
    stem: int = count(128, "width after the encoder's first convolution")
    encoder: tuple[tuple[int, ...], ...] = count(((128, 128, 128, 128, 256, 256), (256, 256, 512, 512)), "widths")
    middle: tuple[int, ...] = count((512, 512), "widths at 16x16 in both networks, self-attention between the blocks")
    decoder: tuple[tuple[int, ...], ...] = count(((512,) * 3, (256,) * 6, (128,) * 6), "widths")
    groups: int = count(32, "of GroupNorm; 0 leaves normalisation out", least=0)
    attention: bool = setting(True, "self-attention at 16x16")


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of stage two; the defaults are the lab's 72.7 M parameters."""

    codes: int = count(1024, "K, the codes that it predicts")
    positions: int = count(256, "N, the tokens of an image")
    width: int = count(768, "D, numbers for each token")
    layers: int = count(15, "blocks of attention and MLP")
    heads: int = count(16, "of attention; they divide the width")
    hidden: int = count(1536, "width within the MLP")
    dropout: float = share(0.1, "share of embeddings and of branches that is dropped")
    attention_dropout: float = share(0.1, "share of attention weights that is dropped")
    norm: str = setting("post", "after the addition, as in the lab, or before the branch", choices=("post", "pre"))
    hints: int = count(0, "numbers per token beside its code, the VQGAN's latent + 16; 0 as in the lab", least=0)


@dataclass(frozen=True)
class TrainConfig:
    """What every training has."""

    steps: int = count(1000, "steps of the optimiser")
    batch: int = count(32, "images at a time")
    lr: float = setting(1e-3, "learning rate after the warm-up", above=0)
    accumulate: int = count(1, "batches in a step")
    schedule: str = setting(
        "warmup_cosine", "what the learning rate does after the warm-up",
        choices=("constant", "warmup_cosine", "warmup_linear", "multi_step", "step"),
    )  # fmt: skip
    warmup: int = count(1000, "steps in which the learning rate rises", least=0)
    betas: tuple[float, float] = share((0.9, 0.99), "of the optimiser's moving averages")
    weight_decay: float = setting(0.0, "of linear maps and convolutions", least=0)
    clip: float = setting(1.0, "most that the norm of the gradient may be; 0 = off", least=0)
    ema: float = share(0.999, "decay of the averaged weights; 0 = off")
    amp: str = setting("bf16", "mixed precision", choices=("bf16", "fp16", "off"))
    optimiser: str = setting("adamw", "decays weights themselves, or in the gradient", choices=("adamw", "adam"))
    milestones: tuple[int, ...] = count((1000,), "steps after which multi_step decays")
    decay_every: int = count(1000, "steps between the decays of step")
    decay: float = setting(0.1, "factor of the learning rate at each decay", above=0, below=1)
    compile: bool = setting(False, "compile the networks, on a GPU; `python -m bench` says whether it pays")


@dataclass(frozen=True)
class Stage1Config(TrainConfig):
    """Training of the VQGAN."""

    steps: int = count(20000, "steps of the optimiser")
    lr: float = setting(2e-4, "learning rate after the warm-up", above=0)
    file: str = setting("", "a trained VQGAN to use as it is, such as the course's VQGAN.pt; none = train one")
    autoencoder_share: float = setting(0.2, "first share of the steps without quantisation", least=0, most=1)
    beta: float = setting(0.25, "weight of the commitment term", least=0)
    code_decay: float = share(0.99, "of the codes' moving average")
    perceptual: float = setting(0.0, "weight of a distance between maps of a network that knows such images", least=0)
    adversarial: float = setting(0.0, "weight of a critic that learns along", least=0)


@dataclass(frozen=True)
class Stage2Config(TrainConfig):
    """Training of the transformer by masked visual token modelling."""

    steps: int = count(36000, "steps of the optimiser")
    batch: int = count(100, "images at a time")
    lr: float = setting(1e-4, "learning rate after the warm-up", above=0)
    betas: tuple[float, float] = share((0.9, 0.96), "of the optimiser's moving averages")
    weight_decay: float = setting(0.03, "of linear maps", least=0)
    masking: str = setting("mixed", "which tokens are hidden, as lab5.masking writes it; with hints, in 1 of 10 images")
    label_smoothing: float = share(0.0, "of the targets")
    loss: str = setting("masked", "over which tokens", choices=("masked", "all"))
    start: str = setting("", "a transformer's file to begin with; none = random weights")


@dataclass(frozen=True)
class ClassifierConfig(TrainConfig):
    """Training of the toy-attribute classifier, whose features stand in for Inception's."""

    steps: int = count(3000, "steps of the optimiser")
    batch: int = count(64, "images at a time")
    lr: float = setting(2e-3, "learning rate after the warm-up", above=0)
    warmup: int = count(100, "steps in which the learning rate rises", least=0)
    amp: str = setting("off", "mixed precision", choices=("bf16", "fp16", "off"))
    images: int = count(16000, "toy cats to learn from", least=2)
    features: int = count(96, "F, that it scores with")
    returned: float = setting(0.5, "share of them that is seen as the VQGAN returns it", least=0, most=1)


@dataclass(frozen=True)
class RefinerConfig(TrainConfig):
    """Training of the network that corrects filled holes with a view of the known pixels."""

    steps: int = count(0, "steps of the optimiser; 0 = no refiner", least=0)
    batch: int = count(16, "images at a time")
    warmup: int = count(50, "steps in which the learning rate rises", least=0)
    ema: float = share(0.998, "decay of the averaged weights; 0 = off")
    amp: str = setting("off", "mixed precision", choices=("bf16", "fp16", "off"))
    perceptual: float = setting(0.5, "weight of a distance between maps, as in stage1", least=0)


@dataclass(frozen=True)
class DecodeConfig:
    """Iterative decoding; the defaults are MaskGIT's rule, on the grey hole and in the one pass of the lab."""

    schedule: str = setting(
        "cosine", "which share stays masked: γ",
        choices=("linear", "cosine", "square", "cubic", "square_root", "raised_cosine", "arccos", "log", "exp",
                 "stair", "one_shot"),
    )  # fmt: skip
    steps: int = count(8, "T, the steps of the plan")
    stop_at: int = count(0, "t, the sweet spot: only so many of the steps, the last taking all; 0 = T", least=0)
    codes: str = setting("sample", "how codes are proposed", choices=("argmax", "sample", "top_k", "nucleus"))
    order: str = setting(
        "confidence", "which positions are committed first",
        choices=("confidence", "lab", "random", "max_probability", "margin", "entropy", "rings", "moment", "halton"),
    )  # fmt: skip
    temperature: float = setting(1.0, "of the distribution that codes are drawn from; 0 = the best code", least=0)
    choice_temperature: float = setting(4.5, "weight of the noise on the scores of the order", least=0)
    fill: str = setting("grey", "what the encoder sees in a hole", choices=("grey", "mean", "telea", "navier_stokes"))
    hints: bool = setting(False, "show what is visible of half-hidden tokens to a transformer that learned to use it")
    evidence: float = setting(0.0, "weight of the visible pixels of half-hidden tokens; 0 = they are unseen", least=0)
    passes: int = count(1, "2 = once more, from the visible pixels together with the first result")
    paste: str = setting("none", "known pixels over the result",
                         choices=("none", "hard", "blurred", "poisson", "refined"))
    batch: int = count(32, "images at a time; it does not change them")
    amp: str = setting("off", "precision of the transformer, on a GPU bf16 or fp16", choices=("bf16", "fp16", "off"))
    temperature_end: float = setting(-1.0, "of the codes at step T, reached in a line; below 0 = as at the first")
    choice_temperature_end: float = setting(0.0, "of the order at step T, reached in a line", least=0)
    rounding: str = setting("floor", "of the tokens still masked; ceil as in the paper", choices=("floor", "ceil"))
    budget: str = setting(
        "schedule", "tokens in a step: the schedule's, or what is safe within limit, in as many steps as that takes",
        choices=("schedule", "entropy", "threshold"),
    )  # fmt: skip
    limit: float = setting(0.5, "of the budget: most nats for entropy, least probability for threshold", least=0)
    remask: float = setting(0.0, "eta of ReMDM: scales how many generated tokens are masked again", least=0, most=1)
    rounds: int = count(0, "of correction after the steps, each of two passes of the model", least=0)
    redo: float = setting(0.1, "share of the hole that a round of correction decodes again", least=0, most=1)
    dilate: int = count(0, "rings of known tokens around the hole that are hidden too", least=0)


@dataclass(frozen=True)
class StudyConfig:
    """The grid of notebook 04."""

    schedules: tuple[str, ...] = setting(("cosine", "linear", "square"), "of the decoding",
                                         choices=DecodeConfig.__dataclass_fields__["schedule"].metadata["choices"])
    steps: tuple[int, ...] = count((1, 4, 8, 12), "T of the plans")
    seeds: int = count(5, "decodings of each plan")
    trainings: int = count(3, "of each network that is compared, decoded with a seed each; 0 = none is", least=0)
    images: int = count(192, "test images that are scored; of fewer than 8 a resample may hold one alone", least=8)


@dataclass(frozen=True)
class Config:
    """One run. Sections are read as `config.decode.steps` and set as `"decode.steps"`."""

    profile: str
    device: str = setting("cpu", "what computes: cpu, cuda, cuda:1")
    seed: int = setting(0, "decides every draw of trainings and decodings", least=0, most=SEEDS)
    threads: int = count(0, "threads of the CPU; 0 = as torch decides", least=0)
    data: DataConfig = field(default_factory=DataConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


# --- what is read from the fields -----------------------------------------------------------------------------------


def all_settings(config: Config) -> dict[str, Any]:
    """Every setting under the name that `configure` knows it by, but for the profile."""
    settings: dict[str, Any] = {}
    for section in fields(config):
        value = getattr(config, section.name)
        if is_dataclass(value):
            settings |= {f"{section.name}.{key}": item for key, item in asdict(value).items()}
        elif section.name != "profile":
            settings[section.name] = value
    return settings


def meanings() -> dict[str, Any]:
    """The field of every setting, under its full name: default, `metadata["about"]`, what is `allowed`."""
    settings: dict[str, Any] = {}
    for section in fields(Config):
        if is_dataclass(section.default_factory):
            settings |= {f"{section.name}.{one.name}": one for one in fields(section.default_factory)}
        elif section.metadata:
            settings[section.name] = section
    return settings


def check_together(config: Config) -> None:
    """Refuse settings that contradict each other, before anything is trained or written."""
    vqgan, transformer, decode = config.vqgan, config.transformer, config.decode
    images = dict.fromkeys(("stage1", "stage2", "refiner"), config.data.train)
    images["classifier"] = config.classifier.images
    for name, n in images.items():
        stage: TrainConfig = getattr(config, name)
        if len(stage.betas) != 2:
            raise ValueError(f"{name}.betas must be two values, not {stage.betas}")
        if stage.steps and stage.batch > n:
            raise ValueError(f"{name}.batch = {stage.batch} is more than the {n} images that there are to train on")
    widths = flat((vqgan.stem, vqgan.encoder, vqgan.middle, vqgan.decoder))
    if vqgan.groups and (odd := [width for width in widths if width % vqgan.groups]):
        raise ValueError(f"vqgan.groups = {vqgan.groups} must divide every width of the vqgan, but not {odd[0]}")
    if vqgan.codes != transformer.codes:
        raise ValueError(f"vqgan.codes = {vqgan.codes} must equal transformer.codes = {transformer.codes}")
    if transformer.positions != 256:
        raise ValueError(f"transformer.positions = {transformer.positions} must be 256: an image is 16x16 tokens")
    if transformer.hints not in (0, vqgan.latent + 16):
        expected = f"0 or vqgan.latent + 16 = {vqgan.latent + 16}"
        raise ValueError(f"transformer.hints = {transformer.hints} must be {expected}")
    if transformer.width % transformer.heads:
        raise ValueError(f"transformer.width = {transformer.width} must be a multiple of heads = {transformer.heads}")
    check_decoding(decode)


def check_decoding(decode: DecodeConfig) -> None:
    """Refuse a sweet spot beyond the steps, and what needs a schedule where there is none."""
    for name in ("stop_at", "remask", "rounds"):
        if (value := getattr(decode, name)) and decode.budget != "schedule":
            raise ValueError(f"decode.{name} = {value} needs a schedule, but decode.budget = {decode.budget} has none")
    if not 0 <= decode.stop_at <= decode.steps:
        raise ValueError(f"decode.stop_at = {decode.stop_at} must lie in 0..{decode.steps}; 0 means all decode.steps")
