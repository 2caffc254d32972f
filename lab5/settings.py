"""The numbers of a run, by name: frozen dataclasses whose defaults are the lab's sizes on a GPU.

It does not know which numbers go together: the profiles are in `lab5.config`.
"""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """Which images. Sizes are upper bounds where the dataset on disk is smaller."""

    path: str = "toycats"  # "toycats", or the lab's zip or folder, or a folder of images
    train: int = 12000
    val: int = 512
    test: int = 512
    seed: int = 5


@dataclass(frozen=True)
class VQGANConfig:
    """Shape of stage one; the defaults are the lab's 70.8 M parameters.

    `encoder` and `decoder` list, per resolution, the output width of each residual block; between
    resolutions the grid is halved (encoder, from 64x64) or doubled (decoder, from 16x16).
    """

    codes: int = 1024
    latent: int = 256
    stem: int = 128
    encoder: tuple[tuple[int, ...], ...] = ((128, 128, 128, 128, 256, 256), (256, 256, 512, 512))
    middle: tuple[int, ...] = (512, 512)  # at 16x16 in both networks, self-attention between the blocks
    decoder: tuple[tuple[int, ...], ...] = ((512,) * 3, (256,) * 6, (128,) * 6)
    groups: int = 32  # of GroupNorm; 0 leaves normalisation out
    attention: bool = True  # self-attention at 16x16


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of stage two; the defaults are the lab's 72.7 M parameters."""

    codes: int = 1024
    positions: int = 256
    width: int = 768
    layers: int = 15
    heads: int = 16
    hidden: int = 1536
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm: str = "post"  # "post" as in the lab, "pre" trains faster at small size
    hints: int = 0  # numbers per token beside its code: the VQGAN's latent + 16 of `Tokenizer.hints`; 0 as in the lab


LATER = {"later": True}  # of a setting that came when there were trained networks: see `TrainConfig.as_dict`


@dataclass(frozen=True)
class TrainConfig:
    """What every training has."""

    steps: int
    batch: int
    lr: float
    accumulate: int = 1  # batches per step
    schedule: str = "warmup_cosine"
    warmup: int = 1000  # steps
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0  # of the gradient's norm; 0 = off
    ema: float = 0.999  # decay of the averaged weights; 0 = off
    amp: str = "bf16"  # "bf16", "fp16" or "off"
    optimiser: str = field(default="adamw", metadata=LATER)  # or "adam"
    milestones: tuple[int, ...] = field(default=(1000,), metadata=LATER)  # steps after which "multi_step" decays
    decay_every: int = field(default=1000, metadata=LATER)  # steps between decays: "step", and looks: "plateau"
    decay: float = field(default=0.1, metadata=LATER)  # factor of the learning rate at each of these
    compile: bool = field(default=False, metadata=LATER)  # on a GPU; `python -m bench` says whether it pays

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, those that came later only where they are set: what a trained network is named by.

        A network that was trained before there was such a setting is still found.
        """
        later = {f.name for f in fields(self) if f.metadata.get("later") and getattr(self, f.name) == f.default}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in later}


@dataclass(frozen=True)
class Stage1Config(TrainConfig):
    """Training of the VQGAN."""

    steps: int = 20000
    batch: int = 32
    lr: float = 2e-4
    file: str = ""  # a trained VQGAN to use as it is, such as the course's VQGAN.pt; "" = train one
    autoencoder_share: float = 0.2  # first share of the steps without quantisation
    beta: float = 0.25  # weight of the commitment term
    code_decay: float = 0.99  # moving average of the codes
    perceptual: float = 0.0  # weight of a distance between features; toy cats only
    adversarial: float = 0.0  # weight of a critic that learns along


@dataclass(frozen=True)
class Stage2Config(TrainConfig):
    """Training of the transformer by masked visual token modelling."""

    steps: int = 36000
    batch: int = 100
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.03
    masking: str = "mixed"  # as `lab5.maskings` writes them
    label_smoothing: float = 0.0
    loss: str = field(default="masked", metadata=LATER)  # over the "masked" tokens, or over "all"
    start: str = ""  # a transformer's file to begin with; "" = random weights


@dataclass(frozen=True)
class ClassifierConfig(TrainConfig):
    """Training of the toy-attribute classifier, whose features stand in for Inception's."""

    steps: int = 3000
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 100
    amp: str = "off"
    images: int = 16000
    features: int = 96


@dataclass(frozen=True)
class DecodeConfig:
    """Iterative decoding."""

    schedule: str = "cosine"
    steps: int = 8
    stop_at: int = 0  # 0 = all the steps
    codes: str = "sample"
    order: str = "confidence"
    temperature: float = 1.0  # of the codes
    choice_temperature: float = 4.5  # of the order in which positions are committed
    fill: str = "grey"  # what the encoder sees in the hole
    hints: bool = False  # show what is visible of half-hidden tokens to a transformer that has learned to use it
    evidence: float = 0.0  # weight of the visible pixels of half-hidden tokens; 0 = they count as unseen
    passes: int = 1  # 2 = once more, from the visible pixels together with the first result
    paste: str = "none"  # known pixels of the photograph over the result: "hard", "blurred", "poisson"
    batch: int = 32  # images at a time
    temperature_end: float = -1.0  # of the codes, reached linearly at the last step; below 0 = as at the first
    choice_temperature_end: float = 0.0  # of the order, reached linearly at the last step
    rounding: str = "floor"  # of the tokens still masked after a step; "ceil" as in the paper and the lab's text
    count_base: str = "hole"  # what the schedule's shares are of; "current" = what is masked, which compounds
    budget: str = "schedule"  # tokens per step; "entropy", "threshold" = as many as are safe within `limit`
    limit: float = 0.5  # of the budget: nats for "entropy", a probability for "threshold"
    remask: float = 0.0  # ReMDM's eta: how likely generated tokens are masked again
    rounds: int = 0  # of correction after the steps, each of two passes of the model
    redo: float = 0.1  # share of the hole that a round of correction decodes again
    dilate: int = 0  # rings of known tokens around the hole that are hidden too, because it has leaked into them
    refills: int = 0  # times that all is decoded once more, with the result in the hole in the place of `fill`


@dataclass(frozen=True)
class StudyConfig:
    """The grid of notebook 04."""

    schedules: tuple[str, ...] = ("cosine", "linear", "square")
    steps: tuple[int, ...] = (1, 4, 8, 12)
    seeds: int = 5
    images: int = 192


@dataclass(frozen=True)
class Config:
    """One run. Sections are read as `config.decode.steps` and set as `"decode.steps"`."""

    profile: str
    device: str = "cpu"
    seed: int = 0
    threads: int = 0  # 0 = as torch decides
    data: DataConfig = field(default_factory=DataConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
