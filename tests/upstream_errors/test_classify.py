"""Tests with error responses of upstreams; each was documented by its provider or observed."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import (
    LONGEST_RETRY_AFTER,
    BatchTooLarge,
    ContextTooLong,
    Measure,
    QuotaExhausted,
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.upstream_errors import (
    LARGE_BODY,
    classify_response,
    parse_retry_after,
    refine_with_inputs,
)

DATE = "Fri, 20 Nov 2026 10:00:00 GMT"
NOW = datetime(2026, 11, 20, 9, 0, tzinfo=UTC).timestamp()
"""Seconds; the gateway's clock is an hour slow."""


def openai(message="m", code=None, type="invalid_request_error"):
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def google(status, **detail):
    return {"error": {"code": 0, "message": "m", "status": status, "details": [detail]}}


def mistral(message="m", code="1300"):
    return {"object": "error", "message": message, "type": "t", "param": None, "code": code}


def fastapi(message):
    return {
        "detail": [{"type": "too_long", "loc": ["body", "input"], "msg": message, "input": ["a"]}]
    }


def judged(status, body, inputs=()):
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    return refine_with_inputs(classify_response(status, {}, content, now=NOW), inputs)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, openai("'$.input' is invalid."), UpstreamRejectedInput),
        (
            400,
            openai(
                "Requested 400000 tokens, max 300000 tokens per request", "max_tokens_per_request"
            ),
            BatchTooLarge,
        ),
        (
            400,
            openai("Invalid 'input': array too long. Expected an array with maximum length 2048"),
            BatchTooLarge,
        ),
        (
            400,
            openai(
                "This model's maximum context length is 8192 tokens, however you requested 9000."
            ),
            ContextTooLong,
        ),
        (401, openai(code="invalid_api_key"), UpstreamAuthError),
        (403, openai("Country not supported"), UpstreamAuthError),
        (
            403,
            openai("Country, region, or territory not supported", type="request_forbidden"),
            UpstreamAuthError,
        ),
        (
            403,
            openai(
                "You are not allowed to generate embeddings from this model",
                type="permission_error",
            ),
            UpstreamModelNotFound,
        ),
        (403, openai("You are not allowed to sample from this model"), UpstreamModelNotFound),
        (
            403,
            openai("Project `proj_1` does not have access to model `m`", "model_not_found"),
            UpstreamModelNotFound,
        ),
        (403, openai("Project `proj_1` does not have access to this endpoint"), UpstreamAuthError),
        (403, openai("Your account has been deactivated"), UpstreamAuthError),
        (
            403,
            {
                "error": {
                    "code": "403",
                    "message": "Access denied due to Virtual Network/Firewall rules.",
                }
            },
            UpstreamAuthError,
        ),
        (403, google("PERMISSION_DENIED", reason="SERVICE_DISABLED"), UpstreamAuthError),
        (403, google("FORBIDDEN", reason="API_KEY_SERVICE_BLOCKED"), UpstreamAuthError),
        (
            403,
            {"__type": "AccessDeniedException", "code": "AccessDeniedException"},
            UpstreamAuthError,
        ),
        (
            403,
            {"message": "The security token included in the request is invalid"},
            UpstreamAuthError,
        ),
        (
            403,
            {
                "message": "User: arn:aws:iam::1:user/x is not authorized to perform: bedrock:InvokeModel"
            },
            UpstreamAuthError,
        ),
        (403, {"message": "Missing Authentication Token"}, UpstreamAuthError),
        (403, {"code": "Model.AccessDenied", "message": "m"}, UpstreamModelNotFound),
        (
            403,
            {"detail": {"message": "m", "code": "AUTHZ_RESOURCE_LIMIT_EXCEEDED"}},
            QuotaExhausted,
        ),
        (403, {"detail": "Not authenticated"}, UpstreamAuthError),
        (403, {"error": "Invalid API key"}, UpstreamAuthError),
        (403, {"error": "The API key is disabled"}, UpstreamAuthError),
        (403, "API key not valid. Please pass a valid API key.", UpstreamAuthError),
        (403, {"message": "Insufficient credits"}, QuotaExhausted),
        (
            403,
            openai("Your request was flagged", "content_policy_violation"),
            UpstreamRejectedInput,
        ),
        (
            403,
            {
                "error": {
                    "code": 403,
                    "message": "m",
                    "metadata": {"flagged_input": "invalid api key"},
                }
            },
            Rejected,
        ),
        (403, {"message": "Forbidden"}, Rejected),
        (403, {"error": "Access denied"}, Rejected),
        (403, "Request blocked by policy: invalid api key", Rejected),
        (
            403,
            "<html><head><title>403 Forbidden</title></head><body>Invalid API key</body></html>",
            RejectedByPage,
        ),
        (403, "", RejectedByPage),
        (403, {"error": {"code": 7}}, RejectedByPage),
        (405, "", RejectedByPage),
        (406, "<html>Not Acceptable</html>", RejectedByPage),
        (418, {"message": "blocked"}, Rejected),
        (451, openai("Unavailable for legal reasons"), Rejected),
        (498, {"message": "blocked token"}, UpstreamAuthError),
        (404, openai(code="model_not_found"), UpstreamModelNotFound),
        (429, openai(code="rate_limit_exceeded"), RateLimited),
        (429, openai("You exceeded your current quota", "insufficient_quota"), QuotaExhausted),
        (429, openai("Rate limit reached: too many tokens per request"), RateLimited),
        (
            429,
            openai(
                "Request too large for m in organization org-1 on tokens per min (TPM): Limit 1"
            ),
            BatchTooLarge,
        ),
        (
            429,
            openai(
                "Rate limit reached for m in organization org-1 on tokens per min (TPM): Limit 1"
            ),
            RateLimited,
        ),
        (429, "insufficient_quota", QuotaExhausted),
        (500, openai("The server had an error"), UpstreamUnavailable),
        (503, openai("overloaded"), UpstreamUnavailable),
        (
            401,
            {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}},
            UpstreamAuthError,
        ),
        (404, {"error": {"code": "DeploymentNotFound", "message": "m"}}, UpstreamModelNotFound),
        (400, google("INVALID_ARGUMENT"), Rejected),
        (403, {"code": 30001, "message": "m"}, QuotaExhausted),
        (400, openai(code="context_length_exceeded"), ContextTooLong),
        (403, openai("no", "invalid_api_key"), UpstreamAuthError),
        (400, openai("API key not valid. Please pass a valid API key."), UpstreamAuthError),
        (422, openai("Invalid API key"), UpstreamAuthError),
        (400, openai("No text: invalid API key"), Rejected),
        (
            429,
            openai("Request too large for m on tokens per min (TPM): Limit 50000, Requested 114"),
            RateLimited,
        ),
        (400, google("INVALID_ARGUMENT", reason="API_KEY_INVALID"), UpstreamAuthError),
        (400, [google("INVALID_ARGUMENT", reason="API_KEY_INVALID")], UpstreamAuthError),
        (
            400,
            {
                "error": {
                    "message": "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"
                }
            },
            BatchTooLarge,
        ),
        (403, google("PERMISSION_DENIED"), UpstreamAuthError),
        (404, google("NOT_FOUND"), UpstreamModelNotFound),
        (
            429,
            google(
                "RESOURCE_EXHAUSTED",
                violations=[{"quotaId": "EmbedContentRequestsPerMinutePerUser"}],
            ),
            RateLimited,
        ),
        (
            429,
            google(
                "RESOURCE_EXHAUSTED", violations=[{"quotaId": "EmbedContentRequestsPerDayPerUser"}]
            ),
            QuotaExhausted,
        ),
        (500, google("INTERNAL"), UpstreamUnavailable),
        (503, google("UNAVAILABLE"), UpstreamUnavailable),
        (504, google("DEADLINE_EXCEEDED"), UpstreamUnavailable),
        (400, mistral("Too many inputs in request, split into more batches."), BatchTooLarge),
        (400, mistral("Too many tokens in batch. Max is 16384 got 20000"), BatchTooLarge),
        (400, mistral("Too many tokens overall, split into more batches.", "3210"), BatchTooLarge),
        (400, mistral("m", 3210), BatchTooLarge),
        (400, mistral("Input exceeded max 8192 tokens"), ContextTooLong),
        (401, {"message": "Unauthorized", "request_id": "r"}, UpstreamAuthError),
        (401, {"detail": "Unauthorized"}, UpstreamAuthError),
        (
            422,
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "user"], "msg": "no", "input": "u"}
                ]
            },
            Rejected,
        ),
        (429, mistral("Rate limit exceeded"), RateLimited),
        (
            400,
            {"detail": "Model voyage-9 is not supported. Supported models are ['voyage-4']."},
            UpstreamModelNotFound,
        ),
        (400, {"detail": "[INPUT_MODEL_NOT_FOUND] no such model"}, UpstreamModelNotFound),
        (400, {"detail": "[INPUT_TOKEN_LIMIT_EXCEEDED] too many"}, ContextTooLong),
        (400, {"detail": {"message": "m", "code": "INPUT_MODEL_NOT_FOUND"}}, UpstreamModelNotFound),
        (403, {"detail": "[AUTHZ_INSUFFICIENT_BALANCE] top up"}, QuotaExhausted),
        (400, {"code": "Arrearage", "message": "m"}, QuotaExhausted),
        (402, {"message": "Payment required"}, QuotaExhausted),
        (400, {"error": "the input length exceeds the context length"}, ContextTooLong),
        (404, {"error": 'model "x" not found, try pulling it first'}, UpstreamModelNotFound),
        (
            413,
            {
                "error": "Input validation error: `inputs` must have less than 512 tokens. Given: 600"
            },
            ContextTooLong,
        ),
        (
            422,
            {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"},
            BatchTooLarge,
        ),
        (424, {"error": "backend", "error_type": "Backend"}, UpstreamUnavailable),
        (429, {"error": "Model is overloaded", "error_type": "Overloaded"}, RateLimited),
        (
            500,
            openai("input (600 tokens) is too large to process. increase the physical batch size"),
            ContextTooLong,
        ),
        (500, openai("insufficient_quota, model not found, batch size"), UpstreamUnavailable),
        (400, "upstream says: maximum context exceeded", ContextTooLong),
        (400, openai("Invalid 'input[0]': maximum input length is 8192 tokens."), ContextTooLong),
        (
            400,
            openai("the request exceeds the available context size. try increasing it"),
            ContextTooLong,
        ),
        (408, "", UpstreamUnavailable),
        (409, "", UpstreamUnavailable),
        (418, "", RejectedByPage),
        (424, "", UpstreamUnavailable),
        (425, "", UpstreamUnavailable),
        (499, "", UpstreamUnavailable),
        (502, "<html>insufficient_quota</html>", UpstreamUnavailable),
        (529, "", UpstreamUnavailable),
        (301, "", UpstreamUnavailable),
    ],
)
def test_classifies_an_error_by_status_and_text(status, body, kind):
    content = (body if isinstance(body, str) else json.dumps(body)).encode()

    found = classify_response(status, {}, content)

    assert (kind, status) == (type(found), found.upstream_status)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (403, {"www-authenticate": 'Bearer error="insufficient_scope"'}, UpstreamAuthError),
        (
            403,
            {"x-amzn-errortype": "AccessDeniedException:http://internal.amazon.com/coral/"},
            UpstreamAuthError,
        ),
        (403, {"x-amzn-errortype": "UnrecognizedClientException"}, UpstreamAuthError),
        (403, {"x-amzn-errortype": "ForbiddenException"}, RejectedByPage),
        (403, {"server": "cloudflare"}, RejectedByPage),
        (406, {"www-authenticate": "Bearer"}, RejectedByPage),
    ],
)
def test_classifies_a_403_about_the_key_by_headers(status, headers, kind):
    assert kind is type(classify_response(status, headers, b"<html>Forbidden</html>"))


