"""What upstreams say when they fail, in their own words: each body was documented by its provider or seen on the wire."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import (
    LONGEST_HINT,
    BatchTooLarge,
    ContextTooLong,
    InputRefused,
    KeyRefused,
    ModelRefused,
    RateLimited,
    Unavailable,
    UpstreamError,
)
from embedroute.faults import LONGEST_MESSAGE, fault_of, hint_of, message_of

DATE = "Fri, 20 Nov 2026 10:00:00 GMT"


def openai(message="m", code=None, type="invalid_request_error"):
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def google(status, **detail):
    return {"error": {"code": 0, "message": "m", "status": status, "details": [detail]}}


def mistral(message="m", code="1300"):
    return {"object": "error", "message": message, "type": "t", "param": None, "code": code}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, openai("'$.input' is invalid."), InputRefused),
        (400, openai("Requested 400000 tokens, max 300000 tokens per request", "max_tokens_per_request"), BatchTooLarge),
        (400, openai("Invalid 'input': array too long. Expected an array with maximum length 2048"), BatchTooLarge),
        (400, openai("This model's maximum context length is 8192 tokens, however you requested 9000."), ContextTooLong),
        (401, openai(code="invalid_api_key"), KeyRefused),
        (403, openai("Country not supported"), KeyRefused),
        (404, openai(code="model_not_found"), ModelRefused),
        (429, openai(code="rate_limit_exceeded"), RateLimited),
        (429, openai("You exceeded your current quota", "insufficient_quota"), KeyRefused),
        (429, openai("Rate limit reached: too many tokens per request"), RateLimited),
        (500, openai("The server had an error"), Unavailable),
        (503, openai("overloaded"), Unavailable),
        (401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}}, KeyRefused),
        (404, {"error": {"code": "DeploymentNotFound", "message": "m"}}, ModelRefused),
        (400, google("INVALID_ARGUMENT"), InputRefused),
        (400, google("INVALID_ARGUMENT", reason="API_KEY_INVALID"), KeyRefused),
        (400, [google("INVALID_ARGUMENT", reason="API_KEY_INVALID")], KeyRefused),
        (
            400,
            {"error": {"message": "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"}},
            BatchTooLarge,
        ),
        (403, google("PERMISSION_DENIED"), KeyRefused),
        (404, google("NOT_FOUND"), ModelRefused),
        (429, google("RESOURCE_EXHAUSTED", violations=[{"quotaId": "EmbedContentRequestsPerMinutePerUser"}]), RateLimited),
        (429, google("RESOURCE_EXHAUSTED", violations=[{"quotaId": "EmbedContentRequestsPerDayPerUser"}]), KeyRefused),
        (500, google("INTERNAL"), Unavailable),
        (503, google("UNAVAILABLE"), Unavailable),
        (504, google("DEADLINE_EXCEEDED"), Unavailable),
        (400, mistral("Too many inputs in request, split into more batches."), BatchTooLarge),
        (400, mistral("Too many tokens in batch. Max is 16384 got 20000"), BatchTooLarge),
        (400, mistral("Too many tokens overall, split into more batches.", "3210"), BatchTooLarge),
        (400, mistral("m", 3210), BatchTooLarge),
        (400, mistral("Input exceeded max 8192 tokens"), ContextTooLong),
        (401, {"message": "Unauthorized", "request_id": "r"}, KeyRefused),
        (401, {"detail": "Unauthorized"}, KeyRefused),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "user"], "msg": "no", "input": "u"}]}, InputRefused),
        (429, mistral("Rate limit exceeded"), RateLimited),
        (400, {"detail": "Model voyage-9 is not supported. Supported models are ['voyage-4']."}, ModelRefused),
        (400, {"detail": "[INPUT_MODEL_NOT_FOUND] no such model"}, ModelRefused),
        (400, {"detail": "[INPUT_TOKEN_LIMIT_EXCEEDED] too many"}, ContextTooLong),
        (403, {"detail": "[AUTHZ_INSUFFICIENT_BALANCE] top up"}, KeyRefused),
        (400, {"code": "Arrearage", "message": "m"}, KeyRefused),
        (402, {"message": "Payment required"}, KeyRefused),
        (400, {"error": "the input length exceeds the context length"}, ContextTooLong),
        (404, {"error": 'model "x" not found, try pulling it first'}, ModelRefused),
        (413, {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 600"}, ContextTooLong),
        (422, {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"}, BatchTooLarge),
        (424, {"error": "backend", "error_type": "Backend"}, Unavailable),
        (429, {"error": "Model is overloaded", "error_type": "Overloaded"}, RateLimited),
        (500, openai("input (600 tokens) is too large to process. increase the physical batch size"), ContextTooLong),
        (500, openai("insufficient_quota, model not found, batch size"), Unavailable),
        (413, "<html>413 Request Entity Too Large</html>", InputRefused),
        (413, "Payload Too Large", BatchTooLarge),
        (400, "upstream says: maximum context exceeded", ContextTooLong),
        (408, "", Unavailable),
        (409, "", Unavailable),
        (418, "", Unavailable),
        (499, "", Unavailable),
        (502, "<html>insufficient_quota</html>", Unavailable),
        (529, "", Unavailable),
        (301, "", Unavailable),
    ],
)
def test_a_failure_is_judged_by_status_and_words(status, body, kind):
    content = (body if isinstance(body, str) else json.dumps(body)).encode()

    found = fault_of(status, {}, content)

    assert (kind, status) == (type(found), found.upstream_status)


@pytest.mark.parametrize("echo", ["input", "inputs", "texts", "ctx", "loc"])
def test_what_a_client_sent_cannot_pass_for_the_upstreams_words(echo):
    """Else anyone could have a provider's key held for spent, and the provider left alone for it."""
    body = {"detail": [{"msg": "String should be shorter", echo: "insufficient_quota API_KEY_INVALID"}]}

    assert type(fault_of(422, {}, json.dumps(body).encode())) is InputRefused


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (openai("said"), "said"),
        ([google("X")], "m"),
        (mistral("said"), "said"),
        ({"object": "error", "message": {"detail": [{"msg": "said"}]}}, "said"),
        ({"detail": [{"loc": ["x"], "msg": "said"}]}, "said"),
        ({"detail": "said"}, "said"),
        ({"error": True, "message": "said"}, "said"),
        ({"error": None, "message": "said"}, "said"),
        ({"errors": [{"code": 7, "message": "said"}]}, "said"),
        ("said", "said"),
        ({"error": {"code": 7}}, ""),
        ({"error": 7}, ""),
        ([], ""),
        ({}, ""),
        (7, ""),
        (None, ""),
        ({"message": "x" * 999}, "x" * LONGEST_MESSAGE),
    ],
)
def test_the_message_is_found_wherever_it_is(body, message):
    assert message == message_of(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ""),
        (b"  plain \n", "plain"),
        (b"<html>no</html>", ""),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"[" * 9999, "[" * 300),
    ],
)
def test_a_body_that_is_not_json_is_its_own_message_but_for_html(content, message):
    assert message == message_of(content)


