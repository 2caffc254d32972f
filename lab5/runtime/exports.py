"""What a wing gives under its own name, imported when it is asked for (PEP 562): of its files no more than is used."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(wing: str, **names: tuple[str, ...]) -> Callable[[str], Any]:
    """The `__getattr__` of a wing, from the names of each of its files: `lazily("lab5.show", play=("Play",))`."""
    home = {name: file for file, given in names.items() for name in given}

    def look_up(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"{wing} has no {name!r}; it gives {', '.join(home)}")
        return getattr(import_module(f"{wing}.{home[name]}"), name)

    return look_up
