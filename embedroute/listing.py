"""The models that a caller may use, in OpenAI's form and in OpenRouter's."""

from collections.abc import Sequence

from embedroute.errors import ModelNotFound
from embedroute.routing.directory import Route
from embedroute.wire.responses import ModelCard
from embedroute.wording import echo


def card(route: Route) -> ModelCard:
    """Describe one model; its price is the lowest of its endpoints' prompt prices."""
    model, prices = route.model, [it.prices["prompt"] for it in route.candidates if "prompt" in it.prices]
    return ModelCard(
        id=route.public,
        owned_by=route.candidates[0].provider if route.candidates else "",
        dimensions=model.dimensions,
        dimensions_allowed=model.dimensions_allowed,
        matryoshka=bool(model.matryoshka),
        context_length=model.max_input_tokens,
        modalities=tuple(model.modalities or ("text",)),
        pricing={"prompt": min(prices)} if prices else {},
        providers=tuple(dict.fromkeys(it.provider for it in route.candidates)),
    )


def model_list(routes: Sequence[Route]) -> dict[str, object]:
    """``GET /v1/models``."""
    return {"object": "list", "data": [card(route) for route in routes]}


def model_card(routes: Sequence[Route], name: str) -> ModelCard:
    """``GET /v1/models/{id}``.

    Raises:
        ModelNotFound: no model of that name that this caller may use.
    """
    for route in routes:
        if route.public == name:
            return card(route)
    raise ModelNotFound(f"The model {echo(name)} does not exist here; GET /v1/models lists those that do.", param="model")


def openrouter_list(routes: Sequence[Route]) -> dict[str, object]:
    """``GET /v1/embeddings/models``, as OpenRouter lists its embedding models; prices in USD per token."""
    return {"data": [_openrouter(card(route)) for route in routes]}


def _openrouter(model: ModelCard) -> dict[str, object]:
    prompt = model.pricing.get("prompt")
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
        "pricing": {
            "prompt": str(0 if prompt is None else prompt / 1_000_000),
            "completion": "0",
            "request": "0",
            "image": "0",
        },
        "supported_parameters": ["dimensions", "encoding_format", "input_type", "user"],
    }
