"""How a mount words its answers: one dialect per documented system, for successes, errors and their extras.

Sources: OpenAI's API reference (gpt.ge's document is the same), and the documents of OpenRouter, GoModel, Phaseo and
Spice.ai. What debug asked for stands at the top level of any of them, in errors too.
"""

from collections.abc import Iterable, Mapping
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
    """OpenAI's own words; the other dialects say what they add."""

    def success(self, answer: Embeddings, request: EmbeddingRequest) -> Iterable[bytes]:
        """Write the body of a 200: in one piece, or in several, as they are asked for, if it is large."""
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
        """Name further fields of a 200."""
        del answer
        return {}

    def usage_extras(self, answer: Embeddings) -> Fields:
        """Name further fields of ``usage``."""
        del answer
        return {}

    def error(self, error: EmbedrouteError, trace: RequestTrace) -> bytes:
        """Write the body of an error."""
        return ENCODER.encode({**self.fault(error, trace), **trace.debug_fields()})

    def fault(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Word an error: ``{"error": {message, type, param, code}}``, all four keys always."""
        del trace
        param = error.param[:LONGEST_ECHO] if error.param else error.param
        return {
            "error": {
                "message": error.message,
                "type": self.type_of(error),
                "param": param,
                "code": error.code,
            }
        }

    def type_of(self, error: EmbedrouteError) -> str:
        """Name the type of an error."""
        return error.type


class OpenRouterDialect(OpenAIDialect):
    """OpenRouter: an id, the cost, tokens by modality, and numeric error codes."""

    def extras(self, answer: Embeddings) -> Fields:
        """Add the id."""
        return {"id": answer.trace.request_id}

    def usage_extras(self, answer: Embeddings) -> Fields:
        """Add the cost in USD, and tokens by modality where there are two or more."""
        counts = {
            f"{name}_tokens": count for name, count in answer.trace.modality_tokens.items() if count
        }
        return {
            "cost": float(answer.trace.cost),
            "prompt_tokens_details": counts if len(counts) > 1 else None,
        }

    def fault(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Word an error: ``{"error": {code, message, metadata}, "user_id"}``, the code being the status."""
        del trace
        metadata = None
        if isinstance(error, UpstreamError) and error.provider:
            metadata = {"provider_name": error.provider, "raw": error.message}
        return {
            "error": {"code": error.status, "message": error.message, "metadata": metadata},
            "user_id": None,
        }


class GoModelDialect(OpenAIDialect):
    """GoModel: the provider that answered, and five error types."""

    def extras(self, answer: Embeddings) -> Fields:
        """Add the provider, or the providers of a request that was split."""
        return {"provider": ",".join(answer.trace.providers) or None}

    def type_of(self, error: EmbedrouteError) -> str:
        """Fold statuses to the five types."""
        known = {
            401: "authentication_error",
            403: "authentication_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }
        return known.get(error.status) or (
            "invalid_request_error" if error.status < 500 else "provider_error"
        )


class PhaseoDialect(OpenAIDialect):
    """Phaseo: completion tokens, and errors that say whose fault it was and who failed."""

    def usage_extras(self, answer: Embeddings) -> Fields:
        """Add the completion tokens, which embeddings have none of."""
        del answer
        return {"completion_tokens": 0}

    def fault(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Word an error as the flat body that Phaseo's gateway sends."""
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
    """Spice.ai: errors are a message and nothing else."""

    def fault(self, error: EmbedrouteError, trace: RequestTrace) -> Fields:
        """Word an error: ``{"error": message}``."""
        del trace
        return {"error": error.message}


DIALECTS: Final[Mapping[str, OpenAIDialect]] = {
    "openai": OpenAIDialect(),
    "openrouter": OpenRouterDialect(),
    "gomodel": GoModelDialect(),
    "phaseo": PhaseoDialect(),
    "spice": SpiceDialect(),
}
"""Dialect name → its words."""
