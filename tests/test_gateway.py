"""The journey as a whole, in process: what comes out, who may, what falls back, and what a gateway leaves behind."""

import asyncio
import gc
import threading
import weakref
from decimal import Decimal
from functools import partial

import anyio
import numpy as np
import pytest

from embedroute import Caller, Config, ConfigError, EmbedrouteError, Gateway, Provider
from embedroute.auth import ANYONE
from embedroute.backend import Accepts, Vectors
from embedroute.errors import (
    InvalidRequest,
    RateLimited,
    UpstreamAuthError,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution import make_deadline_error
from embedroute.protocol import make_request
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.trace import RequestTrace
from tests.fault_upstream import Upstream, vectors_of
from tests.support.elapsed import measured
from tests.support.wait import until, until_on_loop

WIDTH = 8
trio_too = pytest.mark.anyio


def gateway_of(backend=None, *, second=None, deadline=5.0, environ=None, **models):
    """The model "m" at ``backend``, which falls back to the model "n" at ``second``, if there is one."""
    providers = {
        "p": Provider(backend=backend or ScriptedBackend(width=WIDTH)),
        "q": Provider(backend=second or ScriptedBackend(width=WIDTH)),
    }
    own = {"dimensions": WIDTH, "matryoshka": True, "endpoints": [{"provider": "p", "price": 3}]}
    other = {"dimensions": WIDTH, "endpoints": [{"provider": "q"}]}
    table = {"m": {**own, **({"fallback": "n"} if second else {})}, "n": other, **models}
    config = Config(
        gateway={"auth": "open", "deadline": deadline}, providers=providers, models=table
    )
    return Gateway(config, retries=RetryPolicy(repeats=0, attempts=1), environ=environ or {})


def right(texts, width=WIDTH):
    return [expected_vector(text, width).tolist() for text in texts]


@trio_too
@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("text", ["text"]),
        (["text"], ["text"]),
        (["b", "a", "b"], ["b", "a", "b"]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
        (("b", np.str_("a")), ["b", "a"]),
        ([np.int64(1), 2], [(1, 2)]),
    ],
)
async def test_every_shape_of_input_comes_back_row_by_row(inputs, expected):
    answer = await gateway_of().embed(inputs, model="m")

    assert answer.vectors.dtype == np.float32
    assert answer.vectors.tolist() == right(expected)
    assert (answer.model, answer.providers) == ("m", ("p",))
    assert answer.prompt_tokens >= len(expected)


@trio_too
@pytest.mark.parametrize("then", [0.0, UpstreamUnavailable("down")])
async def test_a_suffix_sets_the_input_type_at_the_model_and_at_its_fallback(then):
    backends = ScriptedBackend(width=WIDTH, then=then), ScriptedBackend(width=WIDTH)
    gateway = gateway_of(backends[0], second=backends[1])

    answer = await gateway.embed(["a"], model="m:query:floor")

    assert answer.vectors.tolist() == [expected_vector("a", WIDTH, input_type="query").tolist()]
    assert {"query"} == {batch.input_type for backend in backends for batch in backend.batches}


@trio_too
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_type": "document"}, "input_type"),
        (
            {"embedding_options": {"google": {"task_type": "RETRIEVAL_DOCUMENT"}}},
            "embedding_options.google.task_type",
        ),
    ],
)
async def test_a_suffix_may_not_contradict_the_field(fields, param):
    with pytest.raises(InvalidRequest, match="contradicts") as refused:
        await gateway_of().embed("a", model="m:query", **fields)

    assert param == refused.value.param
    assert (await gateway_of().embed("a", model="m:query", input_type="search_query")).model == "m"


@trio_too
@pytest.mark.parametrize("name", ["m" * 513, "x" + ":floor" * 900, "m:floor" * 1_000_000])
async def test_a_model_name_over_512_characters_is_a_bad_request(name):
    with pytest.raises(InvalidRequest) as refused:
        await gateway_of().embed("a", model=name)

    assert ("model", "'model' must be at most 512 characters long.") == (
        refused.value.param,
        refused.value.message,
    )


@trio_too
async def test_fields_are_those_of_the_wire_and_so_are_refusals():
    gateway = gateway_of()

    assert (await gateway.embed("a", model="m", dimensions=4)).vectors.shape == (1, 4)
    for inputs, fields, status, param in [
        ("", {}, 400, "input"),
        (["a", ""], {}, 400, "input[1]"),
        ("a", {"dimensions": 99}, 400, "dimensions"),
        ("a", {"model": "x"}, 404, "model"),
        ("a", {"provider": {"sort": "odd"}}, 400, "provider.sort"),
        ("a", {"debug": {"wrong": 1}}, 400, "debug.wrong"),
        ({"a"}, {}, 400, "input"),
        (["a", {"b"}], {}, 400, "input[1]"),
    ]:
        with pytest.raises(EmbedrouteError) as caught:
            await gateway.embed(inputs, **{"model": "m", **fields})
        assert (caught.value.status, caught.value.param) == (status, param)
    with pytest.raises(TypeError, match="wrong"):
        await gateway.embed("a", model="m", wrong=1)