FULL = {
    "openai": (
        400,
        openai(
            "Invalid 'input': array too long. Expected an array with maximum length 2048, but got 9"
        ),
    ),
    "openai tokens": (
        400,
        openai("Requested 400000 tokens, max 300000 tokens per request", "max_tokens_per_request"),
    ),
    "openai size": (
        400,
        openai("Invalid 'input': maximum request size is 300000 tokens per request."),
    ),
    "azure": (
        400,
        {
            "error": {
                "message": "Too many inputs. The max number of inputs is 16. We hope to increase it."
            }
        },
    ),
    "azure by name": (
        400,
        {"error": {"message": "Too many inputs for model None. The max number of inputs is 1."}},
    ),
    "gemini": (
        400,
        {
            "error": {
                "message": "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"
            }
        },
    ),
    "gemini bytes": (
        400,
        {"error": {"message": "Request payload size exceeds the limit: 20971520 bytes."}},
    ),
    "vertex": (
        400,
        {"error": {"code": 400, "message": "5 instance(s) is allowed per prediction. Actual: 6"}},
    ),
    "mistral": (400, mistral("Too many inputs in request, split into more batches.")),
    "mistral tokens": (400, mistral("Too many tokens overall, split into more batches.", "3210")),
    "mistral tokens, old": (400, mistral("Too many tokens in batch. Max is 16384 got 20000")),
    "cohere": (
        400,
        {"message": "invalid request: total number of texts must be at most 96 - received 131"},
    ),
    "bedrock": (
        400,
        {
            "message": "Malformed input request: #/texts: expected maximum item count: 96, found: 99, please"
        },
    ),
    "voyage": (
        400,
        {
            "detail": "The max allowed tokens per submitted batch is 120000. Please lower the number of tokens."
        },
    ),
    "voyage by name": (
        400,
        {
            "detail": "Request to model 'voyage-3' failed. The max allowed tokens per submitted batch is 120000. Your batch"
        },
    ),
    "jina": (400, {"detail": {"message": "Each input list can contain at most 512 items"}}),
    "dashscope": (
        400,
        {
            "code": "InvalidParameter",
            "message": "batch size is invalid, it should not be larger than 10.: x",
        },
    ),
    "dashscope v1": (
        400,
        openai(
            "<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid, it should not be larger than 10."
        ),
    ),
    "tei": (
        422,
        {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"},
    ),
    "siliconflow": (
        413,
        {"code": 20042, "message": "input batch size 473 > maximum allowed batch size 64"},
    ),
    "pydantic": (422, fastapi("List should have at most 512 items after validation, not 600")),
    "pydantic 1": (422, fastapi("ensure this value has at most 512 items")),
    "volcengine": (400, openai("maximum context length is 1, but 2 is requested")),
    "nginx": (413, "<html><title>413 Request Entity Too Large</title></html>"),
    "go": (413, {"error": "http: request body too large"}),
    "anybody": (413, ""),
}
"""Provider → its message for a call of several inputs that is too large."""

AT_LARGE = [
    "batch too large",
    "Batch too large: 64 > 32",
    "batch size too large",
    "The batch is too big",
    "Batch size exceeds limit of 32",
    "Batch size 64 is greater than 32",
    "The batch size 64 exceeds the maximum of 32",
    "The batch size limit is 128. Your batch size is 129.",
    "Batch of 64 exceeds the maximum",
    "batch size must be at most 32",
    "Batch size must be between 1 and 32",
    "Batch size: 64 > 32",
    "Batch size is limited to 32",
    "Maximum batch size is 32, got 64",
    "This model's maximum batch size is 16",
    "max allowed batch size: 32",
    "too many inputs",
    "Too many inputs: 64, maximum is 32",
    "Too many inputs. Maximum 16 allowed.",
    "too many texts",
    "too many items in batch",
    "Too many tokens in request: 400000 > 300000",
    "The maximum number of inputs is 32",
    "Maximum number of texts exceeded",
    "Number of inputs exceeds maximum of 250",
    "The number of documents (2,049) must be at most 2,048",
    "the total number of texts 131 exceeds 96",
    "Expected at most 32 inputs, got 64",
    "maximum of 16 inputs per request",
    "Only up to 1,000 texts at a time",
    "This model supports at most 16 inputs",
    "`input` must contain at most 32 elements",
    "Input must have at most 32 items",
    "'texts' array can hold no more than 96 strings",
    "inputs cannot contain more than 128 items",
    "input array too long",
    "The input list is too long: 64 > 32",
    "array too long",
    "Request too large: max 300000 tokens per request",
    "The request is too large",
    "request entity too large",
    "Payload too large",
    "http: request body too large",
    "Request body exceeds 2 MB",
    "The request size exceeds 2 MB",
]
"""Messages of other APIs for such a call."""

FULL |= {f"somebody: {said}": (400, openai(said)) for said in AT_LARGE}
FULL |= {
    f"somebody's {code}": (422, openai(code=code))
    for code in (
        "batch_too_large",
        "BATCH_SIZE_TOO_LARGE",
        "too_many_inputs",
        "TooManyInputs",
        "max_batch_size_exceeded",
    )
}
FULL |= {
    f"somebody's {code}": (400, openai(type=code))
    for code in ("request_too_large", "payload_too_large")
}


@pytest.mark.parametrize("who", FULL)
def test_a_too_large_call_of_several_inputs_is_batch_too_large(who):
    assert BatchTooLarge is type(judged(*FULL[who], ["a", "b"]))


COUNTED = {
    Measure.INPUTS: (
        "openai",
        "azure",
        "azure by name",
        "gemini",
        "vertex",
        "mistral",
        "cohere",
        "bedrock",
        "jina",
        "dashscope",
        "tei",
        "siliconflow",
        "pydantic",
        "volcengine",
        "somebody: Batch size exceeds limit of 32",
        "somebody: too many inputs",
        "somebody: Expected at most 32 inputs, got 64",
        "somebody's too_many_inputs",
        "somebody's BATCH_SIZE_TOO_LARGE",
    ),
    Measure.TOKENS: (
        "openai tokens",
        "openai size",
        "mistral tokens",
        "mistral tokens, old",
        "voyage",
        "voyage by name",
        "somebody: Too many tokens in request: 400000 > 300000",
    ),
    Measure.BYTES: (
        "gemini bytes",
        "nginx",
        "go",
        "anybody",
        "somebody: Payload too large",
        "somebody: Request body exceeds 2 MB",
        "somebody: The request size exceeds 2 MB",
        "somebody's request_too_large",
        "somebody's payload_too_large",
    ),
    None: (
        "somebody: batch too large",
        "somebody: The batch is too big",
        "somebody's batch_too_large",
    ),
}
"""Measure → providers whose message names it; None if it names no measure."""


@pytest.mark.parametrize(
    ("measure", "who"), [(measure, who) for measure, names in COUNTED.items() for who in names]
)
def test_reads_the_measure_from_the_message(measure, who):
    assert measure is judged(*FULL[who], ["a", "b"]).measure


@pytest.mark.parametrize(
    ("status", "body", "inputs", "measure"),
    [
        (413, {"error": "too many inputs"}, ["why too many inputs?", "b"], Measure.BYTES),
        (413, {"error": "too many inputs"}, ["a", "b"], Measure.INPUTS),
        (413, {"error": "batch too large"}, ["a", "b"], Measure.BYTES),
        (
            413,
            openai(
                "Request too large for model `m` in organization `o` service tier `on_demand` on tokens per minute (TPM)"
            ),
            ["a", "b"],
            Measure.TOKENS,
        ),
    ],
)
def test_refines_the_measure_by_status_and_inputs(status, body, inputs, measure):
    found = judged(status, body, inputs)

    assert (BatchTooLarge, measure) == (type(found), found.measure)


@pytest.mark.parametrize(
    ("said", "measure"),
    [("too many inputs", Measure.INPUTS), ("the body is too large", Measure.BYTES), ("no", None)],
)
def test_reads_the_measure_from_the_message_of_a_backend(said, measure):
    assert measure is refine_with_inputs(BatchTooLarge(said), ["a", "b"]).measure


@pytest.mark.parametrize("who", FULL)
def test_a_single_too_large_input_is_rejected(who):
    """It cannot be halved, and no other endpoint would accept it."""
    status, body = FULL[who]
    found = judged(status, body, ["a" * LARGE_BODY])

    long = "token" in str(body) or who == "volcengine"
    assert (400, "context_length_exceeded" if long else None) == (found.status, found.code)
    assert status == found.upstream_status


@pytest.mark.parametrize(
    ("status", "body", "inputs", "kind"),
    [
        (413, "Input is too long for requested model.", ["a", "b"], ContextTooLong),
        *(
            (400, openai(said, "request_too_large"), ["a", "b"], ContextTooLong)
            for said in (
                "Input text is too long.",
                "The input is too long: 9000 > 8192 tokens",
                "The text of list item 3 is too long",
                "Input list item 3 is too long",
                "the document is too long",
                "document 3 is too long: 900 tokens, limit 512",
                "The passage is too long (max 512 tokens)",
                "content exceeds 200 characters",
                "Your document exceeds the limit of 512 tokens",
                "Request too large: it is over the context length of 8192 tokens",
                "Batch size exceeds the maximum context of 8192 tokens",
                "Too many inputs: the input exceeds 8192 tokens",
                "Too many tokens in request: input exceeded max 8192 tokens",
            )
        ),
        *(
            (400, openai(said), ["a", "b"], Rejected)
            for said in (
                "Too many tokens: 9000 > 8192",
                "Input must have at most 8192 tokens",
                "Input must have at least 1 items",
                "The maximum number of tokens is 8192",
                "Number of inputs must be at least 1",
                "Number of inputs does not match the number of titles",
                "batch size must be positive",
                "Request is too long",
                "the document list is too long",
                "the document id is too long",
                "content exceeds 200 items",
                "input[0] must contain at most 32 elements",
                "No: too many inputs",
            )
        ),
        (
            400,
            mistral("Input id 0 has 9000 tokens, exceeded max 8192 tokens.", "3210"),
            ["a"],
            ContextTooLong,
        ),
        (
            400,
            mistral("Input id 0 has 9000 tokens, exceeded max 8192 tokens.", "3210"),
            ["a", "b"],
            ContextTooLong,
        ),
        (
            400,
            openai("input (600 tokens) is too large to process. increase the physical batch size"),
            ["a"],
            ContextTooLong,
        ),
        (
            400,
            openai("input (600 tokens) is too large to process. increase the physical batch size"),
            ["a"] * 2,
            ContextTooLong,
        ),
        (
            400,
            openai("maximum context length is 8192, but 9000 is requested"),
            ["a", "b"],
            ContextTooLong,
        ),
        (
            400,
            openai("maximum context length is 1, but 2 is requested"),
            ["is 1, but", "b"],
            BatchTooLarge,
        ),
        (
            400,
            openai("maximum context length is 1, but 2 is requested"),
            ["maximum context length is 1, but 2 is requested"] * 2,
            ContextTooLong,
        ),
        (
            400,
            openai(f"maximum context length is 1, but {'2' * 5000} is requested"),
            ["a", "b"],
            ContextTooLong,
        ),
        (
            400,
            openai(" Too many inputs in request, split into more batches."),
            ["a", "b"],
            BatchTooLarge,
        ),
        (
            400,
            openai(code="max_tokens_per_request"),
            ["max_tokens_per_request", "b"],
            BatchTooLarge,
        ),
        (429, openai(code="insufficient_quota"), ["insufficient_quota"], QuotaExhausted),
        (429, openai("Slow down: 'PerDay'"), ["PerDay"], RateLimited),
        (429, openai("Slow down: 'PerDay'"), ["b"], QuotaExhausted),
        (
            429,
            openai("Request too large for m on tokens per min (TPM): Limit 1"),
            ["a"],
            ContextTooLong,
        ),
        (
            429,
            openai("Request too large for m on tokens per min (TPM): Limit 1"),
            ["a", "b"],
            BatchTooLarge,
        ),
        (
            429,
            openai("Request too large for m on tokens per min"),
            ["Request too large for m on tokens per min"],
            RateLimited,
        ),
        (403, openai("Invalid API key: blocked"), ["Invalid API key"], Rejected),
        (403, openai("Invalid API key"), ["b"], UpstreamAuthError),
        (
            404,
            openai("Model foo is not supported. Supported models are x"),
            ["Model foo is not supported"],
            UpstreamModelNotFound,
        ),
    ],
)
def test_refines_an_error_by_the_inputs_of_its_call(status, body, inputs, kind):
    assert kind is type(judged(status, body, inputs))


def test_refining_keeps_message_status_and_retry_after():
    fault = BatchTooLarge("full", param="input", retry_after=7.0, upstream_status=400)

    found = refine_with_inputs(fault, ["a"])

    assert ("full", "input", 7.0, 400) == (
        found.message,
        found.param,
        found.retry_after,
        found.upstream_status,
    )
    assert fault is refine_with_inputs(fault, ["a", "b"])


PLANTED = [
    "what is invalid_api_key?",
    "insufficient_quota",
    "API_KEY_INVALID",
    "Arrearage",
    "EmbedContentRequestsPerDayPerUser",
    "model foo does not exist",
    "model_not_found",
    "[INPUT_MODEL_NOT_FOUND] no such model",
    "Model foo is not supported. Supported models are bar",
    "too many inputs",
    "max_tokens_per_request",
    "3210",
    "Too many inputs in request, split into more batches.",
    "batch size 64 > maximum allowed batch size 32",
    "Payload Too Large",
    "Batch too large: 64 > 32",
    "The batch size 64 exceeds the maximum of 32",
    "Expected at most 32 inputs, got 64",
    "Array is too large, too many inputs",
]
"""Texts that a client may send."""


@pytest.mark.parametrize(
    "quoting",
    [
        lambda text: openai(f"Could not embed the text '{text}'"),
        lambda text: openai(f"{text} could not be embedded"),
        openai,
        lambda text: openai(text.upper()),
        lambda text: {"detail": f"Bad input: {text}"},
        lambda text: {"detail": text, "query": text},
        lambda text: {"document": text, "message": "no"},
        lambda text: [text],
        lambda text: f"cannot embed {text}",
        lambda text: text,
    ],
)
@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("text", PLANTED)
def test_a_quoted_input_does_not_match_the_patterns(status, text, quoting):
    """Otherwise a client could make an endpoint unavailable for other callers."""
    for inputs in (
        [text],
        [f"Is it {text}?", "b"],
        [(TextPart(text), ImagePart(ImageURL("data:")))],
    ):
        assert isinstance(judged(status, quoting(text), inputs), Rejected)


@pytest.mark.parametrize(
    "echo", ["input", "inputs", "texts", "ctx", "loc", "flagged_input", "patterns"]
)
def test_ignores_fields_that_repeat_the_request(echo):
    body = {
        "detail": [
            {
                "msg": "String should be shorter",
                echo: {"code": "insufficient_quota", "reason": "API_KEY_INVALID"},
            }
        ]
    }

    assert type(classify_response(422, {}, json.dumps(body).encode())) is Rejected


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
        ({"message": "x" * 30_000}, "x" * 20_000),
    ],
)
def test_finds_the_message_in_every_known_format(body, message):
    assert (f": {message}" if message else ".") == said_in(json.dumps(body).encode())


