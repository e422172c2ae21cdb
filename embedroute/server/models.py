"""Lists the models that a caller may use, in OpenAI's format and in OpenRouter's."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from embedroute.protocol import response_bodies
from embedroute.routing import (
    Route,
    accepts_parts,
    can_truncate,
    supports_dimensions,
    unknown_model,
)

REQUEST_MODALITIES: Final = frozenset({"text", "image"})
"""The modalities of the content parts that a request may hold."""


def describe_model(route: Route) -> response_bodies.Model:
    """Describe one model; its prices are those of the endpoint with the lowest prompt price."""
    model = route.model
    prices = _lowest_prices(route)
    return response_bodies.Model(
        id=route.public_name,
        owned_by=route.candidates[0].provider if route.candidates else "",
        dimensions=model.dimensions,
        dimensions_allowed=model.dimensions_allowed,
        matryoshka=bool(model.matryoshka),
        context_length=model.max_input_tokens,
        modalities=list_served_modalities(route),
        pricing={kind: format_price(price) for kind, price in prices.items()},
        providers=tuple(dict.fromkeys(endpoint.provider for endpoint in route.candidates)),
        supported_endpoints=("/v1/embeddings",),
        created=0,
    )


def list_served_modalities(route: Route) -> tuple[str, ...]:
    """List the modalities of a model that a request may hold and an endpoint accepts."""
    accepted = (
        {"text"} if any(endpoint.accepts.texts for endpoint in route.candidates) else set[str]()
    )
    for endpoint in route.candidates:
        if accepts_parts(endpoint.accepts):
            accepted |= REQUEST_MODALITIES & {*endpoint.accepts.modalities}
    return tuple(name for name in route.model.modalities or ("text",) if name in accepted)


def _lowest_prices(route: Route) -> Mapping[str, Decimal]:
    known = [endpoint.prices for endpoint in route.candidates if "prompt" in endpoint.prices]
    return min(known, key=lambda prices: prices["prompt"]) if known else {}


def format_price(price: Decimal) -> str:
    """Format a price without an exponent, so that ``provider.max_price`` accepts it."""
    return f"{price.normalize():f}"


def model_list(routes: Sequence[Route]) -> response_bodies.ModelList:
    """Return the body of ``GET /v1/models``."""
    return response_bodies.ModelList(data=[describe_model(route) for route in routes])


def model_card(routes: Sequence[Route], name: str) -> response_bodies.Model:
    """Return the body of ``GET /v1/models/{id}``.

    Raises:
        ModelNotFound: there is no model of that name that the caller may use.
    """
    for route in routes:
        if route.public_name == name:
            return describe_model(route)
    raise unknown_model(name, [route.public_name for route in routes])


def openrouter_list(routes: Sequence[Route]) -> response_bodies.OpenRouterModelList:
    """Return the body of ``GET /v1/embeddings/models``.

    The format is OpenRouter's list of embedding models; prices are in USD per token.
    """
    return response_bodies.OpenRouterModelList(
        data=[_openrouter_model(route, describe_model(route)) for route in routes]
    )


def _openrouter_model(route: Route, card: response_bodies.Model) -> response_bodies.OpenRouterModel:
    prices = _lowest_prices(route)
    scales = {"prompt": 1_000_000, "completion": 1_000_000, "request": 1, "image": 1}
    # If the price of tokens is known, the other kinds are free unless they have a price.
    pricing = {
        kind: format_price(prices.get(kind, Decimal(0)) / scale)
        for kind, scale in scales.items()
        if prices
    }
    return response_bodies.OpenRouterModel(
        id=card.id,
        name=card.id,
        created=card.created,
        context_length=card.context_length,
        architecture=response_bodies.OpenRouterArchitecture(
            modality=f"{'+'.join(card.modalities)}->embeddings",
            input_modalities=card.modalities,
            output_modalities=["embeddings"],
        ),
        pricing=pricing,
        supported_parameters=supported(route),
    )


def supported(route: Route) -> list[str]:
    """List the optional parameters that the model or one of its endpoints supports."""
    model = route.model
    accepted = [endpoint.accepts for endpoint in route.candidates]
    has_input_types = (
        model.input_types == []
        or bool(model.prefixes)
        or any(accepts.input_types for accepts in accepted)
    )
    has_dimensions = supports_dimensions(model) and (
        can_truncate(model) or any(accepts.dimensions for accepts in accepted)
    )
    parameters = {
        "dimensions": has_dimensions,
        "encoding_format": True,
        "input_type": has_input_types,
        "user": any(accepts.user for accepts in accepted),
    }
    return [name for name, is_supported in parameters.items() if is_supported]
