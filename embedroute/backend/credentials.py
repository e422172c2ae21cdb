"""Defines credentials that a backend obtains at run time, such as access tokens and signing keys.

Authors of plugins import :class:`Credentials` from :mod:`embedroute.backend`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from embedroute.backend.secret import Secret, repr_as_in_rich
from embedroute.backend.upstream import UpstreamRequest, UpstreamResponse

Send = Callable[[UpstreamRequest], UpstreamResponse]
"""Sends a request with the gateway's transport and blocks until its response is complete."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials that are valid for ``lifetime`` seconds from now.

    ``values`` are headers (name in lower case → value), which the default ``authorize`` adds to
    each request. A backend that signs requests chooses the names itself.
    """

    values: Mapping[str, Secret]
    lifetime: float = math.inf

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the names of the values only."""
        return [("values", sorted(self.values)), ("lifetime", self.lifetime)]

    __repr__ = repr_as_in_rich

    @classmethod
    def bearer(cls, token: Secret, lifetime: float = math.inf) -> "Credentials":
        """Make credentials that send an access token as ``authorization: Bearer …``."""
        return cls(values={"authorization": Secret(f"Bearer {token.reveal()}")}, lifetime=lifetime)
