"""The width of each vector space that nobody declared: the first answer's, from which no other may differ."""

from embedroute.errors import BadAnswer
from embedroute.routing.recent import Recent


class Widths:
    """Space and dtype → width, as the first answer had it; for as long as the space is in use."""

    def __init__(self) -> None:
        """Know none yet."""
        self._widths: Recent[tuple[str, str], int] = Recent()

    def agree(self, space: str, dtype: str, width: int) -> None:
        """Hold a width against the first one.

        Raises:
            BadAnswer: it is another; the endpoint answers from another space.
        """
        first = self._widths.recall((space, dtype), width)
        if width != first:
            raise BadAnswer(f"The upstream answered vectors of {width} numbers where others of this model have {first}.")
