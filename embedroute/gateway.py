"""The journey: one request from a model name and inputs to vectors, top to bottom; all state of a gateway hangs here.

``Gateway.embed`` reads as the life of a request: resolve, select, plan, look up, share, call, assemble. What each
stage decides is on the floors below; what goes over the wire is the doors' affair.
"""

import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import anyio
import httpx2
import msgspec

from embedroute.access import ANYONE, Caller, KeyRing
from embedroute.cache.memory import MemoryCache
from embedroute.calls import Desk, Healths, Land, Order
from embedroute.config import STATE_AUTH, Config, environment_config, read_config
from embedroute.errors import ConfigError, DeadlineExceeded, EmbedrouteError, InputRefused, PermissionDenied, Refusal, echo
from embedroute.exchange import LocalModels
from embedroute.flights import Flights, Work
from embedroute.http.httpx2_engine import Httpx2Engine
from embedroute.journal import Journal
from embedroute.models import catalogue, known_providers
from embedroute.perloop import PerLoop
from embedroute.plugins import build_backends
from embedroute.routing.directory import Directory, Route, build_directory
from embedroute.routing.health import BreakerPolicy
from embedroute.routing.plan import Embedded, Key, assemble, make_plan, prefix
from embedroute.routing.retry import RetryBudget, RetryPolicy
from embedroute.routing.select import Parameters, Selection, Surroundings, select
from embedroute.wire.decode import Job, Limits, make_request
from embedroute.wire.responses import Embeddings

log = logging.getLogger("embedroute")


class _Loop(msgspec.Struct, frozen=True):
    desk: Desk
    flights: Flights


