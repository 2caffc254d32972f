"""Figures and widgets."""

from lab5.runtime.exports import lazily

__getattr__ = lazily(
    __name__,
    figures=("bars", "decode_grid", "mask_pictures"),
    notebook=("record", "record_fills", "show", "table"),
    play=("Play",),
    scrub=("Scrub", "reel"),
)
