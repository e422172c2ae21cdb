"""Calls every endpoint of a gateway once, for ``embedroute check --live``."""

import time
from functools import partial
from typing import Final

import msgspec

from embedroute.errors import EmbedrouteError
from embedroute.execution import list_secrets, public_url
from embedroute.gateway import Gateway
from embedroute.routing import ResolvedEndpoint
from embedroute.runtime import tasks
from embedroute.text import printable

TEXT: Final = "The quick brown fox jumps over the lazy dog."
"""What each endpoint embeds."""

AT_ONCE: Final = 16
"""Providers that are called at the same time; the endpoints of one are called in turn."""


class CallResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one call: ``error`` is empty if it succeeded.

    ``seconds`` include the time to connect. ``width`` and ``norm`` are those of the vector.
    """

    provider: str
    model: str
    seconds: float
    width: int = 0
    norm: float = 0.0
    error: str = ""

    def row(self) -> tuple[str, ...]:
        """Return the cells of a table."""
        milliseconds = f"{1000 * self.seconds:.0f}"
        if self.error:
            return self.provider, self.model, milliseconds, "-", "-", self.error
        width, norm = str(self.width), f"{self.norm:.3f}"
        return self.provider, self.model, milliseconds, width, norm, ""


async def call_endpoints(gateway: Gateway) -> list[CallResult]:
    """Embed ``TEXT`` once at every endpoint of every declared model.

    The results are in the order of the config. Endpoints that need a caller's own key are left out.
    """
    endpoints = [
        (model, candidate)
        for model, route in gateway.models.routes.items()
        for candidate in route.candidates
        if not candidate.caller_keys
    ]
    results: dict[int, CallResult] = {}

    async def call_provider(slug: str) -> None:
        for index, (model, candidate) in enumerate(endpoints):
            if candidate.provider == slug:
                results[index] = await _call(gateway, model, candidate)

    slugs = dict.fromkeys(candidate.provider for _, candidate in endpoints)
    await tasks.gather([partial(call_provider, slug) for slug in slugs], AT_ONCE)
    return [results[index] for index in sorted(results)]


def _find_address(candidate: ResolvedEndpoint) -> str:
    """Return the base URL of an endpoint in parentheses, or nothing if its backend has none."""
    url = msgspec.structs.asdict(candidate.backend).get("base_url")
    if not isinstance(url, str):
        return ""
    return f" ({printable(public_url(url, list_secrets(candidate.backend)))})"


async def _call(gateway: Gateway, model: str, candidate: ResolvedEndpoint) -> CallResult:
    start = time.perf_counter()
    try:
        result = await gateway.embed_at(candidate, [TEXT], model=model)
    except EmbedrouteError as error:
        seconds = time.perf_counter() - start
        return CallResult(
            provider=candidate.provider,
            model=candidate.model,
            seconds=seconds,
            error=printable(error.message) + _find_address(candidate),
        )
    (vector,) = result.vectors.astype("f8")
    return CallResult(
        provider=candidate.provider,
        model=candidate.model,
        seconds=time.perf_counter() - start,
        width=len(vector),
        norm=float((vector * vector).sum() ** 0.5),
    )
