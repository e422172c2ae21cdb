"""Writes response bodies, for successes and errors, in the format of a documented system.

Sources: the API references of OpenAI (gpt.ge's is identical), OpenRouter, GoModel, Phaseo and
Spice.ai. Debug fields are written at the top level of each format, in errors too.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from embedroute.errors import EmbedrouteError, UpstreamError
from embedroute.protocol.decode import EmbeddingRequest
from embedroute.protocol.responses import (
    ENCODER,
    CreateEmbeddingResponse,
    Embeddings,
    Usage,
    encode_rows,
    iter_body,
)
from embedroute.text import LONGEST_ECHO
from embedroute.trace import RequestTrace

Fields = Mapping[str, Any]
"""Fields of a body, by name."""


class OpenAIDialect:
    """OpenAI's format; the other dialects override parts of it."""

    def success(
        self, answer: Embeddings, request: EmbeddingRequest
    ) -> tuple[bytes] | Iterator[bytes]:
        """Write the body of a 200: in one piece, or lazily in several if it is large."""
        large = answer.large
        body = ENCODER.encode(
            CreateEmbeddingResponse(
                data=() if large else encode_rows(answer.rows, base64=request.base64),
                model=answer.model,
                usage=Usage(
                    prompt_tokens=answer.prompt_tokens,
                    total_tokens=answer.prompt_tokens,
                    **self.usage_extras(answer),
                ),
                **self.extras(answer),
                **answer.trace.debug_fields(),
            )
        )
        return iter_body(body, answer.rows, base64=request.base64) if large else (body,)

    def extras(self, answer: Embeddings) -> Fields:
        """Return additional fields of a 200."""
        del answer
        return {}

    def usage_extras(self, answer: Embeddings) -> Fields:
        """Return additional fields of ``usage``."""
        del answer
        return {}

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the body of an error."""
        return ENCODER.encode({**self.error_fields(error, trace), **trace.debug_fields()})

    def error_fields(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Return ``{"error": {message, type, param, code}}``; all four keys are always present."""
        del trace
        param = error.param[:LONGEST_ECHO] if error.param else error.param
        return {
            "error": {
                "message": error.message,
                "type": self.error_type(error),
                "param": param,
                "code": error.code,
            }
        }

    def error_type(self, error: EmbedrouteError) -> str:
        """Return the ``type`` of an error."""
        return error.type


class OpenRouterDialect(OpenAIDialect):
    """OpenRouter's format: an id, the cost, tokens by modality, and numeric error codes."""

    def extras(self, answer: Embeddings) -> Fields:
        """Add the request id."""
        return {"id": answer.trace.request_id}

    def usage_extras(self, answer: Embeddings) -> Fields:
        """Add the cost in USD, and the tokens by modality if there are two modalities."""
        counts = {
            f"{name}_tokens": count for name, count in answer.trace.modality_tokens.items() if count
        }
        return {
            "cost": float(answer.trace.cost),
            "prompt_tokens_details": counts if len(counts) > 1 else None,
        }

    def error_fields(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Return ``{"error": {code, message, metadata}, "user_id"}``; ``code`` is the status."""
        del trace
        metadata = None
        if isinstance(error, UpstreamError) and error.provider:
            metadata = {"provider_name": error.provider, "raw": error.message}
        return {
            "error": {"code": error.status, "message": error.message, "metadata": metadata},
            "user_id": None,
        }


class GoModelDialect(OpenAIDialect):
    """GoModel's format: the provider of the vectors, and five error types."""

    def extras(self, answer: Embeddings) -> Fields:
        """Add the provider, or several separated by commas if the request was split."""
        return {"provider": ",".join(answer.trace.providers) or None}

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

    def usage_extras(self, answer: Embeddings) -> Fields:
        """Add the completion tokens, which are always 0 for embeddings."""
        del answer
        return {"completion_tokens": 0}

    def error_fields(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Return the flat object that Phaseo's gateway sends."""
        upstream = isinstance(error, UpstreamError)
        return {
            "generation_id": trace.request_id,
            "status_code": error.status,
            "error": error.code or error.type,
            "error_type": "user" if error.status < 500 and error.status != 429 else "system",
            "error_origin": "upstream" if upstream else "gateway",
            "reason": error.type,
            "description": error.message,
            "param": error.param[:LONGEST_ECHO] if error.param else error.param,
            "attempt_count": trace.attempts,
            "failed_providers": [provider for provider, _ in trace.failures],
            "failed_statuses": [status for _, status in trace.failures],
        }


class SpiceDialect(OpenAIDialect):
    """Spice.ai's format: errors have only a message."""

    def error_fields(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Return ``{"error": message}``."""
        del trace
        return {"error": error.message}


DIALECTS: Final[Mapping[str, OpenAIDialect]] = {
    "openai": OpenAIDialect(),
    "openrouter": OpenRouterDialect(),
    "gomodel": GoModelDialect(),
    "phaseo": PhaseoDialect(),
    "spice": SpiceDialect(),
}
"""Name → dialect."""
