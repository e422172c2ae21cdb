"""Renames the inputs that an upstream's message refers to."""

import re

_INDEX = re.compile(r"\binput\[(?P<index>\d{1,6})\]")


def translate_index(message: str, old: int, new: str | None) -> str:
    """Replace the references to input ``old`` in an upstream's message by ``new``."""
    return _INDEX.sub(
        lambda match: (new or "input") if int(match["index"]) == old else match[0], message
    )
