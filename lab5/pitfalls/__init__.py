"""Eighteen mistakes of public solutions, their checks, and what they do."""

from lab5.runtime.exports import lazily

__getattr__ = lazily(
    __name__,
    checks=("check_attention", "check_decoding", "check_gamma", "check_loss", "check_masking"),
    edits=("Mistakes", "mistake"),
    effects=("early_is_better", "scored"),
    solutions=("check_folder",),
)
