"""The models that a caller may use, in OpenAI's form and in OpenRouter's."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from embedroute.errors import ModelNotFound
from embedroute.protocol import ModelCard
from embedroute.routing import Route, can_truncate, supports_dimensions
from embedroute.text import echo


def describe_model(route: Route) -> ModelCard:
    """Describe one model; its prices are those of the endpoint with the lowest price a prompt token."""
    model, prices = route.model, _lowest(route)
    return ModelCard(
        id=route.public_name,
        owned_by=route.candidates[0].provider if route.candidates else "",
        dimensions=model.dimensions,
        dimensions_allowed=model.dimensions_allowed,
        matryoshka=bool(model.matryoshka),
        context_length=model.max_input_tokens,
        modalities=tuple(model.modalities or ("text",)),
        pricing={kind: format_price(price) for kind, price in prices.items()},
        providers=tuple(dict.fromkeys(it.provider for it in route.candidates)),
    )


def _lowest(route: Route) -> Mapping[str, Decimal]:
    known = [it.prices for it in route.candidates if "prompt" in it.prices]
    return min(known, key=lambda prices: prices["prompt"]) if known else {}


def format_price(price: Decimal) -> str:
    """Write a price without an exponent, as ``provider.max_price`` takes it back."""
    return f"{price.normalize():f}"


def model_list(routes: Sequence[Route]) -> dict[str, object]:
    """``GET /v1/models``."""
    return {"object": "list", "data": [describe_model(route) for route in routes]}


def model_card(routes: Sequence[Route], name: str) -> ModelCard:
    """``GET /v1/models/{id}``.

    Raises:
        ModelNotFound: no model of that name that this caller may use.
    """
    for route in routes:
        if route.public_name == name:
            return describe_model(route)
    raise ModelNotFound(
        f"The model {echo(name)} does not exist here; GET /v1/models lists those that do.",
        param="model",
    )


def openrouter_list(routes: Sequence[Route]) -> dict[str, object]:
    """``GET /v1/embeddings/models``, as OpenRouter lists its embedding models; prices in USD per token."""
    return {"data": [_openrouter(route, describe_model(route)) for route in routes]}


def _openrouter(route: Route, model: ModelCard) -> dict[str, object]:
    prices = _lowest(route)
    a_token = {
        kind: format_price(prices.get(kind, Decimal(0)) / 1_000_000)
        for kind in ("prompt", "completion")
    }
    a_unit = {kind: format_price(prices.get(kind, Decimal(0))) for kind in ("request", "image")}
    return {
        "id": model.id,
        "name": model.id,
        "created": model.created,
        "context_length": model.context_length,
        "architecture": {
            "modality": f"{'+'.join(model.modalities)}->embeddings",
            "input_modalities": model.modalities,
            "output_modalities": ["embeddings"],
        },
        "pricing": a_token | a_unit,
        "supported_parameters": supported(route),
    }


def supported(route: Route) -> list[str]:
    """Name the optional parameters that do something at this model: of its own accord, or at one of its endpoints."""
    model, accepted = route.model, [it.accepts for it in route.candidates]
    typed = (
        model.input_types == [] or bool(model.prefixes) or any(it.input_types for it in accepted)
    )
    taken = {
        "dimensions": supports_dimensions(model)
        and (can_truncate(model) or any(it.dimensions for it in accepted)),
        "encoding_format": True,
        "input_type": typed,
        "user": any(it.user for it in accepted),
    }
    return [name for name, does in taken.items() if does]
