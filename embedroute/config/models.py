"""Defines the providers, models and endpoints of a config, and the rows of the provider table.

A public model name is one vector space. Its endpoints can replace each other because the operator
declares that they return the same vectors. The catalogue fills in what the config leaves out.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from embedroute.backend import repr_as_in_rich
from embedroute.config.policies import RateLimits

Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1)]
Money = (
    Annotated[int, Meta(ge=0)]
    | Annotated[float, Meta(ge=0, le=1e18)]
    | Annotated[str, Meta(pattern=r"\A[0-9]{1,18}(\.[0-9]{1,18})?\Z", examples=["0.02"])]
)
Timeout = Annotated[float, Meta(gt=0, le=3600, extra={"unit": "seconds"})]
MILLISECONDS = {"unit": "milliseconds"}
Finite = Annotated[float, Meta(ge=-1e18, le=1e18)]
Modality = Literal["text", "image", "audio", "video", "document"]
Stage = Literal["stable", "beta", "alpha"]


class PriceTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices in USD: ``prompt`` and ``completion`` per million tokens, the others per unit."""

    prompt: Money | None = None
    completion: Money | None = None
    request: Money | None = None
    image: Money | None = None
    audio: Money | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as one provider serves it.

    ``model`` is the upstream's name for it. ``price`` is in USD per million prompt tokens, or a
    table. ``accepts`` overrides the capabilities that the backend declares. ``micro_batch_ms`` is
    how long small requests may wait to be merged into one call; None disables merging.
    ``model_echo`` is ``ignore`` if the name of the model in an answer means nothing.
    ``max_concurrent`` and ``attempt_timeout`` replace those of the provider.
    """

    provider: Name
    model: Name | None = None
    price: Money | PriceTable | None = None
    quantization: Literal[
        "int4", "int8", "fp4", "fp6", "fp8", "fp16", "bf16", "fp32", "unknown"
    ] = "unknown"
    weight: Annotated[float, Meta(gt=0, le=1e18)] = 1.0
    quality: Finite = 1.0
    accepts: Mapping[str, object] = {}
    micro_batch_ms: Annotated[float, Meta(ge=0, le=1000, extra=MILLISECONDS)] | None = None
    model_echo: Literal["check", "ignore"] = "check"
    max_concurrent: Count | None = None
    attempt_timeout: Timeout | None = None

    def prices(self) -> dict[str, Decimal]:
        """Return the prices that are set, in USD, by kind.

        If the price per prompt token is set, missing kinds are free; otherwise they are unknown.
        """
        if self.price is None:
            return {}
        table = self.price if isinstance(self.price, PriceTable) else PriceTable(prompt=self.price)
        return {
            name: Decimal(str(value))
            for name, value in msgspec.structs.asdict(table).items()
            if value is not None
        }


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``[models.NAME]`` table: a public model name, which is one vector space.

    ``dimensions`` is the length of its vectors. ``matryoshka`` says whether a vector may be
    truncated and normalized again; ``dimensions_allowed`` and ``dimensions_min`` restrict its new
    length. ``input_types`` lists the input types that the model distinguishes; if the list is
    empty, every input type is accepted and has no effect. ``prefixes`` maps an input type to the
    text to put before each input. ``over_length`` is what happens to an input of more than
    ``max_input_tokens``: it is refused, only its first part is embedded, or the vectors of its
    parts are averaged; None leaves it to the endpoint. ``quantize`` lists the values of
    ``output_dtype`` that the gateway computes from floats, and ``quantize_range`` is the range of
    numbers that int8 and uint8 divide into 255 steps. ``hedge`` is whether a second call is made
    to another endpoint when the first takes longer than usual. ``limits`` hold for all callers of
    the model together.
    """

    dimensions: Count | None = None
    matryoshka: bool | None = None
    dimensions_allowed: list[Count] | None = None
    dimensions_min: Count | None = None
    modalities: Annotated[list[Modality], Meta(min_length=1)] | None = None
    input_types: list[str] | None = None
    prefixes: dict[str, str] | None = None
    max_input_tokens: Count | None = None
    over_length: Literal["refuse", "truncate", "pool"] | None = None
    quantize: list[Literal["int8", "uint8", "binary", "ubinary"]] | None = None
    quantize_range: tuple[Finite, Finite] | None = None
    fallback: str | None = None
    hedge: bool | None = None
    limits: RateLimits | None = None
    endpoints: list[Endpoint] = []

    def over(self, defaults: "Model", bases: Mapping[str, str] = {}) -> "Model":
        """Return a copy whose unset fields, also those of endpoints, come from ``defaults``.

        Endpoints are matched by provider. ``bases`` maps the slug of a provider to the slug that
        ``defaults`` uses for it; a slug that it does not contain is cut at its first slash.
        """
        fields = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }
        if self.endpoints:
            known = {_prefix(endpoint.provider): endpoint for endpoint in defaults.endpoints}
            merged: list[Endpoint] = []
            for endpoint in self.endpoints:
                base = bases.get(endpoint.provider, _prefix(endpoint.provider))
                merged.append(_merge(endpoint, known.get(base)))
            fields["endpoints"] = merged
        else:
            fields["endpoints"] = defaults.endpoints
        return msgspec.structs.replace(defaults, **fields)


