"""Embeds one request, from a model name and inputs to vectors, top to bottom.

``Gateway.run`` is the order of a request: fold its parts, admit it, prepare its selection, embed.
``Gateway._embed_prepared`` is the last of these: plan, look up, share, dispatch, assemble.
``routing`` chooses endpoints, ``execution`` calls them, and ``server`` handles HTTP. There is no
module-level state: a ``Gateway`` holds everything.
"""

import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, Unpack

import anyio
import msgspec

from embedroute.auth import ANYONE, Caller
from embedroute.backend import Dtype, Truncate
from embedroute.bootstrap import (
    GatewayParts,
    Options,
    build_parts,
    config_from_environment,
    config_from_file,
    make_active_config,
    without_frames,
)
from embedroute.cache import (
    FULL_USE,
    NO_CACHE,
    NOTHING,
    CachePolicy,
    Found,
    MemoryCache,
    TieredCache,
    look_up,
)
from embedroute.config import BreakerPolicy, Config, RetryPolicy, Settings
from embedroute.errors import (
    ConfigError,
    EmbedrouteError,
    InputFailed,
    NotCached,
    RequestError,
    UpstreamRejectedInput,
)
from embedroute.execution import (
    ActiveConfig,
    DispatchContext,
    Lead,
    RequestContext,
    Results,
    embed_parts,
    look_up_in_tiers,
    make_deadline_error,
    missing_keys,
    quantize,
    read_endpoint_states,
)
from embedroute.inputs import Input, Kind, estimate_sizes
from embedroute.limits import ByteBudget, Limiter, request_limits, response_limits
from embedroute.log_records import LogLimit
from embedroute.protocol import (
    EmbeddingRequest,
    Embeddings,
    InputValue,
    make_request,
)
from embedroute.routing import (
    PROBING,
    CacheKey,
    CallerKeys,
    HealthRegistry,
    ModelRegistry,
    Plan,
    PreparedSelection,
    ResolvedEndpoint,
    Route,
    assemble,
    fold_text_parts,
    make_plan,
    sum_modalities,
)
from embedroute.runtime import PerLoop, fairness, is_loop_running, tasks
from embedroute.runtime_factory import LoopRuntime, RuntimeFactory, share
from embedroute.stores import StoredKeys, StoreError, StoreWorker
from embedroute.telemetry import (
    Counts,
    GatewayState,
    Metrics,
    Observer,
    Spans,
    report_request,
)
from embedroute.trace import RequestTrace, new_request_id
from embedroute.transport import Transport
from embedroute.upstream_errors import compile_patterns

if TYPE_CHECKING:
    import httpx2
    from prometheus_client import CollectorRegistry

Check = Callable[[], Awaitable[None]]
"""Raises an exception if a store cannot be reached."""


