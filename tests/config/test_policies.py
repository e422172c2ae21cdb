"""The tables of retries, breakers and concurrency: what they set, for which endpoints, and what follows."""

import anyio
import numpy as np
import pytest
from msgspec.structs import asdict

from embedroute import (
    BreakerPolicy,
    Config,
    ConfigError,
    EmbedrouteError,
    Endpoint,
    Gateway,
    Model,
    Provider,
    RetryPolicy,
    Settings,
)
from embedroute.backend import Vectors
from embedroute.errors import RateLimited, UpstreamAuthError, UpstreamUnavailable
from embedroute.testing import ScriptedBackend, expected_vector

pytestmark = pytest.mark.anyio

DOWN = UpstreamUnavailable("down", upstream_status=503)
QUICK = {"first_wait": 0.001, "longest_wait": 0.002}

TABLES = """
[gateway]
auth = "open"
max_concurrent = 3

[gateway.retries]
attempts = 3
first_wait = 1

[gateway.breaker]
failures = 7
failure_rate = 1

[providers.a]
backend = "hashed"
max_concurrent = 5

[providers.a.retries]
attempts = 4
repeats = 0

[providers.a.breaker]
failures = 8

[providers.b]
backend = "hashed"
breaker = { initial_cooldown = 60, longest_cooldown = 60 }

[providers.c]
backend = "hashed"

[models.m]
endpoints = [{ provider = "a", max_concurrent = 6 }, { provider = "b" }, { provider = "c" }]
"""


def gateway_of(*backends, settings=None, providers=({}, {}), **arguments):
    """One endpoint for each backend, tried in this order."""
    names = "ab"[: len(backends)]
    config = Config(
        gateway=Settings(auth="open", **settings or {}),
        cache={"bytes": 0},
        providers={
            name: Provider(backend=backend, **provider)
            for name, backend, provider in zip(names, backends, providers, strict=False)
        },
        models={"m": Model(endpoints=[Endpoint(provider=name) for name in names])},
    )
    return Gateway(config, **arguments)


async def status_of(gateway, text="text"):
    try:
        await gateway.embed(text, model="m", provider={"order": ["a"]})
    except EmbedrouteError as error:
        return error.status
    return 200


def changed(policy):
    """The fields of a policy that are not the defaults."""
    defaults = asdict(type(policy)())
    return {name: value for name, value in asdict(policy).items() if value != defaults[name]}


def endpoints_of(gateway):
    """The endpoints of the model, and those of the providers for models that are not declared."""
    declared = gateway.models.resolve("m").candidates
    undeclared = [gateway.models.resolve(f"{name}/x").candidates[0] for name in "abc"]
    return [*declared, *undeclared]


def test_a_provider_replaces_only_the_fields_that_it_sets(tmp_path):
    path = tmp_path / "gateway.toml"
    path.write_text(TABLES, encoding="utf-8")

    endpoints = endpoints_of(Gateway.from_file(path, environ={}))

    retries = [
        {"attempts": 4, "repeats": 0, "first_wait": 1.0},
        *2 * [{"attempts": 3, "first_wait": 1.0}],
    ]
    gateway = {"failures": 7, "failure_rate": 1.0}
    breakers = [
        {**gateway, "failures": 8},
        {**gateway, "initial_cooldown": 60.0, "longest_cooldown": 60.0},
        gateway,
    ]
    assert 2 * retries == [changed(endpoint.retries) for endpoint in endpoints]
    assert 2 * breakers == [changed(endpoint.breaker) for endpoint in endpoints]
    assert [6, 3, 3, 5, 3, 3] == [endpoint.max_concurrent for endpoint in endpoints]


def test_arguments_replace_the_tables_of_the_gateway_and_of_providers(tmp_path):
    path = tmp_path / "gateway.toml"
    path.write_text(TABLES, encoding="utf-8")
    retries = RetryPolicy(attempts=9)
    breaker = BreakerPolicy(slow_start=1)

    endpoints = endpoints_of(Gateway.from_file(path, retries=retries, breaker=breaker, environ={}))

    assert {(retries, breaker)} == {(endpoint.retries, endpoint.breaker) for endpoint in endpoints}


def test_without_tables_the_policies_are_the_defaults():
    gateway = gateway_of(ScriptedBackend())

    (endpoint,) = gateway.models.resolve("m").candidates
    assert (RetryPolicy(), BreakerPolicy(), None) == (
        endpoint.retries,
        endpoint.breaker,
        endpoint.max_concurrent,
    )


@pytest.mark.parametrize(
    ("settings", "providers", "calls"),
    [
        ({"attempts": 1, "repeats": 0}, ({}, {}), [1, 1]),
        ({"attempts": 3, "repeats": 0}, ({}, {}), [3, 3]),
        ({"attempts": 3, "repeats": 0}, ({"attempts": 1}, {}), [1, 3]),
        ({"attempts": 1, "repeats": 0}, ({}, {"attempts": 4}), [1, 4]),
        ({"attempts": 1, "repeats": 2}, ({}, {}), [3, 1]),
        ({"attempts": 1, "repeats": 0}, ({}, {"repeats": 3}), [1, 4]),
        ({"attempts": 1, "repeats": 3}, ({"repeats": 0}, {"repeats": 0}), [1, 1]),
    ],
)
async def test_each_provider_gets_its_attempts_and_repeats(settings, providers, calls):
    backends = [ScriptedBackend(then=DOWN), ScriptedBackend(then=DOWN)]
    gateway = gateway_of(
        *backends,
        settings={"retries": RetryPolicy(**QUICK, **settings)},
        providers=[{"retries": retries} for retries in providers],
    )

    assert 502 == await status_of(gateway)

    assert calls == [len(backend.batches) for backend in backends]


