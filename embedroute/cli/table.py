"""Prints tables."""

import sys
from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, with the header on terminals only, so that pipes get only rows."""
    lines = [header, *rows] if sys.stdout.isatty() else rows
    widths = [
        max((len(line[column]) for line in lines), default=0) for column in range(len(header))
    ]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
