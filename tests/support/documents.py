"""Reads the code blocks of the documentation, and defines the sentences that the README embeds."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    *sorted(ROOT.glob("docs/**/*.md")),
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
]

CAT, FELINE, STOCKS = SENTENCES = [
    "the cat sat on the mat",
    "a feline rested on the rug",
    "stock prices fell",
]

_BLOCK = re.compile(r"^```(\w*)(?: title=\"[^\"]+\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    """Return the code blocks of one language, in order."""
    return [
        code
        for block_language, code in _BLOCK.findall(document.read_text(encoding="utf-8"))
        if block_language == language
    ]


def has(document: Path, *words: str) -> str:
    """Return the only Python block that contains all ``words``."""
    (block,) = [
        block for block in blocks(document, "python") if all(word in block for word in words)
    ]
    return block


def nearer_and_farther(body) -> tuple[float, float]:
    """Return the cosines of the cat to the feline and to the stocks, from a response body."""
    cat, feline, stocks = (
        np.array(row["embedding"]) / np.linalg.norm(row["embedding"]) for row in body["data"]
    )
    return float(cat @ feline), float(cat @ stocks)