CODED = json.dumps(
    {"error": {"message": "L'entrée est trop longue", "code": "context_length_exceeded"}},
    ensure_ascii=False,
)


@pytest.mark.parametrize(
    ("charset", "content_type", "message"),
    [
        ("latin-1", "application/json; charset=iso-8859-1", "L'entrée est trop longue"),
        ("cp1252", 'application/json;charset="windows-1252"', "L'entrée est trop longue"),
        ("utf-16", "application/json", "L'entrée est trop longue"),
        ("utf-16-le", "application/json; charset=UTF-16LE", "L'entrée est trop longue"),
        ("utf-32", "application/json", "L'entrée est trop longue"),
        ("utf-8-sig", "application/json; charset=latin-1", "L'entrée est trop longue"),
        # Nothing states these charsets.
        ("latin-1", "", "L'entr\N{REPLACEMENT CHARACTER}e est trop longue"),
        ("latin-1", "a/b; charset=cp0", "L'entr\N{REPLACEMENT CHARACTER}e est trop longue"),
        ("latin-1", "a/b; charset=zip", "L'entr\N{REPLACEMENT CHARACTER}e est trop longue"),
    ],
)
def test_reads_a_body_in_its_charset(charset, content_type, message):
    error = classify_response(400, {"content-type": content_type}, CODED.encode(charset), now=NOW)

    assert isinstance(error, ContextTooLong)
    assert error.message == f"The upstream answered 400: {message}"


