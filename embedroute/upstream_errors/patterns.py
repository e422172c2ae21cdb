"""What upstreams' own words mean: the codes they send, and the sentences they document or were seen to say.

A client must not be able to blame an upstream's key, its model or its caps by what it sends. So most of this is read
only where an upstream keeps its codes, or where a message begins: further in, it may quote an input.
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
"""Fields in which upstreams keep codes."""
MESSAGES: Final = ("error", "message", "detail", "errors", "msg")
"""Where a body's message is, outermost first."""
ECHOES: Final = frozenset({"input", "inputs", "texts", "loc", "ctx"})
"""What a client sent, repeated (FastAPI's 422)."""

BAD: Final = frozenset({400, 413, 422})
FORBIDDEN: Final = frozenset({403})
LIMITED: Final = frozenset({429})
CRASHED: Final = frozenset({500})


class MatchScope(StrEnum):
    """Where words count: as the whole of a code, at the beginning of a message, or wherever they are."""

    CODE = "code"
    BEGINNING = "beginning"
    ANYWHERE = "anywhere"


class ErrorPattern(msgspec.Struct, frozen=True):
    """What an upstream means when it says ``words`` with one of ``statuses``."""

    means: type[UpstreamError]
    statuses: frozenset[int]
    where: MatchScope
    words: re.Pattern[str]

    def search(self, field: str, said: str) -> str | None:
        """Find the words in what one field says."""
        if self.where is MatchScope.CODE:
            found = self.words.fullmatch(said) if field in CODES else None
        elif self.where is MatchScope.BEGINNING:
            found = self.words.match(said.lstrip()) if not field or field in MESSAGES else None
        else:
            found = self.words.search(said)
        return found and found[0]


def _any(*words: str) -> re.Pattern[str]:
    return re.compile("|".join(words), re.IGNORECASE)


QUOTA_EXHAUSTED: Final = _any(
    "insufficient_quota",
    "invalid_api_key",
    "InvalidApiKey",
    "API_KEY_INVALID",
    "Arrearage",
    ".*PerDay.*",
)
"""Codes that say: your key is no good, or your account has nothing left."""

KEY_CODES: Final = _any(
    "insufficient_(quota|balance|credits|permissions?|scopes?)",
    "(invalid|incorrect|missing|expired|revoked|disabled)_(api_?)?(key|token|credentials)",
    "InvalidApiKey",
    "Arrearage",
    r"(IAM_)?PERMISSION_?(DENIED|ERROR)",
    r"API_KEY_[A-Z_]+",
    "SERVICE_DISABLED|CONSUMER_(INVALID|SUSPENDED)|BILLING_DISABLED",  # Google
    r"(Model\.)?AccessDenied(Exception)?",  # DashScope, Bedrock
    "(UnrecognizedClient|InvalidSignature|ExpiredToken|OptInRequired)(Exception)?|RequestExpired",  # Bedrock
    r"AUTHZ?_[A-Z_]+",  # Jina
    "unsupported_country_region_territory",  # OpenAI
    "(account|user|organization|project)_?(suspended|deactivated|disabled|blocked|not_?active)",
    "billing_(error|hard_limit_reached|not_active)|payment_required",
    "authentication_error",
)
"""Codes of a 403 that say: it is your key, its rights or your account."""

_KEY: Final = (
    r"(api|access|auth|authentication|subscription|security)[ _-]?(key|token)|credentials?"
)

