"""Defines the base classes of backends, and the batches and vectors they exchange with the host.

A backend is a struct. Its fields are its options; ``build`` creates the request and ``parse`` reads
the response. A backend only converts: the host does chunking, retries, authentication of callers,
caching, timeouts and redaction.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar, Self, cast

import msgspec

from embedroute import vectors
from embedroute.backend.credentials import Credentials, Send
from embedroute.backend.options import Options, Truncate
from embedroute.backend.secret import repr_as_in_rich, without_credentials
from embedroute.backend.upstream import Source, UpstreamRequest, UpstreamResponse
from embedroute.errors import UpstreamError
from embedroute.inputs import Input, Kind, Part
from embedroute.upstream_errors import classify_response
from embedroute.vectors import Array

_INTEGER_TYPES = (int, Integral)


class Accepts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The capabilities and limits of an upstream API. The config may override them per endpoint.

    ``max_inputs`` and ``max_tokens`` limit one call. ``max_bytes`` limits its JSON body.
    ``input_types``, ``dtypes`` and ``truncate`` list the neutral names that the API supports. An
    API that always refuses a text that is too long supports ``none`` of ``truncate``. ``options``
    names the namespaces of ``embedding_options`` that the backend supports. ``fetches`` is true if
    the API downloads ``https:`` images itself.
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
    truncate: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    max_inputs: int | None = None
    max_tokens: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        """Reject limits that no call could meet."""
        for name in ("max_inputs", "max_tokens", "max_bytes"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1")


class Batch(msgspec.Struct, frozen=True, gc=False):
    """The inputs and parameters of one upstream call: n inputs of one kind, in order.

    Exactly one of ``texts``, ``tokens`` and ``parts`` is not empty. ``dimensions`` and
    ``input_type`` are set only if the backend accepts them. ``input_type`` is a neutral name
    (``query``, ``document``, …). ``dtype`` is one of float, int8, uint8, binary and ubinary.
    ``truncate`` is what to do with a text that is too long, if the request says so. ``options``
    holds the request's ``embedding_options`` for this backend's namespaces by their names, without
    those that have set another field. ``width`` is the dimension that the vectors must have; it is
    known for every declared model, even if the request does not set ``dimensions``.
    """

    model: str
    texts: Sequence[str] = ()
    tokens: Sequence[tuple[int, ...]] = ()
    parts: Sequence[tuple[Part, ...]] = ()
    dimensions: int | None = None
    input_type: str | None = None
    dtype: str = "float"
    user: str | None = None
    options: Mapping[str, Any] = {}
    width: int | None = None
    truncate: Truncate | None = None

    @property
    def inputs(self) -> Sequence[Input]:
        """The inputs, of any kind."""
        return self.texts or self.tokens or self.parts or ()

    @property
    def kind(self) -> Kind:
        """The kind of all inputs."""
        if self.texts:
            return Kind.TEXT
        if self.tokens:
            return Kind.TOKENS
        return Kind.PARTS

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.texts) or len(self.tokens) or len(self.parts)


class Vectors(msgspec.Struct, frozen=True, gc=False):
    """The result of one call: an (n, d) array with row i for input i, and the tokens billed for it.

    ``prompt_tokens`` is the count for all n inputs, or None if the upstream does not report one.
    The host treats an invalid count as None. ``modality_tokens`` splits the count by modality, if
    the upstream does. ``model`` is the name that the answer itself gives to the model, or None; the
    host refuses the answer if this is another model. The host converts floats of any size to
    float32 and sets ``source``.
    """

    array: Array
    prompt_tokens: int | None = None
    modality_tokens: Mapping[str, int] = {}
    source: Source | None = None
    model: str | None = None

    @classmethod
    def from_lists(
        cls,
        rows: Sequence[Sequence[float]],
        *,
        prompt_tokens: object = None,
        dtype: str = "float",
        model: str | None = None,
    ) -> Self:
        """Build vectors from n lists of d numbers.

        Raises:
            InvalidUpstreamResponse: a row is not a list of numbers, or the lengths differ.
        """
        array = vectors.from_lists(rows, dtype)
        return cls(array, parse_token_count(prompt_tokens), model=model)

    @classmethod
    def from_base64(
        cls,
        rows: Sequence[str | bytes | memoryview],
        *,
        prompt_tokens: object = None,
        dtype: str = "float",
        model: str | None = None,
    ) -> Self:
        """Build vectors from n base64 texts, each of d little-endian numbers.

        Raises:
            InvalidUpstreamResponse: a row is not strict base64, or is not d complete numbers long.
        """
        array = vectors.from_base64(rows, dtype)
        return cls(array, parse_token_count(prompt_tokens), model=model)

    @classmethod
    def from_bytes(
        cls,
        rows: Sequence[bytes],
        *,
        prompt_tokens: object = None,
        dtype: str = "float",
        model: str | None = None,
    ) -> Self:
        """Build vectors from n rows of raw bytes, each of d little-endian numbers.

        Raises:
            InvalidUpstreamResponse: a row is not d complete numbers long.
        """
        array = vectors.from_bytes(rows, dtype)
        return cls(array, parse_token_count(prompt_tokens), model=model)


def parse_token_count(value: object) -> int | None:
    """Return a valid token count, or None: LocalAI sends 0, other servers a string or null."""
    if not isinstance(value, _INTEGER_TYPES) or isinstance(value, bool):
        return None
    count = int(value)
    return count if 0 < count < 2**31 else None


def parse_token_counts(value: object) -> dict[str, int]:
    """Return the valid entries of a split of tokens by modality."""
    if not value or not isinstance(value, Mapping):
        return {}
    return {
        name: count
        for name, entry in cast("Mapping[object, object]", value).items()
        if isinstance(name, str) and name.isidentifier() and (count := parse_token_count(entry))
    }


class BackendBase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all backends: options as fields, and the capabilities of the API.

    ``request_options`` are the structs of the parameters that a request can set in
    ``embedding_options``; ``accepts`` lists their namespaces. ``forwards_fields`` says that
    ``build`` sends every field of ``Batch.options``, also those of no struct.
    """

    accepts: ClassVar[Accepts] = Accepts()
    request_options: ClassVar[tuple[type[Options], ...]] = ()
    forwards_fields: ClassVar[bool] = False

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the options, with the credentials of URLs masked."""
        options = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [
            (name, without_credentials(value) if isinstance(value, str) else value)
            for name, value in options
        ]

    __repr__ = repr_as_in_rich


class HTTPBackend(BackendBase, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An upstream that takes one HTTP request per batch.

    ``build``, ``parse`` and ``map_error`` are pure functions. An API whose credentials expire, or
    that requires signed requests, also needs ``fetch_credentials``, and ``authorize`` to sign.
    ``serves_one_model`` says that the requests do not name the model, because the server has one.
    """

    serves_one_model: ClassVar[bool] = False

    def build(self, batch: Batch) -> UpstreamRequest:
        """Build the request for ``batch``."""
        raise NotImplementedError

    def parse(self, batch: Batch, response: UpstreamResponse) -> Vectors:
        """Read the vectors of a 2xx response; the host then checks their number, width and values.

        Raises:
            InvalidUpstreamResponse: the body does not match the API's documentation. The host
                treats ``KeyError``, ``TypeError``, ``ValueError``, ``IndexError`` and
                ``AttributeError`` the same way, so plain code is enough.
        """
        raise NotImplementedError

    def map_error(self, response: UpstreamResponse) -> UpstreamError:
        """Map a response that is not a 2xx to an error.

        The default reads the error formats that the providers document.
        """
        return classify_response(response.status, response.headers, response.content)

    def fetch_credentials(self, send: Send) -> Credentials | None:
        """Obtain credentials for ``authorize``, or None if ``build`` adds all that the API needs.

        The host calls this in a worker thread, so it may block. It keeps the result for its
        lifetime, and calls this again shortly before it ends, and when the API answers 401 or 403.
        ``send`` sends a request, such as one for an access token, with the gateway's transport.

        Raises:
            UpstreamAuthError: there are no credentials, or they are refused.
            UpstreamUnavailable: they cannot be obtained now.
        """
        del send
        return None

    def authorize(self, request: UpstreamRequest, credentials: Credentials) -> UpstreamRequest:
        """Return ``request`` with ``credentials``; only the headers may change.

        The host calls this last: the result has the exact URL and bytes that are sent. The default
        adds ``credentials.values`` to the headers.
        """
        return msgspec.structs.replace(request, headers={**request.headers, **credentials.values})


