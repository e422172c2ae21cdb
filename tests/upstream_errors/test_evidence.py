"""Tests how numbers, accounts, hints and quotes decide the class of an upstream's error."""

# Chinese messages have full-width commas.
# ruff: noqa: RUF001

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedroute import errors
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.upstream_errors import classify_response, refine_with_inputs
from tests.support.cpu_time import measured_cpu


def text(tokens):
    return ("word" * tokens)[: 4 * tokens]


def judged(status, body, inputs=(), headers=None):
    content = body if isinstance(body, str) else json.dumps(body)
    found = classify_response(status, headers or {}, content.encode(), now=0)
    return refine_with_inputs(found, inputs)


@pytest.mark.parametrize("status", [400, 413, 422, 429, 500])
@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        ("Input length 548 exceeds maximum allowed token size 512", 548),
        ("length of prompt_tokens (8714) must be less than max_seq_len (8192).", 8714),
        ("The input token count (25270) exceeds the maximum allowed (4000).", 25270),
        ("Range of input length should be [1, 8192]", 9000),
        ("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8192]", 9),
        ("text of 35,000 characters, at most 10,000", 8750),
        ("limit=512, tokens=548", 548),
        ("*9875* tokens > *8192*", 6000),
        ("8192 < 9875", 16000),
        # Other languages, orders and spellings of numbers.
        ("输入长度548超过最大限制512", 548),
        ("最大长度为512，当前为548", 548),
        ("输入长度应在[1, 512]之间", 548),
        ("输入文本长度范围为1~512", 548),
        ("入力トークン数548は上限512を超えています", 548),
        ("Die Eingabe hat 9.500 Token, erlaubt sind 8.192.", 9500),
        ("L'entrée contient 9\u202f500 jetons ; maximum 8\u00a0192", 9500),
        ("at most 8'192 tokens, got 9'500", 9500),
        ("at most 8_192 tokens, got 9_500", 9500),
        ("512tokens at most, 548tokens given", 548),
        ("548/512 tokens", 548),
        ("length must be in range 1-512", 548),
        ("1 <= length <= 512", 548),
        ("Number of tokens must be from 1 to 512", 548),
    ],
)
def test_two_numbers_are_a_size_refusal(status, message, tokens):
    tokens = 9000 if tokens == 9 else tokens

    alone = judged(status, {"error": message}, [text(tokens)])
    among = judged(status, {"error": message}, ["short", text(tokens), "short"])

    assert (errors.ContextTooLong, "context_length_exceeded") == (type(alone), alone.code)
    assert (errors.BatchTooLarge, None) == (type(among), among.measure)


@pytest.mark.parametrize(
    ("message", "inputs", "measure"),
    [
        ("got 104, allowed 96", ["a"] * 104, errors.Measure.INPUTS),
        ("20000 tokens given, 16384 allowed", [text(200)] * 100, errors.Measure.TOKENS),
        ("80000 bytes given, 65536 allowed", [text(200)] * 100, errors.Measure.BYTES),
        ("548 exceeds 512", [text(548), "short"], None),
    ],
)
def test_the_numbers_of_a_batch_tell_the_measure(message, inputs, measure):
    found = judged(400, {"error": message}, inputs)

    assert (errors.BatchTooLarge, measure) == (type(found), found.measure)


def test_numbers_for_a_named_input_do_not_blame_the_batch():
    found = judged(400, "#/texts/1: maximum 2048, actual: 4000", ["a", text(1000), "b"])

    assert (errors.ContextTooLong, 1) == (type(found), found.input_index)


