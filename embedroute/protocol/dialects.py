"""Writes response bodies, for successes and errors, in the format of a documented system.

Sources: the API references of OpenAI (gpt.ge's is identical), OpenRouter, GoModel, Phaseo and
Spice.ai. Debug fields are written at the top level of each format, in errors too.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec
from msgspec import UNSET

from embedroute.errors import BudgetExceeded, EmbedrouteError, InsufficientQuota, UpstreamError
from embedroute.protocol import response_bodies
from embedroute.protocol.decode import EmbeddingRequest
from embedroute.protocol.responses import ENCODER, Embeddings, LargeBody, encode_rows
from embedroute.text import LONGEST_ECHO
from embedroute.trace import RequestTrace

Fields = Mapping[str, Any]
"""Fields of a body, by name."""


class OpenAIDialect:
    """OpenAI's format; the other dialects override parts of it.

    ``success_body`` and ``error_body`` are the structs of the two bodies. ``has_402`` is whether a
    budget that is spent is a 402; for OpenAI's clients it is a 429.
    """

    has_402: ClassVar[bool] = False
    success_body: ClassVar[type[response_bodies.CreateEmbeddingResponse]] = (
        response_bodies.CreateEmbeddingResponse
    )
    error_body: ClassVar[type[msgspec.Struct]] = response_bodies.ErrorResponse

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> tuple[bytes] | LargeBody:
        """Write the body of a 200: in one piece, or lazily in several if it is large."""
        large = answer.large
        body = ENCODER.encode(
            self.success_body(
                data=() if large else encode_rows(answer.rows, base64=request.base64),
                model=answer.model,
                usage=self.usage(answer),
                **self.extras(answer),
                **answer.trace.debug_fields(),
            )
        )
        return LargeBody(body, answer.rows, base64=request.base64) if large else (body,)

    def usage(self, answer: Embeddings) -> response_bodies.Usage:
        """Return the tokens of an answer."""
        tokens = answer.prompt_tokens
        return response_bodies.Usage(prompt_tokens=tokens, total_tokens=tokens)

    def extras(self, answer: Embeddings) -> Fields:
        """Return the additional fields of ``success_body``."""
        del answer
        return {}

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the body of an error."""
        fields = msgspec.structs.asdict(self.error_response(error, trace))
        return ENCODER.encode({**fields, **trace.debug_fields()})

    def adapt(self, error: EmbedrouteError) -> EmbedrouteError:
        """Return the error with the status and code that the system has for it."""
        if isinstance(error, BudgetExceeded) and not self.has_402:
            return InsufficientQuota(error.message)
        return error

    def error_response(self, error: EmbedrouteError, trace: RequestTrace) -> msgspec.Struct:
        """Return the body of an error, without debug fields."""
        del trace
        return response_bodies.ErrorResponse(
            error=response_bodies.Error(
                message=error.message,
                type=self.error_type(error),
                param=_shortened(error.param),
                code=error.code,
            )
        )

    def error_type(self, error: EmbedrouteError) -> str:
        """Return the ``type`` of an error."""
        return error.type


class OpenRouterDialect(OpenAIDialect):
    """OpenRouter's format: an id, the cost, tokens by modality, and numeric error codes."""

    has_402 = True
    success_body: ClassVar[type[response_bodies.CreateEmbeddingResponse]] = (
        response_bodies.OpenRouterEmbeddingResponse
    )
    error_body: ClassVar[type[msgspec.Struct]] = response_bodies.OpenRouterErrorResponse

    def usage(self, answer: Embeddings) -> response_bodies.Usage:
        """Add the cost in USD, and the tokens by modality if there are two modalities."""
        tokens = answer.prompt_tokens
        counts = {
            f"{name}_tokens": count for name, count in answer.trace.modality_tokens.items() if count
        }
        cost = answer.trace.cost
        return response_bodies.OpenRouterUsage(
            prompt_tokens=tokens,
            total_tokens=tokens,
            cost=UNSET if cost is None else float(cost),
            prompt_tokens_details=counts if len(counts) > 1 else UNSET,
        )

    def extras(self, answer: Embeddings) -> Fields:
        """Add the request id."""
        return {"id": answer.trace.request_id}

    def error_response(self, error: EmbedrouteError, trace: RequestTrace) -> msgspec.Struct:
        """Return the status as ``code``, and the provider if it failed."""
        del trace
        metadata = None
        if isinstance(error, UpstreamError) and error.provider:
            metadata = {"provider_name": error.provider, "raw": error.message}
        return response_bodies.OpenRouterErrorResponse(
            error=response_bodies.OpenRouterError(
                code=error.status, message=error.message, metadata=metadata
            ),
            user_id=None,
        )


class GoModelDialect(OpenAIDialect):
    """GoModel's format: the provider of the vectors, and five error types."""

    has_402 = True
    success_body: ClassVar[type[response_bodies.CreateEmbeddingResponse]] = (
        response_bodies.GoModelEmbeddingResponse
    )

    def extras(self, answer: Embeddings) -> Fields:
        """Add the provider, or several separated by commas if the request was split."""
        return {"provider": ",".join(answer.trace.providers) or UNSET}

    def error_type(self, error: EmbedrouteError) -> str:
        """Map the status to one of five types."""
        types = {
            401: "authentication_error",
            403: "authentication_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }
        other = "invalid_request_error" if error.status < 500 else "provider_error"
        return types.get(error.status, other)


class PhaseoDialect(OpenAIDialect):
    """Phaseo's format: completion tokens, and errors with their origin and the failed providers."""

    has_402 = True
    success_body: ClassVar[type[response_bodies.CreateEmbeddingResponse]] = (
        response_bodies.PhaseoEmbeddingResponse
    )
    error_body: ClassVar[type[msgspec.Struct]] = response_bodies.PhaseoErrorResponse

    def usage(self, answer: Embeddings) -> response_bodies.Usage:
        """Add the completion tokens, which are always 0 for embeddings."""
        tokens = answer.prompt_tokens
        return response_bodies.PhaseoUsage(
            prompt_tokens=tokens, total_tokens=tokens, completion_tokens=0
        )

    def error_response(self, error: EmbedrouteError, trace: RequestTrace) -> msgspec.Struct:
        """Return the flat object that Phaseo's gateway sends."""
        upstream = isinstance(error, UpstreamError)
        return response_bodies.PhaseoErrorResponse(
            generation_id=trace.request_id,
            status_code=error.status,
            error=error.code or error.type,
            error_type="user" if error.status < 500 and error.status != 429 else "system",
            error_origin="upstream" if upstream else "gateway",
            reason=error.type,
            description=error.message,
            param=_shortened(error.param),
            attempt_count=trace.attempts,
            failed_providers=[provider for provider, _ in trace.failures],
            failed_statuses=[status for _, status in trace.failures],
        )


class SpiceDialect(OpenAIDialect):
    """Spice.ai's format: errors have only a message."""

    has_402 = True
    error_body: ClassVar[type[msgspec.Struct]] = response_bodies.SpiceErrorResponse

    def error_response(self, error: EmbedrouteError, trace: RequestTrace) -> msgspec.Struct:
        """Return the message only."""
        del trace
        return response_bodies.SpiceErrorResponse(error=error.message)


def _shortened(param: str | None) -> str | None:
    return param[:LONGEST_ECHO] if param else param


DIALECTS: Final[Mapping[str, OpenAIDialect]] = {
    "openai": OpenAIDialect(),
    "openrouter": OpenRouterDialect(),
    "gomodel": GoModelDialect(),
    "phaseo": PhaseoDialect(),
    "spice": SpiceDialect(),
}
"""Name → dialect."""
