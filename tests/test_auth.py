"""Who is calling: the ``Authorization`` header and nothing else, or whom the host names."""

# A host's function is given the scope whether or not it needs it.
# ruff: noqa: ARG001, ARG002

import gc
import logging
from functools import partial
from types import SimpleNamespace

import pytest
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

from embedroute import Config, ConfigError, EmbeddingsMiddleware, Gateway, Provider, embeddings_app
from embedroute.auth import ANYONE, LONGEST_KEY, ApiKeys, Caller, bearer_token, cache_scope
from embedroute.backend import Secret
from embedroute.config import ApiKey
from embedroute.errors import PermissionDenied, Unauthorized
from embedroute.fastapi import embeddings_router
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

KEY = "sk-er-0123456789abcdef"
LONGEST = "k" * LONGEST_KEY
RING = ApiKeys(
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


def headers(*values):
    return [
        (b"content-type", b"application/json"),
        *((b"authorization", value.encode()) for value in values),
    ]


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
def test_a_key_names_its_caller(value, name):
    assert name == RING.authenticate(headers(value)).name


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
def test_anything_else_is_refused(values, message):
    """Two headers are refused even if both are good: proxies differ in which one they mean."""
    with pytest.raises(Unauthorized) as caught:
        RING.authenticate(headers(*values))

    assert message == caught.value.message
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "name", [b"x-api-key", b"api-key", b"cookie", b"proxy-authorization", b"x-embedroute-key"]
)
def test_no_other_header_is_a_credential(name):
    with pytest.raises(Unauthorized):
        RING.authenticate([(name, f"Bearer {KEY}".encode())])


def test_a_caller_is_what_its_table_says():
    expected = Caller(
        name="limited",
        models=frozenset({"m"}),
        debug=False,
        only=("a",),
        ignore=("b",),
        namespace="team",
    )

    assert expected == RING.authenticate(headers("Bearer sk-limited"))
    assert Caller(name="plain") == RING.authenticate(headers(f"Bearer {KEY}"))


def test_the_token_is_handed_out_as_it_came():
    assert bearer_token(headers("Bearer a.b-c~+/=")) == b"a.b-c~+/="


def test_a_ring_keeps_no_key():
    """Neither shown nor anywhere among what it holds; and two rings share no digest."""
    ring = ApiKeys({"plain": ApiKey(key=Secret(KEY))})
    held = repr(vars(ring)) + repr(gc.get_referents(ring))

    assert KEY not in held
    assert KEY.encode() not in b"".join(ring._callers)
    assert not set(ring._callers) & set(RING._callers)


def test_a_ring_without_keys_knows_nobody():
    with pytest.raises(Unauthorized):
        ApiKeys({}).authenticate(headers(f"Bearer {KEY}"))


