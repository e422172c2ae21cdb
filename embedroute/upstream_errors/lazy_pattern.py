"""Compiles regular expressions at their first use.

Compiling those of this package takes 40 ms, a third of the import of ``embedroute``, and a process
whose upstreams answer needs none of them.
"""

import re
from collections.abc import Callable, Generator, Iterator
from functools import cached_property
from typing import Final

_ALL: Final[list["LazyPattern"]] = []


class LazyPattern:
    """A regular expression with the methods of ``re.Pattern`` that this package uses."""

    def __init__(self, expression: str, flags: int = re.IGNORECASE) -> None:
        """Keep ``expression``, which by default ignores case; the first use checks its syntax."""
        self._expression = expression
        self._flags = flags
        _ALL.append(self)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._expression, self._flags)

    def match(self, text: str) -> re.Match[str] | None:
        """Match at the beginning of ``text``."""
        return self._compiled.match(text)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """Match the whole ``text``."""
        return self._compiled.fullmatch(text)

    def search(self, text: str) -> re.Match[str] | None:
        """Return the first match in ``text``."""
        return self._compiled.search(text)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """Yield all matches in ``text``."""
        return self._compiled.finditer(text)

    def sub(self, replace: str | Callable[[re.Match[str]], str], text: str) -> str:
        """Replace all matches in ``text``."""
        return self._compiled.sub(replace, text)


def compile_patterns() -> Generator[None, None, None]:
    """Compile all expressions that were not used yet, one in each step.

    Otherwise the first error of an upstream blocks the event loop for 40 ms.
    """
    for pattern in _ALL:
        if "_compiled" not in vars(pattern):
            pattern.match("")  # compiles it
            yield
