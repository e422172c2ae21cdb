"""Serves OpenAI's clients from before 2024: ``/v1/engines/{model}/embeddings``.

Source: OpenAI's Python library before version 1, with ``engine=``.
"""

from collections.abc import Generator

from embedroute.protocol import Limits, split_members
from embedroute.server.protocols.translation import Translation, write_body


def translate(body: bytes, model: str, limits: Limits) -> Generator[None, None, Translation]:
    """Set the model to the engine that the path names.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    members = yield from split_members(body, limits)
    return Translation(body=write_body(**{**members, "model": model}))
