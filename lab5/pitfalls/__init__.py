"""Eighteen mistakes of public solutions, their checks, and what they do."""

from lab5.runtime.exports import lazily

__getattr__ = lazily(
    __name__,
    checks=("check_attention", "check_decoding", "check_gamma", "check_loss", "check_masking"),
    decoding=("check_leak", "check_sweet_spot"),
    edits=("Mistakes", "mistake"),
    effects=("AT", "decoding_numbers", "early_is_better", "pictures", "scored", "training_numbers"),
    training=("check_loop", "check_validation"),
)
