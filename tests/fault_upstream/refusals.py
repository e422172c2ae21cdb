"""Responses with other statuses than 200, in the words of OpenAI and other providers."""

import base64
import time
from email.utils import formatdate
from urllib.parse import quote

from tests.fault_upstream.messages import whole
from tests.fault_upstream.modes import doubtful, harmless, input_fault, lie
from tests.fault_upstream.truth import say


def refuse(status, message, kind="invalid_request_error", *, param=None, code=None, **headers):
    """Answer in OpenAI's error envelope."""
    return say(
        {"error": {"message": message, "type": kind, "param": param, "code": code}},
        status,
        **headers,
    )


def page(status, title):
    """Answer as a proxy does."""
    text = f"<html><head><title>{status} {title}</title></head><body><center><h1>{status} {title}</h1></center></body></html>"
    return [whole(text.encode(), status, content_type="text/html", server="nginx/1.25.3")]


# The input's own fault.


@input_fault
def status_400(_ask):
    """OpenAI on an input it cannot read."""
    return refuse(
        400,
        "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference.",
    )


@input_fault
def status_413(_ask):
    """An input longer than the upstream takes, as 413."""
    return refuse(413, "Input is too long for requested model.")


@lie(400)
def status_422(_ask):
    """FastAPI's validation error."""
    said = {
        "type": "string_type",
        "loc": ["body", "input"],
        "msg": "Input should be a valid string",
        "input": 5,
    }
    return say({"detail": [said]}, 422)


@input_fault
def context_too_long(_ask):
    """OpenAI on a text over 8192 tokens."""
    said = (
        "This model's maximum context length is 8192 tokens, however you requested 10000 tokens "
        "(10000 in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
    )
    return refuse(400, said)


@input_fault
def context_too_long_500(_ask):
    """llama.cpp on a text over its batch size."""
    said = "input is too large to process. increase the physical batch size"
    return say({"error": {"code": 500, "message": said, "type": "server_error"}}, 500)


@lie(400)
def key_in_400(ask):
    """A refusal whose message repeats the key and the URL with a password."""
    return refuse(
        400,
        f"Bad input in request with key {ask.key} to https://user:hunter2@{ask.headers.get('host')}/v1.",
    )


@lie(400)
def key_cut_in_400(ask):
    """The key is where a message is truncated, so that only a part of it remains."""
    return refuse(400, "x" * 264 + ask.key)


@lie()
def key_masked_in_400(ask):
    """The key with stars in it, but with more than its ends visible."""
    return refuse(400, f"Incorrect API key provided: {ask.key[:5]}****{ask.key[8:]}.")


@lie(400)
def key_spelled_in_400(ask):
    """The key in other spellings: base64, as for a password, and percent-encoded."""
    user = base64.b64encode(f"u:{ask.key}".encode()).decode()
    return refuse(
        400,
        f"Bad {base64.b64encode(ask.key.encode()).decode()}, {user}, {quote(ask.key).replace('-', '%2D')}.",
    )


@lie(400)
def terminal_codes_in_400(_ask):
    """A message with control characters for terminals and for text direction."""
    return refuse(400, "\x1b[2J\x00\u202e" * 200)


@lie(400)
def quotes_signals(ask):
    """A message that repeats an input about keys, models and batches."""
    message = "insufficient_quota, model_not_found, batch size 2 > maximum allowed batch size 1"
    return refuse(400, f"Could not embed '{ask.inputs[0]} {message}'.")


@lie()
def page_413(_ask):
    """Nginx on a body it finds too large, however small it is."""
    return page(413, "Request Entity Too Large")


# The batch is too large: half of it passes.


@harmless
def batch_too_large(ask):
    """OpenAI's 400 on more inputs than ``upstream.limit``; the truth for fewer."""
    said = f"Invalid 'input': array too long. Expected an array with maximum length {ask.upstream.limit}"
    return _within(
        ask,
        refuse(
            400, f"{said}, but got an array with length {len(ask.inputs)} instead.", param="input"
        ),
    )


@harmless
def batch_too_large_413(ask):
    """TEI's 413 on more inputs than ``upstream.limit``; the truth for fewer."""
    said = f"batch size {len(ask.inputs)} > maximum allowed batch size {ask.upstream.limit}"
    return _within(ask, say({"error": said, "error_type": "Validation"}, 413))


@harmless
def batch_too_large_422(ask):
    """TEI's 422 on more inputs than ``upstream.limit``; the truth for fewer."""
    said = f"batch size {len(ask.inputs)} > maximum allowed batch size {ask.upstream.limit}"
    return _within(ask, say({"error": said, "error_type": "Validation"}, 422))


