"""One notebook through papermill, with its progress bar, in a kernel of this interpreter."""

import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from lab5.runtime.folders import ROOT


def execute(
    path: Path, folder: Path, parameters: dict[str, Any], *, environment: dict[str, str], limit: float, label: str
) -> str:
    """Write the executed notebook into `folder`; return why it stopped, in a sentence, or nothing if it did not.

    `environment` is the kernel's beside this one's, `limit` the seconds of a cell, and `label` stands before the bar.
    """
    executed = folder / path.name
    shutil.copy(path, executed)  # what there is to show where not even a kernel starts
    try:
        papermill.execute_notebook(
            path,
            executed,
            parameters,
            kernel_name="python3",
            language="python",
            cwd=ROOT,  # the kernel imports this checkout, and paths are as on the command line
            progress_bar={"desc": label},
            stderr_file=_KernelStderr(),
            execution_timeout=limit,
            start_timeout=600,  # a busy machine takes its time
            kernel_manager_class=_own_kernel(environment),
        )
    except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        return f"{path.name} stopped in {_last_cell(executed)}: {_reason(error, limit)}."
    except RuntimeError as error:  # of jupyter_client: the kernel did not answer
        return f"{path.name} did not start: {error}."
    return ""


class _KernelStderr:
    """What a kernel prints to stderr, passed on: its bars in the line of papermill's, other text above that line."""

    def write(self, text: str) -> None:
        if "\r" in text or not text.strip():
            sys.stderr.write(text.replace("\r", "\r\x1b[K") if sys.stderr.isatty() else text)
        else:
            tqdm.write(text.removesuffix("\n"), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def _own_kernel(environment: dict[str, str]) -> type[AsyncKernelManager]:
    """A kernel of this very interpreter, whatever kernelspec is called python3 on this machine."""
    spec = KernelSpec(**get_kernel_dict(), env=environment)  # its command is sys.executable -m ipykernel_launcher

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **settings):
            super().__init__(transport_encryption="auto", **settings)  # else each kernel prints a warning

        async def _async_interrupt_kernel(self) -> None:
            """A shutdown begins with an interrupt, which an idle kernel reports as an error of its own: not then."""
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

        @property
        def kernel_spec(self) -> KernelSpec:
            return spec

    return OwnKernel


def _last_cell(executed: Path) -> str:
    """The last cell that ran, in words: `code cell 3 of 20 (model = train(tokens))`."""
    cells = nbformat.read(executed, as_version=4).cells
    cells = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    started = [cell for cell in cells if cell.metadata.papermill.start_time]
    lines = [line.strip() for line in started[-1].source.splitlines() if line.strip() and not line.startswith("#")]
    return f"code cell {len(started)} of {len(cells)}" + (f" ({lines[0]})" if lines else "")


def _reason(error: Exception, limit: float) -> str:
    if isinstance(error, PapermillExecutionError):
        first, *_ = error.evalue.strip().splitlines() or [""]
        return f"{error.ename}: {first}".rstrip(": .")
    if isinstance(error, CellTimeoutError):
        return f"the cell ran longer than {limit:g} s"
    return "the kernel died, perhaps for lack of memory"
