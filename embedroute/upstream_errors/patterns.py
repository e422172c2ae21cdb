"""Maps error codes and messages of upstream APIs to error classes.

The codes and messages are documented by the providers or were observed.

An upstream's message may quote an input. So that a client cannot cause an error that concerns other
callers (key, model, batch size) by sending such a text, most patterns match only fields that hold
codes, or the beginning of a message.
"""

from enum import StrEnum
from typing import Final

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    Measure,
    QuotaExhausted,
    RateLimited,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.upstream_errors.body import ErrorBody
from embedroute.upstream_errors.lazy_pattern import LazyPattern

INVALID: Final = frozenset({400, 413, 422})
FORBIDDEN: Final = frozenset({403})
LIMITED: Final = frozenset({429})
FAILED: Final = frozenset({500})
REFUSED: Final = frozenset({400, 401, 403, 404, 422, 429})


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
    words: LazyPattern

    def search(self, body: ErrorBody) -> str | None:
        """Return the part of a code or message that matches, or None."""
        if self.where is MatchScope.CODE:
            matches = (self.words.fullmatch(code) for code in body.codes)
        elif self.where is MatchScope.BEGINNING:
            matches = (self.words.match(_PREFIX.sub("", text)) for text in body.texts)
        else:
            matches = (self.words.search(text) for text in body.texts)
        return next((match[0] for match in matches if match), None)


def _any(*patterns: str) -> LazyPattern:
    return LazyPattern("|".join(patterns))


_KEY: Final = (
    r"(api|access|auth|authentication|subscription|security)[ _-]?(key|token)|credentials?"
)

_PREFIX: Final = LazyPattern(
    r"\A\s*(?:(?:\[(?:RID|request id)\b[^\]]{0,80}\]"  # Jina, Triton
    r"|<\d{3}>|InternalError\.Algo\.\w{1,40}:|InvalidParameter:|Value error,"  # DashScope
    r"|HTTP \d{3}:|\d{3} Bad Request:|(?:Input v|V)alidation error:(?: '[^']{1,80}')?"
    r"|(?:litellm\.)?\w{1,40}(?:Error|Exception):?(?: \w{1,40}Exception -)?"
    r"|Error:|\*|Malformed input request:|invalid request:|Sorry,)\s*){0,6}",
    0,
)
"""What may precede a message of the upstream's own: request ids, statuses, names of exceptions."""

KEY_CODES: Final = _any(
    "(invalid|incorrect|missing|expired|revoked|disabled)_(api_?)?(key|token|credentials)",
    "InvalidApiKey|API_KEY_INVALID",
    "auth(entication)?_error",
)
"""Codes for an invalid API key, at any status."""

FORBIDDEN_CODES: Final = _any(
    "insufficient_(permissions?|scopes?)",
    r"(IAM_)?PERMISSION_?(DENIED|ERROR)",
    r"API_KEY_[A-Z_]+",
    "SERVICE_DISABLED|CONSUMER_(INVALID|SUSPENDED)",  # Google
    "AccessDenied(Exception)?",  # DashScope, Bedrock
    # Bedrock
    "(UnrecognizedClient|InvalidSignature|ExpiredToken|OptInRequired)(Exception)?|RequestExpired",
    r"AUTHZ?_[A-Z_]+",  # Jina
    "unsupported_country_region_territory",  # OpenAI
    "(account|user|organization|project)_?(suspended|deactivated|disabled|blocked)",
)
"""Codes of a 403 that concern the API key, its permissions or the account."""

INVALID_KEY: Final = _any(
    r"(the |your )?(incorrect|invalid|missing|expired|no) api[ _-]?key\b",
    r"(the |your )?api[ _-]?key( provided)? (is |was |has )?(not valid|invalid|expired|revoked)",
)
"""Beginnings of messages of a 400 that can only be about an invalid API key."""

SPENT_CODES: Final = _any(
    "insufficient_(quota|balance|credits|funds)",
    "billing_(error|hard_limit_reached|not_active)|payment_required|budget_exceeded",
    "(account|user|organization|project)_?not_?active",
    "BILLING_DISABLED|.*PerDay.*",  # Google
    # DashScope
    r"Arrearage|(Prepaid|Postpaid)BillOverdue|CommodityNotPurchased|AllocationQuota\.FreeTierOnly",
    r"AUTHZ_INSUFFICIENT_BALANCE|AUTHZ_RESOURCE_LIMIT_EXCEEDED",  # Jina
    "AccountOverdueError",  # Volcengine
    "ServiceQuotaExceeded(Exception)?",  # Bedrock
)
"""Codes of an account whose quota or balance is spent."""

