"""Who is calling: the ``Authorization`` header, and nothing else."""

import gc

import pytest

from embedroute.access import LONGEST_KEY, Caller, KeyRing, bearer_token
from embedroute.backend import Secret
from embedroute.errors import Unauthorized
from embedroute.settings import Key

KEY = "sk-er-0123456789abcdef"
LONGEST = "k" * LONGEST_KEY
RING = KeyRing(
    {
        "plain": Key(key=Secret(KEY)),
        "longest": Key(key=Secret(LONGEST)),
        "limited": Key(key=Secret("sk-limited"), models=["m"], debug=False, only=["a"], ignore=["b"]),
    }
)


def headers(*values):
    return [(b"content-type", b"application/json"), *((b"authorization", value.encode()) for value in values)]


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
    assert name == RING.identify(headers(value)).name


MALFORMED = "An API key is required; send one header 'Authorization: Bearer KEY'."
UNKNOWN = "The API key is not valid; check the Authorization header."


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
        RING.identify(headers(*values))

    assert message == caught.value.message
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("name", [b"x-api-key", b"api-key", b"cookie", b"proxy-authorization", b"x-embedroute-key"])
def test_no_other_header_is_a_credential(name):
    with pytest.raises(Unauthorized):
        RING.identify([(name, f"Bearer {KEY}".encode())])


def test_a_caller_is_what_its_table_says():
    expected = Caller(name="limited", models=frozenset({"m"}), debug=False, only=("a",), ignore=("b",))

    assert expected == RING.identify(headers("Bearer sk-limited"))
    assert Caller(name="plain") == RING.identify(headers(f"Bearer {KEY}"))


def test_the_token_is_handed_out_as_it_came():
    assert bearer_token(headers("Bearer a.b-c~+/=")) == b"a.b-c~+/="


def test_a_ring_keeps_no_key():
    """Neither shown nor anywhere among what it holds; and two rings share no digest."""
    ring = KeyRing({"plain": Key(key=Secret(KEY))})
    held = repr(vars(ring)) + repr(gc.get_referents(ring))

    assert KEY not in held
    assert KEY.encode() not in b"".join(ring._callers)
    assert not set(ring._callers) & set(RING._callers)


def test_a_ring_without_keys_knows_nobody():
    with pytest.raises(Unauthorized):
        KeyRing({}).identify(headers(f"Bearer {KEY}"))
