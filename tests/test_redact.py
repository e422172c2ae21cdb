"""What debug shows of an exchange: everything but secrets, and of the input only as much as was asked for."""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import json

import pytest

from embedroute import Config, Gateway, embeddings_app
from embedroute.backend import Secret, UpstreamReply, UpstreamRequest
from embedroute.backends.openai import OpenAI
from embedroute.journal import Journal
from embedroute.redact import capture, scrub, secrets_of
from tests.driver import call
from tests.upstream import Upstream

KEY = "sk-proj-0123456789-abcdefghij"


@pytest.mark.parametrize(
    ("text", "secrets", "scrubbed"),
    [
        ("key sk-12345678-abcdefgh.", ["sk-12345678-abcdefgh"], "key [redacted]."),
        ("sk-12345****", ["sk-12345678-abcdefgh"], "[redacted]****"),
        ("****abcdefgh", ["sk-12345678-abcdefgh"], "****[redacted]"),
        ("sk-1234", ["sk-12345678-abcdefgh"], "sk-1234"),
        ("short is short", ["short"], "[redacted] is [redacted]"),
        ("nothing", [""], "nothing"),
        ("https://user:hunter2@host/v1?a=b", [], "https://[redacted]@host/v1?a=b"),
        ("mail me@host", [], "mail me@host"),
        ("one-secret-1 one-secret-12", ["one-secret-12", "one-secret-1"], "[redacted] [redacted]"),
    ],
)
def test_secrets_are_taken_out_of_text_whole_and_masked(text, secrets, scrubbed):
    """Upstreams that mask a key repeat its ends."""
    assert scrubbed == scrub(text, secrets)


def test_every_secret_of_a_backend_is_known_tables_included():
    backend = OpenAI(api_key=Secret("a"), extra_headers={"x-one": Secret("longer"), "x-two": Secret("bb")})

    assert secrets_of(backend) == ["longer", "bb", "a"]


def shown(body, *, full, answer=b"{}"):
    """What debug shows of a request and an answer with these bodies."""
    journal = Journal("r")
    journal.open(trace=False, sent=True, got=True, full=full)
    request = UpstreamRequest.json("https://u:p4ssw0rd@host/v1", body, bearer=Secret(KEY), headers={"x-plain": "1"})
    capture(journal, "p", OpenAI(api_key=Secret(KEY)), request, UpstreamReply(200, {}, answer))
    return journal.shown()


def test_a_full_capture_shows_the_bodies_without_secrets():
    got = shown({"input": ["text"], "key": KEY}, full=True)

    assert got["upstream_request"] == {
        "provider": "p",
        "url": "https://[redacted]@host/v1",
        "headers": {"content-type": "application/json", "x-plain": "1", "authorization": "[redacted]"},
        "body": {"input": ["text"], "key": "[redacted]"},
    }
    assert got["upstream_response"] == {"provider": "p", "status": 200, "body": {}}


def test_a_summary_keeps_the_shape_and_drops_the_input():
    body = {"model": "m", "input": ["PLANTED"], "user": "PLANTED", "dimensions": 3, "a": {"b": "PLANTED"}}

    assert shown(body, full=False)["upstream_request"]["body"] == {
        "model": "m",
        "input": "[1 items]",
        "user": "[7 characters]",
        "dimensions": 3,
        "a": {"b": "[7 characters]"},
    }


ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        f'{{"message": "{KEY}"}}',
        f'{{"message": "{ESCAPED}"}}',
        f'{{"{ESCAPED}": 1}}',
        f'{{"error": {{"message": "bad {KEY[:8]}****"}}}}',
        f"<html>{KEY}</html>",
        f'["{ESCAPED}", [{{"code": "{ESCAPED}"}}]]',
        KEY + "x" * 1_000_000,
        "x" * 999_990 + KEY,
        "[" * 5000 + KEY,
        "\xff" + KEY,
    ],
)
def test_no_spelling_of_a_secret_gets_through(answer, full):
    """JSON may write any letter as an escape; a body may be cut within a key."""
    seen = json.dumps(shown({}, full=full, answer=answer.encode("latin-1")))

    assert KEY[:8] not in seen
    assert KEY[-8:] not in seen


MODES = ["honest", "key_in_400", "key_in_500", "status_401", "key_in_200", "status_503", "reset_before_headers"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("level", ["summary", "full"])
@pytest.mark.parametrize("mode", MODES)
async def test_debug_over_a_real_exchange_shows_no_key_and_input_only_in_full(anyio_backend, mode, level):
    debug = {"trace": True, "return_upstream_request": True, "return_upstream_response": True, "trace_level": level}
    with Upstream(mode, remember=False) as upstream:
        gateway = Gateway(
            Config(
                gateway={"auth": "open", "debug": True},
                providers={"up": {"backend": "openai", "base_url": upstream.url, "api_key": KEY}},
                models={"m": {"dimensions": 8, "endpoints": [{"provider": "up"}]}},
            )
        )
        body = json.dumps({"model": "m", "input": ["PLANTED"], "debug": debug}).encode()
        async with gateway.lifespan():
            answer = await call(
                embeddings_app(gateway), "POST", "/v1/embeddings", [("content-type", "application/json")], [body]
            )

    text = answer.body.decode()
    assert (answer.status == 200) == (mode == "honest")
    assert {"trace", "upstream_request"} <= answer.json.keys()
    assert ("upstream_response" in answer.json) == (mode != "reset_before_headers")
    assert KEY[:8] not in text
    assert KEY[-8:] not in text
    assert "hunter2" not in text
    assert ("PLANTED" in text) == (level == "full")
