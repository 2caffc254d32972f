"""A setting by its name, such as "decode.steps", at another value: of nested dataclasses, whatever they hold."""

import json
from dataclasses import fields, is_dataclass, replace
from typing import Any


def changed(section: Any, name: str, value: Any) -> Any:
    """A config with the setting of this name at another value, which may be text as a command line gives it.

    Raises ValueError for a name that there is not, and for a value of another type.
    """
    return _changed(section, name, name.split("."), value)


def _changed(section: Any, name: str, path: list[str], value: Any) -> Any:
    known = [f.name for f in fields(section)]
    if path[0] not in known:
        raise ValueError(f"there is no setting {name!r}; {type(section).__name__} has {', '.join(known)}")
    old = getattr(section, path[0])
    if is_dataclass(old):
        if len(path) == 1:
            raise ValueError(f"{name!r} is a section; set one of {', '.join(f.name for f in fields(old))} in it")
        return replace(section, **{path[0]: _changed(old, name, path[1:], value)})
    if len(path) > 1:
        raise ValueError(f"there is no setting {name!r}; {path[0]!r} is a single value")
    return replace(section, **{path[0]: _typed(name, old, value)})


def _typed(name: str, old: Any, value: Any) -> Any:
    """`value` as the type of `old`, a tuple's items as that of its first; what fits no type is refused."""
    if isinstance(value, str) and not isinstance(old, str):
        value = _read(value, isinstance(old, tuple))
    if isinstance(old, tuple) and isinstance(value, list | tuple):
        return tuple(_typed(name, old[0] if old else 0, item) for item in value)  # an empty one is of counts
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise ValueError(f"{name} takes values such as {old!r} ({type(old).__name__}), not {value!r}")
    return value


def _read(text: str, is_tuple: bool) -> Any:
    """A command line's text: JSON, Python's True and False, and tuples with commas alone, as in 1,4,8."""
    if is_tuple and not text.startswith("["):
        return [part.strip() for part in text.split(",")]
    try:
        return json.loads({"True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text
