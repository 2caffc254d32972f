"""How large a benchmark is: the lab's networks, or small ones that show in seconds that everything runs."""

from dataclasses import dataclass, field, replace

from lab5.config import TransformerConfig, VQGANConfig
from lab5.profiles import PROFILES


@dataclass(frozen=True)
class Plan:
    """Sizes and rounds. The defaults are the lab's networks, on two CPU cores within a quarter of an hour."""

    name: str = "full"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    train_batch: int = 10  # the lab's
    train_rounds: int = 3
    decode_steps: int = 8
    decode_images: int = 8  # of one call of ours; the naive way takes them one by one, and is given `naive_images`
    naive_images: int = 1
    decode_rounds: int = 4
    score_images: int = 747  # in each of two sets
    score_batch: int = 50  # of the naive way, as pytorch-fid's
    features: int = 2048
    distance_rounds: int = 3
    files: int = 12000  # training images
    load_rounds: int = 3
    batches: tuple[int, ...] = (1, 2, 4, 8)  # of the scaling
    steps: tuple[int, ...] = (1, 2, 4, 8)
    sets: tuple[int, ...] = (200, 747, 2000, 4000)
    peak_size: int = 2048


FULL = Plan()

# On a GPU: bigger batches, all test images.
CUDA = replace(
    FULL, train_batch=100, train_rounds=5, decode_images=747, naive_images=4, batches=(1, 10, 50, 100, 200, 400),
    peak_size=8192,
)  # fmt: skip

_SMALL = PROFILES["smoke"]
QUICK = Plan(
    "quick",
    transformer=replace(_SMALL.transformer, hints=0, dropout=0.1, attention_dropout=0.1),
    vqgan=_SMALL.vqgan,
    train_batch=4, train_rounds=2, decode_steps=4, decode_images=4, decode_rounds=2,
    score_images=8, score_batch=4, features=64, distance_rounds=2,
    files=60, load_rounds=2, batches=(1, 2), steps=(1, 2), sets=(20, 100), peak_size=256,
)  # fmt: skip
