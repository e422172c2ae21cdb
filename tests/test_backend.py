"""Tests of the API for authors of backends, and that a secret never shows."""

import copy
import json
import logging
import pickle
import threading
import time
import traceback
from types import MappingProxyType
from typing import Annotated

import httpx2
import msgspec
import numpy as np
import pytest

from embedroute.backend import (
    PIECE,
    Accepts,
    Backend,
    Batch,
    Headers,
    HTTPBackend,
    LocalBackend,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    write_in_pieces,
)
from embedroute.errors import InvalidUpstreamResponse, RateLimited
from embedroute.inputs import ImagePart, ImageURL, Kind, TextPart
from tests.support.cpu_time import slowness

HIDDEN = "sk-hidden-2f9c"
SECRET = Secret(HIDDEN)


class Acme(HTTPBackend):
    """The example that the docs show, word for word."""

    api_key: Secret
    base_url: str = "https://api.acme.example"
    accepts = Accepts(max_inputs=96, dimensions=True)

    def build(self, batch):
        body = {"model": batch.model, "texts": batch.texts, "size": batch.dimensions}
        return UpstreamRequest.json(f"{self.base_url}/embed", body, bearer=self.api_key)

    def parse(self, _batch, reply):
        answer = reply.json()
        return Vectors.from_lists(answer["vectors"], prompt_tokens=answer["tokens"])


def fail(secret):
    raise ValueError(secret)


def traced(secret):
    try:
        fail(secret)
    except ValueError as error:
        return "".join(
            traceback.TracebackException.from_exception(error, capture_locals=True).format()
        )


def refused(attempt):
    with pytest.raises(TypeError) as caught:
        attempt()
    return str(caught.value)


@pytest.mark.parametrize(
    "shown",
    [
        lambda: repr(SECRET),
        lambda: str(SECRET),
        lambda: f"{SECRET}",
        lambda: f"{SECRET!r}",
        lambda: repr([SECRET, {"k": SECRET}]),
        lambda: repr(Acme(api_key=SECRET)),
        lambda: repr(Acme(api_key=SECRET).build(Batch(model="m", texts=("a",)))),
        lambda: traced((SECRET, Acme(api_key=SECRET))),
        lambda: logging.LogRecord("n", 10, "p", 1, "%s", (SECRET,), None).getMessage(),
        lambda: refused(lambda: f"{SECRET:>9}"),
        lambda: refused(lambda: pickle.dumps(SECRET)),
        lambda: repr(copy.copy(SECRET)),
        lambda: repr(copy.deepcopy({"k": SECRET})),
        lambda: repr(Acme(api_key=SECRET).__rich_repr__()),
        lambda: repr(Acme(api_key=SECRET).build(Batch(model="m", texts=("a",))).__rich_repr__()),
        lambda: refused(lambda: json.dumps(SECRET)),
        lambda: refused(lambda: msgspec.json.encode(SECRET)),
        lambda: refused(lambda: msgspec.json.encode(Acme(api_key=SECRET))),
        lambda: refused(lambda: msgspec.to_builtins({"k": SECRET})),
        lambda: refused(lambda: vars(SECRET)),
        lambda: repr(msgspec.structs.asdict(Acme(api_key=SECRET))),
    ],
)
def test_a_secret_never_shows(shown):
    assert HIDDEN not in shown()


def test_reveal_returns_the_secret():
    assert SECRET.reveal() == HIDDEN


def test_a_copy_of_a_secret_is_the_same_object():
    assert copy.copy(SECRET) is SECRET
    assert copy.deepcopy({"k": SECRET})["k"] is SECRET


def test_pickling_a_secret_explains_what_to_do_instead():
    assert "env: or file:" in refused(lambda: pickle.dumps(SECRET))


def test_secrets_compare_by_their_text():
    assert Secret(HIDDEN) == SECRET
    assert Secret("other") != SECRET
    assert SECRET != HIDDEN
    assert len({SECRET, Secret(HIDDEN), Secret("other")}) == 2


def test_the_example_of_the_docs_builds_this_request():
    request = Acme(api_key=Secret("k")).build(Batch(model="m", texts=("a",)))

    assert request == UpstreamRequest(
        method="POST",
        url="https://api.acme.example/embed",
        content=b'{"model":"m","texts":["a"]}',
        headers={"content-type": "application/json", "authorization": Secret("Bearer k")},
    )


def test_the_example_of_the_docs_reads_this_reply():
    found = Acme(api_key=Secret("k")).parse(
        Batch(model="m", texts=("a",)), UpstreamResponse(200, {}, b'{"vectors":[[1,2]],"tokens":3}')
    )

    assert (found.array.tolist(), found.prompt_tokens) == ([[1, 2]], 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"api_key": "k", "colour": 1},
        {"api_key": "k", "base_url": 7},
        {"api_key": "k", "accepts": {}},
    ],
)
def test_convert_checks_the_types_of_options(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Acme, dec_hook=lambda _type, text: Secret(text))


