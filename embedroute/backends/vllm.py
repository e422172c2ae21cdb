"""Provides the backend for vLLM servers: OpenAI's API with multimodal inputs as chat messages.

The vectors have length 1 unless the server is configured otherwise. ``dimensions`` needs a model
that the server declares as Matryoshka (``--hf-overrides '{"is_matryoshka": true}'``).

Token ids must be of the vocabulary of the served model, so they are not accepted by default. Set
``accepts = { tokens = true }`` if the clients use its tokenizer.

Source: docs.vllm.ai, OpenAI-compatible server (2026-08).
"""

from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec

from embedroute.backend import KEEPS_VECTORS, Accepts, Batch, Name, Options, Size, sets
from embedroute.backends.openai import OpenAI
from embedroute.errors import BatchTooLarge

SIDES: Final = {"start": "left", "end": "right"}
"""Where a text is cut → vLLM's name of that side."""


class VLLMOptions(Options, frozen=True, kw_only=True):
    """The parameters of vLLM that OpenAI's API does not have, and ``dimensions``."""

    namespace: ClassVar[str] = "vllm"

    dimensions: Annotated[Size | None, sets("dimensions")] = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    mm_processor_kwargs: dict[Name, Any] | None = None
    priority: Annotated[int | None, KEEPS_VECTORS] = None


class VLLM(OpenAI, frozen=True, kw_only=True, dict=True):
    """A vLLM server that serves one model for pooling.

    ``truncate_prompt_tokens`` is the number of tokens to which the server cuts a text, or -1 for
    the context of the model; without it, a text that is too long is refused. The server downloads
    ``https:`` images itself. Other options are those of the ``openai`` backend.
    """

    accepts: ClassVar[Accepts] = Accepts(
        modalities=("text", "image"),
        fetches=True,
        dimensions=True,
        base64=True,
        user=True,
        truncate=("none", "start", "end"),
        options=("vllm",),
    )
    request_options: ClassVar[tuple[type[Options], ...]] = (VLLMOptions,)

    base_url: str = "http://localhost:8000/v1"
    truncate_prompt_tokens: int | None = None

    def _body(self, batch: Batch) -> dict[str, object]:
        """Return the fields of the body; one multimodal input is one message.

        Raises:
            BatchTooLarge: the call has several multimodal inputs, and the server takes one.
        """
        body = {**super()._body(batch), **self._get_cut(batch), **batch.options}
        if not batch.parts:
            return body
        if len(batch) > 1:
            raise BatchTooLarge("vLLM takes one multimodal input per call.")
        messages = [{"role": "user", "content": batch.parts[0]}]
        return {**body, "input": None, "messages": messages}

    def _get_cut(self, batch: Batch) -> dict[str, object]:
        """Return the fields that say to how many tokens a text is cut, and on which side."""
        if batch.truncate is None:
            return {"truncate_prompt_tokens": self.truncate_prompt_tokens}
        if batch.truncate == "none":
            return {}
        return {"truncate_prompt_tokens": -1, "truncation_side": SIDES[batch.truncate]}
