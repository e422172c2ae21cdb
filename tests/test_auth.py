"""Tests how the caller is identified: by the ``Authorization`` header, or by the host."""

# Functions for authenticate= take the scope even if they do not use it.
# ruff: noqa: ARG001, ARG002

import gc
import json
import logging
from functools import partial
from types import SimpleNamespace

import pytest
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

from embedroute import Config, ConfigError, EmbeddingsMiddleware, Gateway, Provider, embeddings_app
from embedroute.auth import ANYONE, LONGEST_KEY, ApiKeys, Caller, bearer_token, cache_scope
from embedroute.backend import Secret
from embedroute.config import ApiKey, RateLimits
from embedroute.errors import PermissionDenied, Unauthorized
from embedroute.fastapi import embeddings_router
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

KEY = "sk-er-0123456789abcdef"
LONGEST = "k" * LONGEST_KEY
API_KEYS = ApiKeys(
    {
        "plain": ApiKey(key=Secret(KEY)),
        "longest": ApiKey(key=Secret(LONGEST)),
        "limited": ApiKey(
            key=Secret("sk-limited"),
            models=["m"],
            debug=False,
            only=["a"],
            ignore=["b"],
            namespace="team",
        ),
    }
)


def encode(*values):
    return [value.encode() for value in values]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (f"Bearer {KEY}", "plain"),
        (f"bearer {KEY}", "plain"),
        (f"BEARER {KEY}", "plain"),
        (f"bEaReR   {KEY}", "plain"),
        (f"Bearer {LONGEST}", "longest"),
        ("Bearer sk-limited", "limited"),
    ],
)
def test_a_key_identifies_its_caller(value, name):
    assert name == API_KEYS.authenticate(encode(value)).name


MALFORMED = "An API key is required; send one header 'Authorization: Bearer KEY'."
UNKNOWN = "Incorrect API key provided; check the Authorization header."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), MALFORMED),
        (("",), MALFORMED),
        (("Bearer",), MALFORMED),
        (("Bearer ",), MALFORMED),
        ((KEY,), MALFORMED),
        ((f"Bearer{KEY}",), MALFORMED),
        ((f"Bearer\t{KEY}",), MALFORMED),
        ((f" Bearer {KEY}",), MALFORMED),
        ((f"Bearer {KEY} ",), MALFORMED),
        ((f"Bearer {KEY}\n",), MALFORMED),
        ((f"Bearer {KEY} x",), MALFORMED),
        ((f"Bearer {KEY},Bearer {KEY}",), MALFORMED),
        ((f"Token {KEY}",), MALFORMED),
        ((f"Basic {KEY}",), MALFORMED),
        (("Bearer \U0001f600",), MALFORMED),
        (("Bearer a\0b",), MALFORMED),
        ((f"Bearer {LONGEST}k",), MALFORMED),
        (("Bearer " + "k" * 100_000,), MALFORMED),
        ((f"Bearer {KEY}", "Bearer bad"), MALFORMED),
        (("Bearer bad", f"Bearer {KEY}"), MALFORMED),
        ((f"Bearer {KEY}", f"Bearer {KEY}"), MALFORMED),
        (("Bearer null",), UNKNOWN),
        ((f"Bearer {KEY[:-1]}",), UNKNOWN),
        ((f"Bearer {KEY}0",), UNKNOWN),
        ((f"Bearer {KEY.upper()}",), UNKNOWN),
        (("Bearer plain",), UNKNOWN),
    ],
)
def test_malformed_and_unknown_credentials_are_rejected(values, message):
    """Two valid headers are rejected too, because proxies differ in which one they use."""
    with pytest.raises(Unauthorized) as caught:
        API_KEYS.authenticate(encode(*values))

    assert message == caught.value.message
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_a_caller_has_the_permissions_of_its_table():
    expected = Caller(
        name="limited",
        models=frozenset({"m"}),
        debug=False,
        only=("a",),
        ignore=("b",),
        namespace="team",
    )

    assert expected == API_KEYS.authenticate(encode("Bearer sk-limited"))
    assert Caller(name="plain") == API_KEYS.authenticate(encode(f"Bearer {KEY}"))


def test_bearer_token_returns_the_token_unchanged():
    assert bearer_token(encode("Bearer a.b-c~+/=")) == b"a.b-c~+/="


