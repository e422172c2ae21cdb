"""Computes the correct response: a unit vector for every input of a request."""

import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256, shake_128
from typing import Any

import numpy as np
import orjson

from tests.fault_upstream.messages import Message, whole


def vector_of(item: Any, width: int = 8, space: str = "") -> np.ndarray:
    """Return the (width,) float32 unit vector of a text or token ids in a vector space."""
    return vectors_of([item], width, space)[0]


def vectors_of(items: Sequence[Any], width: int = 8, space: str = "") -> np.ndarray:
    """Return the (n, width) vectors of ``items``. A narrow vector is a truncated wide one."""
    raw = b"".join(_bytes_of(item, width, space) for item in items)
    exact = np.frombuffer(raw, "<u4").reshape(len(items), width) / 2**31 - 1
    return (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype("<f4")


def _bytes_of(item: Any, width: int, space: str) -> bytes:
    text = (
        item.encode(errors="surrogatepass")
        if isinstance(item, str)
        else b"\0" + json.dumps(item).encode()
    )
    first = sha256((space + "\0").encode() + text if space else text).digest()
    if width <= 8:
        return first[: 4 * width]
    return first + shake_128(first).digest(4 * width - len(first))


@dataclass(eq=False, kw_only=True)
class Ask:
    """A request. ``at`` is monotonic seconds; ``nth`` is its number on its connection, from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    nth: int
    upstream: Any = field(repr=False)
    mode: str = ""
    gone: bool = False
    """Whether the client went away before its answer was sent."""

    @cached_property
    def json(self) -> Any:
        """The body as JSON; None if it is not."""
        try:
            return orjson.loads(self.body)
        except ValueError:
            return None

    @cached_property
    def inputs(self) -> list[Any]:
        """The inputs as a list, from any of the four formats; empty if the body is invalid."""
        value = self.json.get("input") if isinstance(self.json, dict) else None
        if isinstance(value, list):
            return [value] if value and isinstance(value[0], int) else value
        return [] if value is None else [value]

    @property
    def width(self) -> int:
        """How many numbers a vector of the answer has."""
        return self.json.get("dimensions") or self.upstream.width

    @property
    def base64(self) -> bool:
        """Whether the request asks for base64."""
        return self.json.get("encoding_format") == "base64"

    @property
    def key(self) -> str:
        """The credential that came with the request."""
        return self.headers.get("authorization", self.headers.get("api-key", "")).removeprefix(
            "Bearer "
        )

    def vectors(self) -> np.ndarray:
        """The correct vectors, (n, width)."""
        return vectors_of(self.inputs, self.width, self.upstream.space)

    def full_vectors(self) -> np.ndarray:
        """The correct vectors at the full width, for any requested dimensions."""
        return vectors_of(self.inputs, self.upstream.width, self.upstream.space)

    def rows(
        self, vectors: Iterable[np.ndarray] | None = None, *, base64: bool | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows of ``data``, by default the correct ones in the requested encoding."""
        encode = to_base64 if (self.base64 if base64 is None else base64) else _as_it_is
        rows = self.vectors() if vectors is None else vectors
        return [
            {"object": "embedding", "index": at, "embedding": encode(row)}
            for at, row in enumerate(rows)
        ]

    def answer(self, rows: Any = None, **others: Any) -> dict[str, Any]:
        """Return the complete body with ``rows``; ``others`` override its fields."""
        tokens = sum(max(1, len(item) // 4) for item in self.inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        data = self.rows() if rows is None else rows
        return {
            "object": "list",
            "data": data,
            "model": self.json.get("model"),
            "usage": usage,
            **others,
        }


def ask_of(message: Message, *, at: float, nth: int, upstream: Any) -> Ask:
    """Create the ``Ask`` of a request to ``upstream``."""
    return Ask(**message._asdict(), at=at, nth=nth, upstream=upstream)


def to_base64(row: np.ndarray) -> str:
    """Little-endian bytes of a row's own type as base64."""
    return binascii.b2a_base64(row.tobytes(), newline=False).decode()


def _as_it_is(row: np.ndarray) -> np.ndarray:
    # orjson writes float32 in the shortest text that reads back the same.
    return np.ascontiguousarray(row)


def write(body: Any) -> bytes:
    """Write a body as JSON, arrays included."""
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def say(body: Any, status: int = 200, **headers: Any) -> list[bytes]:
    """Answer with one JSON body."""
    return [whole(write(body), status, **headers)]