class LocalBackend(BackendBase, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model inside this process, loaded once per gateway and run in dedicated worker threads.

    The host calls ``run`` with slices of a batch that should take 20 ms at most. Between two slices
    other requests run, and a batch stops if its caller has disconnected. ``min_slice`` is the
    minimum number of inputs in a slice of a larger batch: raise it for a model that is much faster
    per input in larger batches. ``max_threads`` is the maximum number of threads that may call
    ``run`` at the same time; None leaves it to the config (``local_threads``).
    """

    min_slice: ClassVar[int] = 1
    max_threads: ClassVar[int | None] = None

    def load(self) -> Any:
        """Load the model. The host calls this in a worker thread and keeps the result.

        If this raises, the next request calls it again.
        """
        raise NotImplementedError

    def run(self, model: Any, batch: Batch) -> Vectors:
        """Embed ``batch`` with ``model``, the result of ``load``.

        The vector of an input must not depend on the other inputs of ``batch``, because the host
        may pass any part of a batch. Up to ``max_threads`` threads call this at the same time.

        Raises:
            UpstreamRejectedInput: an input cannot be embedded; ``input_index`` is its index in
                ``batch``. ``ContextTooLong`` if it is too long.
        """
        raise NotImplementedError


class Backend(BackendBase, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backend that is neither one HTTP request per batch nor a local model."""

    async def embed(self, batch: Batch) -> Vectors:
        """Embed ``batch``, or raise one of the upstream errors of :mod:`embedroute.errors`."""
        raise NotImplementedError
