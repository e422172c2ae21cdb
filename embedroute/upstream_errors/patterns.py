"""Maps error codes and messages of upstream APIs to error classes.

The codes and messages are documented by the providers or were observed.

An upstream's message may quote an input. So that a client cannot cause an error that concerns other
callers (key, model, batch size) by sending such a text, most patterns match only fields that hold
codes, or the beginning of a message.
"""

import re
from enum import StrEnum
from typing import Final

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    Measure,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
)

CODES: Final = frozenset({"code", "type", "error_type", "reason", "status", "quotaId"})
"""Fields of an error body that hold codes."""
MESSAGES: Final = ("error", "message", "detail", "errors", "msg")
"""Fields of an error body that hold the message, outermost first."""
ECHOES: Final = frozenset({"input", "inputs", "texts", "loc", "ctx"})
"""Fields that repeat what the client sent (FastAPI's 422); they are not searched."""

INVALID: Final = frozenset({400, 413, 422})
FORBIDDEN: Final = frozenset({403})
LIMITED: Final = frozenset({429})
FAILED: Final = frozenset({500})


class MatchScope(StrEnum):
    """Where a pattern must match: a complete code, the beginning of a message, or anywhere."""

    CODE = "code"
    BEGINNING = "beginning"
    ANYWHERE = "anywhere"


class ErrorPattern(msgspec.Struct, frozen=True):
    """Maps a response with one of ``statuses`` in which ``words`` match to the class ``means``."""

    means: type[UpstreamError]
    statuses: frozenset[int]
    where: MatchScope
    words: re.Pattern[str]

    def search(self, field: str, text: str) -> str | None:
        """Return the part of a field's ``text`` that matches, or None."""
        if self.where is MatchScope.CODE:
            match = self.words.fullmatch(text) if field in CODES else None
        elif self.where is MatchScope.BEGINNING:
            match = self.words.match(text.lstrip()) if not field or field in MESSAGES else None
        else:
            match = self.words.search(text)
        return match and match[0]


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


QUOTA_EXHAUSTED: Final = _any(
    "insufficient_quota",
    "invalid_api_key",
    "InvalidApiKey",
    "API_KEY_INVALID",
    "Arrearage",
    ".*PerDay.*",
)
"""Codes for an invalid API key or an exhausted quota."""

KEY_CODES: Final = _any(
    "insufficient_(quota|balance|credits|permissions?|scopes?)",
    "(invalid|incorrect|missing|expired|revoked|disabled)_(api_?)?(key|token|credentials)",
    "InvalidApiKey",
    "Arrearage",
    r"(IAM_)?PERMISSION_?(DENIED|ERROR)",
    r"API_KEY_[A-Z_]+",
    "SERVICE_DISABLED|CONSUMER_(INVALID|SUSPENDED)|BILLING_DISABLED",  # Google
    r"(Model\.)?AccessDenied(Exception)?",  # DashScope, Bedrock
    # Bedrock
    "(UnrecognizedClient|InvalidSignature|ExpiredToken|OptInRequired)(Exception)?|RequestExpired",
    r"AUTHZ?_[A-Z_]+",  # Jina
    "unsupported_country_region_territory",  # OpenAI
    "(account|user|organization|project)_?(suspended|deactivated|disabled|blocked|not_?active)",
    "billing_(error|hard_limit_reached|not_active)|payment_required",
    "authentication_error",
)
"""Codes of a 403 that concern the API key, its permissions or the account."""

_KEY: Final = (
    r"(api|access|auth|authentication|subscription|security)[ _-]?(key|token)|credentials?"
)

KEY_WORDS: Final = _any(
    r"(the |your |this )?(incorrect|invalid|missing|unknown|expired|revoked|wrong|bad|no) "
    rf"({_KEY})",
    rf"(the |your |this )?(provided )?({_KEY})( provided)? (is|was|has|does|not)\b",
    r"(the |your )?(authentication|authorization) (failed|required|token|credentials)",
    r"(not |un)(authenticated|authorized)",
    r"user(: \S{1,200})? is not authorized",
    r"permission '\S{1,100}' denied",
    r"(permission|consumer) (denied|'\S{1,100}' has been suspended)",
    r"access denied due to (invalid subscription key|virtual network)",  # Azure
    r"you (do not|don't) have (permission|access|the (required|necessary) permissions?)",
    r"you are not (allowed|authorized|permitted) to "
    r"(access|use|call|query|invoke|sample from|generate embeddings from)\b",
    r"(the |your |this )?(project|organization|account)( `?[\w-]{1,100}`?)? "
    r"(does not have|doesn't have|has no|lacks|is not|is suspended|is disabled|is deactivated"
    r"|has been)\b",
    r"(insufficient|not enough) (balance|credits?|funds|quota|permissions?)",
    r"(your )?(credit balance|billing|subscription|free (tier|trial))\b",
    r"country, region, or territory not supported|country not supported",  # OpenAI
    r"method doesn't allow unregistered callers",  # Google
    r"missing authentication token",  # AWS API Gateway
    r"the (security token included in the request|request signature we calculated)",  # Bedrock
    r"\[AUTHZ?_[A-Z_]{1,60}\]",  # Jina
)
"""Beginnings of a 403's message that concern the API key, its permissions or the account.

"Forbidden" or "Access denied" alone do not: they may concern the input.
"""

