"""Reads the code blocks of a page of the documentation, in order.

A block may have a title, as in ````` ```python title="app.py" `````: it is the content of that
file. A comment ``<!-- not run: REASON -->`` in the line before a block marks one that no test runs.
"""

import re
from pathlib import Path

import msgspec

from tests.support.documents import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FENCE = re.compile(r"^ *(?:```|~~~)", re.MULTILINE)


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A code block; ``title`` and ``reason`` are empty if it has none. ``line`` counts from 1."""

    language: str
    title: str
    reason: str
    code: str
    line: int


def read_blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            language=match["language"],
            title=match["title"] or "",
            reason=match["reason"] or "",
            code=match["code"],
            line=text.count("\n", 0, match.start("code")),
        )
        for match in _BLOCK.finditer(text)
    ]
    fences = len(_FENCE.findall(text))
    assert fences == 2 * len(found), f"{page}: a fence is indented or has an unknown info string"
    return found


def name_of(page: Path) -> str:
    """Return the path of a page in the repository, as the id of a case."""
    return page.relative_to(ROOT).as_posix()
