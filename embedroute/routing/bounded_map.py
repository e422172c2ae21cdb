"""Remembers something by name for as long as it is asked for: clients choose names, so there must be a bound."""

from typing import Final, TypeVar

MOST: Final = 2048
"""Names that come in before what nobody asks for any more is forgotten; at most twice as many are remembered."""


Name = TypeVar("Name")
Known = TypeVar("Known")


class BoundedMap(dict[Name, Known]):
    """What is known of each name; to look one up is to look into a dict.

    After every ``MOST`` new names those that were there before step back, and whichever is recalled comes forward
    again; so nothing is forgotten that is asked for while ``MOST`` others come in.
    """

    __slots__ = ("earlier",)

    def __init__(self) -> None:
        """Remember nothing yet."""
        super().__init__()
        self.earlier: dict[Name, Known] = {}

    def get_or_insert(self, key: Name, default: Known) -> Known:
        """Tell what is known of ``key``, which is ``default`` if nothing was."""
        if key not in self and len(self) >= MOST:
            self.earlier = dict(self)
            self.clear()
        return self.setdefault(key, self.earlier.pop(key, default))