BATCH_TOO_LARGE: Final = _any(
    r"Invalid 'input': array too long\. Expected an array with maximum length \d+",  # OpenAI
    r"Invalid 'input': maximum request size is \d+ tokens per request",
    r"Requested \d+ tokens, max \d+ tokens per request",
    r"Too many inputs( for model \S{1,100})?\. The max number of inputs is \d+",  # Azure
    # Gemini
    r"(\* )?BatchEmbedContentsRequest\.requests: at most \d+ requests can be in one batch",
    r"Request payload size exceeds the limit: \d+ bytes",
    r"\d+ instance\(s\) is allowed per prediction\. Actual: \d+",  # Vertex
    r"Too many (inputs in request|tokens overall), split into more batches",  # Mistral
    r"Too many tokens in batch\. Max is \d+ got \d+",
    # Cohere
    r"(invalid request: )?total number of (texts|inputs|images) must be at most \d+ - received \d+",
    r"Malformed input request: #/texts: expected maximum item count: \d+, found: \d+",  # Bedrock
    # Voyage
    r"(Request to model '\S{1,100}' failed\. )?The max allowed tokens per submitted batch is \d+",
    r"Each input list can contain at most \d+ items",  # Jina
    r"(<400> )?(InternalError\.Algo\.)?(InvalidParameter: )?(Value error, )?"  # DashScope
    r"batch size is invalid, it should not be larger than \d+",
    r"(input )?batch size \d+ > maximum allowed batch size \d+",  # TEI, SiliconFlow
    r"Request too large for (model )?\S{1,100} (in organization \S{1,100} )?"
    r"(service tier \S{1,100} )?on tokens per min",
    r"List should have at most \d+ items after validation",  # Pydantic: Infinity, vLLM
    r"ensure this value has at most \d+ items",
)
"""Beginnings of messages of known APIs for a call with too many inputs, tokens or bytes."""

_ITEMS: Final = (
    "(inputs|texts|items|elements|strings|documents|sentences|entries|instances|embeddings"
    "|chunks|rows)"
)
_COUNT: Final = r"\(?\d[\d,]*\)?"
_OVER: Final = (
    r"(> |exceed|is (greater|larger|more) than|is (over|above)|(is )?limit"
    r"|must (not exceed|be (at most|between|<|less)))"
)
_MOST: Final = r"(at most|up to|no more than|(a |the )?max(imum)?( of)?|more than) \d[\d,]*"

BATCH_TOO_LARGE_GENERIC: Final = _any(
    rf"too many {_ITEMS}",
    r"too many tokens (in|for) (the |this |one |a )?(batch|request)",
    r"(the |your )?((inputs?|texts?|request) )?(batch|array|list)( size| length)?( of)?( \d+)?"
    r"( is)? too (large|big|long)",
    r"(http: |the |your )?((request|payload)( entity| body| payload| size)?|body)( is)? "
    r"too (large|big)",
    r"(the |your )?((request )?(payload|body|entity)( size)?|request size) exceed",
    rf"(the |your )?((input|request) )?batch( size| length)?( of|:)?( {_COUNT})? {_OVER}",
    r"(the |your |this model's )?max(imum)?( allowed| supported)? batch (size|length)",
    rf"(the )?max(imum)?( allowed| supported)? (number|count) of {_ITEMS}",
    rf"(the )?(total )?(number|count) of {_ITEMS}( {_COUNT})? {_OVER}",
    rf"(expected |only |this model (takes|accepts|supports) )?{_MOST} {_ITEMS}",
    rf"['`\"]?(inputs?|texts|documents|sentences|batch|list|array|request)['`\"]?( array| list)?"
    rf" (must|can|may|should)(not| not)?( only)? (contain|have|hold|include|be) {_MOST} {_ITEMS}",
)
"""Beginnings of messages of other APIs for a call with too many inputs, tokens or bytes.

They are tried after ``CONTEXT_TOO_LONG``. No pattern begins with words that may introduce a quote,
such as "Invalid input: ". The matched text is compared with the inputs to detect quotes, so it must
not include text of the upstream's own.
"""

