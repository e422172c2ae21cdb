"""The journey: one request from a model name and inputs to vectors, top to bottom; all state of a gateway hangs here.

``Gateway.embed`` reads as the life of a request: resolve, select, plan, look up, share, call, assemble. What each
stage decides is on the floors below; what goes over the wire is the doors' affair.
"""

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack

import msgspec

from embedroute.auth import ANYONE, Caller
from embedroute.bootstrap import (
    Options,
    RuntimeFactory,
    assembled,
    config_from_environment,
    config_from_file,
    frameless,
    make_selection_context,
)
from embedroute.cache import (
    FULL_USE,
    NO_CACHE,
    NOTHING,
    CachePolicy,
    Found,
    MemoryCache,
    look_up,
    look_up_in_steps,
)
from embedroute.config import Config
from embedroute.errors import DeadlineExceeded, EmbedrouteError, RequestError, UpstreamRejectedInput
from embedroute.execution import RequestContext, make_context, missing_keys
from embedroute.limits import BodyBudget
from embedroute.protocol import EmbeddingRequest, Embeddings, make_request
from embedroute.routing import (
    PROBING,
    BreakerPolicy,
    HealthRegistry,
    Plan,
    PreparedSelection,
    ResolvedEndpoint,
    RetryPolicy,
    Route,
    SelectionCache,
    assemble,
    make_plan,
    make_plan_in_steps,
)
from embedroute.runtime import PerLoop, fairness, tasks
from embedroute.trace import RequestTrace, new_request_id
from embedroute.transport import Transport

if TYPE_CHECKING:
    import httpx2


