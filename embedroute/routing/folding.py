"""Makes texts of content parts that are only texts, where no API takes parts."""

from collections.abc import Generator

from embedroute.inputs import Kind, list_modalities
from embedroute.protocol import EmbeddingRequest, Limits, fold_parts_in_steps
from embedroute.routing.filters import accepts_parts
from embedroute.routing.registry import Route


def fold_text_parts(
    request: EmbeddingRequest, route: Route, limits: Limits
) -> Generator[None, None, EmbeddingRequest]:
    """Make texts of content parts that are only texts, if no API of the route takes parts.

    Raises:
        InvalidRequest: a joined text is too long.
    """
    if request.kind is not Kind.PARTS or "image" in list_modalities(request.inputs):
        return request
    if any(accepts_parts(candidate.accepts) for candidate in route.candidates):
        return request
    return (yield from fold_parts_in_steps(request, limits))
