"""Serves clients of other embeddings APIs; each module translates the bodies of one, without I/O.

It may import the foundation, the contracts and ``routing``; nothing else of ``server``.
"""

from embedroute.server.protocols import azure, cohere, engines, ollama, tei
from embedroute.server.protocols.extensions import EXTENSIONS, make_translate
from embedroute.server.protocols.translation import (
    Answer,
    Format,
    ModelQuestion,
    Translate,
    Translation,
    renamed,
)

__all__ = [
    "EXTENSIONS",
    "Answer",
    "Format",
    "ModelQuestion",
    "Translate",
    "Translation",
    "azure",
    "cohere",
    "engines",
    "make_translate",
    "ollama",
    "renamed",
    "tei",
]
