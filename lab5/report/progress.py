"""What the terminal shows while notebooks run: where they are, and about how long is left.

It does not know what runs: it is told when a notebook and a cell begin, and handed what the kernel prints.
"""

import time
from io import TextIOBase

from nbformat import NotebookNode

# Seconds of a first run, on two CPU cores: what is told until a run on this machine has been measured.
TYPICAL = {
    "smoke": {"01_attention_checks": 15, "02_mvtm_training": 25, "03_inpainting": 20, "04_schedule_study": 20},
    "quick": {"01_attention_checks": 30, "02_mvtm_training": 310, "03_inpainting": 110, "04_schedule_study": 120},
}
QUIET_SECONDS = 10  # where lines cannot be rewritten, at most one in this time


def duration(seconds: float) -> str:
    """`75` -> `"1 min 15 s"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Progress:
    """One line a notebook, rewritten in a terminal with each cell, and the progress bars of the kernel.

    `expected` has the seconds that each notebook took before; where one is unknown, nothing is said of the time left.
    The kernel's stderr is written here as to a file.
    """

    def __init__(self, names: list[str], expected: dict[str, float], stream: TextIOBase):
        self.names, self.stream, self.live = names, stream, stream.isatty()
        self.expected = expected if all(name in expected for name in names) else {}
        self.took: dict[str, float] = {}
        self.printed = 0.0
        self.own_line = False

    def start(self, name: str, cells: int) -> None:
        self.name, self.cells, self.cell_number, self.source = name, cells, 0, ""
        self.started = time.monotonic()

    def cell(self, cell: NotebookNode, cell_index: int) -> None:
        """A hook of nbclient, called when a code cell is sent to the kernel."""
        self.cell_number, self.source = self.cell_number + 1, cell.source
        self._status(f"cell {self.cell_number} of {self.cells}{self._left()}", urgent=self.cell_number == 1)

    @property
    def where(self) -> str:
        """The cell that runs, in words: `code cell 3 of 20 (model = train(tokens))`."""
        code = [line.strip() for line in self.source.splitlines() if line.strip() and not line.startswith("#")]
        return f"code cell {self.cell_number} of {self.cells}" + (f" ({code[0]})" if code else "")

    def finish(self, stopped: str = "") -> None:
        self.took[self.name] = time.monotonic() - self.started
        self.cell_number = 0
        took = duration(self.took[self.name])
        self._status(f"stopped after {took}" if stopped else f"done after {took}{self._left()}", True, close=True)

    def write(self, text: str) -> None:
        """Pass on what the kernel printed; without a terminal, of a progress bar only a line now and then."""
        if self.live:
            if self.own_line:
                self._clear()
            self.stream.write(text)
            self.own_line = False
        elif "\r" not in text:
            self.stream.writelines(f"    {line}\n" for line in text.splitlines() if line.strip())
        elif text.strip() and time.monotonic() - self.printed > QUIET_SECONDS:
            self.stream.write(f"    {text.strip().splitlines()[-1]}\n")
            self.printed = time.monotonic()

    def flush(self) -> None:
        self.stream.flush()

    def _status(self, what: str, urgent: bool = False, close: bool = False) -> None:
        line = f"[{self.names.index(self.name) + 1}/{len(self.names)}] {self.name}: {what}"
        if self.live:
            self._clear()
            self.stream.write(line + ("\n" if close else ""))
            self.own_line = not close
        elif urgent or time.monotonic() - self.printed > QUIET_SECONDS:
            self.stream.write(line + "\n")
            self.printed = time.monotonic()
        self.stream.flush()

    def _clear(self) -> None:
        self.stream.write("\r\x1b[K")

    def _left(self) -> str:
        """By the seconds expected, times what those behind took longer than expected."""
        if not self.expected:
            return ""
        pace = sum(self.took.values()) / sum(self.expected[name] for name in self.took) if self.took else 1.0
        left = pace * sum(self.expected[name] for name in self.names if name not in self.took)
        if self.cell_number:  # one runs; where it takes longer than it should, only the others are left
            left -= min(time.monotonic() - self.started, pace * self.expected[self.name])
        return f", about {duration(left)} left" if left >= 1 else ""
