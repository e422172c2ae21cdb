"""Provides a dict of bounded size that keeps the keys in use.

Clients choose the keys (model names, for example), so the size needs a bound.
"""

from typing import Final, TypeVar

MOST: Final = 2048
"""Entries of one generation; a map keeps two generations, so at most twice as many entries."""


Name = TypeVar("Name")
Known = TypeVar("Known")


class BoundedMap(dict[Name, Known]):
    """A dict of two generations: the current one is the dict itself, the previous one ``earlier``.

    When the current generation is full, it becomes the previous one, and the one before that is
    dropped. ``get_or_insert`` moves an entry back into the current generation, so an entry is only
    lost after ``MOST`` other keys were inserted without a use of its own key.
    """

    __slots__ = ("earlier",)

    def __init__(self) -> None:
        """Create an empty map."""
        super().__init__()
        self.earlier: dict[Name, Known] = {}

    def get_or_insert(self, key: Name, default: Known) -> Known:
        """Return the value of ``key``, and insert ``default`` if there is none."""
        if key not in self and len(self) >= MOST:
            self.earlier = dict(self)
            self.clear()
        return self.setdefault(key, self.earlier.pop(key, default))