@pytest.mark.parametrize(
    ("status", "message", "inputs", "kind"),
    [
        (400, "Current cost: 505.50, maximum: 500.0", [text(505)], errors.Rejected),
        (400, "Cost 3.5e-06 exceeds 1e-09", ["abc"], errors.Rejected),
        (400, "0.0007350000000000001 >= 1e-12", [text(735)], errors.Rejected),
        (429, "Limit: 60 / min. Current: 70 / min", [text(70)], errors.RateLimited),
        (429, "6/5 calls", ["123456"], errors.RateLimited),
        (
            429,
            "tokens per min: Limit 1000000, Used 974150, Requested 34558",
            [text(34558)],
            errors.RateLimited,
        ),
        (429, "current tpm: 348, limit 64, per minute", [text(348)], errors.RateLimited),
        (400, "temperature: 5 is not between 0 and 1", ["12345"], errors.Rejected),
        (400, "expected 1, actual: 0", [""], errors.Rejected),
        (500, "larger than max (400000002 vs. 4194304)", ["Test"], errors.UpstreamUnavailable),
        (400, "model text-embedding-3-large-600 of v2-512 failed", [text(600)], errors.Rejected),
        (400, "at 127.0.0.1:50544 in 2025-11-07", [text(50544)], errors.Rejected),
        (400, "request id: 600abc and 512", [text(600)], errors.Rejected),
        (400, "Range of input length should be [1, 8192]", ["short"], errors.Rejected),
        (400, "dimensions must be at most 1024, not 3072", [text(3072)], errors.Rejected),
        (403, "600 exceeds 512", [text(600)], errors.Rejected),
        (502, "600 exceeds 512", [text(600)], errors.UpstreamUnavailable),
        (400, "512 exceeds 600", ["short"], errors.Rejected),
        (400, "400 Bad Request: 390 of it", [text(400)], errors.Rejected),
        (401, "600 exceeds 512", [text(600)], errors.UpstreamAuthError),
        (400, "见 600/512/1 号文件", [text(600)], errors.Rejected),
        (400, "see /600/512", [text(600)], errors.Rejected),
        (400, "texts 1-512 failed", [text(600)], errors.Rejected),
        (400, "1 <= temperature <= 32", [text(600)], errors.Rejected),
        (429, "每分钟请求数600超过限制512", [text(600)], errors.RateLimited),
        (429, "您的账户已达到速率限制，RPM限制为512，当前600", [text(600)], errors.RateLimited),
    ],
)
def test_other_numbers_are_no_size_refusal(status, message, inputs, kind):
    assert kind is type(judged(status, {"message": message}, inputs))


def test_the_count_of_inputs_is_read_in_other_languages():
    found = judged(400, "一批最多16条，收到20条", ["a"] * 20)

    assert (type(found), found.measure) == (errors.BatchTooLarge, errors.Measure.INPUTS)


def test_numbers_that_an_input_contains_are_no_size_refusal():
    own = text(600) + " 600 exceeds 512"

    assert type(judged(400, "Cannot embed '600 exceeds 512'", [text(600)])) is errors.ContextTooLong
    assert type(judged(400, "Cannot embed '600 exceeds 512'", [own])) is errors.Rejected
    assert type(judged(400, "Cannot embed '600 exceeds 512'", [own, "b"])) is errors.Rejected


@pytest.mark.parametrize(
    ("requested", "inputs", "kind"),
    [
        (45_000, [text(450)] * 100, errors.BatchTooLarge),
        (45_000, [text(45_000)], errors.ContextTooLong),
        (34_558, [text(34_558)], errors.RateLimited),
        (45_000, ["short"], errors.RateLimited),
    ],
)
def test_a_call_above_a_limit_per_minute_is_too_large(requested, inputs, kind):
    """It would be refused in every minute."""
    message = f"Rate limit reached on tokens per min (TPM): Limit 40000, Requested {requested}."

    assert kind is type(judged(429, {"error": message}, inputs))


