"""Serves clients of Azure OpenAI: the model is the deployment in the path.

Source: Microsoft's REST reference of Azure OpenAI, "Create an embedding". The query's
``api-version`` has no effect. The key is in the header ``api-key``, or a Bearer token.
"""

from collections.abc import Generator
from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from embedroute.errors import EmbedrouteError
from embedroute.protocol import (
    CreateEmbeddingRequest,
    Limits,
    OpenAIDialect,
    response_bodies,
    split_members,
)
from embedroute.server.protocols.translation import Translation, write_body
from embedroute.trace import RequestTrace

KEY_HEADER: Final = b"api-key"


class DeploymentEmbeddingRequest(CreateEmbeddingRequest, frozen=True, kw_only=True):
    """The request; the deployment in the path is the model."""

    model: Annotated[str, Meta(description="Has no effect.")] = ""


class AzureError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong; ``type`` and ``param`` are there if the request is invalid."""

    code: str
    message: str
    type: str | UnsetType = UNSET
    param: str | UnsetType | None = UNSET


class AzureErrorResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The error response."""

    error: AzureError


class AzureFormat(OpenAIDialect):
    """OpenAI's format, with Azure's errors."""

    error_body: ClassVar[type[msgspec.Struct]] = AzureErrorResponse

    def error_response(self, error: EmbedrouteError, trace: RequestTrace) -> msgspec.Struct:
        """Return the status as ``code``, or the code of an unknown deployment."""
        del trace
        if error.status == 400:
            code = error.code or error.type
            param = error.param and error.param[:128]
            return AzureErrorResponse(
                error=AzureError(code=code, message=error.message, type=error.type, param=param)
            )
        unknown = error.code in {"model_not_found", "model_not_allowed"}
        code = "DeploymentNotFound" if unknown else str(error.status)
        return AzureErrorResponse(error=AzureError(code=code, message=error.message))


FORMAT: Final = AzureFormat()


def translate(body: bytes, model: str, limits: Limits) -> Generator[None, None, Translation]:
    """Set the model to the deployment that the path names; without one, the body names it.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    if not model:
        return Translation(body=body, format=FORMAT)
    members = yield from split_members(body, limits)
    return Translation(body=write_body(**{**members, "model": model}), format=FORMAT)


RESPONSE: Final = response_bodies.CreateEmbeddingResponse
