"""Reads the Markdown tables of the documentation."""

import re
from pathlib import Path

_CODE = re.compile(r"`([^`]+)`")


def section(page: Path, heading: str) -> str:
    """Return the text from a heading to the next one of the same or a higher level."""
    text = f"\n{page.read_text(encoding='utf-8')}"
    level = len(heading) - len(heading.lstrip("#"))
    following = text.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{level}}} ", following)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without their header rows."""
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def names(text: str, column: int = 0) -> list[str]:
    """Return what a column of all tables writes as code, in order."""
    return [name for row in rows(text) for name in _CODE.findall(row[column])]