def test_counts_token_ids_and_parts():
    message = "600 exceeds 512"

    assert type(judged(400, message, [tuple(range(600))])) is errors.ContextTooLong
    assert type(judged(400, message, [(TextPart(text(600)),)])) is errors.ContextTooLong
    assert type(judged(400, message, [(ImagePart(ImageURL("data:")),)])) is errors.Rejected


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        (["a", "b"], errors.BatchTooLarge),
        (["a"], errors.RejectedByPage),
        (["a" * 32 * 1024], errors.UpstreamRejectedInput),
        ([], errors.RejectedByPage),
    ],
)
def test_a_413_without_a_message_is_about_the_bytes_of_the_call(inputs, kind):
    assert kind is type(judged(413, "", inputs))


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (429, "Your billing is overdue", errors.QuotaExhausted),
        (429, "Insufficient balance", errors.QuotaExhausted),
        (429, "No more credits", errors.QuotaExhausted),
        (429, "Your trial has ended", errors.QuotaExhausted),
        (429, "You exceeded your current quota", errors.QuotaExhausted),
        (429, "Limited to 1000 API calls / month", errors.QuotaExhausted),
        (429, "Daily limit reached", errors.QuotaExhausted),
        (429, "您的账户每日调用次数已达上限", errors.QuotaExhausted),
        (429, "请求过于频繁，余额不足时更慢", errors.RateLimited),
        (
            429,
            "Rate limit of 8 per 86400s exceeded. Please wait 85841 seconds",
            errors.QuotaExhausted,
        ),
        (429, "Limited to 40 calls / minute on your trial plan", errors.RateLimited),
        (429, "Free tier: 3 RPM and 10K TPM. Add a payment method.", errors.RateLimited),
        (429, "Insufficient balance. Try again in 20 s", errors.RateLimited),
        (429, "Insufficient balance. Try again in 20 hours", errors.QuotaExhausted),
        (429, "Too many concurrent requests for your current plan", errors.RateLimited),
        (429, "call rate limit of your pricing tier and trial", errors.RateLimited),
        (429, "See https://example.com/billing/payment", errors.RateLimited),
        (429, "Resource has been exhausted (e.g. check quota).", errors.RateLimited),
        (429, "Slow down", errors.RateLimited),
        (403, "Please add a payment method", errors.QuotaExhausted),
        (403, "Sorry, your account balance is insufficient", errors.QuotaExhausted),
        (403, "Forbidden this month", errors.Rejected),
        (402, "Pay", errors.QuotaExhausted),
        (400, "Your billing is overdue", errors.Rejected),
        (500, "Your billing is overdue", errors.UpstreamUnavailable),
    ],
)
def test_tells_a_spent_account_from_a_rate_limit(status, message, kind):
    assert kind is type(judged(status, {"message": message}, ["a"]))


def test_a_retry_hint_in_a_header_tells_a_rate_limit():
    found = judged(429, "Insufficient balance", ["a"], {"retry-after": "7"})

    assert (errors.RateLimited, 7) == (type(found), found.retry_after)


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("insufficient_quota", "m", errors.QuotaExhausted),
        ("billing_not_active", "m", errors.QuotaExhausted),
        ("PrepaidBillOverdue", "m", errors.QuotaExhausted),
        ("1113", "m", errors.QuotaExhausted),
        ("4006", "m", errors.QuotaExhausted),
        ("rate_limit_exceeded", "Your plan has no balance", errors.RateLimited),
        ("Throttling.AllocationQuota", "Allocated quota exceeded", errors.RateLimited),
        ("RATE_TOKEN_LIMIT_EXCEEDED", "Insufficient balance", errors.RateLimited),
        ("1302", "Insufficient balance", errors.RateLimited),
    ],
)
def test_a_documented_code_decides_before_the_words(code, message, kind):
    assert kind is type(judged(429, {"error": {"code": code, "message": message}}, ["a"]))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("You exceeded your current quota, please check your plan", errors.RateLimited),
        ("Free allocated quota exceeded.", errors.QuotaExhausted),
    ],
)
def test_a_provider_can_use_a_common_code_for_a_rate_limit(message, kind):
    body = json.dumps({"error": {"code": "insufficient_quota", "message": message}}).encode()

    found = classify_response(429, {}, body, rate_limit_codes=frozenset({"insufficient_quota"}))

    assert kind is type(found)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "The input is empty"),
        (400, "Invalid 'input[0]': input cannot be an empty string."),
        (400, "inputs contains an element that is the empty string"),
        (422, "texts must not be blank"),
        (400, "Invalid token ids in the input"),
        (400, "token id 99999 is out of range"),
        (400, "Failed to decode the image"),
        (400, "cannot identify image file <_io.BytesIO>"),
        (400, "unsupported image format"),
        (400, "Input text data may contain inappropriate content."),
        (403, "Request blocked: prompt injection patterns detected"),
        (400, "The prompt triggered the content management policy"),
    ],
)
def test_blames_an_input_only_if_the_upstream_names_its_fault(status, message):
    assert type(judged(status, {"error": message}, ["a"])) is errors.UpstreamRejectedInput