class Gateway:
    """Models, providers and everything that a request meets on its way; mount it with ``embeddings_app``.

    Several gateways live side by side in one process, each on any number of event loops.

    Raises:
        ConfigError: the config has mistakes, one line each.
    """

    def __init__(
        self,
        config: Config,
        *,
        http_client: httpx2.AsyncClient | None = None,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        breaker: BreakerPolicy = BreakerPolicy(),  # noqa: B008 - frozen
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Build everything that can be built without an event loop; open nothing.

        ``http_client`` replaces the engine's own client, and stays the caller's to close.
        """
        self.config = config
        self.settings = config.gateway
        self.limits = Limits(
            max_inputs=self.settings.max_inputs,
            media_domains=frozenset(domain.lower() for domain in self.settings.media_domains),
            ignore_unknown=self.settings.unknown_fields == "ignore",
        )
        self.keys = _key_ring(config)
        backends = build_backends(config, known_providers(), environ)
        self.directory: Directory = build_directory(config, backends, catalogue(), known_providers())
        self.healths = Healths(breaker)
        self.cache = MemoryCache(config.cache.bytes, config.cache.ttl, time.monotonic)
        self._local = LocalModels()
        self._budget = RetryBudget()
        self._retries = retries
        self._client = http_client
        self._loop = PerLoop("embedroute", self._open)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str] | None = None, **parts: Any) -> Self:
        """Read the config from ``path``, or from the file that ``EMBEDROUTE_CONFIG`` names.

        Raises:
            ConfigError: there is no such file, or it has mistakes.
        """
        environ = parts.get("environ", os.environ)
        named = path or environ.get("EMBEDROUTE_CONFIG") or "embedroute.toml"
        try:
            text = Path(named).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"The config {named} cannot be read: {error}"]) from None
        return cls(read_config(text, environ), **parts)

    @classmethod
    def from_env(cls, **parts: Any) -> Self:
        """Turn on every provider whose key variable is set, and the local model if it is installed.

        Raises:
            ConfigError: ``EMBEDROUTE_AUTH`` does not state who may call.
        """
        return cls(environment_config(parts.get("environ", os.environ), local=find_spec("wordllama") is not None), **parts)

    async def embed(
        self,
        input: Job | str | Sequence[Any],
        *,
        model: str = "",
        caller: Caller = ANYONE,
        journal: Journal | None = None,
        **fields: Any,
    ) -> Embeddings:
        """Embed ``input``, of any shape and with any ``fields`` that ``POST /v1/embeddings`` takes.

        Raises:
            EmbedrouteError: what a client would be told, with ``status``, ``type``, ``code`` and ``param``.
        """
        job = input if isinstance(input, Job) else make_request({"input": input, "model": model, **fields}, self.limits)
        journal = journal or Journal(new_request_id())
        route = self.resolve(job, caller)
        try:
            with anyio.fail_after(self.settings.deadline):
                return await self._embed_or_fall_back(route, job, caller, journal)
        except TimeoutError:
            raise DeadlineExceeded(f"No answer within the deadline of {self.settings.deadline:g} s.") from None

    async def _embed_or_fall_back(self, route: Route, job: Job, caller: Caller, journal: Journal) -> Embeddings:
        try:
            return await self._embed(route, job, caller, journal)
        except (Refusal, InputRefused):
            raise
        except EmbedrouteError:
            if route.model.fallback is None:
                raise
            journal.fallback = route.model.fallback
            return await self._embed(self.directory.resolve(route.model.fallback), job, caller, journal)

    async def _embed(self, route: Route, job: Job, caller: Caller, journal: Journal) -> Embeddings:
        selection = self.select(route, job, caller)
        plan = make_plan(job.inputs, shared_key(route, selection.parameters, job, caller))
        found = self.cache.look_up(plan.work)
        missing = {key: item for key, item in plan.work.items() if key not in found}
        if missing:
            loop = await self._loop.get()
            compute = partial(self._compute, loop.desk, route, selection, job, journal)
            computed, journal.misses = await loop.flights.share(missing, _terms(selection), compute)
            found |= computed
        journal.hits = len(plan.work) - journal.misses
        array, tokens = assemble(plan, found)
        return Embeddings(vectors=array, model=route.public, prompt_tokens=tokens, journal=journal)

    def resolve(self, job: Job, caller: Caller) -> Route:
        """Find the model that a job names.

        Raises:
            ModelNotFound: nobody knows it.
            PermissionDenied: this caller may not use it, or may not debug.
        """
        route = self.directory.resolve(job.model, job.hint)
        if caller.models is not None and route.name not in caller.models:
            raise PermissionDenied(
                f"This key may not use the model {echo(job.model)}.", param="model", code="model_not_allowed"
            )
        if job.debug.flagged() and not self.may_debug(caller):
            raise PermissionDenied("This key may not use 'debug'; leave it out.", param="debug", code="debug_not_allowed")
        return route

    def may_debug(self, caller: Caller) -> bool:
        """Whether a caller may see traces and upstream bodies."""
        return self.settings.debug if caller.debug is None else caller.debug

    def select(self, route: Route, job: Job, caller: Caller) -> Selection:
        """Filter and order the endpoints for one job, as of now."""
        around = Surroundings(
            only=self.settings.only,
            ignore=self.settings.ignore,
            known_names=self.directory.known_names,
            health=self.healths.of,
            now=time.monotonic(),
            random=random.random,
        )
        return select(route, job, caller, around)

    async def _compute(
        self, desk: Desk, route: Route, selection: Selection, job: Job, journal: Journal, work: Work, land: Land
    ) -> None:
        def store_and_land(landed: Mapping[Key, Embedded]) -> None:
            self.cache.store(landed)
            land(landed)

        order = Order(
            model=route.model,
            parameters=selection.parameters,
            kind=job.kind,
            user=job.user,
            deadline=time.monotonic() + self.settings.deadline,
            journal=journal,
            land=store_and_land,
        )
        await desk.embed(work, selection.candidates, order)

    def _open(self, stack: AsyncExitStack) -> _Loop:
        engine = Httpx2Engine(self._client)
        stack.push_async_callback(engine.aclose)
        desk = Desk(
            engine=engine,
            local=self._local,
            healths=self.healths,
            budget=self._budget,
            policy=self._retries,
            clock=time.monotonic,
            random=random.random,
        )
        return _Loop(desk, Flights())

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:
        """Close this loop's connections on the way out; for ``FastAPI(lifespan=gateway.lifespan)``, and optional."""
        del app
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._loop.close()


def _key_ring(config: Config) -> KeyRing:
    settings = config.gateway
    if settings.auth is None:
        raise ConfigError([STATE_AUTH])
    if settings.auth == "keys" and not config.keys:
        raise ConfigError(['[gateway] auth = "keys" needs at least one [keys.NAME] table with key = "env:VARIABLE".'])
    return KeyRing(config.keys)


def shared_key(route: Route, parameters: Parameters, job: Job, caller: Caller) -> bytes:
    """What all keys of a request share: who may see its vectors, and all that makes them what they are but the input."""
    wishes = job.preferences
    policy = f"{wishes.data_collection == 'deny'}{bool(wishes.zdr)}"
    width = str(parameters.width or "")
    return prefix(
        caller.namespace, policy, route.name, width, parameters.dtype, parameters.input_type or "", parameters.title or ""
    )


def _terms(selection: Selection) -> tuple[str, ...]:
    return tuple(sorted(candidate.name for candidate in selection.candidates))


def new_request_id() -> str:
    """Make the id of a request whose client sent none."""
    return f"req_{uuid4().hex}"
