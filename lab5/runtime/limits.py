"""The values that a setting may have: what its dataclass field says of them, in words and as a check."""

from dataclasses import fields, is_dataclass
from math import inf
from typing import Any


def allowed(setting: Any) -> str:
    """The values that a field of a config may have, in words: "from 0 to 1", "cosine, linear"; "" for any."""
    if choices := setting.metadata["choices"]:
        return ", ".join(choices)
    words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
    limits = {name: limit for name, limit in setting.metadata["limits"].items() if abs(limit) < inf}
    return " and ".join(f"{words[name]} {limit:,}".replace(",", " ") for name, limit in limits.items())


def check(section: Any, name: str = "") -> None:
    """Raise ValueError for the first setting of a section that has a value it may not have."""
    for one in fields(section):
        value, full = getattr(section, one.name), f"{name}.{one.name}" if name else one.name
        if is_dataclass(value):
            check(value, full)
            continue
        limits, choices = one.metadata.get("limits", {}), one.metadata.get("choices")
        for item in flat(value):
            if choices and item not in choices:
                raise ValueError(f"{full} must be one of {', '.join(choices)}, not {item!r}")
            if isinstance(item, int | float) and limits and not _within(item, **limits):
                raise ValueError(f"{full} must be {allowed(one) or 'a finite number'}, not {value}")
        if value == () and one.name != "milestones":
            raise ValueError(f"{full} needs at least one value")


def _within(x: float, least: float, above: float, most: float, below: float) -> bool:
    return least <= x <= most and above < x < below and abs(x) < inf


def flat(value: Any) -> list:
    """The single values of a setting."""
    return [single for item in value for single in flat(item)] if isinstance(value, tuple) else [value]