@trio_too
async def test_a_caller_uses_only_its_models():
    gateway = gateway_of()
    caller = Caller(name="c", models=frozenset({"n"}))

    assert (await gateway.embed("a", model="n", caller=caller)).model == "n"
    with pytest.raises(EmbedrouteError) as caught:
        await gateway.embed("a", model="m", caller=caller)
    assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")


@trio_too
@pytest.mark.parametrize(
    ("failure", "model"),
    [
        (UpstreamUnavailable("down"), "n"),
        (UpstreamAuthError("no"), "n"),
        (RateLimited("slow", retry_after=100), "n"),
        (UpstreamRejectedInput("odd"), None),
    ],
)
async def test_another_model_is_used_only_where_the_config_says_so_and_the_answer_then_says_so(
    failure, model
):
    gateway, trace = (
        gateway_of(ScriptedBackend(then=failure), second=ScriptedBackend(width=WIDTH)),
        RequestTrace("r"),
    )

    if model is None:
        with pytest.raises(UpstreamRejectedInput):
            await gateway.embed(["a", "b"], model="m", trace=trace)
    else:
        answer = await gateway.embed(["a", "b"], model="m", trace=trace)
        assert (answer.model, trace.fallback) == ("n", "n")
        assert answer.vectors.tolist() == right(["a", "b"])
    with pytest.raises(EmbedrouteError):
        await gateway_of(ScriptedBackend(then=failure)).embed("a", model="m")


@trio_too
@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({"provider": "p"}, None),
        ({"provider": {"allow_fallbacks": False}}, None),
        ({}, frozenset({"m"})),
        ({"provider": {"only": ["p"]}}, None),
        ({"provider": {"order": ["p"], "allow_fallbacks": False}}, None),
        ({"dimensions": 4}, None),
    ],
    ids=repr,
)
async def test_another_model_stands_in_only_where_request_and_key_allow_it(fields, may):
    """Otherwise the error is that of the first model, and not why the second one cannot be used."""
    gateway, trace = (
        gateway_of(
            ScriptedBackend(then=UpstreamUnavailable("down")), second=ScriptedBackend(width=WIDTH)
        ),
        RequestTrace("r"),
    )

    with pytest.raises(UpstreamUnavailable):
        await gateway.embed(
            "a", model="m", trace=trace, caller=Caller(name="c", models=may), **fields
        )
    assert trace.fallback is None


@trio_too
async def test_an_endpoint_that_stalls_leaves_time_for_the_other_model():
    gateway = gateway_of(
        ScriptedBackend(then=9.0), second=ScriptedBackend(width=WIDTH), deadline=1.0
    )

    assert "n" == (await gateway.embed("a", model="m")).model


@trio_too
async def test_a_failure_is_shared_only_by_equal_requests():
    """A request with other preferences calls the same endpoint again."""
    failing, outcomes = anyio.Event(), {}

    async def fails(_batch):
        await failing.wait()
        raise UpstreamUnavailable("down")

    gateway = gateway_of(ScriptedBackend(script=[fails], width=WIDTH))

    async def ask(name, **fields):
        try:
            outcomes[name] = (await gateway.embed("a", model="m", **fields)).vectors.tolist()
        except EmbedrouteError as error:
            outcomes[name] = error.status

    async with anyio.create_task_group() as group:
        for name, fields in {
            "leader": {},
            "equal": {},
            "other": {"provider": {"sort": "price"}},
        }.items():
            group.start_soon(partial(ask, name, **fields))
            await anyio.wait_all_tasks_blocked()
        failing.set()

    assert {"leader": 502, "equal": 502, "other": right("a")} == outcomes


@trio_too
@pytest.mark.parametrize(
    ("rest", "later", "reported", "calls"),
    [(1.5, 2.0, [429, 200], 2), (3.1, 0.0, [429, 429], 1), (60.0, 0.1, [429, 429], 1)],
)
async def test_a_rest_is_waited_for_by_whoever_has_the_time(rest, later, reported, calls):
    """Of the many who wait for one that has not: none takes its 429, and none adds a call to an endpoint that rests."""
    limited, statuses = anyio.Event(), {}

    async def limits(_batch):
        await limited.wait()
        raise RateLimited("slow", retry_after=rest)

    backend = ScriptedBackend(script=[limits], width=WIDTH)
    gateway = gateway_of(backend, deadline=3.0)

    async def ask(at):
        try:
            await gateway.embed("a", model="m")
            statuses[at] = 200
        except EmbedrouteError as error:
            statuses[at] = error.status

    async with anyio.create_task_group() as group:
        group.start_soon(ask, 0)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(later)
        for at in range(1, 50):
            group.start_soon(ask, at)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.05)
        limited.set()

    assert reported == [statuses.pop(0), *set(statuses.values())]
    assert calls == len(backend.batches)