def test_reads_a_text_in_its_charset():
    headers = {"content-type": "text/plain; charset=gbk"}

    error = classify_response(403, headers, "账户余额不足".encode("gbk"), now=NOW)

    assert isinstance(error, QuotaExhausted)


def said_in(content):
    return classify_response(500, {}, content).message.removeprefix("The upstream answered 500")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ""),
        (b"  plain \n", "plain"),
        (b"<html>no</html>", ""),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"[" * 9999, "[" * 9999),
    ],
)
def test_a_text_body_is_the_message_but_html_is_not(content, message):
    assert (f": {message}" if message else ".") == said_in(content)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"problem": "texts[0] has no words"}, "texts[0] has no words"),
        ({"error_description": "no such size"}, "no such size"),
        ({"status": "bad input", "info": "no such shade here"}, "no such shade here"),
        ({"id": "f-12", "reason": "no such shade here"}, "no such shade here"),
        (
            {"inputs": ["a text of the client"], "problem": {"words": "no such size"}},
            "no such size",
        ),
        ({"title": "Bad Request", "status": 400}, "Bad Request"),
        ({"id": "f-12", "code": 7}, ""),
        ({"page": "<html> a page of a firewall </html>"}, ""),
    ],
)
def test_the_message_of_an_unknown_format_is_its_first_sentence(body, message):
    error = classify_response(422, {}, json.dumps(body).encode())

    assert message == error.message.removeprefix("The upstream answered 422").strip(": .")
    assert (Rejected if message else RejectedByPage) is type(error)