@pytest.mark.parametrize("status", [400, 403, 405, 406, 410, 415, 418, 422, 451])
@pytest.mark.parametrize(
    "message", ["Bad request", "Invalid request", "invalid token", "model cannot be empty", "No."]
)
def test_any_other_refusal_may_be_the_endpoints_fault(status, message):
    assert type(judged(status, {"error": message}, ["a"])) is errors.Rejected
    assert type(judged(status, "", ["a"])) is errors.RejectedByPage


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<400> InternalError.Algo.InvalidParameter: no", "<400> InternalError.Algo"),
        ("<id_unknown> is unknown", "<id_unknown> is unknown"),
        ({"error": "<400> no"}, "<400> no"),
        ({"error": {"message": json.dumps({"error": {"message": "inner"}})}}, "inner"),
        ({"message": 'HTTP 400: {"error": {"message": "inner"}}'}, "inner"),
        ({"message": 'No: {"a": 1}'}, 'No: {"a": 1}'),
        ({"message": "No: {a}"}, "No: {a}"),
        ({"message": "None", "detail": "said"}, "said"),
    ],
)
def test_shows_the_upstreams_message(body, message):
    assert judged(400, body).message.startswith(f"The upstream answered 400: {message}")


@pytest.mark.parametrize(
    "page",
    [
        "<!DOCTYPE html><p>no</p>",
        " \n<HTML><p>no</p>",
        "<!-- a --> <html>no</html>",
        '<?xml version="1.0"?><Error>no</Error>',
    ],
)
def test_does_not_show_a_page(page):
    assert judged(400, page).message == "The upstream answered 400."
    assert judged(400, {"error": page}).message == "The upstream answered 400."


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": "Model is loading", "estimated_time": 57.5}, 57.5),
        ({"error": {"message": "m", "availability": {"retry_after": 40}}}, 40),
        ({"error": {"message": "m", "details": [{"retryDelay": "37s"}]}}, 37),
        ({"error": "Please wait 5 seconds before retrying"}, 5),
        ({"error": "m", "input": "try again in 5 s"}, None),
        ({"error": "m", "text": "try again in 5 s"}, None),
        ({"error": "m", "input": {"retryDelay": "5s"}}, None),
        ({"error": "m", "estimated_time": "soon"}, None),
    ],
)
def test_reads_hints_only_from_documented_fields_and_the_message(body, seconds):
    assert seconds == judged(429, body, ["a"]).retry_after


def test_ignores_a_hint_that_an_input_contains():
    body = "Blocked: 'Try again in 5 seconds!'"
    quoted = ["please TRY  AGAIN in 5 seconds!"]

    assert judged(429, body, ["a"]).retry_after == 5
    assert judged(429, body, quoted).retry_after is None
    assert judged(429, body, quoted, {"retry-after": "7"}).retry_after == 7


