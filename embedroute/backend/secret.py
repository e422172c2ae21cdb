"""Provides text and bytes that do not show in ``repr``, logs and tracebacks.

Authors of plugins import :class:`Secret` from :mod:`embedroute.backend`.
"""

import re
from typing import Any, Final, NoReturn, Self, cast

import msgspec

_USER_INFO: Final = re.compile(r"(?<=://)[^/]+(?=@)")


class Secret:
    """A text that does not show in ``repr``, ``str``, logs, traces, errors or pickles.

    It is immutable, so ``copy`` returns the object itself.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        """Store ``text``."""
        self.__text = text

    def reveal(self) -> str:
        """Return the text. Call this only in the expression that writes it to the network."""
        return self.__text

    def __repr__(self) -> str:
        """Return a fixed text."""
        return "Secret('…')"

    def __eq__(self, other: object) -> bool:
        """Compare the texts."""
        return isinstance(other, Secret) and self.reveal() == other.reveal()

    def __hash__(self) -> int:
        """Hash the text."""
        return hash(self.__text)

    def __copy__(self) -> Self:
        """Return the object itself."""
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        """Return the object itself."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A Secret cannot be pickled. "
            "Read it from its source (env: or file:) in the other process."
        )


def repr_as_in_rich(self: msgspec.Struct) -> str:
    """Return a ``repr`` of the fields that ``__rich_repr__`` shows.

    A struct that hides fields must hide them both from ``repr`` and from rich.
    """
    fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
    return f"{type(self).__name__}({fields})"


class SecretBytes(msgspec.Struct, frozen=True, gc=False):
    """Bytes that may contain a key, such as the head of a request; ``repr`` shows their length.

    Read ``content`` only in the expression that writes it.
    """

    content: bytes

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show only the length."""
        return [("bytes", len(self.content))]

    __repr__ = repr_as_in_rich


def to_wire_value(value: str | Secret) -> str:
    """Return the text of a header value, secret or not."""
    return value.reveal() if isinstance(value, Secret) else value


def without_credentials(url: str) -> str:
    """Mask the user name and password of a URL."""
    return _USER_INFO.sub("…", url) if "@" in url else url


def forget_frames(error: BaseException, outside: BaseException | None) -> None:
    """Remove the tracebacks of ``error`` and of its causes: their frames may hold keys.

    ``outside`` is the exception that was being handled when the work began (``sys.exception()``).
    It belongs to the caller and is not changed.
    """
    for related in behind(error, outside):
        related.__traceback__ = None


def behind(error: BaseException, outside: BaseException | None = None) -> list[BaseException]:
    """List ``error`` with its causes, contexts and group members, each once.

    The search stops at ``outside``.
    """
    related: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or current is outside or any(current is known for known in related):
            continue
        related.append(current)
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += cast("BaseExceptionGroup[BaseException]", current).exceptions
    return related