def test_a_backend_is_immutable():
    with pytest.raises(AttributeError):
        Acme(api_key=SECRET).base_url = "https://elsewhere.example"


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({}, {"content-type": "application/json"}),
        (
            {"content-type": "application/x", "x-a": "b"},
            {"content-type": "application/x", "x-a": "b"},
        ),
    ],
)
def test_own_headers_override_the_default(headers, sent):
    assert sent == UpstreamRequest.json("https://a.example", {}, headers=headers).headers


NAN, INF = float("nan"), float("inf")


class Held(msgspec.Struct):
    size: float


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"size": NAN}, "body.size is nan"),
        ({"size": -INF}, "body.size is -inf"),
        ({"a": {"b": [1.5, {"c": (0, INF)}]}}, r"body.a.b\[1\].c\[1\] is inf"),
        ({"texts": ["null"] * 3, "last": NAN}, "body.last is nan"),
        ({"held": [Held(NAN)]}, r"body.held\[0\].size is nan"),
    ],
)
def test_a_non_finite_number_is_never_written_as_null(body, place):
    with pytest.raises(ValueError, match=place):
        UpstreamRequest.json("https://a.example", body)
    with pytest.raises(ValueError, match=place):
        write_in_pieces(lambda: UpstreamRequest.json("https://a.example", body))


@pytest.mark.parametrize(
    "body",
    [
        {"texts": ["null", "NaN", "Infinity"]},
        {"a": [None, {"b": None}], "c": 1.5},
        {"a": None},
        {},
        {"a": 1e308},
    ],
)
def test_encodes_every_other_body(body):
    sent = {name: value for name, value in body.items() if value is not None}

    assert sent == json.loads(UpstreamRequest.json("https://a.example", body).content)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"a": [], "b": {}, "c": (), "d": [[]], "e": None, "f": "", 'g"': [None, True, 1.5]},
        {"input": 'a\n"é中\U0001f600\1' * PIECE},
        {"input": ["a" * (PIECE + 1), "null", "b" * PIECE], "user": "u"},
        {"input": [(1, 2), (3,)], "n": {1: "a"}},
        {
            "input": [{"content": (TextPart("a" * 2 * PIECE), ImagePart(ImageURL("data:")))}],
            "held": [Held(1.0)],
        },
        {"kind": [Kind.TEXT], "raw": msgspec.Raw(b"[1, 2]")},
    ],
    ids=["nothing", "small values", "escapes", "texts", "ids", "parts", "other types"],
)
def test_a_body_written_in_pieces_is_the_same(body):
    whole = UpstreamRequest.json("https://a.example", body)

    assert whole == write_in_pieces(lambda: UpstreamRequest.json("https://a.example", body))


LONG_TEXT = "\n" * (32 << 20)
"""A text that takes about 0.1 s of CPU to encode."""


class OtherThread:
    """Counts how often another thread gets to run, and the most CPU seconds that it had to wait."""

    def __enter__(self):
        self.turns, self.longest, self._ended = 0, 0.0, False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended = True
        self._thread.join()

    def _run(self):
        last = time.process_time()
        while not self._ended:
            time.sleep(0)
            now = time.process_time()
            self.turns, self.longest, last = self.turns + 1, max(self.longest, now - last), now
            time.sleep(0.0001)


@pytest.mark.parametrize(
    "value",
    [
        LONG_TEXT,
        (LONG_TEXT,),
        [LONG_TEXT],
        {"text": LONG_TEXT},
        [{"content": (TextPart(LONG_TEXT),)}],
    ],
    ids=["text", "tuple", "list", "object", "part"],
)
def test_other_threads_run_while_a_body_is_written_in_pieces(value):
    for _ in range(3):  # other processes can only make it worse
        before = slowness()
        with OtherThread() as other:
            write_in_pieces(lambda: UpstreamRequest.json("https://a.example", {"input": value}))
        limit = 0.03 * (before + slowness()) / 2
        if other.longest < limit and other.turns > 60:
            break

    assert other.longest < limit
    assert other.turns > 60


def test_a_body_written_in_pieces_contains_no_half_of_a_surrogate_pair():
    with pytest.raises(UnicodeEncodeError):
        write_in_pieces(
            lambda: UpstreamRequest.json("https://a.example", {"a": "a" * PIECE + "\ud800"})
        )


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Tok": "9"},
        {"x-tok": "9"},
        MappingProxyType({"X-TOK": "9"}),
        Headers([(b"X-Tok", b"8"), (b"x-tok", b"9")]),
        httpx2.Headers({"X-Tok": "9"}),
    ],
)
@pytest.mark.parametrize("name", ["x-tok", "X-Tok", "X-TOK"])
def test_header_names_of_a_response_are_case_insensitive(headers, name):
    found = UpstreamResponse(200, headers, b"").headers

    assert ("9", "9", True, None) == (
        found[name],
        found.get(name),
        name in found,
        found.get("other"),
    )
    assert ({"x-tok": "9"}, ["x-tok"], 1) == (found, list(found), len(found))
    assert repr(found) == "{'x-tok': '9'}"


