"""Redaction: debug output has no secrets, and only as much of the input as requested."""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import base64
import json
from copy import copy
from urllib.parse import quote, quote_plus, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute import Config, Gateway, embeddings_app
from embedroute.backend import Secret, UpstreamRequest, UpstreamResponse
from embedroute.backends.openai import OpenAI
from embedroute.errors import UpstreamUnavailable
from embedroute.execution import list_secrets, public_url, record_exchange, redact_message
from embedroute.trace import RequestTrace
from tests.fault_upstream import Upstream
from tests.support.asgi_client import call

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
        (
            "a 12345678-a, no 2345678, no 78-ab",
            ["sk-12345678-abcdefgh"],
            "a [redacted], no 2345678, no 78-ab",
        ),
        ("twice: sk-12345678sk-12345678", ["sk-12345678"], "twice: [redacted]"),
        ("sk-1****78-abcde", ["sk-12345678-abcdefgh"], "sk-1****[redacted]"),
        (
            "maximum context length: x, y-x, x_y.",
            ["x"],
            "maximum context length: [redacted], y-[redacted], x_y.",
        ),
        ("tokens: the token is 'token'", ["token"], "tokens: the [redacted] is '[redacted]'"),
        ("keyed -k- is-k-keyed", ["-k-"], "keyed [redacted] is[redacted]keyed"),
        # A key may contain the gateway's own words, which are shown; an upstream's words are
        # redacted.
        ("The upstream answered 400: no.", ["sk-upstream-key"], "The upstream answered 400: no."),
        ("The upstream answered 400.", ["answered", "400", "The"], "The upstream answered 400."),
        ("The backend Odd failed.", ["a-backend"], "The backend Odd failed."),
        (
            "The upstream answered 400: upstream",
            ["sk-upstream-key"],
            "The upstream answered 400: [redacted]",
        ),
        (
            "The upstream did not answer the upstream.",
            ["upstream-1"],
            "The upstream did not answer the [redacted].",
        ),
        ("The upstream.123456 is not a key.", ["upstream.123456"], "The u[redacted] is not a key."),
        ("The upstreams are not a key", ["upstreams"], "The [redacted] are not a key"),
        ("400: upstream", ["sk-upstream-key"], "400: [redacted]"),
        ("abcd short abc", ["abc", "abcd", "abcdefghi"], "[redacted] short [redacted]"),
        ("a-b, a-", ["a-", "a-b"], "[redacted], [redacted]"),
        ("https://u:short@host", ["short"], "https://[redacted]@host"),
        ("https://u:p@ss@host/a@b", [], "https://[redacted]@host/a@b"),
        ("https://u:hunter2@host", ["https://example.org"], "[redacted]@host"),
        ('["https://host","me@there"]', [], '["https://host","me@there"]'),
        ("c2stMTIzNDU2Nw==", ["sk-1234567"], "[redacted]"),
        ("c2hvcnQ=", ["short"], "[redacted]"),
        ("Pz8_Pj4-fn5-", ["???>>>~~~"], "[redacted]"),
    ],
)
def test_secrets_are_removed_from_text(text, secrets, scrubbed):
    """Upstreams that mask a key repeat its ends or its middle; shorter pieces are harmless."""
    assert scrubbed == redact_message(text, secrets)


ODD = "sk/AbC+dEf=GhIj-KlMn_OpQr~StUv?Wx"
"""A key with other spellings in URLs and in both alphabets of base64."""


@pytest.mark.parametrize("key", [KEY, ODD, "clé-très-secrète-0123"])
@pytest.mark.parametrize(
    "spell",
    [
        lambda key: base64.b64encode(key.encode()).decode(),
        lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
        lambda key: base64.b64encode(f"u:{key}".encode()).decode(),
        lambda key: base64.b64encode(f"Bearer {key}!".encode()).decode(),
        lambda key: base64.urlsafe_b64encode(f'{{"a":"{key}"}}'.encode()).decode(),
        quote,
        quote_plus,
        lambda key: "".join(f"%{byte:02x}" for byte in key.encode()),
        lambda key: "".join(f"%{byte:02X}" for byte in key.encode()),
    ],
)
def test_encoded_spellings_of_a_key_are_removed(spell, key):
    """Only the edges remain, which are encoded together with the neighbouring bytes."""
    left = redact_message(spell(key), [key])

    assert "[redacted]" in left
    assert len(left.replace("[redacted]", "")) <= 16