@trio_too
async def test_cost_and_attempts_are_counted():
    trace = RequestTrace("r")

    answer = await gateway_of(ScriptedBackend(width=WIDTH)).embed(
        ["abcd" * 10, "abcd" * 5], model="m", trace=trace
    )

    assert (answer.prompt_tokens, trace.attempts) == (15, 1)
    assert trace.cost == Decimal(3) * 15 / 1_000_000


@trio_too
@pytest.mark.parametrize("prompt_tokens", [None, 7])
async def test_who_waits_for_anothers_vectors_is_told_who_counted_their_tokens(prompt_tokens):
    go = anyio.Event()

    async def answers(batch):
        await go.wait()
        return Vectors(
            np.stack([expected_vector(text, WIDTH) for text in batch.texts]), prompt_tokens
        )

    gateway, estimated = gateway_of(ScriptedBackend(then=answers)), []

    async def ask(**fields):
        answer = await gateway.embed(["a"], model="m", **fields)
        estimated.append(answer.trace.estimated)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
        go.set()
    await ask()
    await ask(dimensions=4)

    assert [prompt_tokens is None] * 4 == estimated


@trio_too
async def test_one_deadline_bounds_all_of_a_request_its_fallback_too():
    gateway = gateway_of(ScriptedBackend(then=9.0), second=ScriptedBackend(then=9.0), deadline=1.0)

    async with measured() as elapsed:
        with pytest.raises(EmbedrouteError) as caught:
            await gateway.embed("a", model="m")

    assert caught.value.status == 504
    assert 0.9 < elapsed.seconds
    assert elapsed.ticks < 1.5  # a deadline for each would take 2


@trio_too
async def test_an_undeclared_model_is_the_providers_own():
    backend = ScriptedBackend(width=5)

    answer = await gateway_of(backend).embed("a", model="p/some/model")

    assert (answer.model, answer.vectors.shape, backend.batches[0].model) == (
        "some/model",
        (1, 5),
        "some/model",
    )


@trio_too
async def test_an_endpoint_that_cannot_give_the_width_is_cut_here():
    class Plain(ScriptedBackend, frozen=True, kw_only=True):
        accepts = Accepts()

    answer = await gateway_of(Plain(width=WIDTH)).embed(["a"], model="m", dimensions=4)

    whole = expected_vector("a", WIDTH)[:4].astype(float)
    assert np.allclose(answer.vectors[0], whole / np.linalg.norm(whole), atol=1e-6)


# Loops and lifespans.


@pytest.fixture
def upstream():
    with Upstream(remember=False) as upstream:
        yield upstream


def far(upstream):
    providers = {"up": {"backend": "openai", "base_url": upstream.url}}
    model = {"dimensions": WIDTH, "endpoints": [{"provider": "up"}]}
    return Gateway(
        Config(
            gateway={"auth": "open"}, cache={"bytes": 0}, providers=providers, models={"m": model}
        )
    )


@pytest.mark.parametrize(
    "loops", [["asyncio"], ["trio"], ["asyncio", "asyncio"], ["asyncio", "trio", "asyncio"]]
)
@pytest.mark.parametrize("tidy", [True, False])
def test_a_gateway_lives_on_any_loops_and_leaves_no_connection(upstream, loops, tidy):
    """With its lifespan or without."""
    gateway = far(upstream)

    async def main():
        if tidy:
            async with gateway.lifespan():
                return await gateway.embed(["a", "b"], model="m")
        return await gateway.embed(["a", "b"], model="m")

    for loop in loops:
        assert (
            anyio.run(main, backend=loop).vectors.tolist() == vectors_of(["a", "b"], WIDTH).tolist()
        )

    until(lambda: not upstream.open)