KEY_WORDS: Final = _any(
    rf"(the |your |this )?(incorrect|invalid|missing|unknown|expired|revoked|wrong|bad|no) ({_KEY})",
    rf"(the |your |this )?(provided )?({_KEY})( provided)? (is|was|has|does|not)\b",
    r"(the |your )?(authentication|authorization) (failed|required|token|credentials)",
    r"(not |un)(authenticated|authorized)",
    r"user(: \S{1,200})? is not authorized",
    r"permission '\S{1,100}' denied",
    r"(permission|consumer) (denied|'\S{1,100}' has been suspended)",
    r"access denied due to (invalid subscription key|virtual network)",  # Azure
    r"you (do not|don't) have (permission|access|the (required|necessary) permissions?)",
    r"you are not (allowed|authorized|permitted) to (access|use|call|query|invoke|sample from|generate embeddings from)\b",
    r"(the |your |this )?(project|organization|account)( `?[\w-]{1,100}`?)? "
    r"(does not have|doesn't have|has no|lacks|is not|is suspended|is disabled|is deactivated|has been)\b",
    r"(insufficient|not enough) (balance|credits?|funds|quota|permissions?)",
    r"(your )?(credit balance|billing|subscription|free (tier|trial))\b",
    r"country, region, or territory not supported|country not supported",  # OpenAI
    r"method doesn't allow unregistered callers",  # Google
    r"missing authentication token",  # AWS API Gateway
    r"the (security token included in the request|request signature we calculated)",  # Bedrock
    r"\[AUTHZ?_[A-Z_]{1,60}\]",  # Jina
)
"""How the message of a 403 begins that says so. A bare "Forbidden" or "Access denied" may be about the input."""

BATCH_TOO_LARGE: Final = _any(
    r"Invalid 'input': array too long\. Expected an array with maximum length \d+",  # OpenAI
    r"Invalid 'input': maximum request size is \d+ tokens per request",
    r"Requested \d+ tokens, max \d+ tokens per request",
    r"Too many inputs( for model \S{1,100})?\. The max number of inputs is \d+",  # Azure
    r"(\* )?BatchEmbedContentsRequest\.requests: at most \d+ requests can be in one batch",  # Gemini
    r"Request payload size exceeds the limit: \d+ bytes",
    r"\d+ instance\(s\) is allowed per prediction\. Actual: \d+",  # Vertex
    r"Too many (inputs in request|tokens overall), split into more batches",  # Mistral
    r"Too many tokens in batch\. Max is \d+ got \d+",
    r"(invalid request: )?total number of (texts|inputs|images) must be at most \d+ - received \d+",  # Cohere
    r"Malformed input request: #/texts: expected maximum item count: \d+, found: \d+",  # Bedrock
    r"(Request to model '\S{1,100}' failed\. )?The max allowed tokens per submitted batch is \d+",  # Voyage
    r"Each input list can contain at most \d+ items",  # Jina
    r"(<400> )?(InternalError\.Algo\.)?(InvalidParameter: )?(Value error, )?"  # DashScope
    r"batch size is invalid, it should not be larger than \d+",
    r"(input )?batch size \d+ > maximum allowed batch size \d+",  # TEI, SiliconFlow
    r"Request too large for (model )?\S{1,100} (in organization \S{1,100} )?(service tier \S{1,100} )?on tokens per min",
    r"List should have at most \d+ items after validation",  # Pydantic: Infinity, vLLM
    r"ensure this value has at most \d+ items",
)
"""How a message begins that says: this call holds more than we take, in inputs, tokens or bytes."""

_ITEMS: Final = "(inputs|texts|items|elements|strings|documents|sentences|entries|instances|embeddings|chunks|rows)"
_COUNT: Final = r"\(?\d[\d,]*\)?"
_OVER: Final = r"(> |exceed|is (greater|larger|more) than|is (over|above)|(is )?limit|must (not exceed|be (at most|between|<|less)))"
_MOST: Final = r"(at most|up to|no more than|(a |the )?max(imum)?( of)?|more than) \d[\d,]*"

