"""Responses of up to 90 MB with too many rows or numbers are rejected at once, in little memory."""

import tracemalloc

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.gemini import Gemini
from embedroute.backends.openai import OpenAI
from embedroute.errors import InvalidUpstreamResponse
from embedroute.execution import largest_answer
from tests.support.cpu_time import measured_cpu

BATCH = Batch(model="m", texts=[f"text {at}" for at in range(2048)], width=1536)
SIZE = 90_000_000
OPENAI = OpenAI(api_key=Secret("sk-1"))
GEMINI = Gemini(api_key=Secret("sk-1"))


def filled(before, part, after):
    return b"%b%b%b%b" % (before, (part + b",") * (SIZE // (len(part) + 1)), part, after)


ANSWERS = {
    "rows of one number": (OPENAI, lambda: filled(b'{"data":[', b'{"embedding":[1]}', b"]}")),
    "rows of base64": (OPENAI, lambda: filled(b'{"data":[', b'{"embedding":"AACAPw=="}', b"]}")),
    "rows under an escaped name": (
        OPENAI,
        lambda: filled(b'{"data":[', b'{"\\u0065mbedding":[1]}', b"]}"),
    ),
    "rows of no vector": (OPENAI, lambda: filled(b'{"data":[', b'{"embedding":1}', b"]}")),
    "one row of all numbers": (OPENAI, lambda: filled(b'{"data":[{"embedding":[', b"1", b"]}]}")),
    "one row of nested lists": (OPENAI, lambda: filled(b'{"data":[{"embedding":[', b"[]", b"]}]}")),
    "an error of many objects": (OPENAI, lambda: filled(b'{"data":[],"error":[', b"{}", b"]}")),
    "Gemini's rows of one number": (
        GEMINI,
        lambda: filled(b'{"embeddings":[', b'{"values":[1]}', b"]}"),
    ),
    "Gemini's row of all numbers": (
        GEMINI,
        lambda: filled(b'{"embeddings":[{"values":[', b"1", b"]}]}"),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.thorough
def test_a_response_with_too_many_rows_or_numbers_costs_little(name):
    backend, make = ANSWERS[name]
    reply = UpstreamResponse(200, {}, make())
    assert len(reply.content) < largest_answer(len(BATCH), BATCH.width, 0)
    tracemalloc.start()
    try:
        with measured_cpu() as spent, pytest.raises(InvalidUpstreamResponse):
            backend.parse(BATCH, reply)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert spent.seconds < 2.0
    assert peak < 2 * SIZE


def test_a_response_with_too_many_rows_is_rejected_before_they_are_parsed():
    rows = b",".join([b'{"embedding":[1]}'] * 3)
    with pytest.raises(InvalidUpstreamResponse, match="3 rows for 2 inputs"):
        OPENAI.parse(
            Batch(model="m", texts=["a", "b"]),
            UpstreamResponse(200, {}, b'{"data":[' + rows + b"]}"),
        )


SIZES = {
    "one short text of a known width": (Batch(model="m", texts=["a"], width=1536), 200_000),
    "one text of an unknown width": (Batch(model="m", texts=["a"]), 4_000_000),
    "2048 texts": (BATCH, 160_000_000),
    "more than is ever read": (Batch(model="m", texts=["a"] * 2048), 256 * 1024 * 1024),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_response_size_is_bounded_by_its_vectors(name):
    batch, most = SIZES[name]

    assert most / 2 < largest_answer(len(batch), batch.width, 100) <= most