def test_the_message_has_the_status_and_the_upstreams_message():
    assert classify_response(500, {}, b"").message == "The upstream answered 500."
    assert classify_response(400, {}, b'{"detail":"no"}').message == "The upstream answered 400: no"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "121"}, LONGEST_RETRY_AFTER),
        ({"retry-after": "86400"}, LONGEST_RETRY_AFTER),
        ({"retry-after": "1" + "0" * 20}, LONGEST_RETRY_AFTER),
        ({"retry-after": "9" * 400}, LONGEST_RETRY_AFTER),
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
        ({"retry-after": "Fri, 20 Nov 2099 10:00:00 GMT", "date": DATE}, LONGEST_RETRY_AFTER),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30"}, LONGEST_RETRY_AFTER),
        ({"retry-after": "Fri, 20 Nov 2026 09:00:30 GMT"}, 30),
        ({"retry-after": "Fri, 20 Nov 2026 09:00:30 GMT", "date": "today"}, 30),
        ({"retry-after": "Fri, 20 Nov 2026 08:00:30 GMT"}, 0),
        ({"retry-after": "Friday, 20-Nov-26 09:00:30 GMT"}, 30),
        ({"retry-after": "Fri Nov 20 10:00:30 2026", "date": DATE}, 30),
        ({"retry-after": "Fri, 99 Nov 2026 10:00:30 GMT", "date": DATE}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m1.5s"}, 61.5),
        (
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"},
            LONGEST_RETRY_AFTER,
        ),
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
def test_reads_retry_after_from_headers(headers, seconds):
    assert parse_retry_after(headers, now=NOW) == (
        seconds if seconds is None else pytest.approx(seconds)
    )


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ('{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"37s"}', 37),
        ('{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay": "37.5s"}', 37.5),
        ('{"retryDelay":"86400s"}', LONGEST_RETRY_AFTER),
        ('{"retryDelay":"-7s"}', None),
        ("Please retry after 7 seconds.", 7),
        ("Please retry after 86400 seconds.", LONGEST_RETRY_AFTER),
        ("Please try again in 20s.", 20),
        ("Please try again in 350ms.", 0.35),
        ("Please try again in 1m12s.", 72),
        ("Please try again in 6m0s.", LONGEST_RETRY_AFTER),
        ("Please try again in 1h0m0s.", LONGEST_RETRY_AFTER),
        ("Please try again in 1.5s. Visit https://x", 1.5),
        ("try again in 1 minute 5 seconds", 65),
        ("Retry after 250 milliseconds", 0.25),
        ("Please try again in 7 sacks.", None),
        ("Please try again in 7.", None),
        ("Please retry after a while.", None),
        ("", None),
    ],
)
def test_reads_retry_after_from_the_body(body, seconds):
    assert parse_retry_after({}, body.encode(), now=NOW) == (
        seconds if seconds is None else pytest.approx(seconds)
    )


