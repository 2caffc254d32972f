"""A training as a person watches it in a notebook: a progress bar, curves that grow, an interrupt that loses nothing.

In a report the bar goes to the terminal and the notebook shows the final curves. It does not know what is trained:
no more than that it yields steps.
"""

import sys
import time
from collections.abc import Callable, Iterable

from IPython.display import HTML, display
from matplotlib.figure import Figure
from tqdm import tqdm

from lab5.scrub import is_live
from lab5.trainer import TrainStep


def watch(
    training: Iterable[TrainStep], draw: Callable[[list[TrainStep]], Figure] | None = None, every: float = 4.0
) -> list[TrainStep]:
    """Run a training to its end behind a progress bar; live, also with a figure redrawn every few seconds.

    `draw` makes the figure of the steps so far. An interrupt keeps what was trained, in the network and on disk: the
    notebook goes on with it, and the same cell goes on from there. Returns the training's whole history if it has
    one, else the steps seen here.
    """
    steps: list[TrainStep] = []
    curves = display(HTML(""), display_id=True) if draw is not None and is_live() else None
    drawn = time.monotonic()
    running = iter(training)
    name = getattr(training, "name", "training")
    with tqdm(total=len(training), desc=name, file=sys.stderr, mininterval=1) as bar:
        try:
            for step in running:
                steps.append(step)
                bar.set_postfix(loss=f"{step.loss:.3f}", lr=f"{step.lr:.1e}", refresh=False)
                bar.update(step.step - bar.n)  # a run that was cut short begins further on
                if curves and time.monotonic() - drawn > every:
                    curves.update(draw(steps))
                    drawn = time.monotonic()
        except KeyboardInterrupt:
            print(f"Interrupted; {name} is kept as it is by now. Run the cell again to go on from there.")
        finally:
            if hasattr(running, "close"):
                running.close()  # now, so that what it saves is saved
    if curves:
        curves.update(HTML(""))  # the notebook shows the final ones
    return list(getattr(training, "history", None) or steps)
