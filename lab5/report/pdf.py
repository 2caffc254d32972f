"""A page of the report on paper: Chromium, if one is installed, prints it to a PDF file."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")  # fmt: skip
SECONDS = 180


def find_browser() -> str | None:
    """The path of an installed Chromium or relative; LAB5_BROWSER names another."""
    named = os.environ.get("LAB5_BROWSER")
    paths = (shutil.which(name) for name in ((named,) if named else BROWSERS))
    return next(filter(None, paths), None)


def print_pdf(page: Path, pdf: Path) -> str:
    """Print a page; return why there is no PDF, in a sentence, or nothing where there is one."""
    pdf.unlink(missing_ok=True)
    browser = find_browser()
    if browser is None:
        return f"There is no {pdf.name}, because no Chromium was found: any browser can print {page.name}."
    with tempfile.TemporaryDirectory() as folder:  # a profile of its own: a browser that is open is left alone
        printed = Path(folder) / "page.pdf"
        options = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}/profile"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # as root, as in a container, its sandbox cannot start
        command = [browser, *options, "--no-pdf-header-footer", f"--print-to-pdf={printed}", page.resolve().as_uri()]
        try:
            subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
            shutil.move(printed, pdf)
        except (OSError, subprocess.SubprocessError) as error:
            return f"There is no {pdf.name}: {Path(browser).name} could not print {page.name} ({type(error).__name__})."
    return ""
