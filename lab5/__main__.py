"""`python -m lab5 COMMAND`: see `lab5.cli.main`."""

from lab5.cli.main import run

if __name__ == "__main__":
    run()