def test_the_message_says_what_was_answered():
    assert fault_of(500, {}, b"").message == "The upstream answered 500."
    assert fault_of(400, {}, b'{"detail":"no"}').message == "The upstream answered 400: no"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "121"}, LONGEST_HINT),
        ({"retry-after": "86400"}, LONGEST_HINT),
        ({"retry-after": "1" + "0" * 20}, LONGEST_HINT),
        ({"retry-after": "9" * 400}, LONGEST_HINT),
        ({"retry-after": "-7"}, None),
        ({"retry-after": "NaN"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "\N{ARABIC-INDIC DIGIT SEVEN}"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT", "date": DATE}, 30),
        ({"retry-after": "Fri, 20 Nov 2026 09:00:00 GMT", "date": DATE}, 0),
        ({"retry-after": "Fri, 20 Nov 2099 10:00:00 GMT", "date": DATE}, LONGEST_HINT),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30", "date": DATE}, None),
        ({"retry-after": "Fri, 99 Nov 2026 10:00:30 GMT", "date": DATE}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m1.5s"}, 61.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, LONGEST_HINT),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "2s",
            },
            2,
        ),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "9s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "-9s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1795168800"}, None),
        ({"x-ratelimit-remaining-requests": "0"}, None),
    ],
)
def test_headers_say_how_long_to_wait(headers, seconds):
    assert hint_of(headers) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ('{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"37s"}', 37),
        ('{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay": "37.5s"}', 37.5),
        ('{"retryDelay":"86400s"}', LONGEST_HINT),
        ('{"retryDelay":"-7s"}', None),
        ("Please retry after 7 seconds.", 7),
        ("Please retry after 86400 seconds.", LONGEST_HINT),
        ("Please try again in 20s.", 20),
        ("Please try again in 120ms.", None),
        ("Please retry after a while.", None),
        ("", None),
    ],
)
def test_a_body_says_how_long_to_wait(body, seconds):
    assert seconds == hint_of({}, body)


def test_a_header_outweighs_the_body():
    found = fault_of(429, {"retry-after": "3"}, b"retry after 7 seconds")

    assert found.retry_after == 3


@given(status=st.integers(100, 999), content=st.binary(), hint=st.text(), date=st.text())
def test_nothing_that_an_upstream_sends_breaks_the_reading(status, content, hint, date):
    found = fault_of(status, {"retry-after": hint, "date": date, "x-ratelimit-remaining-tokens": "0"}, content)

    assert isinstance(found, UpstreamError)
    assert found.retry_after is None or 0 <= found.retry_after <= LONGEST_HINT


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["error", "message", "detail", "errors", "msg", "input", "code"]), inner)
        ),
    )
)
def test_no_json_breaks_the_reading(body):
    assert isinstance(fault_of(400, {}, json.dumps(body).encode()), UpstreamError)
