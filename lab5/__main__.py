"""`python -m lab5 COMMAND`: see `lab5.cli.main`."""

import signal
import sys

from lab5.cli.main import main, terminate

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(main())