SPENT_WORDS: Final = _any(
    r"(Budget has been exceeded|ExceededBudget:)",  # LiteLLM
    r"Free allocated quota exceeded",  # DashScope
    r"\[AUTHZ_(INSUFFICIENT_BALANCE|RESOURCE_LIMIT_EXCEEDED)\]",  # Jina
)
"""Beginnings of messages of known APIs for such an account."""

RATE_CODES: Final = _any(
    "rate_?limit_?exceeded(_error)?",
    "RATE_[A-Z]+_LIMIT_EXCEEDED",  # Jina
    r"limit_(requests|burst_rate)|Throttling(\.\w+)?",  # DashScope
    "ThrottlingException",  # Bedrock
    "1302|1300",  # Zhipu, Mistral
    ".*PerMinute.*",  # Google
)
"""Codes of a rate limit that clears within minutes."""

MODEL_CODES: Final = _any(
    "(INPUT_)?model_?not_?found|model_(disabled|not_supported|not_available)",
    r"DeploymentNotFound|InvalidEndpointOrModel\.NotFound",
    r"Model\.AccessDenied|AccessDenied\.Unpurchased",  # DashScope
)
"""Codes of a model that the upstream does not know, or that this account may not use."""

_MODEL_NAME: Final = r"[`'\"]?[\w./:@-]{1,128}[`'\"]?"

MODEL_WORDS: Final = _any(
    r"\[INPUT_MODEL_NOT_FOUND\]",  # Jina
    r"Model \S{1,100} is not supported\. Supported models are ",  # Voyage
    r"you are not (allowed|authorized|permitted) to "
    r"(access|use|call|query|invoke|sample from|generate embeddings from) (this|the) model",
    r"(the |your |this )?(project|organization|account|team|key)( `?[\w-]{1,100}`?)? "
    r"(does not|doesn't) have access to (the )?model\b",
    r"you (do not|don't) have access to (the|this) model\b",  # Bedrock
    r"model access is denied|access to model denied",  # Bedrock, DashScope
    r"invocation of model id \S{1,128} with on-demand throughput",  # Bedrock
    r"the \w{1,40} operation does not work with the specified model",  # Azure
    r"unable to access non-serverless model",  # Together
    r"no models? loaded|failed to load model",  # LM Studio
    r"(request for )?unknown model\b",  # Triton
    rf"{_MODEL_NAME} is not a valid model id",  # OpenRouter
    rf"(the )?(requested )?model( or endpoint)?[ :]+({_MODEL_NAME} )?(is |was |has )?"
    r"(not found|not available|not loaded|disabled|deprecated|retired|does not exist)",
    r"(this|the) (model|server) does not support embeddings",  # llama.cpp
)
"""Beginnings of messages about such a model."""