def test_api_keys_are_stored_only_as_digests():
    """No attribute contains a key, and two instances have different digests."""
    api_keys = ApiKeys({"plain": ApiKey(key=Secret(KEY))})
    stored = repr(vars(api_keys)) + repr(gc.get_referents(api_keys))

    assert KEY not in stored
    assert KEY.encode() not in b"".join(api_keys._callers)
    assert not set(api_keys._callers) & set(API_KEYS._callers)


def test_without_configured_keys_every_key_is_rejected():
    with pytest.raises(Unauthorized):
        ApiKeys({}).authenticate(encode(f"Bearer {KEY}"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, (), ())),
        (
            {"models": ["m", "n"], "only": ["a"], "ignore": ["b"]},
            (frozenset({"m", "n"}), ("a",), ("b",)),
        ),
        (
            {"models": {"m"}, "only": {"a"}, "ignore": frozenset({"b"})},
            (frozenset({"m"}), ("a",), ("b",)),
        ),
        ({"models": ("m",), "only": (name for name in "ab")}, (frozenset({"m"}), ("a", "b"), ())),
        ({"models": [], "only": []}, (frozenset(), (), ())),
    ],
)
def test_a_caller_accepts_any_collection_of_names(fields, expected):
    caller = Caller(name="c", **fields)

    assert expected == (caller.models, caller.only, caller.ignore)
    assert hash(caller) == hash(
        Caller(name="c", models=expected[0], only=expected[1], ignore=expected[2])
    )


@pytest.mark.parametrize("field", ["models", "only", "ignore"])
@pytest.mark.parametrize("names", ["openai", 5, [1], [None], b"ab", True])
def test_a_caller_rejects_a_field_that_is_not_a_collection_of_names(field, names):
    """A string is iterable, so its letters would be taken for names."""
    with pytest.raises(TypeError, match=rf"^Caller\({field}=…\) must be a list of names"):
        Caller(name="c", **{field: names})


@pytest.mark.parametrize("field", ["name", "namespace"])
@pytest.mark.parametrize("value", [None, 5, b"ab", ["ab"]])
def test_a_caller_rejects_a_name_that_is_not_a_string(field, value):
    with pytest.raises(TypeError, match=rf"^Caller\({field}=…\) must be a string"):
        Caller(**{"name": "c", field: value})


@pytest.mark.parametrize("value", [{"requests_per_minute": 60}, 60, "60", ()])
def test_a_caller_rejects_limits_that_are_not_rate_limits(value):
    """Otherwise each request of the caller would be a 500."""
    with pytest.raises(TypeError) as caught:
        Caller(name="c", limits=value)

    assert str(caught.value) == f"Caller(limits=…) must be a RateLimits, not {value!r}."
    assert Caller(name="c", limits=RateLimits()).limits == RateLimits()


# Cache scopes

CALLERS = {
    "a": Caller(name="a"),
    "b": Caller(name="b"),
    "a in team": Caller(name="a", namespace="team"),
    "b in team": Caller(name="b", namespace="team"),
    "b in a": Caller(name="b", namespace="a"),
    "team": Caller(name="team"),
    "nameless": Caller(name=""),
    "anyone": Caller(name="anyone"),
    "the host itself": ANYONE,
}


@pytest.mark.parametrize(
    ("shared", "together"),
    [
        (
            True,
            [
                {"a", "b", "team", "nameless", "anyone", "the host itself"},
                {"a in team", "b in team"},
            ],
        ),
        (False, [{"a in team", "b in team"}]),
    ],
)
def test_cache_scope_depends_on_the_namespace_then_on_the_setting(shared, together):
    """A namespace takes precedence over the setting, and never equals a caller's name."""
    groups = {}
    for name, caller in CALLERS.items():
        groups.setdefault(cache_scope(caller, shared=shared), set()).add(name)

    assert sorted(map(sorted, together)) == sorted(
        sorted(names) for names in groups.values() if len(names) > 1
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("shared", "second", "calls"),
    [
        (True, Caller(name="b"), 1),
        (True, Caller(name="a", namespace="t"), 2),
        (False, Caller(name="a"), 1),
        (False, Caller(name="b"), 2),
        (False, Caller(name="\ud800"), 2),
        (False, ANYONE, 2),
    ],
)
async def test_callers_of_a_host_share_the_cache_only_within_their_scope(shared, second, calls):
    backend = ScriptedBackend(width=8)
    gateway = Gateway(
        Config(
            gateway={"auth": "host"},
            cache={"shared": shared},
            providers={"up": Provider(backend=backend)},
            models={"m": {"dimensions": 8, "endpoints": [{"provider": "up"}]}},
        )
    )

    for caller in (Caller(name="a"), second):
        await gateway.embed("text", model="m", caller=caller)

    assert calls == len(backend.batches)


