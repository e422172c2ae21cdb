"""Holds the classification to failures that providers document or users reported.

``real_failures.json`` has one row per failure: its source, the response, what was sent, who was at
fault (``party``: an input, the request, the endpoint with our account, or the gateway) and how the
gateway must classify it. Where only another attempt could tell who is at fault, the open class is
expected: ``Rejected``, ``RejectedByPage`` or ``UpstreamUnavailable``.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from embedroute import errors
from embedroute.backend import Batch, Headers, Secret, UpstreamResponse
from embedroute.backends.gemini import Gemini
from embedroute.backends.mistral import Mistral
from embedroute.backends.openai import OpenAI
from embedroute.errors import UpstreamError
from embedroute.upstream_errors import refine_with_inputs

ROWS = json.loads(Path(__file__).with_name("real_failures.json").read_text(encoding="utf-8"))

BACKENDS = {
    "dashscope": OpenAI(rate_limit_codes=frozenset({"insufficient_quota"})),
    "gemini": Gemini(api_key=Secret("k")),
    "mistral": Mistral(api_key=Secret("k")),
}
"""Provider → its backend; the others use the backend ``openai``."""

OPEN = {"Rejected", "RejectedByPage", "UpstreamUnavailable", "InvalidUpstreamResponse"}
BLAMES = {
    "input": {"ContextTooLong", "UpstreamRejectedInput", "BatchTooLarge"},
    "request": set(),
    "gateway": {"BatchTooLarge", "UpstreamModelNotFound"},
    "endpoint": {"UpstreamAuthError", "QuotaExhausted", "UpstreamModelNotFound", "RateLimited"},
}
"""Party → the classes that may blame it, besides the open ones. A 404 names the wrong URL too."""


def words(start, characters):
    text = f"{start}: about the weather in the mountains of the north. "
    return (text * (characters // len(text) + 1))[:characters]


def make_inputs(sent):
    """Make inputs of the number and sizes that were sent; a token is four characters."""
    count = sent.get("inputs", 1)
    others = [words(number, 60) for number in range(1, count)]
    if "text" in sent:
        return [*others, sent["text"]]
    if "characters" in sent:
        return [words(0, sent["characters"]), *others]
    size = 4 * sent["tokens"] if "tokens" in sent else sent.get("bytes", 60 * count)
    if sent.get("bad") or count == 1:
        return [words(0, size), *others]
    return [words(number, size // count) for number in range(count)]


def classify(row):
    backend = BACKENDS.get(row["provider"], OpenAI())
    inputs = make_inputs(row["sent"])
    body = row["body"] if isinstance(row["body"], str) else json.dumps(row["body"])
    headers = Headers([(name.encode(), text.encode()) for name, text in row["headers"].items()])
    response = UpstreamResponse(row["status"], headers, body.encode())
    if row["status"] != 200:
        return refine_with_inputs(backend.map_error(response), inputs)
    with pytest.raises(UpstreamError) as raised:
        backend.parse(Batch(model="m", texts=inputs), response)
    return refine_with_inputs(raised.value, inputs)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=f"{row['provider']}-{number}") for number, row in enumerate(ROWS)],
)
def test_classifies_a_real_failure(row):
    found = classify(row)

    facts = {
        "class": type(found).__name__,
        "code": found.code,
        "field": found.field,
        "input_index": found.input_index,
        "measure": getattr(found, "measure", None),
        "retry_after": found.retry_after,
    }
    assert row["expected"] == {name: fact for name, fact in facts.items() if fact is not None}


@pytest.mark.parametrize("at_fault", BLAMES)
def test_the_expected_classes_blame_the_party_at_fault(at_fault):
    rows = [row for row in ROWS if row["party"] == at_fault]

    assert {row["expected"]["class"] for row in rows} <= OPEN | BLAMES[at_fault]
    assert all(hasattr(errors, row["expected"]["class"]) for row in rows)


def test_the_table_covers_all_parties():
    counts = Counter(row["party"] for row in ROWS)

    assert len(ROWS) >= 200
    assert min(counts.values()) >= 5


def test_the_rows_name_their_sources():
    """A repository with a thread or a file, or a page of the documentation."""
    sources = [row["source"] for row in ROWS]
    named = [source for source in sources if re.search(r"[\w-]+/[\w.-]+|\w+\.\w+\.\w+", source)]

    assert all(sources)
    assert len(named) >= 170