@pytest.mark.parametrize(
    ("given", "held"),
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
def test_names_may_come_in_any_collection(given, held):
    caller = Caller(name="c", **given)

    assert held == (caller.models, caller.only, caller.ignore)
    assert hash(caller) == hash(Caller(name="c", models=held[0], only=held[1], ignore=held[2]))


@pytest.mark.parametrize("field", ["models", "only", "ignore"])
@pytest.mark.parametrize("names", ["openai", 5, [1], [None], b"ab", True])
def test_what_is_no_collection_of_names_is_refused_where_it_is_written(field, names):
    """The letters of a plain string would be the names."""
    with pytest.raises(TypeError, match=rf"^Caller\({field}=…\) must be a list of names"):
        Caller(name="c", **{field: names})


@pytest.mark.parametrize("field", ["name", "namespace"])
@pytest.mark.parametrize("given", [None, 5, b"ab", ["ab"]])
def test_a_name_that_is_no_string_is_refused_where_it_is_written(field, given):
    with pytest.raises(TypeError, match=rf"^Caller\({field}=…\) must be a string"):
        Caller(**{"name": "c", field: given})


# Whose cache entries a caller uses.

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
def test_callers_share_cache_entries_by_namespace_or_by_the_setting(shared, together):
    """A namespace goes before the setting; no name of a caller is taken for a namespace."""
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
async def test_a_host_keeps_its_callers_apart_by_the_setting_or_by_namespace(shared, second, calls):
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


# Whom the host names.


class Nameless(BaseUser):
    """Starlette's base names nobody."""

    is_authenticated = True


class Django:
    """As Django and channels have it."""

    is_authenticated = True

    def __str__(self):
        return "ada"


async def asked_of(caller=None, *, method="POST", **scope):
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
        (Django(), "ada"),
        (SimpleNamespace(is_authenticated=True, display_name="ada"), "ada"),
        (SimpleNamespace(is_authenticated=lambda: True, display_name="ada"), "ada"),
        (SimpleNamespace(is_authenticated=True, display_name=None), None),
        (Nameless(), None),
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
async def test_the_scopes_user_is_trusted_if_it_says_that_it_is_known(user, name, caplog):
    """Nothing but ``is_authenticated`` tells a known user from an anonymous one."""
    caplog.set_level(logging.INFO, logger="embedroute.access")

    answer = await asked_of(user=user)

    told = vars(caplog.records[-1]).get("caller")
    assert answer.status == (401 if name is Unauthorized else 200)
    assert (told is None) if name is Unauthorized else (told == name or name is None)
    assert answer.status == 200 or answer.error["code"] == "invalid_api_key"


async def ada(scope):
    return Caller(name="ada")


async def nobody(scope):
    return None


async def barred(scope):
    raise PermissionDenied("Not on Sundays.")


async def named(scope):
    return "ada"


async def agreed(scope):
    return True


async def described(scope):
    return {"name": "ada"}


def hasty(scope):
    return Caller(name="ada")


async def mistaken(scope):
    return Caller(name="ada", only="openai")


class Asking:
    async def __call__(self, scope):
        return Caller(name="ada")


async def asked_by(name, scope):
    return Caller(name=name)


class Directory:
    async def find(self, scope):
        return Caller(name="ada")

    def find_at_once(self, scope):
        return Caller(name="ada")


class Hasty:
    def __call__(self, scope):
        return Caller(name="ada")


def passing_on(scope):
    return ada(scope)


async def streaming(scope):
    yield Caller(name="ada")


async def passed_on(scope, receive, send):
    pass


DOORS = {
    "app": embeddings_app,
    "middleware": lambda gateway, **told: EmbeddingsMiddleware(passed_on, gateway, **told),
    "router": embeddings_router,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("auth", ["open", "keys"])
def test_a_callers_function_that_would_not_be_asked_is_a_config_error(door, auth):
    """A host that passes one believes that it decides who is served."""
    gateway = Gateway(
        Config(gateway={"auth": auth}, keys={"k": {"key": KEY}}, providers={"hashed": {}})
    )

    with pytest.raises(ConfigError, match=f'authenticate= works only .* here auth = "{auth}"'):
        door(gateway, authenticate=ada)
    door(gateway)


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (hasty, "hasty"),
        (passing_on, "passing_on"),
        (Hasty(), "Hasty"),
        (partial(hasty), "partial"),
        (partial(Hasty()), "partial"),
        (Directory().find_at_once, "Directory.find_at_once"),
        (streaming, "streaming"),
        (Asking, "Asking"),
        (Caller(name="ada"), "Caller"),
        ("ada", "str"),
    ],
)
def test_a_callers_function_that_is_not_async_is_a_config_error(door, function, named):
    gateway = Gateway(Config(gateway={"auth": "host"}, providers={"hashed": {}}))

    with pytest.raises(ConfigError) as caught:
        door(gateway, authenticate=function)

    assert (
        caught.value.message
        == f"authenticate={named} is not an async function; write it with async def."
    )


RETURN = "must be async and return an embedroute.Caller, or None to refuse"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("caller", "status", "logged"),
    [
        (ada, 200, None),
        (Asking(), 200, None),
        (partial(Asking()), 200, None),
        (partial(asked_by, "ada"), 200, None),
        (partial(partial(asked_by), "ada"), 200, None),
        (Directory().find, 200, None),
        (nobody, 401, None),
        (barred, 403, None),
        (named, 500, RETURN),
        (agreed, 500, RETURN),
        (described, 500, RETURN),
        (mistaken, 500, "must be a list of names"),
    ],
)
async def test_the_hosts_function_says_who_calls(caller, status, logged, caplog):
    """What it does wrong is the host's to read in the log, and no client's."""
    answer = await asked_of(caller)

    assert status == answer.status
    assert "Caller" not in answer.body.decode()
    assert (logged is None and "unhandled exception" not in caplog.text) or logged in caplog.text