@given(st.data())
def test_no_eight_consecutive_characters_of_a_key_are_shown(data):
    """At every cut of the key and of the text."""
    begin = data.draw(st.integers(0, len(KEY) - 8))
    end = data.draw(st.integers(begin + 8, len(KEY)))
    text = data.draw(st.text(max_size=20)) + KEY[begin:end] + data.draw(st.text(max_size=20))

    seen = redact_message(text, [KEY])

    assert not [at for at in range(len(KEY) - 7) if KEY[at : at + 8] in seen]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x" * 999, "x" * 300),
        ("x" * 280 + KEY, "x" * 280 + "[redacted]"),
        ("x" * 296 + KEY, "x" * 296 + "[red"),
        ("\0\x1b[2J" * 400, "\\x00\\x1b[2J" * 27),
        ("\u202ekey", "\\u202ekey"),
        ("\u2066a\u200bb\ufeff", "\\u2066a\\u200bb\\ufeff"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("x" * 299 + "\x1b" + "y", "x" * 299),
        ("naïve 漢字 🙂 \\x1b", "naïve 漢字 🙂 \\x1b"),
    ],
)
def test_a_message_is_redacted_then_made_printable_then_shortened(text, shown):
    """Shortening first would leave part of a key.

    Control characters may change what a reader sees.
    """
    once = redact_message(text, [KEY])

    assert shown == once
    assert once == redact_message(once, [KEY])


def test_an_error_does_not_keep_its_original_message():
    """However it is printed or logged."""
    error = UpstreamUnavailable(f"bad key {KEY}")
    error.message = redact_message(error.message, [KEY])

    assert [] == [
        shown
        for shown in (str(error), repr(error), repr(error.args), str(copy(error)))
        if KEY[:8] in shown
    ]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        '{"code": 1234567890123456}',
        '{"code": "1234567890123456", "message": "MTIzNDU2Nzg5MDEyMzQ1Ng"}',
        '{"code": -12345678}',
        "<1234567890>",
    ],
)
def test_a_key_of_digits_is_hidden_in_numbers_too(answer, full):
    trace = RequestTrace("r")
    trace.open(trace=False, sent=False, received=True, full=full)
    reply = UpstreamResponse(200, {}, answer.encode())
    record_exchange(trace, "p", OpenAI(api_key=Secret("1234567890123456")), reply)

    seen = json.dumps(trace.debug_fields())
    assert "12345678" not in seen
    assert "MTIzNDU2" not in seen


def test_secrets_of_a_backend_are_listed_including_tables():
    backend = OpenAI(
        api_key=Secret("a"), extra_headers={"x-one": Secret("longer"), "x-two": Secret("bb")}
    )

    assert list_secrets(backend) == ["longer", "bb", "a"]


@pytest.mark.parametrize(
    "user_info", ["me:hunter-2-hunter", "me:p%40ss:w@rd-word", "sk-token", "me:hunter'2<hunter>\"2"]
)
def test_credentials_in_a_url_are_secrets(user_info):
    """They are sent in base64, and an upstream may repeat them so, in plain text, or the password alone."""
    backend = OpenAI(base_url=f"https://{user_info}@host/v1")
    sent = base64.b64encode(unquote(user_info).encode()).decode()
    password = unquote(user_info).partition(":")[2] or user_info

    for said in (f"Basic {sent}", f"https://{user_info}@host", password):
        left = redact_message(f"no: {said}.", list_secrets(backend))
        assert "[redacted]" in left
        assert not [
            at
            for at in range(len(said) - 7)
            if said[at : at + 8] in left.replace("https://", "").replace("@host", "")
        ]
    request = UpstreamRequest(url=backend.base_url, content=b"{}", headers={})
    trace = RequestTrace("req_1")
    trace.open(trace=False, sent=True, received=False, full=True)
    record_exchange(trace, "one", backend, request)
    assert "https://[redacted]@host/v1" == trace.sent[0]["url"]


def shown(body, *, full, answer=b"{}"):
    """Return the debug output for a request and a response with these bodies."""
    trace = RequestTrace("r")
    trace.open(trace=False, sent=True, received=True, full=full)
    request = UpstreamRequest.json(
        "https://u:p4ssw0rd@host/v1", body, bearer=Secret(KEY), headers={"x-plain": "1"}
    )
    backend = OpenAI(api_key=Secret(KEY))
    record_exchange(trace, "p", backend, request)
    record_exchange(trace, "p", backend, UpstreamResponse(200, {}, answer))
    return trace.debug_fields()