def test_uses_the_system_clock_by_default():
    then = datetime.now(UTC) + timedelta(seconds=90)

    found = classify_response(429, {"retry-after": format_datetime(then, usegmt=True)}, b"")

    assert found.retry_after == pytest.approx(90, abs=30)


def test_headers_take_precedence_over_the_body():
    found = classify_response(429, {"retry-after": "3"}, b"retry after 7 seconds")

    assert found.retry_after == 3


@given(status=st.integers(100, 999), content=st.binary(), retry_after=st.text(), date=st.text())
def test_classifies_any_response_without_failing(status, content, retry_after, date):
    found = classify_response(
        status,
        {"retry-after": retry_after, "date": date, "x-ratelimit-remaining-tokens": "0"},
        content,
    )

    assert isinstance(found, UpstreamError)
    assert found.retry_after is None or 0 <= found.retry_after <= LONGEST_RETRY_AFTER


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["error", "message", "detail", "errors", "msg", "input", "code"]),
                inner,
            )
        ),
    )
)
def test_classifies_any_json_without_failing(body):
    assert isinstance(judged(400, body, ["a"]), UpstreamError)


LONG_TEXT = "word " * 4000


@pytest.mark.parametrize(
    ("message", "inputs", "index"),
    [
        ("Invalid 'input[1]': maximum context length is 512 tokens.", ["a", LONG_TEXT, "b"], 1),
        ("Invalid 'input[0]': maximum context length is 512 tokens.", [LONG_TEXT, "a", "b"], 0),
        # Counted from 1.
        ("Invalid 'input[1]': maximum context length is 512 tokens.", [LONG_TEXT, "a", "b"], None),
        ("Invalid 'input[2]': maximum context length is 512 tokens.", ["a", LONG_TEXT, "b"], None),
        ("Invalid 'input[3]': maximum context length is 512 tokens.", ["a", "b", LONG_TEXT], None),
        # Nothing tells from where it counts.
        ("Invalid 'input[1]': maximum context length is 512 tokens.", [LONG_TEXT] * 2, 1),
    ],
)
def test_an_index_that_counts_from_one_is_left_out_if_the_sizes_show_it(message, inputs, index):
    content = json.dumps({"error": {"message": message}}).encode()

    error = refine_with_inputs(classify_response(400, {}, content, now=NOW), inputs)

    assert isinstance(error, ContextTooLong)
    assert error.input_index == index
    assert ("[" in error.message) == (index is not None)


IMAGE = (ImagePart(image_url=ImageURL(url="https://example.com/a.png")),)


@pytest.mark.parametrize(
    ("message", "inputs", "index"),
    [
        ("input[1] must not be empty", ["a", " ", "b"], 1),
        ("input[2] must not be empty", ["a", "", "b"], None),
        ("input[1] must not be blank", [" ", "a", "b"], None),
        ("input[1] must not be empty", ["a", "b", "c"], 1),
        ("input[0] must not be empty", [(), (1, 2)], 0),
        ("input[1] must not be empty", [(), (1, 2)], None),
        ("input[0]: invalid image", [IMAGE, (TextPart(text="a"),)], 0),
        ("input[1]: invalid image", [IMAGE, (TextPart(text="a"),)], None),
        ("input[1] was flagged by our content policy", ["", "a", IMAGE], 1),
    ],
)
def test_an_index_that_counts_from_one_is_left_out_if_another_input_has_the_fault(
    message, inputs, index
):
    error = judged(400, openai(message), inputs)

    assert isinstance(error, UpstreamRejectedInput)
    assert error.input_index == index
    assert ("[" in error.message) == (index is not None)
