"""Gives each caller's own upstream key endpoints of its own (``api_key = "header:NAME"``).

An endpoint with a caller's key has the name of its endpoint, ``#``, and a digest of the key. So
health, learned limits, micro-batches and single-flight, which are kept by name, are separate for
each key, and the digest is part of the cache scope. The key itself is only in the backend.
"""

import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from embedroute.auth import Caller
from embedroute.backend import BackendBase
from embedroute.config import HeaderSecret
from embedroute.errors import Unauthorized
from embedroute.routing.bounded_map import BoundedMap
from embedroute.routing.filters import EndpointFilter
from embedroute.routing.registry import ModelRegistry, ResolvedEndpoint

DIGEST: Final = 16
"""Hexadecimal digits of a digest."""


def find_headers(backend: BackendBase) -> dict[str, str]:
    """Return option → header for the options of a backend that each caller sets."""
    options = msgspec.structs.asdict(backend)
    return {
        name: value.header for name, value in options.items() if isinstance(value, HeaderSecret)
    }


def list_headers(directory: ModelRegistry) -> list[str]:
    """List the headers that may hold callers' keys, in lower case."""
    return sorted(
        {
            header
            for candidate in directory.providers.values()
            for header in candidate.caller_keys.values()
        }
    )


class CallerKeys:
    """The endpoints with callers' keys that were used last, under a random pepper.

    It is bounded, because clients choose the keys.
    """

    def __init__(self) -> None:
        """Choose the pepper."""
        self._hmac = hmac.new(secrets.token_bytes(32), digestmod="sha256")
        self._endpoints: BoundedMap[tuple[str, str], ResolvedEndpoint] = BoundedMap()

    def apply(self, endpoints: EndpointFilter, caller: Caller) -> None:
        """Give each endpoint that needs a key the caller's; drop those without one.

        Raises:
            Unauthorized: every endpoint needs a key that the caller has not sent.
        """
        if not any(candidate.caller_keys for candidate in endpoints.remaining):
            return
        keys = caller.upstream_keys
        endpoints.apply(
            "api_key",
            lambda candidate: keys.keys() >= set(candidate.caller_keys.values()),
            "the request has no key for this provider",
            _missing(endpoints.remaining, keys),
        )
        endpoints.remaining = [
            self._with_keys(candidate, caller) if candidate.caller_keys else candidate
            for candidate in endpoints.remaining
        ]

    def _with_keys(self, candidate: ResolvedEndpoint, caller: Caller) -> ResolvedEndpoint:
        options = {
            option: caller.upstream_keys[header] for option, header in candidate.caller_keys.items()
        }
        digest = self._hmac.copy()
        for secret in options.values():
            raw = secret.reveal().encode(errors="surrogatepass")
            digest.update(len(raw).to_bytes(4, "little") + raw)
        name = (candidate.name, digest.hexdigest()[:DIGEST])
        found = self._endpoints.get(name)
        if found is None or found.origin is not candidate:
            backend = msgspec.structs.replace(candidate.backend, **options)
            found = msgspec.structs.replace(
                candidate, backend=backend, key_digest=name[1], origin=candidate
            )
            self._endpoints.pop(name, None)
            self._endpoints.get_or_insert(name, found)
        return found


def _missing(candidates: Sequence[ResolvedEndpoint], keys: Mapping[str, object]) -> Unauthorized:
    """Make the error of a request without a key; it names the first header that is missing."""
    missing = [
        (candidate.provider, header)
        for candidate in candidates
        for header in candidate.caller_keys.values()
        if header not in keys
    ]
    provider, header = next(iter(missing), ("", ""))
    return Unauthorized(
        f"Your own key of the provider {provider} is required; "
        f"send it in one header '{header}: KEY'.",
        code="upstream_key_required",
    )