# Callers identified by the host


class UserWithoutName(BaseUser):
    """A user whose base class does not implement ``display_name``."""

    is_authenticated = True


class DjangoUser:
    """A user like those of Django and Channels."""

    is_authenticated = True

    def __str__(self):
        return "ada"


async def request_with(caller=None, *, method="POST", **scope):
    gateway = Gateway(Config(gateway={"auth": "host"}, providers={"hashed": {}}))
    body = b'{"model":"hashed/m","input":"a"}'
    headers = [("content-type", "application/json")]
    return await call(
        embeddings_app(gateway, authenticate=caller),
        method,
        "/v1/embeddings",
        headers,
        [body],
        **scope,
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("user", "name"),
    [
        (SimpleUser("ada"), "ada"),
        (SimpleUser(""), ""),
        (DjangoUser(), "ada"),
        (SimpleNamespace(is_authenticated=True, display_name="ada"), "ada"),
        (SimpleNamespace(is_authenticated=lambda: True, display_name="ada"), "ada"),
        (SimpleNamespace(is_authenticated=True, display_name=None), None),
        (UserWithoutName(), None),
        (UnauthenticatedUser(), Unauthorized),
        (SimpleNamespace(is_authenticated=False, display_name="ada"), Unauthorized),
        (SimpleNamespace(is_authenticated=lambda: False, display_name="ada"), Unauthorized),
        (SimpleNamespace(is_authenticated="no", display_name="ada"), Unauthorized),
        (SimpleNamespace(display_name="ada"), Unauthorized),
        ({"name": "ada", "is_authenticated": True}, Unauthorized),
        ("ada", Unauthorized),
        (True, Unauthorized),
        (object(), Unauthorized),
        (None, Unauthorized),
    ],
)
async def test_an_authenticated_user_in_the_scope_is_the_caller(user, name, caplog):
    """Only ``is_authenticated`` distinguishes an authenticated user from an anonymous one."""
    caplog.set_level(logging.INFO, logger="embedroute.access")

    answer = await request_with(user=user)

    actual = vars(caplog.records[-1]).get("caller")
    assert answer.status == (401 if name is Unauthorized else 200)
    assert (actual is None) if name is Unauthorized else (actual == name or name is None)
    assert answer.status == 200 or answer.error["code"] == "invalid_api_key"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("scope", "count"),
    [({}, 1), ({"user": None}, 1), ({"user": UnauthenticatedUser()}, 0)],
    ids=["no user", "none", "anonymous user"],
)
async def test_the_log_tells_the_operator_of_a_host_without_authentication(scope, count, caplog):
    """The client cannot help: its message is that of a wrong key."""
    app = embeddings_app(Gateway(Config(gateway={"auth": "host"}, providers={"hashed": {}})))
    answers = [await call(app, "GET", "/v1/models", **scope) for _ in range(3)]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    assert {"The request is not authenticated."} == {answer.error["message"] for answer in answers}
    assert len(warnings) == count
    assert all("Pass authenticate=" in warning for warning in warnings)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "query", "message"),
    [
        ({"model": "other"}, b"", "This caller may not use the model 'other'."),
        (
            {"model": "m", "debug": {"trace": True}},
            b"",
            "This caller may not use 'debug'; leave it out, or ask the operator to allow it.",
        ),
        (
            {"model": "m"},
            b"explain=1",
            "This caller may not use 'explain'; ask the operator to allow it.",
        ),
    ],
    ids=["model", "debug", "explain"],
)
async def test_a_403_does_not_name_an_api_key_where_the_host_identifies_callers(
    body, query, message
):
    endpoints = [{"provider": "hashed"}]
    models = {name: {"dimensions": 8, "endpoints": endpoints} for name in ("m", "other")}
    config = Config(gateway={"auth": "host"}, providers={"hashed": {}}, models=models)
    app = embeddings_app(Gateway(config), authenticate=limited_to_m)
    headers = [("content-type", "application/json")]
    content = json.dumps({"input": "a", **body}).encode()

    answer = await call(app, "POST", "/v1/embeddings", headers, [content], query_string=query)

    assert (403, message) == (answer.status, answer.error["message"])