class Gateway:
    """Models, providers and everything that a request meets on its way; mount it with ``embeddings_app``.

    Several gateways live side by side in one process, each on any number of event loops.
    """

    @frameless
    def __init__(
        self,
        config: Config,
        *,
        http_client: "httpx2.AsyncClient | None" = None,
        transport: Callable[[], Transport] | None = None,
        retries: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Build everything that can be built without an event loop; open nothing.

        ``http_client`` replaces the engine's own client, and stays the caller's to close.
        ``transport`` makes what calls upstreams instead, once per event loop.

        Raises:
            ConfigError: the config has mistakes, one line each.
        """
        parts = assembled(config, environ)
        self.settings = parts.settings
        self.limits = parts.limits
        self.keys = parts.keys
        self.bodies = BodyBudget.of(self.settings)
        self.directory = parts.directory
        self.healths = HealthRegistry(breaker or BreakerPolicy())
        self.cache = MemoryCache(config.cache.bytes, config.cache.ttl, time.monotonic)
        self._store = self.cache.store
        around = make_selection_context(parts, self.healths)
        self.selections = SelectionCache(
            self.directory, around, shared_cache=config.cache.shared, debug=self.settings.debug
        )
        opener = RuntimeFactory(
            self.settings, http_client, self.healths, retries or RetryPolicy(), transport
        )
        self.runtime = PerLoop("embedroute", opener.open)

    @classmethod
    @frameless
    def from_file(
        cls, path: str | os.PathLike[str] | None = None, **options: Unpack[Options]
    ) -> Self:
        """Read ``path``, or the file that ``EMBEDROUTE_CONFIG`` names.

        Raises:
            ConfigError: there is no such file, or it has mistakes.
        """
        return cls(config_from_file(path, options.get("environ", os.environ)), **options)

    @classmethod
    @frameless
    def from_env(cls, **options: Unpack[Options]) -> Self:
        """Turn on every provider whose key variable is set, and the local model if it is installed.

        Raises:
            ConfigError: ``EMBEDROUTE_AUTH`` does not state who may call.
        """
        return cls(config_from_environment(options.get("environ", os.environ)), **options)

    async def embed(
        self,
        input: EmbeddingRequest | str | Sequence[object],
        *,
        model: str = "",
        caller: Caller = ANYONE,
        trace: RequestTrace | None = None,
        cache_policy: CachePolicy = FULL_USE,
        **fields: object,
    ) -> Embeddings:
        """Embed ``input``, of any shape and with any ``fields`` that ``POST /v1/embeddings`` takes.

        Raises:
            EmbedrouteError: what a client would be told, with ``status``, ``type``, ``code`` and ``param``.
        """
        request = (
            input
            if isinstance(input, EmbeddingRequest)
            else make_request({"input": input, "model": model, **fields}, self.limits)
        )
        async with tasks.watch() as watch:
            watch.limit(self.settings.deadline, self.late)
            deadline = time.monotonic() + self.settings.deadline
            return await self.serve(
                RequestContext(
                    request=request,
                    caller=caller,
                    trace=trace or RequestTrace(new_request_id()),
                    cache_policy=cache_policy,
                    deadline=deadline,
                    watch=watch,
                )
            )

    def late(self) -> DeadlineExceeded:
        """Make the error of a request that takes longer than its deadline."""
        return DeadlineExceeded(f"No answer within the deadline of {self.settings.deadline:g} s.")

    def serve(self, context: RequestContext) -> Awaitable[Embeddings]:
        """Embed one request, which its own ``watch`` ends at its deadline.

        Raises:
            EmbedrouteError: what the client is told.
        """
        prepared = self.selections.prepare(context.request, context.caller, context.trace)
        if prepared.fallback is None:
            return self._embed(prepared, context)
        return self._embed_or_fall_back(prepared, prepared.fallback, context)

    async def _embed_or_fall_back(
        self, prepared: PreparedSelection, other: Route, context: RequestContext
    ) -> Embeddings:
        """One request, at another model if all of the first's endpoints fail; each endpoint has its share of the time."""
        share = self.settings.deadline / (len(prepared.route.candidates) + 1)
        try:
            return await self._embed(
                prepared, msgspec.structs.replace(context, deadline=context.deadline - share)
            )
        except (RequestError, UpstreamRejectedInput):
            raise
        except EmbedrouteError as failure:
            try:
                answer = await self._embed(
                    self.selections.prepare_route(
                        other, context.request, context.caller, context.trace
                    ),
                    context,
                )
            except EmbedrouteError:
                raise failure from None
            context.trace.fallback = other.public_name
            return answer

    async def _embed(self, prepared: PreparedSelection, context: RequestContext) -> Embeddings:
        """One request, from a decision to vectors."""
        trace, cached, owner = context.trace, context.cache_policy, prepared.owner
        if trace.events is not None:
            prepared.selection.tell(trace, context.request.user)
        if context.request.large:
            plan, held = await self._look_up_large(context, prepared)
        else:
            plan = make_plan(context.request.inputs, prepared.shared)
            held = look_up(self.cache, plan.work, prepared) if cached.read else NOTHING
        found = held.vectors
        trace.record_cache(plan.keys, found, held.claims)
        if held.claims and cached.store:
            self.cache.claim(dict(held.claims.values()))
        missing = missing_keys(plan.work, found) if found else plan.work
        if missing:
            loop = await self.runtime.get()
            dispatch = make_context(
                context,
                prepared,
                self._store if owner is None else partial(self._store, owner=owner),
            )
            candidates = prepared.selection.candidates
            with loop.flights.lead(missing, prepared.terms if cached.read else None) as lead:
                if lead.work:
                    await loop.embed(candidates, dispatch, lead.work, lead.land)
            found = {**found, **lead.found} if found else lead.found
            if lead.awaited:
                patience = (context.deadline - time.monotonic()) / (len(candidates) + 1)
                landed, led = await loop.flights.follow(
                    lead, missing, loop.embed, (candidates, dispatch), patience
                )
                found = {**found, **landed}
                if owner is not None and cached.store and led < len(missing):
                    self.cache.claim(
                        dict.fromkeys(missing, owner)
                    )  # it waited for others, who stored
        rows, tokens, trace.estimated = assemble(plan, found)
        return Embeddings(
            rows=rows, model=prepared.route.public_name, prompt_tokens=tokens, trace=trace
        )

    async def _look_up_large(
        self, context: RequestContext, prepared: PreparedSelection
    ) -> tuple[Plan, Found]:
        """Plan a large request and look it up, in steps that let the event loop go on."""
        plan = await fairness.step_by_step(
            make_plan_in_steps(context.request.inputs, prepared.shared)
        )
        if not context.cache_policy.read:
            return plan, NOTHING
        return plan, await fairness.step_by_step(look_up_in_steps(self.cache, plan.work, prepared))

    def may_debug(self, caller: Caller) -> bool:
        """Whether a caller may see traces and upstream bodies."""
        return caller.may_debug(otherwise=self.settings.debug)

    async def embed_at(
        self, candidate: ResolvedEndpoint, input: Sequence[str], *, model: str
    ) -> Embeddings:
        """Embed texts at one endpoint of a model, past lists, the cache and other requests: so endpoints are compared.

        Raises:
            EmbedrouteError: the endpoint does not answer.
        """
        request = msgspec.structs.replace(
            make_request({"input": input, "model": model}, self.limits), preferences=PROBING
        )
        route = msgspec.structs.replace(self.directory.resolve(model), candidates=[candidate])
        deadline = time.monotonic() + self.settings.deadline
        context = RequestContext(
            request=request,
            caller=ANYONE,
            trace=RequestTrace(new_request_id()),
            cache_policy=NO_CACHE,
            deadline=deadline,
        )
        return await self._embed(
            self.selections.prepare_route(route, request, ANYONE, context.trace), context
        )

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncGenerator[None, None]:
        """Open this loop's engine, and close it on the way out; for ``FastAPI(lifespan=gateway.lifespan)``, and optional."""
        loop = await self.runtime.get()
        try:
            yield
        finally:
            await self.runtime.close(loop)