@pytest.mark.parametrize(
    ("retries", "retry_after", "called"),
    [
        ({}, None, 4),
        ({}, 0.02, 4),
        ({"longest_wait": 0.01}, 0.02, 1),
        ({"attempts": 1, "longest_wait": 0.01}, 0.02, 1),
        ({"first_wait": 86_400.0, "longest_wait": 86_400.0}, None, 1),
    ],
)
async def test_a_call_is_repeated_only_within_the_waits_of_its_provider(
    retries, retry_after, called
):
    """The last wait is random, and ends before the deadline once in 100,000 times."""
    only = ScriptedBackend(then=UpstreamUnavailable("down", retry_after=retry_after))
    gateway = gateway_of(
        only,
        settings={"retries": RetryPolicy(repeats=2, first_wait=0.001), "deadline": 1.0},
        providers=[{"retries": retries}],
    )

    assert 502 == await status_of(gateway)

    assert called == len(only.batches)


@pytest.mark.parametrize(
    ("breaker", "override", "called"),
    [
        ({"minimum_calls": 1}, {}, 1),
        ({"minimum_calls": 3}, {}, 3),
        ({"minimum_calls": 3}, {"minimum_calls": 2}, 2),
        ({"minimum_calls": 1}, {"failures": 1}, 1),
    ],
)
async def test_a_breaker_opens_as_its_tables_say(breaker, override, called):
    only = ScriptedBackend(then=DOWN)
    gateway = gateway_of(
        only,
        settings={
            "retries": RetryPolicy(attempts=1, repeats=0),
            "breaker": BreakerPolicy(initial_cooldown=60.0, longest_cooldown=60.0, **breaker),
        },
        providers=[{"breaker": override}],
    )

    statuses = [await status_of(gateway) for _ in range(5)]

    assert called * [502] + (5 - called) * [503] == statuses
    assert called == len(only.batches)


async def test_a_rejected_key_rests_as_long_as_the_provider_says():
    first = ScriptedBackend(script=[UpstreamAuthError("no")])
    gateway = gateway_of(
        first,
        settings={"breaker": BreakerPolicy()},
        providers=[{"breaker": {"rejection_cooldown": 0.05}}],
    )

    assert [502, 502] == [await status_of(gateway) for _ in range(2)]
    await anyio.sleep(0.06)
    assert 200 == await status_of(gateway)


@pytest.mark.parametrize("arguments", [{}, {"retries": RetryPolicy(attempts=1)}])
async def test_the_wait_for_rate_limits_is_that_of_the_gateway(arguments):
    """Also if the retries are an argument."""
    only = ScriptedBackend(script=[RateLimited("slow down", retry_after=0.3)])
    gateway = gateway_of(only, settings={"rate_limit_wait": 0.1}, **arguments)

    assert [429, 1] == [await status_of(gateway), len(only.batches)]


@pytest.mark.parametrize(
    ("most", "provider", "at_once"), [(2, {}, 2), (2, {"max_concurrent": 3}, 3)]
)
async def test_no_more_calls_are_in_flight_than_the_tables_allow(most, provider, at_once):
    in_flight = [0]

    async def respond(batch):
        in_flight.append(in_flight[-1] + 1)
        await anyio.sleep(0.01)
        in_flight.append(in_flight[-1] - 1)
        return Vectors(np.array([expected_vector(text) for text in batch.texts]))

    gateway = gateway_of(
        ScriptedBackend(then=respond), settings={"max_concurrent": most}, providers=[provider]
    )
    async with anyio.create_task_group() as group:
        for at in range(12):
            group.start_soon(status_of, gateway, f"text {at}")

    assert at_once == max(in_flight)


@pytest.mark.parametrize(
    "tables",
    [
        {"gateway": Settings(retries=RetryPolicy(attempts=0))},
        {"gateway": {"breaker": {"failures": "5"}}},
        {"providers": {"hashed": Provider(breaker={"failures": 0})}},
        {"providers": {"hashed": {"retries": RetryPolicy(first_wait=0.0)}}},
    ],
)
def test_tables_made_in_python_are_checked_too(tables):
    with pytest.raises(ConfigError):
        Config(**tables)


def test_a_whole_policy_can_be_that_of_a_provider():
    gateway = gateway_of(
        ScriptedBackend(),
        settings={"retries": RetryPolicy(attempts=5)},
        providers=[{"retries": RetryPolicy(repeats=1)}],
    )

    assert RetryPolicy(repeats=1) == gateway.models.resolve("m").candidates[0].retries
