"""Defines ``[gateway]``, ``[keys.NAME]``, ``[cache]``, ``[store]`` and ``[limits]`` of a config.

The types check single values. What they cannot express is checked in ``config/loader.py``, and the
rules between keys where the keys are used: ``auth.access_mistakes``, ``limits.admission_mistakes``
and ``transport.transport_mistakes``. ``docs/configuration.md`` describes every key.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from embedroute.backend import Secret
from embedroute.config.policies import BreakerPolicy, Budget, RateLimits, RetryPolicy

Seconds = Annotated[float, Meta(gt=0, extra={"unit": "seconds"})]
SecondsOrZero = Annotated[float, Meta(ge=0, extra={"unit": "seconds"})]
Bytes = Annotated[int, Meta(ge=1, extra={"unit": "bytes"})]
Count = Annotated[int, Meta(ge=1)]
Auth = Literal["keys", "open", "host"]
Exposure = Literal["key", "open", "off"]
DialectName = Literal["openai", "openrouter", "gomodel", "phaseo", "spice"]

ProtocolName = Literal["openai", "azure", "cohere", "engines", "jina", "ollama", "tei", "voyage"]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[gateway]`` table; durations are in seconds, sizes in bytes.

    - ``auth``: who may call: holders of a key, anyone, or callers that the host authenticates
    - ``dialect``: the API whose responses and errors are imitated
    - ``protocols``: the APIs whose requests are served
    - ``transport``: the HTTP client for upstream calls
    - ``proxy``: URL of the proxy for upstream calls
    - ``ca_file``, ``tls_trust``: the certificates that are trusted
    - ``http2``: whether HTTP/2 is offered to upstreams
    - ``dns_ttl``: how long the addresses of a host are kept
    - ``unknown_fields``: the fields of a request that are ignored, or none
    - ``media_domains``: hosts whose images may be named by URL
    - ``debug``: whether callers without their own setting may use ``debug``
    - ``metrics``: who may read the metrics
    - ``readiness``: what the readiness check depends on
    - ``body_timeout``: the longest time to receive a request body
    - ``deadline``: the longest time to serve a request
    - ``write_timeout``: the longest time in which a client may read nothing
    - ``rate_limit_wait``: the time that a request may wait for rate limits to end
    - ``max_body_bytes``: the largest request body
    - ``max_body_bytes_in_flight``: all request bodies together
    - ``max_response_bytes_in_flight``: all responses together
    - ``max_inputs``: inputs of a request
    - ``max_concurrent``: calls in flight to an endpoint, unless its provider sets another number
    - ``local_threads``: threads for local models
    - ``max_token_ids``: token ids of a request
    - ``max_text_characters``: characters of a text
    - ``only``, ``ignore``: names of the providers that requests may use, and may not use
    - ``retries``, ``breaker``: the policies of providers that do not set their own
    - ``limits``, ``budget``: rate limits and budget of all callers together
    - ``usage``: whether the usage of requests is recorded
    """

    auth: Auth | None = None
    dialect: DialectName = "openai"
    protocols: tuple[ProtocolName, ...] = ("openai",)
    transport: Literal["auto", "http1", "httpx2"] = "auto"
    proxy: Secret | None = None
    ca_file: str | None = None
    tls_trust: Literal["system", "environment", "ca_file"] = "system"
    http2: bool = False
    dns_ttl: SecondsOrZero = 30.0
    unknown_fields: Literal["reject"] | list[str] = "reject"
    media_domains: list[str] = []
    debug: bool = False
    metrics: Exposure = "off"
    opentelemetry: bool = False
    dashboard: Literal["key", "host", "open", "off"] = "off"
    readiness: Literal["models", "process"] = "models"
    body_timeout: Seconds = 30.0
    deadline: Seconds = 60.0
    write_timeout: Seconds = 30.0
    rate_limit_wait: SecondsOrZero = 5.0
    max_body_bytes: Bytes = 33_554_432
    max_body_bytes_in_flight: Bytes = 268_435_456
    max_response_bytes_in_flight: Bytes = 536_870_912
    max_inputs: Count = 2048
    max_concurrent: Count | None = None
    local_threads: Count = 2
    max_token_ids: Count = 300_000
    max_text_characters: Count = 4_194_304
    only: list[str] = []
    ignore: list[str] = []
    retries: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    limits: RateLimits | None = None
    budget: Budget | None = None
    usage: bool = False


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``[keys.NAME]`` table: the API key of one caller, and what it permits.

    ``models`` None allows all models; ``debug`` None means the setting of ``[gateway]``. Keys share
    cache entries only within a ``namespace``; for None, ``[cache] shared`` decides. ``limits`` hold
    for the requests with this key, and ``budget`` is what they may cost.
    """

    key: Secret
    models: list[str] | None = None
    debug: bool | None = None
    only: list[str] = []
    ignore: list[str] = []
    namespace: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    limits: RateLimits | None = None
    budget: Budget | None = None


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[cache]`` table.

    ``bytes`` is the maximum size (0 disables the cache), ``ttl`` the time to live in seconds. With
    ``shared`` False, each caller without a ``namespace`` has its own entries.
    """

    bytes: Annotated[int, Meta(ge=0, extra={"unit": "bytes"})] = 268_435_456
    ttl: Seconds = 86_400.0
    shared: bool = True


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[store]`` table: what several processes share.

    Without a ``url``, everything is in the memory of one process. ``bytes`` is the maximum size of
    the vectors in SQLite. ``cache`` False keeps vectors out of the store. ``timeout`` is how many
    seconds a request waits for vectors from the store at most. ``usage_days`` is for how many days
    the usage of requests is kept.
    """

    url: Secret | None = None
    bytes: Bytes = 4_294_967_296
    cache: bool = True
    timeout: Seconds = 0.02
    usage_days: Annotated[int, Meta(ge=1, le=3660)] = 90


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[limits]`` table.

    ``on_store_failure`` says whether requests are served while the store fails that counts limits
    and budgets. None means "open" for limits and "closed" for budgets.
    """

    on_store_failure: Literal["open", "closed"] | None = None