KEY_WORDS: Final = _any(
    rf"(the |your |this )?(incorrect|invalid|missing|unknown|expired|revoked|wrong|bad|no) "
    rf"({_KEY})",
    rf"(the |your |this )?(provided )?({_KEY})( provided)? (is|was|has|does|not)\b",
    r"(the |your )?(authentication|authorization) (failed|required|token|credentials)",
    r"(not |un)(authenticated|authorized)",
    r"user(: \S{1,200})? is not authorized",
    r"permission '\S{1,100}' denied",
    r"(permission|consumer) (denied|'\S{1,100}' has been suspended)",
    r"access denied due to (invalid subscription key|virtual network)",  # Azure
    r"you (do not|don't) have (permission|access|the (required|necessary) permissions?)",
    r"you are not (allowed|authorized|permitted) to (access|use|call|query|invoke)\b",
    r"(the |your |this )?(project|organization|account)( `?[\w-]{1,100}`?)? "
    r"(does not have|doesn't have|has no|lacks|is not|is suspended|is disabled|is deactivated"
    r"|has been)\b",
    r"(insufficient|not enough) permissions?",
    r"(your )?subscription\b",
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
    r"BatchEmbedContentsRequest\.requests: at most \d+ requests can be in one batch",
    r"Request payload size exceeds the limit: \d+ bytes",
    r"\d+ instance\(s\) is allowed per prediction\. Actual: \d+",  # Vertex
    r"Too many (inputs in request|tokens overall), split into more batches",  # Mistral
    r"Too many tokens in batch\. Max is \d+ got \d+",
    # Cohere
    r"total number of (texts|inputs|images) must be at most \d+ - received \d+",
    r"#/texts: expected maximum item count: \d+, found: \d+",  # Bedrock
    # Voyage
    r"(Request to model '\S{1,100}' failed\. )?The max allowed tokens per submitted batch is \d+",
    r"Each input list can contain at most \d+ items",  # Jina
    r"batch size is invalid, it should not be larger than \d+",  # DashScope
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
    r"too many tokens: size limit exceeded by \d+",  # Cohere
    r"input length is larger than the largest allowed size",  # Jina
    r"(the |your )?((inputs?|texts?|request) )?(batch|array|list)( size| length)?( of)?( \d+)?"
    r"( is)? too (large|big|long)",
    r"(http: |the |your )?((request|payload)( entity| body| payload| size)?|body)( is)? "
    r"too (large|big)",
    r"(the |your )?((request )?(payload|body|entity)( size)?|request size) exceed",
    rf"(the |your )?((inference )?(input|request) )?batch([ -]size| length)?( of|:)?( {_COUNT})?"
    rf" {_OVER}",
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
    r"(input|prompt|text|content|sequence|document|doc|passage|paragraph|sentence|chunk|query)\b"
    r"(?!['`\"]? (array|list|batch|id|name|title|url)( size| length)?( is)? too long)"
    r".{0,40} too long",
    r"too large to process",
    r"must have less than \d+ tokens",
    r"input exceeds",
    r"(text|content|document|doc|passage|paragraph|sentence|chunk|query) exceeds (the limit of )?"
    r"\d+ (tokens|characters|chars|words)",
)
"""Messages for one input that is longer than the model's context.

They match anywhere: an input that quotes one can only be rejected itself.
"""

CONTEXT_CODES: Final = _any(
    "context_length_exceeded|string_above_max_length",  # OpenAI
    "exceed_context_size_error",  # llama.cpp
    "INPUT_TOKEN_LIMIT_EXCEEDED",  # Jina
)
"""Codes for such an input."""

REQUESTED_TOKENS: Final = _any(r"maximum context length is \d+, but (\d{1,9}) is requested")
"""Volcengine's message for too many inputs; "requested" is the number of inputs."""

INPUT_CODES: Final = _any(
    "content_(policy_violation|filter)|data_?inspection_?failed|ResponsibleAIPolicyViolation",
    "Empty",  # TEI
    "(invalid|unsupported)_image(_[a-z_]+)?|image_(parse_error|too_large)",
)
"""Codes for an input's fault: its content, emptiness or media."""

_TEXT: Final = r"\b(inputs?|texts?|contents?|documents?|sentences?|prompts?|strings?)\b"

INPUT_WORDS: Final = _any(
    # Empty
    rf"{_TEXT}[`'\"\]\d\[]{{0,10}}( (#|number )?\d{{1,6}}( of \d{{1,6}})?)? "
    r"(field |value |string |list |array )?"
    r"((cannot|can ?not|can't|must not|should not|may not) be (an? )?(empty|blank)"
    r"|(must|should) (not be (an? )?(empty|blank)|be non-?empty)|(is|are|was|were) (empty|blank))",
    r"\b(an?|the) (empty|blank) (string|text|input|document)\b",
    r"expected minLength: 1, actual: 0",  # Bedrock
    r"'\$\.input(\[\d{1,6}\])?' is invalid|\[''\] is not valid under any",  # OpenAI
    # Token ids
    r"\binvalid token[ _]ids?\b|\btoken[ _]ids?\b.{0,60}\b(out of|outside|invalid|vocab)",
    # Media
    r"(cannot|could not|unable to|failed to|error while) (decod|pars|identify|process|open|load)"
    r"\w* (the |an? |this )?(input )?(image|media|base64)",
    r"\binvalid (image|media|base64 (image|data|string))\b|\bunsupported image\b",
    r"\b(image|media)( type| format| url| file| data)? .{0,40}\b(corrupt|malformed|truncated)",
    # Content policy
    r"inappropriate content|prompt injection|content (management )?(policy|filter)",
    r"\b(moderation|safety) (policy|system|filter)|\bflagged (as|by|for)\b",
)
"""Messages that name an input's fault."""

