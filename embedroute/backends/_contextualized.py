"""Reads the responses of APIs for contextualised chunks: documents, each a list of chunks.

The backends send each input as a document of one chunk. Its vector then does not depend on the
other inputs of the call, which the cache and the splitting of batches rely on.
"""

from collections.abc import Sequence

import msgspec

from embedroute.backend import Batch, UpstreamResponse, Vectors
from embedroute.backends._json_scan import split_vectors, texts_to_array
from embedroute.backends._openai_response import read_usage, sort_by_index
from embedroute.errors import InvalidUpstreamResponse


class Chunk(msgspec.Struct, gc=False):
    """The vector of a chunk, as base64 or numbers."""

    embedding: msgspec.Raw


class Document(msgspec.Struct, gc=False):
    """The chunks of an input; there must be one."""

    data: list[Chunk]
    index: int | None = None


class Answer(msgspec.Struct):
    """The response."""

    data: list[Document]
    usage: msgspec.Raw = msgspec.Raw()
    model: str | None = None


def read_only_chunks(batch: Batch, response: UpstreamResponse) -> Vectors:
    """Read the vector of the only chunk of each document, sorted by the index of the document.

    Raises:
        InvalidUpstreamResponse: the body has another format, or a document has several chunks.
    """
    answer, texts = split_vectors(response, Answer, "embedding", _list_vectors, len(batch))
    if any(len(document.data) != 1 for document in answer.data):
        raise InvalidUpstreamResponse("The upstream returned an input as several chunks.")
    ordered = sort_by_index(texts, [document.index for document in answer.data])
    array = texts_to_array(ordered, batch.dtype, batch.width)
    return Vectors(array, *read_usage(answer.usage, response.headers), model=answer.model)


def _list_vectors(answer: Answer) -> Sequence[msgspec.Raw]:
    return [chunk.embedding for document in answer.data for chunk in document.data]