def test_a_response_can_be_built_from_another():
    reply = UpstreamResponse(200, {"X-Tok": "9"}, b"{}")

    assert (
        reply
        == UpstreamResponse(200, reply.headers, b"{}")
        == msgspec.structs.replace(reply, status=200)
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"<html>", b"\xff", b'"\xff"', b"[" * 100_000, b"{} x", b"NaN", b'{"a":1}'],
)
def test_rejects_a_body_of_another_type(content):
    with pytest.raises(InvalidUpstreamResponse, match="not the expected JSON"):
        UpstreamResponse(200, {}, content).json(list[int])


@pytest.mark.parametrize(
    "kind", [list[int], Annotated[list[int], {"a type": "that cannot be hashed"}]]
)
def test_decodes_a_body_into_any_type(kind):
    for _ in range(2):
        assert [1, 2] == UpstreamResponse(200, {}, b"[1,2]").json(kind)


@pytest.mark.parametrize("content", [b"", b"{", b'"\xff"', b"[" * 100_000, b"{} x", b"NaN"])
def test_rejects_a_body_that_is_not_json(content):
    with pytest.raises(InvalidUpstreamResponse, match="not the expected JSON"):
        UpstreamResponse(200, {}, content).json()


def test_the_error_of_an_invalid_response_does_not_repeat_the_body():
    with pytest.raises(InvalidUpstreamResponse) as caught:
        UpstreamResponse(200, {}, b'["%s"]' % HIDDEN.encode()).json(list[int])

    assert HIDDEN not in caught.value.message


@pytest.mark.parametrize(
    ("batch", "kind", "count"),
    [
        (Batch(model="m", texts=("a", "b")), Kind.TEXT, 2),
        (Batch(model="m", tokens=((1, 2), (3,), (4,))), Kind.TOKENS, 3),
        (
            Batch(
                model="m",
                parts=(
                    (
                        TextPart("a"),
                        ImagePart(ImageURL("data:")),
                    ),
                ),
            ),
            Kind.PARTS,
            1,
        ),
    ],
)
def test_a_batch_returns_its_inputs_and_their_kind(batch, kind, count):
    assert (kind, count, count) == (batch.kind, len(batch), len(batch.inputs))
    assert batch.inputs == (batch.texts or batch.tokens or batch.parts)


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        (1, 1),
        (np.int32(1), 1),
        (2**31 - 1, 2**31 - 1),
        (2**31, None),
        (0, None),
        (-1, None),
        (1.0, None),
        (True, None),
        ("1", None),
        (None, None),
        ([], None),
    ],
)
def test_an_invalid_token_count_is_none(said, believed):
    assert believed == Vectors.from_lists([[1]], prompt_tokens=said).prompt_tokens
    assert believed == Vectors.from_bytes([b"\0\0\0\0"], prompt_tokens=said).prompt_tokens
    assert believed == Vectors.from_base64(["AAAAAA=="], prompt_tokens=said).prompt_tokens


def test_reads_vectors_in_the_requested_dtype():
    assert Vectors.from_lists([[1]], dtype="int8").array.dtype == np.int8
    assert Vectors.from_bytes([b"\1"], dtype="ubinary").array.tolist() == [[1]]
    assert Vectors.from_base64(["/w=="], dtype="binary").array.tolist() == [[-1]]


@pytest.mark.parametrize("cap", ["max_inputs", "max_tokens", "max_bytes"])
def test_rejects_a_limit_below_one(cap):
    with pytest.raises(ValueError, match=cap):
        Accepts(**{cap: 0})


def test_maps_an_error_by_the_formats_that_providers_document():
    for name in ("retry-after", "Retry-After"):
        found = Acme(api_key=SECRET).map_error(
            UpstreamResponse(429, {name: "7"}, b'{"detail":"slow"}')
        )

        assert (RateLimited, 7) == (type(found), found.retry_after)


def test_a_missing_method_raises_not_implemented():
    batch = Batch(model="m", texts=("a",))
    attempts = [
        lambda: HTTPBackend().build(batch),
        lambda: HTTPBackend().parse(batch, UpstreamResponse(200, {}, b"")),
        lambda: LocalBackend().load(),
        lambda: LocalBackend().run(None, batch),
        lambda: Backend().embed(batch).send(None),
    ]
    for attempt in attempts:
        with pytest.raises(NotImplementedError):
            attempt()
