"""How a mount words its answers: one dialect per documented system, for successes, errors and their extras."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from embedroute.errors import LONGEST_ECHO, EmbedrouteError
from embedroute.journal import Journal
from embedroute.wire.decode import Job
from embedroute.wire.responses import ENCODER, CreateEmbeddingResponse, Embeddings, Usage, rows


class Dialect(Protocol):
    """The words of one documented system."""

    def success(self, answer: Embeddings, job: Job) -> bytes:
        """Write the body of a 200."""
        ...

    def error(self, error: EmbedrouteError, journal: Journal) -> Mapping[str, Any]:
        """Write the body of an error."""
        ...

    def status(self, error: EmbedrouteError) -> int:
        """The status that goes with an error."""
        ...


class OpenAIDialect:
    """OpenAI's own words, which gpt.ge shares."""

    def success(self, answer: Embeddings, job: Job) -> bytes:
        """Write the list of embeddings without extras."""
        usage = Usage(prompt_tokens=answer.prompt_tokens, total_tokens=answer.prompt_tokens)
        body = CreateEmbeddingResponse(data=rows(answer.vectors, base64=job.base64), model=answer.model, usage=usage)
        return ENCODER.encode(body)

    def error(self, error: EmbedrouteError, journal: Journal) -> Mapping[str, Any]:
        """Write ``{"error": {message, type, param, code}}``, all four keys always."""
        del journal
        param = error.param[:LONGEST_ECHO] if error.param else error.param
        return {"error": {"message": error.message, "type": error.type, "param": param, "code": error.code}}

    def status(self, error: EmbedrouteError) -> int:
        """Keep the error's own status."""
        return error.status


DIALECTS: Final[Mapping[str, Dialect]] = dict.fromkeys(("openai", "openrouter", "gomodel", "phaseo", "spice"), OpenAIDialect())
"""Dialect name → its words."""
