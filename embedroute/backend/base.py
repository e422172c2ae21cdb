"""The inner border: all that the author of a backend reads, and the only thing the host knows of upstream APIs.

A backend is a struct: its fields are its options, its ``build`` and ``parse`` are its work. It only converts;
chunking, retries, keys, caching, timeouts and redaction are the host's.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar, Self, cast

import msgspec

from embedroute import vectors
from embedroute.backend.secret import repr_as_in_rich, without_credentials
from embedroute.backend.upstream import Source, UpstreamRequest, UpstreamResponse
from embedroute.errors import UpstreamError
from embedroute.inputs import Input, Kind, Part
from embedroute.upstream_errors import classify_response
from embedroute.vectors import Array

_WHOLE = (int, Integral)


class Accepts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an upstream API takes; config may override each of these for one endpoint.

    ``max_tokens`` is the sum over one call, ``max_bytes`` bounds its JSON body.
    ``input_types`` and ``dtypes`` list the neutral words the API honours itself; ``options`` names the
    namespaces of ``embedding_options`` it speaks; ``fetches`` says that it fetches ``https:`` images itself.
    """

    texts: bool = True
    tokens: bool = False
    modalities: tuple[str, ...] = ("text",)
    fetches: bool = False
    dimensions: bool = False
    base64: bool = False
    user: bool = False
    input_types: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float",)
    options: tuple[str, ...] = ()
    max_inputs: int | None = None
    max_tokens: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse caps that would let nothing through."""
        for name in ("max_inputs", "max_tokens", "max_bytes"):
            cap = getattr(self, name)
            if cap is not None and cap < 1:
                raise ValueError(f"{name} must be at least 1")


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What one upstream call embeds: n inputs of one kind, in order.

    Exactly one of ``texts``, ``tokens`` and ``parts`` is not empty. ``dimensions`` and ``input_type`` are set
    only when the backend accepts them; ``input_type`` is a neutral word (``query``, ``document``, …), ``dtype``
    one of float, int8, uint8, binary, ubinary, and ``options`` the namespace of ``embedding_options`` it speaks.
    ``width`` is the width that the answer must have, known for every declared model whether or not it was asked for.
    """

    model: str
    texts: Sequence[str] = ()
    tokens: Sequence[tuple[int, ...]] = ()
    parts: Sequence[tuple[Part, ...]] = ()
    dimensions: int | None = None
    input_type: str | None = None
    dtype: str = "float"
    user: str | None = None
    options: Mapping[str, str] = {}
    width: int | None = None

    @property
    def inputs(self) -> Sequence[Input]:
        """The inputs, whatever their kind."""
        return self.texts or self.tokens or self.parts or ()

    @property
    def kind(self) -> Kind:
        """The kind of all inputs."""
        if self.texts:
            return Kind.TEXT
        return Kind.TOKENS if self.tokens else Kind.PARTS

    def __len__(self) -> int:
        """Count the inputs."""
        return len(self.texts) or len(self.tokens) or len(self.parts)


class Vectors(msgspec.Struct, frozen=True, gc=False):
    """What one call gives back: an (n, d) array of floats, row i for input i, and the tokens billed for all n.

    ``prompt_tokens`` is None where the upstream does not say, and whatever is no count is read as None;
    ``modality_tokens`` splits it, where it does. Floats of any size become float32. ``source`` is the gateway's own.
    """

    array: Array
    prompt_tokens: int | None = None
    modality_tokens: Mapping[str, int] = {}
    source: Source | None = None

    @classmethod
    def from_lists(
        cls, rows: Sequence[Sequence[float]], *, prompt_tokens: object = None, dtype: str = "float"
    ) -> Self:
        """Take n rows of d JSON numbers.

        Raises:
            InvalidUpstreamResponse: the rows are not n lists of d numbers.
        """
        return cls(vectors.from_lists(rows, dtype), parse_token_count(prompt_tokens))

    @classmethod
    def from_base64(
        cls,
        rows: Sequence[str | bytes | memoryview],
        *,
        prompt_tokens: object = None,
        dtype: str = "float",
    ) -> Self:
        """Take n rows of base64 text, each d little-endian numbers.

        Raises:
            InvalidUpstreamResponse: a row is not strict base64 of d whole numbers.
        """
        return cls(vectors.from_base64(rows, dtype), parse_token_count(prompt_tokens))

    @classmethod
    def from_bytes(
        cls, rows: Sequence[bytes], *, prompt_tokens: object = None, dtype: str = "float"
    ) -> Self:
        """Take n rows of raw little-endian numbers.

        Raises:
            InvalidUpstreamResponse: a row is not d whole numbers long.
        """
        return cls(vectors.from_bytes(rows, dtype), parse_token_count(prompt_tokens))


def parse_token_count(said: object) -> int | None:
    """Believe a count of tokens only where it is one: LocalAI says 0, others a string or null."""
    whole = int(said) if isinstance(said, _WHOLE) and not isinstance(said, bool) else 0
    return whole if 0 < whole < 2**31 else None


def parse_token_counts(said: object) -> dict[str, int]:
    """Believe of a split of tokens by modality what is a name and a count."""
    split = (
        cast("Mapping[object, object]", said).items() if said and isinstance(said, Mapping) else ()
    )
    return {
        it: count
        for it, held in split
        if isinstance(it, str) and it.isidentifier() and (count := parse_token_count(held))
    }


class BackendBase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all backends share: options as fields, and what their API accepts."""

    accepts: ClassVar[Accepts] = Accepts()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the options; a password in a URL is masked, as a ``Secret`` is."""
        options = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [
            (name, without_credentials(value) if isinstance(value, str) else value)
            for name, value in options
        ]

    __repr__ = repr_as_in_rich


class HTTPBackend(BackendBase, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An upstream reached by one HTTP request per batch. Both methods are pure."""

    def build(self, batch: Batch) -> UpstreamRequest:
        """Write the request for ``batch``."""
        raise NotImplementedError

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read a 200; the host then checks count, width and numbers.

        Raises:
            InvalidUpstreamResponse: the body is not what the API documents. ``KeyError``, ``TypeError``, ``ValueError``,
                ``IndexError`` and ``AttributeError`` count as that too, so plain code is enough.
        """
        raise NotImplementedError

    def map_error(self, response: UpstreamResponse) -> UpstreamError:
        """Judge an answer that is not a 2xx; the default reads the shapes that the providers document."""
        return classify_response(response.status, response.headers, response.content)


class LocalBackend(BackendBase, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model inside this process: loaded once per gateway, run in worker threads of its own.

    The host calls ``run`` with slices of a batch that should take 20 ms at most, so that other
    requests get their turn in between and a batch stops when its caller has left. ``min_slice`` is
    the least number of inputs that it puts into a slice of a larger batch: raise it for a model
    that is much faster per input in larger batches.
    """

    min_slice: ClassVar[int] = 1

    def load(self) -> Any:
        """Load the model, in a worker thread. The host keeps it.

        After an error the next request loads it anew.
        """
        raise NotImplementedError

    def run(self, model: Any, batch: Batch) -> Vectors:
        """Embed ``batch`` with what ``load`` returned.

        The vector of an input must not depend on the other inputs of ``batch``, because the host
        passes any part of a batch. Several threads may call this at once.
        """
        raise NotImplementedError


class Backend(BackendBase, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wider contract, for what is neither one HTTP request nor a local model."""

    async def embed(self, batch: Batch) -> Vectors:
        """Embed ``batch``, or raise one of the upstream errors of :mod:`embedroute.errors`."""
        raise NotImplementedError
