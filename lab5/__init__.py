"""lab5: teach, train and measure MaskGIT image inpainting.

The lesson stands directly in this folder, to be read in this order: attention, transformer, gamma, masking, objectives,
trainer, samplers, decoder, fid. The folders hold what it needs, and what is built on it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# What `from lab5 import ...` gives, and where it lives. It is imported when it is asked for, and torch with it.
_PUBLIC = {
    "lab5.attention": ("MultiHeadAttention", "scaled_dot_product_attention"),
    "lab5.transformer": ("BidirectionalTransformer",),
    "lab5.vqgan": ("VQGAN",),
    "lab5.gamma": ("masked_count",),
    "lab5.config": ("Config", "DecodeConfig"),
    "lab5.profiles": ("configure",),
    "lab5.objectives": ("mvtm_loss",),
    "lab5.trainer": ("fit",),
    "lab5.decoder": ("decode_steps", "inpaint"),
    "lab5.fid": ("frechet_distance", "kid"),
    "lab5.data.dataset": ("get_dataset", "open_dataset", "token_mask"),
    "lab5.inpainting.tokenizer": ("Tokenizer",),
    "lab5.inpainting.fill": ("inpaint_images",),
    "lab5.training.networks": ("open_pair",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = [*_HOME, "gamma", "__version__"]


def __getattr__(name: str) -> Any:
    """A public name, from the file in which it lives (PEP 562)."""
    if name == "gamma":
        return import_module("lab5.gamma")
    if name not in _HOME:
        raise AttributeError(f"lab5 has no {name!r}; it has {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