def test_keeps_the_rate_limit_headers():
    headers = {f"x-ratelimit-{number}": "9" * 200 for number in range(20)}

    found = judged(400, "600 exceeds 512", [text(600)], {"server": "x", **headers})

    assert type(found) is errors.ContextTooLong
    assert {f"x-ratelimit-{number}": "9" * 128 for number in range(16)} == found.rate_limits


STATUSES = st.sampled_from([400, 401, 402, 403, 404, 413, 422, 429, 500, 503])
PLANTED = st.sampled_from(
    [
        "invalid api key",
        "API key not valid",
        "Incorrect API key provided",
        "insufficient balance",
        "You exceeded your current quota",
        "model foo not found",
        "Model access is denied",
        "too many inputs",
        "Batch too large: 64 > 32",
        "Budget has been exceeded",
        "insufficient_quota",
        "PerDay",
        "unsupported value: NaN",
        "daily",
        "Too many inputs. Model not found. Invalid API key. trial",
    ]
) | st.text(max_size=40)
FRAMES = st.sampled_from(
    [
        "{}",
        "Cannot embed '{}'",
        "'{}' was refused",
        "Error: {}",
        "{} {}",
        "[RID: 1] {}: no",
        "{}, {}",
    ]
)
ENDPOINT_BLAMING = (errors.UpstreamAuthError, errors.UpstreamModelNotFound, errors.BatchTooLarge)


@given(status=STATUSES, planted=PLANTED, surrounding=PLANTED, frame=FRAMES, upper=st.booleans())
@settings(max_examples=400)
def test_a_quote_never_blames_the_endpoint(status, planted, surrounding, frame, upper):
    quote = planted.upper() if upper else planted
    quoted = {"error": {"message": frame.replace("{}", quote)}}
    plain = {"error": {"message": frame.replace("{}", " ").strip() or "no"}}

    found = judged(status, quoted, [f"{surrounding} {planted} {surrounding}", planted])
    without = judged(status, plain, ["a", "b"])

    if isinstance(found, ENDPOINT_BLAMING):
        assert type(found) is type(without)


MANY = ["a text about the weather\n" * 100] * 2048
"""5 MB of inputs."""


def test_judges_the_rest_of_a_message_without_its_quotes():
    planted = "Too many inputs model not found"

    assert type(judged(400, f"{planted} at all", [planted])) is errors.Rejected
    assert (
        type(judged(400, f"{planted} at all", ["Too many inputs"])) is errors.UpstreamModelNotFound
    )
    assert (
        type(judged(429, "Daily trial: no balance left", ["daily trial"])) is errors.QuotaExhausted
    )
    assert (
        type(judged(429, "Daily trial: no balance left", ["daily trial balance"]))
        is errors.RateLimited
    )
    assert type(judged(400, "Too many inputs: input is empty", [planted, "b"])) is (
        errors.UpstreamRejectedInput
    )


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b'"",' * 333_000 + b'""]',
        json.dumps({"error": {"message": "input " * 160_000}}).encode(),
        json.dumps({"error": {"message": "index 1 " * 120_000}}).encode(),
        json.dumps({"message": "8192 9000 " * 100_000}).encode(),
        json.dumps({"message": "{" * 900_000 + "}"}).encode(),
        json.dumps({"detail": [{"loc": ["body", "input", 1], "msg": "m"}] * 20_000}).encode(),
        b"model " + b"a" * 900_000,
        b"x" * 1_000_000,
        b"<!--" * 250_000,
        b"dimensions is " + b" " * 900_000,
        b"limit 5" * 140_000,
    ],
)
@pytest.mark.parametrize("status", [400, 403, 429])
def test_a_large_body_takes_little_time(status, body):
    with measured_cpu() as spent:
        found = refine_with_inputs(classify_response(status, {}, body), MANY)

    assert isinstance(found, errors.UpstreamError)
    assert spent.seconds < 1