BATCH_TOO_LARGE_CODES: Final = _any(
    "max_tokens_per_request",
    "array_above_max_length",
    "3210",
    "(batch|batch_?size|request|payload)_?too_?(large|big|long)",
    "too_?many_?(inputs|texts|items|documents)",
    "(max_?)?batch_?size_?(limit_?)?exceeded",
)
"""Codes for a call with too many inputs, tokens or bytes."""

MEASURES: Final = (
    (Measure.TOKENS, _any(r"tokens?\b", "max_tokens", "3210")),
    (
        Measure.BYTES,
        _any(
            "payload", "body", "entity", "bytes", "request.?size", "request( is)?.?too.?(large|big)"
        ),
    ),
    (
        Measure.INPUTS,
        _any(
            rf"\b{_ITEMS}\b",
            r"images|instance\(s\)|requests: at most|item count",
            r"too.?many|batch.?(size|length)|batch of \(?\d|\barray|\blist\b|array_above",
        ),
    ),
)
"""Unit of a size limit → words in the message or code; the first match decides.

"Batch too large" names no unit.
"""

CONTEXT_TOO_LONG: Final = _any(
    r"context.?length",
    r"context size",
    r"maximum context",
    r"maximum input length",
    r"INPUT_TOKEN_LIMIT_EXCEEDED",
    r"exceeded max .{0,20}tokens",
    r"(input|prompt|text|content|sequence)\b"
    r"(?!['`\"]? (array|list|batch)( size| length)?( is)? too long).{0,40} too long",
    r"too large to process",
    r"must have less than \d+ tokens",
    r"input exceeds",
)
"""Messages for one input that is longer than the model's context.

They match anywhere: an input that quotes one can only be rejected itself.
"""

REQUESTED_TOKENS: Final = _any(r"maximum context length is \d+, but (\d{1,9}) is requested")
"""Volcengine's message for too many inputs; "requested" is the number of inputs."""

ERROR_PATTERNS: Final = (
    ErrorPattern(UpstreamAuthError, INVALID | LIMITED, MatchScope.CODE, QUOTA_EXHAUSTED),
    ErrorPattern(
        UpstreamAuthError, LIMITED, MatchScope.ANYWHERE, _any("insufficient_quota", "PerDay")
    ),
    ErrorPattern(UpstreamAuthError, FORBIDDEN, MatchScope.CODE, KEY_CODES),
    ErrorPattern(
        UpstreamModelNotFound,
        INVALID | FORBIDDEN,
        MatchScope.CODE,
        _any("(INPUT_)?model_?not_?found", "DeploymentNotFound"),
    ),
    ErrorPattern(UpstreamAuthError, FORBIDDEN, MatchScope.BEGINNING, KEY_WORDS),
    ErrorPattern(BatchTooLarge, INVALID | LIMITED, MatchScope.BEGINNING, BATCH_TOO_LARGE),
    ErrorPattern(
        UpstreamModelNotFound,
        INVALID,
        MatchScope.BEGINNING,
        _any(
            r"\[INPUT_MODEL_NOT_FOUND\]",
            r"Model \S{1,100} is not supported\. Supported models are ",
        ),  # Jina, Voyage
    ),
    ErrorPattern(ContextTooLong, INVALID | FAILED, MatchScope.ANYWHERE, CONTEXT_TOO_LONG),
    ErrorPattern(BatchTooLarge, INVALID, MatchScope.BEGINNING, BATCH_TOO_LARGE_GENERIC),
    ErrorPattern(BatchTooLarge, INVALID, MatchScope.CODE, BATCH_TOO_LARGE_CODES),
)
"""The patterns in order; the first match decides, and takes precedence over the status.

Responses with other statuses are not searched. A 500 is searched only for llama.cpp's message for a
long input, and a 429 only for an exhausted quota or a documented size limit. Any other match would
be a coincidence in a temporary failure. Codes for too large calls come last, because Mistral uses
3210 for an input that is too long too.
"""