BATCH_TOO_LARGE_GENERIC: Final = _any(
    rf"too many {_ITEMS}",
    r"too many tokens (in|for) (the |this |one |a )?(batch|request)",
    r"(the |your )?((inputs?|texts?|request) )?(batch|array|list)( size| length)?( of)?( \d+)?( is)? too (large|big|long)",
    r"(http: |the |your )?((request|payload)( entity| body| payload| size)?|body)( is)? too (large|big)",
    r"(the |your )?((request )?(payload|body|entity)( size)?|request size) exceed",
    rf"(the |your )?((input|request) )?batch( size| length)?( of|:)?( {_COUNT})? {_OVER}",
    r"(the |your |this model's )?max(imum)?( allowed| supported)? batch (size|length)",
    rf"(the )?max(imum)?( allowed| supported)? (number|count) of {_ITEMS}",
    rf"(the )?(total )?(number|count) of {_ITEMS}( {_COUNT})? {_OVER}",
    rf"(expected |only |this model (takes|accepts|supports) )?{_MOST} {_ITEMS}",
    rf"['`\"]?(inputs?|texts|documents|sentences|batch|list|array|request)['`\"]?( array| list)?"
    rf" (must|can|may|should)(not| not)?( only)? (contain|have|hold|include|be) {_MOST} {_ITEMS}",
)
"""How a message begins that says the same, of an API that nobody has looked up.

It counts only where nothing is said of one input's length. No pattern begins with what may introduce a quote, as
"Invalid input: " does: what is heard must stand in the input whole, or it would not be known for the quote that it is.
"""

BATCH_TOO_LARGE_CODES: Final = _any(
    "max_tokens_per_request",
    "array_above_max_length",
    "3210",
    "(batch|batch_?size|request|payload)_?too_?(large|big|long)",
    "too_?many_?(inputs|texts|items|documents)",
    "(max_?)?batch_?size_?(limit_?)?exceeded",
)
"""Codes that say so."""

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
"""What is counted, by the words or code of a refusal; the first that is found decides. "Batch too large" names nothing."""

CONTEXT_TOO_LONG: Final = _any(
    r"context.?length",
    r"context size",
    r"maximum context",
    r"maximum input length",
    r"INPUT_TOKEN_LIMIT_EXCEEDED",
    r"exceeded max .{0,20}tokens",
    r"(input|prompt|text|content|sequence)\b(?!['`\"]? (array|list|batch)( size| length)?( is)? too long).{0,40} too long",
    r"too large to process",
    r"must have less than \d+ tokens",
    r"input exceeds",
)
"""How an upstream says that one input is longer than the model's context. That is the input's own fault at worst."""

REQUESTED_TOKENS: Final = _any(r"maximum context length is \d+, but (\d{1,9}) is requested")
"""Volcengine's words for too many inputs; the number is theirs."""

ERROR_PATTERNS: Final = (
    ErrorPattern(UpstreamAuthError, BAD | LIMITED, MatchScope.CODE, QUOTA_EXHAUSTED),
    ErrorPattern(
        UpstreamAuthError, LIMITED, MatchScope.ANYWHERE, _any("insufficient_quota", "PerDay")
    ),
    ErrorPattern(UpstreamAuthError, FORBIDDEN, MatchScope.CODE, KEY_CODES),
    ErrorPattern(
        UpstreamModelNotFound,
        BAD | FORBIDDEN,
        MatchScope.CODE,
        _any("(INPUT_)?model_?not_?found", "DeploymentNotFound"),
    ),
    ErrorPattern(UpstreamAuthError, FORBIDDEN, MatchScope.BEGINNING, KEY_WORDS),
    ErrorPattern(BatchTooLarge, BAD | LIMITED, MatchScope.BEGINNING, BATCH_TOO_LARGE),
    ErrorPattern(
        UpstreamModelNotFound,
        BAD,
        MatchScope.BEGINNING,
        _any(
            r"\[INPUT_MODEL_NOT_FOUND\]",
            r"Model \S{1,100} is not supported\. Supported models are ",
        ),  # Jina, Voyage
    ),
    ErrorPattern(ContextTooLong, BAD | CRASHED, MatchScope.ANYWHERE, CONTEXT_TOO_LONG),
    ErrorPattern(BatchTooLarge, BAD, MatchScope.BEGINNING, BATCH_TOO_LARGE_GENERIC),
    ErrorPattern(BatchTooLarge, BAD, MatchScope.CODE, BATCH_TOO_LARGE_CODES),
)
"""What a body says outweighs its status; the first that is heard decides. At other statuses nobody listens.

A 500 is heard for llama.cpp's long input alone, a 429 for a spent quota or a documented size refusal: whatever else happens
to use these words is a rate limit or an outage, and heals. Mistral's 3210 comes last, for it also says that one input is
too long.
"""
