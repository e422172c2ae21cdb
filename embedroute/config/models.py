"""What an operator declares: providers, models and the endpoints that serve them, and the shipped facts on both.

A public model name is one vector space: its endpoints back each other up because they are declared to give the
same vectors. The catalogue and the provider table are data beside this file.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from embedroute.backend import repr_as_in_rich

Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1)]
Money = (
    Annotated[int, Meta(ge=0)]
    | Annotated[float, Meta(ge=0, le=1e18)]
    | Annotated[str, Meta(pattern=r"\A[0-9]{1,18}(\.[0-9]{1,18})?\Z")]
)
Finite = Annotated[float, Meta(ge=-1e18, le=1e18)]
Modality = Literal["text", "image", "audio", "video", "document"]
Stage = Literal["stable", "beta", "alpha"]


class PriceTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices as they are written: ``prompt`` in USD per million tokens, the others in USD per unit."""

    prompt: Money | None = None
    completion: Money | None = None
    request: Money | None = None
    image: Money | None = None
    audio: Money | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One provider's offering of a model.

    ``model`` is the upstream's own name, ``price`` USD per million prompt tokens or a table, ``accepts``
    overrides what the backend says of its API, ``micro_batch_ms`` turns on merging of small requests.
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
    micro_batch_ms: Annotated[float, Meta(ge=0, le=1000)] | None = None

    def prices(self) -> dict[str, Decimal]:
        """Kind → price; a known prompt price makes the kinds that are not named cost nothing."""
        if self.price is None:
            return {}
        table = self.price if isinstance(self.price, PriceTable) else PriceTable(prompt=self.price)
        return {
            name: Decimal(str(value))
            for name, value in msgspec.structs.asdict(table).items()
            if value is not None
        }


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A public model name: one vector space.

    ``dimensions`` is the width of its vectors. ``matryoshka`` says that a prefix of a vector, scaled to length
    1, is a vector of its own; ``dimensions_allowed`` or ``dimensions_min`` narrow which. ``input_types`` lists
    the neutral words it tells apart: an empty list means that it tells none apart, so any is honoured by doing
    nothing. ``prefixes`` maps such a word to the text it wants before each input.
    """

    dimensions: Count | None = None
    matryoshka: bool | None = None
    dimensions_allowed: list[Count] | None = None
    dimensions_min: Count | None = None
    modalities: Annotated[list[Modality], Meta(min_length=1)] | None = None
    input_types: list[str] | None = None
    prefixes: dict[str, str] | None = None
    max_input_tokens: Count | None = None
    fallback: str | None = None
    endpoints: list[Endpoint] = []

    def over(self, facts: "Model", bases: Mapping[str, str] = {}) -> "Model":
        """Fill what is not said here from ``facts``, endpoint by endpoint too.

        ``bases`` maps slugs to those that their facts stand under; another's stand under the part before its slash.
        """
        said = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }
        known = {endpoint.provider.partition("/")[0]: endpoint for endpoint in facts.endpoints}
        own = [(it, bases.get(it.provider, it.provider.partition("/")[0])) for it in self.endpoints]
        said["endpoints"] = [_over(endpoint, known.get(base)) for endpoint, base in own]
        if not self.endpoints:
            said["endpoints"] = facts.endpoints
        return msgspec.structs.replace(facts, **said)


def _over(endpoint: Endpoint, facts: Endpoint | None) -> Endpoint:
    if facts is None:
        return endpoint
    return msgspec.structs.replace(
        endpoint,
        model=endpoint.model or facts.model,
        price=facts.price if endpoint.price is None else endpoint.price,
        accepts={**facts.accepts, **endpoint.accepts},
    )


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A configured account at an upstream.

    ``backend`` is the name of an entry point or a known provider, or a backend object; left out, it is the slug.
    ``options`` are the backend's own. ``data_collection``, ``zdr`` and ``distillable`` are None where nothing is known, which
    fails a filter that demands privacy. ``connection_rest_ms`` is how long a connection must have been silent before it
    is used again; 0, for a trusted upstream only, lets a surplus response pass for the response to the next request.
    """

    backend: object = None
    vendor: Name | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    stage: Stage = "stable"
    distillable: bool | None = None
    connection_rest_ms: Annotated[float, Meta(ge=0, le=10_000)] = 50.0
    options: Mapping[str, object] = {}

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show which options are set and none of their values, for any of them may be a secret."""
        return [("backend", self.backend), ("options", sorted(self.options))]

    __repr__ = repr_as_in_rich


class KnownProvider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of the shipped provider table: which backend speaks to it, and which variables hold its key."""

    vendor: str
    backend: str | None = None
    options: Mapping[str, object] = {}
    env: dict[str, list[str]] = {}
    accepts: Mapping[str, object] = {}
