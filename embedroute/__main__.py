"""Runs the command as ``python -m embedroute``."""

import sys

from embedroute.cli import main

if __name__ == "__main__":
    sys.exit(main())
