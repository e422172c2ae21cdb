"""A text that must not show; reached by plugin authors through :mod:`embedroute.backend`."""


class Secret:
    """A text that never shows: not in ``repr``, ``str``, logs, traces, errors or pickles."""

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        """Hold ``text``."""
        self.__text = text

    def reveal(self) -> str:
        """Hand out the text; call this only where it goes on the wire."""
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

    def __reduce__(self) -> str:
        """Refuse to be pickled or copied out of the process."""
        raise TypeError("A Secret cannot be pickled.")