async def ada(scope):
    return Caller(name="ada")


async def limited_to_m(scope):
    return Caller(name="ada", models=["m"])


async def returns_none(scope):
    return None


async def raises_permission_denied(scope):
    raise PermissionDenied("Not on Sundays.")


async def returns_name(scope):
    return "ada"


async def returns_true(scope):
    return True


async def returns_dict(scope):
    return {"name": "ada"}


def sync_function(scope):
    return Caller(name="ada")


async def returns_invalid_caller(scope):
    return Caller(name="ada", only="openai")


class AsyncAuthenticator:
    async def __call__(self, scope):
        return Caller(name="ada")


async def authenticate_as(name, scope):
    return Caller(name=name)


class Directory:
    async def find(self, scope):
        return Caller(name="ada")

    def find_sync(self, scope):
        return Caller(name="ada")


class SyncAuthenticator:
    def __call__(self, scope):
        return Caller(name="ada")


def returns_coroutine(scope):
    return ada(scope)


async def async_generator(scope):
    yield Caller(name="ada")


async def other_app(scope, receive, send):
    pass


ENTRY_POINTS = {
    "app": embeddings_app,
    "middleware": lambda gateway, **actual: EmbeddingsMiddleware(other_app, gateway, **actual),
    "router": embeddings_router,
}


@pytest.mark.parametrize("make_entry_point", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
@pytest.mark.parametrize("auth", ["open", "keys"])
def test_authenticate_without_auth_host_is_a_config_error(make_entry_point, auth):
    """Otherwise the host would believe that its function protects the gateway."""
    gateway = Gateway(
        Config(gateway={"auth": auth}, keys={"k": {"key": KEY}}, providers={"hashed": {}})
    )

    with pytest.raises(ConfigError, match=f'authenticate= works only .* here auth = "{auth}"'):
        make_entry_point(gateway, authenticate=ada)
    make_entry_point(gateway)


@pytest.mark.parametrize("make_entry_point", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (sync_function, "sync_function"),
        (returns_coroutine, "returns_coroutine"),
        (SyncAuthenticator(), "SyncAuthenticator"),
        (partial(sync_function), "partial"),
        (partial(SyncAuthenticator()), "partial"),
        (Directory().find_sync, "Directory.find_sync"),
        (async_generator, "async_generator"),
        (AsyncAuthenticator, "AsyncAuthenticator"),
        (Caller(name="ada"), "Caller"),
        ("ada", "str"),
    ],
)
def test_authenticate_that_is_not_async_is_a_config_error(make_entry_point, function, name):
    gateway = Gateway(Config(gateway={"auth": "host"}, providers={"hashed": {}}))

    with pytest.raises(ConfigError) as caught:
        make_entry_point(gateway, authenticate=function)

    assert (
        caught.value.message
        == f"authenticate={name} is not an async function; write it with async def."
    )


RETURN = "must be async and return an embedroute.Caller, or None to refuse"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("caller", "status", "logged"),
    [
        (ada, 200, None),
        (AsyncAuthenticator(), 200, None),
        (partial(AsyncAuthenticator()), 200, None),
        (partial(authenticate_as, "ada"), 200, None),
        (partial(partial(authenticate_as), "ada"), 200, None),
        (Directory().find, 200, None),
        (returns_none, 401, None),
        (raises_permission_denied, 403, None),
        (returns_name, 500, RETURN),
        (returns_true, 500, RETURN),
        (returns_dict, 500, RETURN),
        (returns_invalid_caller, 500, "must be a list of names"),
    ],
)
async def test_authenticate_decides_who_calls(caller, status, logged, caplog):
    """Its mistakes are logged for the host and not shown to clients."""
    answer = await request_with(caller)

    assert status == answer.status
    assert "Caller" not in answer.body.decode()
    assert (logged is None and "unhandled exception" not in caplog.text) or logged in caplog.text
