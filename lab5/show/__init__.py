"""Figures and widgets."""

from lab5.runtime.exports import lazily

__getattr__ = lazily(
    __name__,
    figures=("bars", "decode_grid", "mask_pictures"),
    lesson_figures=("mistakes", "pitfall_curves"),
    notebook=("record", "record_fills", "record_sections", "show", "table"),
    play=("Play",),
    scrub=("Scrub", "reel"),
)
