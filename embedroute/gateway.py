"""The journey: one request from a model name and inputs to vectors, top to bottom; all state of a gateway hangs here.

``Gateway.embed`` reads as the life of a request: resolve, select, plan, look up, share, call, assemble. What each
stage decides is on the floors below; what goes over the wire is the doors' affair.
"""

import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack

import msgspec

from embedroute import tasks, turns
from embedroute.access import ANYONE, Caller, permit
from embedroute.admission import BodyBudget
from embedroute.assembly import Opener, Options, around_of, assembled, config_from_environment, config_from_file, frameless
from embedroute.cache import FULL_USE, PROBE, CacheUse
from embedroute.cache.lookup import NOTHING, Found, look_up, look_up_in_steps
from embedroute.cache.memory import MemoryCache
from embedroute.config import Config
from embedroute.errors import DeadlineExceeded, EmbedrouteError, InputRefused, InvalidRequest, NoEligibleProvider, Refusal
from embedroute.flights import without
from embedroute.journal import Journal, new_request_id
from embedroute.orders import Asked, order_of, terms_of
from embedroute.perloop import PerLoop
from embedroute.routing.directory import Candidate, Route
from embedroute.routing.health import BreakerPolicy, Healths
from embedroute.routing.memo import PROBING, Decision, Decisions
from embedroute.routing.plan import Plan, assemble, make_plan, make_plan_in_steps
from embedroute.routing.retry import RetryPolicy
from embedroute.wire.decode import Job, make_request
from embedroute.wire.responses import Embeddings

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
        retries: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Build everything that can be built without an event loop; open nothing.

        ``http_client`` replaces the engine's own client, and stays the caller's to close.

        Raises:
            ConfigError: the config has mistakes, one line each.
        """
        parts = assembled(config, environ)
        self.settings = parts.settings
        self.limits = parts.limits
        self.keys = parts.keys
        self.bodies = BodyBudget.of(self.settings)
        self.directory = parts.directory
        self.healths = Healths(breaker or BreakerPolicy())
        self.cache = MemoryCache(config.cache.bytes, config.cache.ttl, time.monotonic)
        self._store = self.cache.store
        around = around_of(parts, self.healths)
        self.decisions = Decisions(self.directory.routes, around, shared_cache=config.cache.shared)
        opener = Opener(self.settings, http_client, self.healths, retries or RetryPolicy())
        self.runtime = PerLoop("embedroute", opener.open)

    @classmethod
    @frameless
    def from_file(cls, path: str | os.PathLike[str] | None = None, **parts: Unpack[Options]) -> Self:
        """Read ``path``, or the file that ``EMBEDROUTE_CONFIG`` names.

        Raises:
            ConfigError: there is no such file, or it has mistakes.
        """
        return cls(config_from_file(path, parts.get("environ", os.environ)), **parts)

    @classmethod
    @frameless
    def from_env(cls, **parts: Unpack[Options]) -> Self:
        """Turn on every provider whose key variable is set, and the local model if it is installed.

        Raises:
            ConfigError: ``EMBEDROUTE_AUTH`` does not state who may call.
        """
        return cls(config_from_environment(parts.get("environ", os.environ)), **parts)

    async def embed(
        self,
        input: Job | str | Sequence[object],
        *,
        model: str = "",
        caller: Caller = ANYONE,
        journal: Journal | None = None,
        cached: CacheUse = FULL_USE,
        **fields: object,
    ) -> Embeddings:
        """Embed ``input``, of any shape and with any ``fields`` that ``POST /v1/embeddings`` takes.

        Raises:
            EmbedrouteError: what a client would be told, with ``status``, ``type``, ``code`` and ``param``.
        """
        job = input if isinstance(input, Job) else make_request({"input": input, "model": model, **fields}, self.limits)
        deadline = time.monotonic() + self.settings.deadline
        asked = Asked(job=job, caller=caller, journal=journal or Journal(new_request_id()), cached=cached, deadline=deadline)
        route = self.resolve(job, caller)
        other = self._fallback_of(route, asked)
        work = self._embed(route, asked) if other is None else self._embed_or_fall_back(route, other, asked)
        try:
            with tasks.within(self.settings.deadline):
                return await work
        except TimeoutError:
            raise DeadlineExceeded(f"No answer within the deadline of {self.settings.deadline:g} s.") from None

    def _fallback_of(self, route: Route, asked: Asked) -> Route | None:
        """Find the model that may stand in for a route's: config names it, and neither request nor key forbids it."""
        name, job, allowed = route.model.fallback, asked.job, asked.caller.models
        if name is None or job.hint is not None or job.preferences.allow_fallbacks is False:
            return None
        other = self.directory.resolve(name)
        if allowed is not None and other.name not in allowed:
            return None
        # An input type changes the vector, whichever way it was asked for.
        return msgspec.structs.replace(other, input_type=route.input_type) if route.input_type else other

    async def _embed_or_fall_back(self, route: Route, other: Route, asked: Asked) -> Embeddings:
        """One request, at another model if all of the first's endpoints fail; each endpoint has its share of the time."""
        share = self.settings.deadline / (len(route.candidates) + 1)
        try:
            return await self._embed(route, msgspec.structs.replace(asked, deadline=asked.deadline - share))
        except (Refusal, InputRefused):
            raise
        except EmbedrouteError as failure:
            try:
                answer = await self._embed(other, asked)
            except EmbedrouteError:
                raise failure from None
            asked.journal.fallback = other.public
            return answer

    async def _embed(self, route: Route, asked: Asked) -> Embeddings:
        """One request, from a model's route to vectors."""
        journal, decision = asked.journal, self.decisions.decide(route, asked.job, asked.caller, asked.journal)
        decision.selection.tell(journal, asked.job.user)
        caller = asked.caller
        owner = None if caller is ANYONE else hash(caller.name)  # as owner_of, without a call
        cached = asked.cached
        if asked.job.large:
            plan, held = await self._look_up_large(asked, decision, owner)
        else:
            plan = make_plan(asked.job.inputs, decision.shared)
            held = look_up(self.cache, plan.work, decision, owner) if cached.read else NOTHING
        found = held.vectors
        journal.looked_up(plan.keys, found, held.claims)
        if held.claims and cached.store:
            self.cache.claim(dict(held.claims.values()))
        missing = without(plan.work, found)
        if missing:
            store = self._store if owner is None else partial(self._store, owner=owner)
            loop, order = await self.runtime.get(), order_of(asked, route, decision, store)
            terms, candidates = terms_of(asked, route, decision), decision.selection.candidates
            patience = (asked.deadline - time.monotonic()) / (len(candidates) + 1)
            given = (candidates, order)
            landed, led = await loop.flights.share(missing, terms, loop.embed, given, patience)
            if owner is not None and cached.store and led < len(missing):
                self.cache.claim(dict.fromkeys(missing, owner))  # it waited for others, who stored
            found = {**found, **landed}
        rows, tokens, journal.estimated = assemble(plan, found)
        return Embeddings(rows=rows, model=route.public, prompt_tokens=tokens, journal=journal)

    async def _look_up_large(self, asked: Asked, decision: Decision, owner: int | None) -> tuple[Plan, Found]:
        """Plan a large request and look it up, in steps that let the event loop go on."""
        plan = await turns.step_by_step(make_plan_in_steps(asked.job.inputs, decision.shared))
        if not asked.cached.read:
            return plan, NOTHING
        steps = look_up_in_steps(self.cache, plan.work, decision, owner)
        return plan, await turns.step_by_step(steps)

    def resolve(self, job: Job, caller: Caller) -> Route:
        """Find the model that a job names.

        Raises:
            ModelNotFound: nobody knows it.
            PermissionDenied: this caller may not use it, or may not debug.
        """
        try:
            route = self.directory.resolve(job.model, job.hint)
        except (InvalidRequest, NoEligibleProvider):
            # What is wrong with a hint is told after what is wrong with the model, and with debug.
            permit(caller, self.directory.resolve(job.model).name, job, debug=self.settings.debug)
            raise
        permit(caller, route.name, job, debug=self.settings.debug)
        return route

    def may_debug(self, caller: Caller) -> bool:
        """Whether a caller may see traces and upstream bodies."""
        return caller.may_debug(otherwise=self.settings.debug)

    async def embed_at(self, candidate: Candidate, input: Sequence[str], *, model: str) -> Embeddings:
        """Embed texts at one endpoint of a model, past lists, the cache and other requests: so endpoints are compared.

        Raises:
            EmbedrouteError: the endpoint does not answer.
        """
        job = msgspec.structs.replace(make_request({"input": input, "model": model}, self.limits), preferences=PROBING)
        route = msgspec.structs.replace(self.directory.resolve(model), candidates=[candidate])
        deadline = time.monotonic() + self.settings.deadline
        asked = Asked(job=job, caller=ANYONE, journal=Journal(new_request_id()), cached=PROBE, deadline=deadline)
        return await self._embed(route, asked)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncGenerator[None, None]:
        """Open this loop's engine, and close it on the way out; for ``FastAPI(lifespan=gateway.lifespan)``, and optional."""
        loop = await self.runtime.get()
        try:
            yield
        finally:
            await self.runtime.close(loop)