NOT_A_NUMBER: Final = _any(
    r"unsupported value: [+-]?(NaN|Inf)",  # Ollama (Go)
    r"(contains?|produced|returned|has) (NaN|non-finite|Inf)",
    r"Out of range float values are not JSON compliant",  # Python
)
"""Messages of an upstream whose model computed NaN; the status is 500 or 400."""

SPENT_PATTERN: Final = ErrorPattern(
    QuotaExhausted, INVALID | LIMITED | FORBIDDEN, MatchScope.BEGINNING, SPENT_WORDS
)
"""The messages of known APIs for a spent account. They decide even before a rate limit's code."""

FIRST_PATTERNS: Final = (
    SPENT_PATTERN,
    ErrorPattern(QuotaExhausted, REFUSED, MatchScope.CODE, SPENT_CODES),
    ErrorPattern(QuotaExhausted, FORBIDDEN, MatchScope.CODE, _any("30001")),  # SiliconFlow
    # Zhipu, Cloudflare
    ErrorPattern(QuotaExhausted, LIMITED, MatchScope.CODE, _any("1113|4006|3036")),
    ErrorPattern(QuotaExhausted, LIMITED, MatchScope.ANYWHERE, _any("insufficient_quota|PerDay")),
    ErrorPattern(UpstreamModelNotFound, REFUSED, MatchScope.CODE, MODEL_CODES),
    ErrorPattern(UpstreamModelNotFound, frozenset({501}), MatchScope.BEGINNING, MODEL_WORDS),
    ErrorPattern(UpstreamAuthError, INVALID | LIMITED, MatchScope.CODE, KEY_CODES),
    ErrorPattern(UpstreamAuthError, INVALID, MatchScope.BEGINNING, INVALID_KEY),
    ErrorPattern(BatchTooLarge, INVALID | LIMITED, MatchScope.BEGINNING, BATCH_TOO_LARGE),
    ErrorPattern(RateLimited, LIMITED, MatchScope.CODE, RATE_CODES),
    ErrorPattern(UpstreamModelNotFound, INVALID | FORBIDDEN, MatchScope.BEGINNING, MODEL_WORDS),
)
"""The patterns that are tried before the words of payment, in order.

They are the codes and messages of known APIs that concern an account, a model or a batch.
"""

LATER_PATTERNS: Final = (
    ErrorPattern(UpstreamAuthError, FORBIDDEN, MatchScope.CODE, KEY_CODES),
    ErrorPattern(UpstreamAuthError, FORBIDDEN, MatchScope.CODE, FORBIDDEN_CODES),
    ErrorPattern(UpstreamAuthError, FORBIDDEN, MatchScope.BEGINNING, KEY_WORDS),
    ErrorPattern(ContextTooLong, INVALID | FAILED, MatchScope.CODE, CONTEXT_CODES),
    ErrorPattern(ContextTooLong, INVALID | FAILED, MatchScope.ANYWHERE, CONTEXT_TOO_LONG),
    ErrorPattern(BatchTooLarge, INVALID, MatchScope.BEGINNING, BATCH_TOO_LARGE_GENERIC),
    ErrorPattern(BatchTooLarge, INVALID, MatchScope.CODE, BATCH_TOO_LARGE_CODES),
    ErrorPattern(UpstreamUnavailable, INVALID, MatchScope.ANYWHERE, NOT_A_NUMBER),
    ErrorPattern(UpstreamRejectedInput, INVALID | FORBIDDEN, MatchScope.CODE, INPUT_CODES),
    ErrorPattern(UpstreamRejectedInput, INVALID | FORBIDDEN, MatchScope.ANYWHERE, INPUT_WORDS),
)
"""The patterns that are tried after the words of payment, in order.

The first match decides, and takes precedence over the status. Responses with other statuses are
not searched: a match would be a coincidence in a temporary failure. Codes for too large calls come
after the messages for a long input, because Mistral uses 3210 for both.
"""
