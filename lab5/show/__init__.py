"""Figures and widgets."""

from lab5.runtime.exports import lazily

__getattr__ = lazily(
    __name__,
    figures=("bars", "decode_grid", "fid_curve", "labelled_lines", "mask_pictures", "styled"),
    lesson_figures=("mistakes", "pitfall_curves", "sampler_distributions"),
    notebook=("record", "record_fills", "record_sections", "show", "table"),
    play=("Play",),
    scrub=("Scrub", "reel"),
    study_figures=("calibration_figure", "claims_figure", "effects_figure", "leak_map"),
)