def _prefix(slug: str) -> str:
    return slug.partition("/")[0]


def _merge(endpoint: Endpoint, defaults: Endpoint | None) -> Endpoint:
    if defaults is None:
        return endpoint
    return msgspec.structs.replace(
        endpoint,
        model=endpoint.model or defaults.model,
        price=defaults.price if endpoint.price is None else endpoint.price,
        accepts={**defaults.accepts, **endpoint.accepts},
    )


class _ProviderType(msgspec.StructMeta):
    """Explains where the options of a backend go if they are passed as fields of a provider."""

    if not TYPE_CHECKING:  # the fields of the struct are its signature

        def __call__(self, *values: object, **fields: object) -> "Provider":
            """Make a provider.

            Raises:
                TypeError: a value is not a field, or a field is passed by position.
            """
            options = [name for name in fields if name not in self.__struct_fields__]
            if options:
                pairs = ", ".join(f'"{name}": …' for name in options)
                raise TypeError(
                    f"Provider() has no field {', '.join(options)}. "
                    f"Pass the options of its backend as Provider(options={{{pairs}}})."
                )
            return super().__call__(*values, **fields)


class Provider(msgspec.Struct, frozen=True, kw_only=True, metaclass=_ProviderType):
    """A ``[providers.SLUG]`` table: an account at an upstream.

    ``backend`` is the name of a backend or of a known provider, or a backend object; if None, the
    slug is the name. ``options`` are passed to the backend. ``data_collection``, ``zdr`` and
    ``distillable`` are None if unknown; a request that demands one of them then excludes the
    provider. ``connection_rest_ms`` is how long a connection must have been silent before it is
    reused. Use 0 for a trusted upstream only: a surplus response could then be taken for the
    response to the next request. ``max_connections`` is the maximum number of connections to the
    provider's host, for each event loop. ``max_concurrent`` is the maximum number of calls in
    flight to each of its endpoints; the gateway also learns how many are served at a time.
    ``attempt_timeout`` is how many seconds a call may take; if None, it is learned.
    ``resolve`` is whether a connection goes to any address of the host, or requests are spread over
    all of them; ``max_connections`` then applies to each. ``allow_fields`` are top-level fields of
    requests that are passed on to this provider. ``retries`` and ``breaker`` hold the
    fields that replace those of ``[gateway.retries]`` and ``[gateway.breaker]``.
    """

    backend: object = None
    vendor: Name | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    stage: Stage = "stable"
    distillable: bool | None = None
    connection_rest_ms: Annotated[float, Meta(ge=0, le=10_000, extra=MILLISECONDS)] = 50.0
    max_connections: Count = 512
    max_concurrent: Count | None = None
    attempt_timeout: Timeout | None = None
    resolve: Literal["any", "all"] = "any"
    allow_fields: tuple[str, ...] = ()
    retries: Mapping[str, object] = {}
    breaker: Mapping[str, object] = {}
    options: Mapping[str, object] = {}

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the names of the options, but no values, because any of them may be a secret."""
        return [("backend", self.backend), ("options", sorted(self.options))]

    __repr__ = repr_as_in_rich


class KnownProvider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of the shipped provider table.

    ``backend`` is the name of the backend to use, or None if no backend supports the provider.
    ``options`` are passed to the backend. ``env`` maps an option to the environment variables that
    may contain its value, such as the API key; the first that is set counts. In ``NAME/path`` the
    path is appended to the value, and in ``NAME/old=>/new`` the new path replaces the old one.
    ``required`` are the options that must be set for the environment to enable the provider.
    ``accepts`` overrides the capabilities that the backend declares.
    """

    vendor: str
    backend: str | None = None
    options: Mapping[str, object] = {}
    env: dict[str, list[str]] = {}
    required: tuple[str, ...] = ("api_key",)
    accepts: Mapping[str, object] = {}