def test_no_more_than_a_megabyte_of_all_bodies_of_a_request_is_shown():
    trace = RequestTrace("r")
    trace.open(trace=False, sent=True, received=True, full=True)
    request = UpstreamRequest(url="http://host", content=b'"%b"' % (b"a" * 600_000), headers={})
    for message in [request] * 3 + [UpstreamResponse(200, {}, b'"b"')]:
        record_exchange(trace, "p", OpenAI(api_key=Secret(KEY)), message)

    # The quotes count too.
    assert [600_000, 399_997, 0] == [
        len(sent["body"].strip('"')) if sent["body"] else 0 for sent in trace.sent
    ]
    assert trace.received[0]["body"] == "b"


def test_a_full_capture_shows_the_bodies_without_secrets():
    got = shown({"input": ["text"], "key": KEY}, full=True)

    assert got["upstream_request"] == {
        "provider": "p",
        "url": "https://[redacted]@host/v1",
        "headers": {
            "content-type": "application/json",
            "x-plain": "1",
            "authorization": "[redacted]",
        },
        "body": {"input": ["text"], "key": "[redacted]"},
    }
    assert got["upstream_response"] == {"provider": "p", "status": 200, "body": {}}


def test_a_summary_keeps_the_shape_and_drops_the_input():
    body = {
        "model": "m",
        "input": ["PLANTED"],
        "user": "PLANTED",
        "dimensions": 3,
        "a": {"b": "PLANTED"},
    }

    assert shown(body, full=False)["upstream_request"]["body"] == {
        "model": "m",
        "input": "[1 items]",
        "user": "[7 characters]",
        "dimensions": 3,
        "a": {"b": "[7 characters]"},
    }


CODED = base64.b64encode(KEY.encode()).decode()
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
        f'{{"message": "{KEY[5:20]}"}}',
        f'{{"message": "Basic {CODED}"}}',
        "x" * 999_985 + CODED,
        "[" * 700 + f'"{KEY}"' + "]" * 700,
    ],
)
def test_no_encoding_of_a_secret_is_shown(answer, full):
    """JSON may write any letter as an escape; a body may be cut within a key."""
    seen = json.dumps(shown({}, full=full, answer=answer.encode("latin-1")))

    assert not [at for at in range(len(KEY) - 7) if KEY[at : at + 8] in seen]
    assert CODED[:-4] not in seen


MODES = [
    "honest",
    "key_in_400",
    "key_in_500",
    "status_401",
    "key_in_200",
    "status_503",
    "reset_before_headers",
]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("level", [None, "summary", "full"])
@pytest.mark.parametrize("mode", MODES)
async def test_debug_over_a_real_exchange_shows_no_key_and_no_input_in_a_summary(
    anyio_backend, mode, level
):
    debug = {
        "trace": True,
        "return_upstream_request": True,
        "return_upstream_response": True,
        "trace_level": level,
    }
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
                embeddings_app(gateway),
                "POST",
                "/v1/embeddings",
                [("content-type", "application/json")],
                [body],
            )

    text = answer.body.decode()
    assert (answer.status == 200) == (mode == "honest")
    assert {"trace", "upstream_request"} <= answer.json.keys()
    assert ("upstream_response" in answer.json) == (mode != "reset_before_headers")
    assert KEY[:8] not in text
    assert KEY[-8:] not in text
    assert "hunter2" not in text
    assert ("PLANTED" in text) == (level != "summary")


def test_a_summary_does_not_repeat_an_upstreams_message():
    """It may quote the input; codes are kept."""
    answer = b'{"error": {"message": "cannot embed: PLANTED", "type": "odd", "code": "bad_text"}}'

    summary, whole = (json.dumps(shown({}, full=full, answer=answer)) for full in (False, True))

    assert "PLANTED" not in summary
    assert all(code in summary for code in ("odd", "bad_text"))
    assert "PLANTED" in whole


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://tei:8080/v1/embeddings", "http://tei:8080/v1/embeddings"),
        ("https://me:pa@ss@host/v1", "https://host/v1"),
        ("https://host/v1/embed?key=0123456789abcdef", "https://host/v1/embed"),
        ("https://host/v1#part", "https://host/v1"),
        ("https://host/v1/mail@address", "https://host/v1/mail@address"),
        ("https://host/sk-0123456789/v1", "https://host/[redacted]/v1"),
        ("", ""),
    ],
)
def test_a_url_in_the_log_has_no_secret(url, shown):
    assert shown == public_url(url, ["sk-0123456789"])
