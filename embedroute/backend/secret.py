"""Text and bytes that must not show; plugin authors take :class:`Secret` from :mod:`embedroute.backend`."""

import re
from typing import Any, Final, NoReturn, Self, cast

import msgspec

_USER_INFO: Final = re.compile(r"(?<=://)[^/]+(?=@)")


class Secret:
    """A text that never shows: not in ``repr``, ``str``, logs, traces, errors or pickles.

    A copy is the object itself.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        """Hold ``text``."""
        self.__text = text

    def reveal(self) -> str:
        """Return the text; call this only where it is written to the wire."""
        return self.__text

    def __repr__(self) -> str:
        """Show that there is a secret, and nothing of it."""
        return "Secret('…')"

    def __eq__(self, other: object) -> bool:
        """Compare by the text held."""
        return isinstance(other, Secret) and self.reveal() == other.reveal()

    def __hash__(self) -> int:
        """Hash by the text held."""
        return hash(self.__text)

    def __copy__(self) -> Self:
        """Return itself, as an immutable object does."""
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        """Return itself, as an immutable object does."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to leave the process.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "A Secret cannot be pickled. Read it from its source (env: or file:) in the other process."
        )


def repr_as_in_rich(self: msgspec.Struct) -> str:
    """Show the fields that ``__rich_repr__`` gives: a struct that hides some must hide them from rich and from ``repr``."""
    return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class SecretBytes(msgspec.Struct, frozen=True, gc=False):
    """The head of a request on its way to a socket: it may hold a key, so ``repr`` shows only its length.

    Read ``content`` only in the expression that writes it. A struct, because one is made for every request.
    """

    content: bytes

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the length alone."""
        return [("bytes", len(self.content))]

    __repr__ = repr_as_in_rich


def to_wire_value(value: str | Secret) -> str:
    """Return the text of a header's value, whether or not it is marked as secret."""
    return value.reveal() if isinstance(value, Secret) else value


def without_credentials(url: str) -> str:
    """Mask the user name and password of a URL."""
    return _USER_INFO.sub("…", url) if "@" in url else url


def forget_frames(error: BaseException, outside: BaseException | None) -> None:
    """Take the tracebacks from ``error`` and from what led to it: their frames hold keys as a library writes them.

    ``outside`` is what was being handled when the work began (``sys.exception()``); it is the caller's, and is left alone.
    """
    for found in behind(error, outside):
        found.__traceback__ = None


def behind(error: BaseException, outside: BaseException | None = None) -> list[BaseException]:
    """List ``error`` and what led to it, as far as ``outside``: causes, contexts and members of groups, each once."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or one is outside or any(one is it for it in found):
            continue
        found.append(one)
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += cast("BaseExceptionGroup[BaseException]", one).exceptions
    return found