@harmless
def batch_tokens_too_large(ask):
    """OpenAI's 400 on too many tokens, for more inputs than ``upstream.limit``."""
    said = "Invalid 'input': maximum request size is 300000 tokens per request."
    return _within(
        ask,
        refuse(400, said, "max_tokens_per_request", param="input", code="max_tokens_per_request"),
    )


def _within(ask, refusal):
    return say(ask.answer()) if len(ask.inputs) <= ask.upstream.limit else refusal


@harmless
def batch_too_large_page(ask):
    """Nginx's page on more inputs than ``upstream.limit``."""
    return _within(ask, page(413, "Request Entity Too Large"))


@harmless
def batch_too_large_jina(ask):
    """Jina's 400 on more inputs than ``upstream.limit``."""
    return _within(
        ask,
        say(
            {
                "detail": {
                    "message": f"Each input list can contain at most {ask.upstream.limit} items"
                }
            },
            400,
        ),
    )


@harmless
def batch_too_large_vertex(ask):
    """Vertex's 400 on more inputs than ``upstream.limit``."""
    said = f"{ask.upstream.limit} instance(s) is allowed per prediction. Actual: {len(ask.inputs)}"
    return _within(
        ask, say({"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}, 400)
    )


@harmless
def batch_too_large_cohere(ask):
    """Cohere's 400 on more inputs than ``upstream.limit``."""
    said = f"invalid request: total number of texts must be at most {ask.upstream.limit} - received {len(ask.inputs)}"
    return _within(ask, say({"id": "i", "message": said}, 400))


@harmless
def batch_too_large_voyage(ask):
    """Voyage's 400 on too many tokens, for more inputs than ``upstream.limit``."""
    said = "Request to model 'voyage-3' failed. The max allowed tokens per submitted batch is 120000. Your batch has 124417."
    return _within(ask, say({"detail": said}, 400))


@input_fault
def batch_never_fits(ask):
    """An error about the batch size even for a single input."""
    return say(
        {
            "error": f"batch size {len(ask.inputs)} > maximum allowed batch size 0",
            "error_type": "Validation",
        },
        413,
    )


# Our account's fault.


@lie()
def status_401(ask):
    """A refused key, repeated in full."""
    said = f"Incorrect API key provided: {ask.key}. You can find your API key at https://platform.openai.com/account/api-keys."
    return refuse(401, said, code="invalid_api_key")


@lie()
def status_402(_ask):
    """The account has no credit left."""
    return refuse(402, "Insufficient Balance", "unknown_error", code="invalid_request_error")


@lie()
def status_403(_ask):
    """A model that the key may not use."""
    return refuse(
        403, "You are not allowed to generate embeddings from this model", "permission_error"
    )


@lie()
def status_404(ask):
    """A model that the upstream does not know."""
    said = f"The model `{ask.json.get('model')}` does not exist or you do not have access to it."
    return refuse(404, said, code="model_not_found")


@lie()
def bare_404(_ask):
    """An unknown path, with the error page of a web server."""
    return page(404, "Not Found")


@lie()
def quota_spent(_ask):
    """A 429 that is not retryable."""
    said = "You exceeded your current quota, please check your plan and billing details."
    return refuse(429, said, "insufficient_quota", code="insufficient_quota")


# Come back later; the rest asked for is long, so that no test waits for it.


@lie(429)
def status_429(_ask):
    """OpenAI's rate limit, with a wait of 100 s."""
    return _limited(retry_after=100)


@lie(429)
def limited_ms(_ask):
    """A wait of 100 s in milliseconds, and a different header in seconds."""
    return _limited(retry_after_ms=100_000, retry_after=1)


@lie(429)
def limited_date(_ask):
    """A wait until a date in 100 s by the upstream's clock, which is an hour slow."""
    now = time.time() - 3600
    return _limited(
        date=formatdate(now, usegmt=True), retry_after=formatdate(now + 100, usegmt=True)
    )


@lie(429)
def limited_reset(_ask):
    """A wait only in OpenAI's window headers."""
    return _limited(x_ratelimit_remaining_requests=0, x_ratelimit_reset_requests="1m40s")


@lie(429)
def limited_date_alone(_ask):
    """A wait until a date in 100 s, without a ``date`` header."""
    return _limited(retry_after=formatdate(time.time() + 100, usegmt=True))


@lie(429)
def limited_words(_ask):
    """A wait only in the text of OpenAI's message."""
    return refuse(
        429,
        "Rate limit reached. Please try again in 1m40s.",
        "requests",
        code="rate_limit_exceeded",
    )


@lie(429)
def limited_huge(_ask):
    """An extremely long wait."""
    return _limited(retry_after=10**17)


@lie(429)
def limited_overflow(_ask):
    """A wait with too many digits."""
    return _limited(retry_after="9" * 400)


@lie(429)
def limited_silent(_ask):
    """A rate limit without a wait."""
    return _limited()


@lie(429)
def limited_garbage(_ask):
    """A wait that is not numeric."""
    return _limited(retry_after="soon", retry_after_ms="later")


@lie(429)
def limited_negative(_ask):
    """A negative wait."""
    return _limited(retry_after=-5)


@lie(429)
def limited_nan(_ask):
    """A wait that is NaN."""
    return _limited(retry_after="nan", retry_after_ms="inf")


@lie(429)
def key_in_429(ask):
    """A rate limit whose message repeats the key."""
    return refuse(
        429,
        f"Rate limit reached for key {ask.key}.",
        "requests",
        code="rate_limit_exceeded",
        retry_after=100,
    )


def _limited(**headers):
    said = "Rate limit reached for text-embedding-3-small in organization org-1 on requests per min (RPM): Limit 3, Used 3."
    return refuse(429, said, "requests", code="rate_limit_exceeded", **headers)


# The upstream's own failures.


@lie()
def status_408(_ask):
    """The upstream was slow to read."""
    return refuse(408, "Request timed out.", "timeout")


@lie()
def status_409(_ask):
    """A conflict."""
    return refuse(409, "The resource is locked by another request.")


@lie()
def status_424(_ask):
    """TEI's backend has failed."""
    return say({"error": "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)", "error_type": "Backend"}, 424)


@lie()
def status_425(_ask):
    """Too early."""
    return refuse(425, "Too early.")


@lie()
def status_500(_ask):
    """OpenAI's internal error."""
    return refuse(
        500,
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
    )


@lie()
def key_in_500(ask):
    """A crash that shows the request, its key included."""
    text = f"Traceback (most recent call last):\n  POST headers={{'authorization': 'Bearer {ask.key}'}}\nKeyError: 'x'"
    return [whole(text.encode(), 500, content_type="text/plain")]


@lie()
def status_502(_ask):
    """A proxy without a backend."""
    return page(502, "Bad Gateway")


@lie()
def status_503(_ask):
    """TEI is still loading."""
    return refuse(
        503,
        "The engine is currently overloaded, please try again later",
        "server_error",
        code="overloaded",
    )


@lie(502, 503)
def resting_503(_ask):
    """An overload with a wait of 100 s."""
    return refuse(503, "Slow down", "server_error", code="overloaded", retry_after=100)


@lie(502, 503)
def busy_503(_ask):
    """An overload with a wait of 0.3 s."""
    return refuse(503, "Model is loading", "server_error", code="overloaded", retry_after=0.3)


@lie()
def status_504(_ask):
    """A proxy whose backend is slow."""
    return page(504, "Gateway Time-out")


@lie()
def status_520(_ask):
    """A status that only Cloudflare uses."""
    return page(520, "Web server is returning an unknown error")


@lie()
def status_529(_ask):
    """Anthropic's overload."""
    return refuse(529, "Overloaded", "overloaded_error")


@lie()
def status_999(_ask):
    """A status that does not exist."""
    return refuse(999, "Request denied")


@lie()
def empty_500(_ask):
    """500 without a body."""
    return [whole(b"", 500)]


# Go elsewhere.


@lie()
def redirect(ask):
    """307 to another host, which would get the body. See ``upstream.followed``."""
    return [whole(b"", 307, location=ask.upstream.elsewhere)]


@lie()
def redirect_302(ask):
    """302 to another host."""
    return [whole(b"", 302, location=ask.upstream.elsewhere)]


@lie()
def not_modified(_ask):
    """304, although the request was not conditional."""
    return [whole(b"", 304, content_type=None, content_length=None)]


@doubtful
def created(ask):
    """The truth, as 201."""
    return say(ask.answer(), 201)


# What is not a request for embeddings.


def not_found(ask):
    """Any other path."""
    return refuse(404, f"Invalid URL ({ask.method} {ask.path})")


def unreadable(_ask):
    """A body without inputs."""
    return refuse(400, "We could not parse the JSON body of your request.")