def test_two_loops_in_two_threads_share_one_gateway_and_its_cache():
    backend = ScriptedBackend(width=WIDTH)
    gateway = gateway_of(backend)
    wrong: list[object] = []

    async def main():
        for at in range(300):
            texts = [f"t{at % 50}", f"t{(at * 7) % 50}"]
            if (await gateway.embed(texts, model="m")).vectors.tolist() != right(texts):
                wrong.append(texts)

    threads = [threading.Thread(target=anyio.run, args=(main,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(backend.batches) <= 150


@trio_too
async def test_after_its_lifespan_a_gateway_can_be_used_again(upstream):
    gateway = far(upstream)
    for _ in range(2):
        async with gateway.lifespan():
            await gateway.embed("a", model="m")


@trio_too
async def test_two_gateways_in_one_process_share_nothing():
    first, second = ScriptedBackend(width=WIDTH), ScriptedBackend(width=WIDTH)

    for backend in (first, second):
        await gateway_of(backend).embed("a", model="m")

    assert [1, 1] == [len(backend.batches) for backend in (first, second)]


# Making one.


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[gateway]\n", "auth is required"),
        ('[gateway]\nauth = "open"\n[providers.openai]\napi_kee = "k"\n', "api_kee"),
        ("[gateway\n", "not valid TOML"),
        ('[gateway]\nauth = "open"\n[models.m]\nendpoints = [{ provider = "absent" }]\n', "absent"),
    ],
)
def test_a_config_that_cannot_start_is_refused_by_name(tmp_path, text, named):
    path = tmp_path / "embedroute.toml"
    path.write_text(text)

    for how in ({"path": path}, {"environ": {"EMBEDROUTE_CONFIG": str(path)}}):
        with pytest.raises(ConfigError, match=named):
            Gateway.from_file(**how)


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"/no/such\.toml"):
        Gateway.from_file("/no/such.toml")


@trio_too
async def test_the_environment_alone_makes_a_gateway():
    gateway = Gateway.from_env(environ={"EMBEDROUTE_AUTH": "open"})

    assert (await gateway.embed("a", model="wordllama")).vectors.shape[1] == 256
    with pytest.raises(ConfigError, match="EMBEDROUTE_AUTH"):
        Gateway.from_env(environ={})


@trio_too
async def test_an_endpoint_that_is_well_is_asked_though_an_equal_input_is_stuck_at_another():
    """The one that is stuck has the whole deadline; who does not ask its endpoint must not lose its own time to it."""
    stuck, outcomes = ScriptedBackend(then=60.0, width=WIDTH), {}
    both = {"dimensions": WIDTH, "endpoints": [{"provider": "p"}, {"provider": "q"}]}
    gateway = gateway_of(stuck, deadline=2.0, both=both)

    async def ask(provider):
        try:
            answer = await gateway.embed("a", model="both", provider={"only": [provider]})
            outcomes[provider] = answer.vectors.tolist()
        except EmbedrouteError as error:
            outcomes[provider] = error.status

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "p")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask, "q")
        await until_on_loop(lambda: outcomes)
        assert {"q": right("a")} == outcomes

    assert outcomes["p"] == 504


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("fields", [{}, {"provider": {"only": ["unknown"]}}])
async def test_a_failed_task_is_freed_with_its_frames(anyio_backend, fields):
    """Its frames hold the inputs, and the watch of its request knows the task."""
    del anyio_backend

    def fail(_batch):
        raise UpstreamTimeout("slow")

    gateway = gateway_of(ScriptedBackend(then=fail, width=8))
    tasks = [asyncio.create_task(gateway.embed("a", model="m", **fields)) for _ in range(5)]
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(failure, EmbedrouteError) for failure in failures)
    alive = [weakref.ref(task) for task in tasks]

    del tasks, failures
    await asyncio.sleep(0)
    gc.collect()

    assert [task() for task in alive] == [None] * 5


def test_a_caller_named_anyone_is_not_the_caller_of_an_open_gateway():
    """ANYONE sees every cache hit. A key of the same name sees its own."""
    gateway = gateway_of(ScriptedBackend(width=8))
    request = make_request({"input": "a", "model": "m"}, gateway.active.limits)
    ours = gateway.active.selections.prepare(request, ANYONE)
    theirs = gateway.active.selections.prepare(request, Caller(name="anyone"))

    assert ours.owner is None
    assert theirs.owner is not None
    assert gateway.active.selections.prepare(request, ANYONE) is ours


@pytest.mark.parametrize(
    ("failures", "timed_out", "ending"),
    [
        ((), "", "0.5 s."),
        ((("a", 500),), "", "0.5 s."),
        ((("a", 429), ("b", None)), "", "0.5 s."),
        ((("a", None),), "a", "0.5 s: the provider a timed out."),
        ((("a", None), ("b", 500)), "a", "0.5 s: the provider a timed out."),
    ],
    ids=["no call", "a 500", "a 429 and a reset", "a timeout", "a timeout and a 500"],
)
def test_the_error_of_the_deadline_blames_only_a_provider_that_timed_out(
    failures, timed_out, ending
):
    trace = RequestTrace("req_1", failures=failures, timed_out=timed_out)

    error = make_deadline_error(0.5, trace, 0.0)

    assert error.message == f"No response within the deadline of {ending}"