class Gateway:
    """Routes embedding requests to providers. Mount it with ``embeddings_app``.

    Several gateways can run in one process, each on any number of event loops.
    """

    in_flight: int = 0

    @without_frames
    def __init__(
        self,
        config: Config,
        *,
        http_client: "httpx2.AsyncClient | None" = None,
        transport: Callable[[], Transport] | None = None,
        retries: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        observers: Sequence[Observer] = (),
        metrics_registry: "CollectorRegistry | None" = None,
    ) -> None:
        """Build all that needs no event loop. Opens nothing.

        ``http_client`` replaces the client of the httpx2 transport; the caller closes it.
        ``transport`` is called once per event loop to make the transport, instead of the
        config's ``transport``. ``retries`` and ``breaker`` replace the policies of the config for
        all providers. ``environ`` holds the variables of all secrets ``env:NAME`` (default: those
        of the process).
        ``clock`` returns the seconds of a monotonic clock; simulations replace it together with
        that of their event loop. ``observers`` receive every finished request and upstream call
        (``embedroute.telemetry``). ``metrics_registry`` is a registry of the host's, in which the
        metrics are registered whether or not ``metrics`` serves them.

        Raises:
            ConfigError: the config has mistakes, one line each.
        """
        variables = os.environ if environ is None else environ
        self._overrides = variables, retries, breaker
        parts = build_parts(config, *self._overrides)
        self.clock = clock
        self.observers: list[Observer] = list(observers)
        self.bodies: ByteBudget = ByteBudget.for_requests(parts.settings)
        self.responses: ByteBudget = ByteBudget.for_responses(parts.settings)
        self._caller_keys = CallerKeys()
        self.healths: HealthRegistry = HealthRegistry()
        self.log_limit: LogLimit = LogLimit()
        self.cache: MemoryCache = MemoryCache(config.cache.bytes, config.cache.ttl, clock)
        self.counts: Counts | None = _make_counts(parts, self.read_state, metrics_registry)
        self._sharing = share(parts.store, self.cache, config, clock, self.counts)
        self.store: StoreWorker | None = self._sharing.store
        self.shared_cache: TieredCache | None = self._sharing.cache
        self.rate_limits: Limiter = self._sharing.limiter
        self.stored_keys: StoredKeys | None = self._sharing.stored_keys
        self._reloading = threading.Lock()
        self._use(parts)
        self._factory = RuntimeFactory(
            self.settings,
            http_client,
            self.healths,
            variables,
            transport,
            clock,
            self.observers,
            self._sharing,
        )
        self.runtime: PerLoop[LoopRuntime] = PerLoop("embedroute", self._factory.open)
        self.store_checks: dict[str, Check] = {"store": self.store.connect} if self.store else {}
        self.metrics: Metrics | None = self._add_observers(metrics_registry)

    def _use(self, parts: GatewayParts) -> None:
        """Let new requests use ``parts``: one assignment changes all that they read of a config."""
        self._parts = parts
        self.active: ActiveConfig = make_active_config(
            parts, self.healths, self._caller_keys, self._sharing.ledger, self.clock
        )

    @property
    def settings(self) -> Settings:
        """The table ``[gateway]`` of the present config."""
        return self.active.settings

    @property
    def models(self) -> ModelRegistry:
        """The models of the present config."""
        return self.active.models

    async def reload(self, config: Config) -> None:
        """Use another config for new requests. Requests in progress end with the one before.

        Connections, the cache, and what was learned of endpoints that are the same are kept, and
        what callers have used of limits and budgets. Secrets ``file:PATH`` are read again::

            await gateway.reload(Config(...))

        Raises:
            ConfigError: the config has mistakes, or changes that need a restart. Nothing has
                changed then.
        """
        await fairness.run_in_worker(partial(self.reload_in_thread, config))

    @without_frames
    def reload_in_thread(self, config: Config) -> None:
        """Do what ``reload`` does, in a thread: building a large config takes some time.

        Raises:
            ConfigError: as ``reload``.
        """
        with self._reloading:
            parts = build_parts(config, *self._overrides, previous=self._parts)
            self._use(parts)
            self._sharing.change(config)
            self._factory.change(parts.settings, parts.backends.values())
            self.bodies.change(*request_limits(parts.settings))
            self.responses.change(*response_limits(parts.settings))
            if self.counts is not None:
                self.counts.change_models(parts.models.routes)

    def _add_observers(self, registry: "CollectorRegistry | None") -> Metrics | None:
        """Add the observers of the config; return the metrics if they are served or registered."""
        if self.settings.opentelemetry:
            self.observers.append(Spans())
        return None if self.counts is None else Metrics(self.counts, registry)

    @classmethod
    @without_frames
    def from_file(
        cls, path: str | os.PathLike[str] | None = None, **options: Unpack[Options]
    ) -> Self:
        """Read ``path``, or the file that ``EMBEDROUTE_CONFIG`` names.

        Raises:
            ConfigError: the file does not exist, or it has mistakes.
        """
        return cls(config_from_file(path, options.get("environ", os.environ)), **options)

    @classmethod
    @without_frames
    def from_env(cls, **options: Unpack[Options]) -> Self:
        """Use every provider whose key variable is set, and the local model if it is installed.

        Raises:
            ConfigError: ``EMBEDROUTE_AUTH`` is missing or invalid, or its key is missing.
        """
        return cls(config_from_environment(options.get("environ", os.environ)), **options)

    async def embed(
        self,
        input: InputValue,
        *,
        model: str = "",
        dimensions: int | None = None,
        input_type: str | None = None,
        user: str | None = None,
        encoding_format: Literal["float", "base64"] | None = None,
        output_dtype: Dtype | None = None,
        truncate: Truncate | None = None,
        provider: str | Mapping[str, object] | None = None,
        embedding_options: Mapping[str, object] | None = None,
        debug: Mapping[str, object] | None = None,
        caller: Caller = ANYONE,
        trace: RequestTrace | None = None,
        cache_policy: CachePolicy = FULL_USE,
    ) -> Embeddings:
        """Embed ``input`` in process. The result's ``vectors`` are an (n, d) array of float32.

        ``input`` is one text or a list of them, or a numpy array or a pandas column of texts; token
        ids and content parts are possible too. The fields of ``POST /v1/embeddings``, from
        ``model`` to ``debug``, follow the same rules as there; ``encoding_format`` has no effect
        here. They are ignored for a decoded request. ``caller`` is whose cache and permissions are
        used (default: the host itself)::

            embeddings = await gateway.embed(["one text", "another"], model="m", dimensions=64)
            embeddings.vectors.shape  # (2, 64)

        Raises:
            EmbedrouteError: the error that an HTTP client would get, with ``status``, ``type``,
                ``code`` and ``param``.
        """
        if isinstance(input, EmbeddingRequest):
            request = input
        else:
            fields: dict[str, object] = {
                "input": input,
                "model": model,
                "dimensions": dimensions,
                "input_type": input_type,
                "user": user,
                "encoding_format": encoding_format,
                "output_dtype": output_dtype,
                "truncate": truncate,
                "provider": provider,
                "embedding_options": embedding_options,
                "debug": debug,
            }
            request = make_request(fields, self.active.limits)
        return await self._embed_in_process(request, caller, trace, cache_policy)

    def embed_sync(
        self,
        input: InputValue,
        *,
        model: str = "",
        dimensions: int | None = None,
        input_type: str | None = None,
        user: str | None = None,
        encoding_format: Literal["float", "base64"] | None = None,
        output_dtype: Dtype | None = None,
        truncate: Truncate | None = None,
        provider: str | Mapping[str, object] | None = None,
        embedding_options: Mapping[str, object] | None = None,
        debug: Mapping[str, object] | None = None,
        caller: Caller = ANYONE,
        cache_policy: CachePolicy = FULL_USE,
    ) -> Embeddings:
        """Embed ``input`` as ``embed`` does, from code without an event loop, such as a script.

        It runs an event loop for this call, and closes the connections at its end. The cache is
        kept. For many calls, write an ``async`` function that awaits ``embed``::

            gateway = Gateway.from_file("embedroute.toml")
            vectors = gateway.embed_sync("some text", model="m").vectors

        Raises:
            EmbedrouteError: as ``embed``.
            RuntimeError: an event loop runs in this thread, so ``embed`` must be awaited instead.
        """
        if is_loop_running():
            raise RuntimeError(
                "gateway.embed_sync(…) cannot be called while an event loop runs in this thread."
                " Write: await gateway.embed(…)"
            )

        async def run() -> Embeddings:
            async with self.lifespan():
                return await self.embed(
                    input,
                    model=model,
                    dimensions=dimensions,
                    input_type=input_type,
                    user=user,
                    encoding_format=encoding_format,
                    output_dtype=output_dtype,
                    truncate=truncate,
                    provider=provider,
                    embedding_options=embedding_options,
                    debug=debug,
                    caller=caller,
                    cache_policy=cache_policy,
                )

        return anyio.run(run)

    def __repr__(self) -> str:
        """Show the names of the providers and how many models there are."""
        providers = ", ".join(self.models.providers) or "none"
        count = len(self.models.routes)
        return f"<Gateway auth={self.settings.auth} providers={providers} models={count}>"

    async def _embed_in_process(
        self,
        request: EmbeddingRequest,
        caller: Caller,
        trace: RequestTrace | None,
        cache_policy: CachePolicy,
    ) -> Embeddings:
        trace = trace or RequestTrace(new_request_id())
        trace.caller = caller.name
        trace.model = request.model
        if self.observers or self.counts is not None or self.active.ledger is not None:
            return await self._embed_observed(request, caller, trace, cache_policy)
        return await self._embed_within_deadline(request, caller, trace, cache_policy)

    async def _embed_observed(
        self,
        request: EmbeddingRequest,
        caller: Caller,
        trace: RequestTrace,
        cache_policy: CachePolicy,
    ) -> Embeddings:
        """Embed a request of the host, and report it to the observers and to the ledger."""
        began = time.perf_counter()
        status = 499
        code = None
        try:
            embeddings = await self._embed_within_deadline(request, caller, trace, cache_policy)
            status = 200
            trace.served_tokens = embeddings.prompt_tokens
        except EmbedrouteError as error:
            status = error.status
            code = error.code
            raise
        finally:
            seconds = time.perf_counter() - began
            self.report(trace, dialect="python", status=status, code=code, seconds=seconds)
        return embeddings

    def report(
        self, trace: RequestTrace, *, dialect: str, status: int, code: str | None, seconds: float
    ) -> None:
        """Report a request that ends now, after ``seconds``, to the metrics and other observers."""
        ledger = self.active.ledger
        if ledger is not None:
            ledger.add(trace, status, seconds)
        if self.counts is not None:
            self.counts.count_request(trace, dialect, status, seconds)
        if self.observers:
            report_request(
                self.observers,
                trace,
                dialect=dialect,
                status=status,
                code=code,
                seconds=seconds,
                now=self.clock(),
            )

    async def _embed_within_deadline(
        self,
        request: EmbeddingRequest,
        caller: Caller,
        trace: RequestTrace,
        cache_policy: CachePolicy,
    ) -> Embeddings:
        active = self.active
        seconds = active.settings.deadline
        make_error = partial(make_deadline_error, seconds, trace)
        async with tasks.watch(seconds, make_error) as watch:
            context = RequestContext(
                active=active,
                request=request,
                caller=caller,
                trace=trace,
                cache_policy=cache_policy,
                deadline=self.clock() + seconds,
                watch=watch,
            )
            return await self.run(context)

    def read_state(self) -> GatewayState:
        """Return the present state of the gateway and its endpoints."""
        routes = self.models.routes.values()
        states = read_endpoint_states(routes, self.healths, self._factory.slots, self.clock())
        return GatewayState(in_flight=self.in_flight, endpoints=states)

    def run(
        self, context: RequestContext, *, folded: bool = False, admitted: bool = False
    ) -> Awaitable[Embeddings]:
        """Embed one request: fold its parts, admit it, prepare its selection, and embed its inputs.

        ``context.watch`` cancels it at its deadline. A request that has parts, or counts in limits,
        comes here again after that step. ``folded`` is whether ``fold_parts`` has seen the request,
        and ``admitted`` whether it is counted in the rate limits.

        Raises:
            EmbedrouteError: the error for the client.
        """
        context.trace.inputs = len(context.request.inputs)
        if context.request.kind is Kind.PARTS and not folded:
            return self._fold_and_run(context)
        limits = context.caller.limits
        if (limits is not None or self.rate_limits.is_used) and not admitted:
            return self._run_within_limits(context)
        selections = context.active.selections
        prepared = selections.prepare(context.request, context.caller, context.trace)
        context.trace.public_model = prepared.route.public_name
        if prepared.fallback is not None:
            return self._embed_with_fallback(prepared, prepared.fallback, context)
        if prepared.selection.is_adapted:
            return self._embed_adapted(prepared, context)
        return self._embed_prepared(prepared, context)

    async def _fold_and_run(self, context: RequestContext) -> Embeddings:
        active = context.active
        route = active.selections.resolve(context.request, context.caller)
        folding = fold_text_parts(context.request, route, active.limits)
        large = context.request.large
        request = await fairness.step_by_step(folding) if large else fairness.finished(folding)
        context = msgspec.structs.replace(context, request=request)
        return await self.run(context, folded=True)

    async def _run_within_limits(self, context: RequestContext) -> Embeddings:
        """Embed a request that is counted in the limits of its caller, model and gateway."""
        caller, request, trace = context.caller, context.request, context.trace
        model = context.active.selections.resolve(request, caller).public_name
        tokens = sum(estimate_sizes(request.inputs))
        limits = self.rate_limits
        admission = await limits.admit(caller.name, caller.limits, model, tokens)
        try:
            return await self.run(context, folded=True, admitted=True)
        finally:
            trace.limit_headers = await limits.leave(admission, trace.billed_tokens)

    async def _embed_with_fallback(
        self, prepared: PreparedSelection, fallback: Route, context: RequestContext
    ) -> Embeddings:
        """Embed at the ``fallback`` model if every endpoint of the requested model fails.

        An error of the request or of its input is raised at once. Of the deadline, 1/(n + 1) is
        reserved for the fallback model, where n is the number of endpoints of the first.
        """
        active = context.active
        share = active.settings.deadline / (len(prepared.route.candidates) + 1)
        first = msgspec.structs.replace(context, deadline=context.deadline - share)
        try:
            return await self._embed_adapted(prepared, first)
        except EmbedrouteError as error:
            is_final = isinstance(error, RequestError | UpstreamRejectedInput | NotCached)
            if is_final and not isinstance(error, InputFailed):
                raise
            try:
                other = active.selections.prepare_route(
                    fallback, context.request, context.caller, context.trace
                )
                context.trace.public_model = fallback.public_name
                embeddings = await self._embed_adapted(other, context)
            except EmbedrouteError:
                raise error from None
        context.trace.fallback = fallback.public_name
        return embeddings

    async def _embed_prepared(
        self, prepared: PreparedSelection, context: RequestContext
    ) -> Embeddings:
        trace = context.trace
        policy = context.cache_policy
        if trace.events is not None:
            prepared.selection.write_to_trace(trace, context.request.user)
        if context.request.large or self.shared_cache is not None:
            plan, cached = await look_up_in_tiers(context, prepared, self.cache, self.shared_cache)
        else:
            plan = make_plan(context.request.inputs, prepared.key_prefix)
            may_hit = policy.read and self.cache.size
            cached = look_up(self.cache, plan.work, prepared) if may_hit else NOTHING
        vectors = cached.vectors
        trace.record_cache(plan.keys, vectors, cached.claims, self.clock())
        if cached.claims or not policy.compute:
            self._accept_hits(plan, cached, policy, prepared)
        missing = missing_keys(plan.work, vectors) if vectors else plan.work
        if missing:
            loop = await self.runtime.get()
            dispatch = DispatchContext(
                context.request,
                prepared,
                trace,
                context.caller.name,
                plan.keys,
                context.deadline,
                context.watch,
                self._sharing.store_results if policy.store else None,
            )
            sharing_key = prepared.sharing_key if policy.read else None
            with loop.singleflight.lead(missing, sharing_key) as lead:
                if lead.work:
                    candidates = prepared.selection.candidates
                    await loop.embed(candidates, dispatch, lead.work, lead.add_results)
            vectors = {**vectors, **lead.found}
            if lead.awaited:
                vectors = {**vectors, **await self._wait_for_others(loop, lead, missing, dispatch)}
        trace.embedded_at = self.clock()
        rows, tokens, trace.estimated = assemble(plan, vectors)
        if trace.modality_tokens or context.request.kind is Kind.PARTS:
            trace.modality_tokens = sum_modalities(plan, vectors)
        return Embeddings(rows=rows, model=trace.public_model, prompt_tokens=tokens, trace=trace)

    def _accept_hits(
        self, plan: Plan, cached: Found, policy: CachePolicy, prepared: PreparedSelection
    ) -> None:
        """Make the hits the caller's own; refuse misses if they may not be computed.

        What is in the cache only because of other callers counts as a miss, as in the header.

        Raises:
            NotCached: an input is not in the cache.
        """
        missing = 0 if policy.compute else len(plan.work) - len(cached.own())
        if missing:
            raise NotCached(
                f"{missing} of {len(plan.work)} different inputs are not in the cache, and "
                "'cache-control: only-if-cached' forbids to compute them."
            )
        if cached.claims and policy.store:
            self._sharing.claim(dict(cached.claims.values()), prepared.route.public_name)

    async def _embed_adapted(
        self, prepared: PreparedSelection, context: RequestContext
    ) -> Embeddings:
        """Embed the inputs of a request, cut those that are too long, and quantise the vectors."""
        rule = prepared.selection.over_length
        if rule is not None and rule.may_apply(context.request.inputs):
            embed = partial(self._embed_parts, prepared, context)
            embeddings = await embed_parts(context.request, rule, embed)
        else:
            embeddings = await self._embed_prepared(prepared, context)
        dtype = prepared.selection.quantized
        if dtype is None:
            return embeddings
        return await quantize(embeddings, dtype, prepared.route.model.quantize_range)

    def _embed_parts(
        self, prepared: PreparedSelection, context: RequestContext, request: EmbeddingRequest
    ) -> Awaitable[Embeddings]:
        return self._embed_prepared(prepared, msgspec.structs.replace(context, request=request))

    async def _wait_for_others(
        self,
        loop: LoopRuntime,
        lead: Lead,
        missing: Mapping[CacheKey, Input],
        dispatch: DispatchContext,
    ) -> Results:
        """Return the vectors of ``missing`` that other requests compute, or compute them."""
        prepared = dispatch.prepared
        candidates = prepared.selection.candidates
        # Leaves enough time to try every endpoint after the wait.
        max_wait = (dispatch.deadline - self.clock()) / (len(candidates) + 1)
        shared, led = await loop.singleflight.follow(
            lead, missing, loop.embed, (candidates, dispatch), max_wait
        )
        if prepared.owner is not None and dispatch.store is not None and led < len(missing):
            # Another request stored these vectors. This caller's next request is a hit too.
            claims = dict.fromkeys(missing, prepared.owner)
            self._sharing.claim(claims, prepared.route.public_name)
        return shared

    async def embed_at(
        self, candidate: ResolvedEndpoint, input: Sequence[str], *, model: str
    ) -> Embeddings:
        """Embed texts at one endpoint of a model, to compare endpoints.

        Ignores the gateway's provider lists and the cache, and shares nothing with other requests.

        Raises:
            EmbedrouteError: the endpoint does not respond with valid vectors.
        """
        active = self.active
        request = make_request({"input": input, "model": model}, active.limits)
        request = msgspec.structs.replace(request, preferences=PROBING)
        route = msgspec.structs.replace(active.models.resolve(model), candidates=[candidate])
        context = RequestContext(
            active=active,
            request=request,
            caller=ANYONE,
            trace=RequestTrace(new_request_id()),
            cache_policy=NO_CACHE,
            deadline=self.clock() + active.settings.deadline,
        )
        prepared = active.selections.prepare_route(route, request, ANYONE, context.trace)
        context.trace.public_model = route.public_name
        return await self._embed_prepared(prepared, context)

    async def open(self) -> LoopRuntime:
        """Open this event loop's transport, and check that the store can be used.

        Raises:
            ConfigError: the store cannot be used.
        """
        await fairness.step_by_step(compile_patterns())
        loop = await self.runtime.get()
        if self.store is not None:
            try:
                await self.store.connect()
            except StoreError as error:
                await self.runtime.close(loop)
                raise ConfigError([f"[store] url: {error}"]) from None
        return loop

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncGenerator[None, None]:
        """Open this event loop's transport and the store, and close them on exit.

        Optional. For a host: ``FastAPI(lifespan=gateway.lifespan)``.

        Raises:
            ConfigError: the store cannot be used.
        """
        loop = await self.open()
        try:
            yield
        finally:
            await self.runtime.close(loop)


def _make_counts(
    parts: GatewayParts,
    read_state: Callable[[], GatewayState],
    registry: "CollectorRegistry | None",
) -> Counts | None:
    """Return the numbers of the metrics, if they are served or registered."""
    if registry is None and parts.settings.metrics == "off":
        return None
    return Counts(parts.models.routes, read_state)
