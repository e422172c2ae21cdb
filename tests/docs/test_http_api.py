"""The reference of the HTTP API names every field and header that the code has, and no others."""

from typing import get_args

import httpx2
import msgspec
import pytest

from embedroute.plugins import Namespaces
from embedroute.protocol import DIALECTS, requests, response_bodies
from embedroute.server import UsageReport, Used
from tests.support.documents import ROOT
from tests.support.forked import Place, run_embedroute, serving_in
from tests.support.tables import names, rows, section

HTTP_API = ROOT / "docs" / "http-api.md"
HEADERS = ROOT / "docs" / "headers.md"


def fields_of(struct: type[msgspec.Struct], prefix: str = "") -> set[str]:
    """Return the names of a struct's fields on the wire, with its tag."""
    info = msgspec.structs.fields(struct)
    tag = struct.__struct_config__.tag_field
    return {f"{prefix}{name}" for name in [*(field.encode_name for field in info), tag] if name}


def own_table(heading: str) -> str:
    """Return a section without its subsections."""
    return section(HTTP_API, heading).split("\n#", 1)[0]


@pytest.mark.parametrize(
    ("heading", "structs"),
    [
        ("### Fields", {"": requests.CreateEmbeddingRequest}),
        ("### `provider`", {"": requests.Preferences}),
        ("#### Prices", {"": requests.MaxPrice}),
        ("#### Percentiles", {"": requests.Percentiles}),
        (
            "### `embedding_options`",
            {f"{name}.": struct for name, struct in Namespaces().items()},
        ),
        ("### `debug`", {"": requests.Debug}),
        ("### Errors", {"error.": response_bodies.Error}),
        ("## Usage", {"": UsageReport, "total.": Used}),
        (
            "## Explain a request",
            {
                "": response_bodies.Plan,
                "order.": response_bodies.PlanEndpoint,
                "filtered.": response_bodies.PlanExclusion,
                "cache.": response_bodies.PlanCache,
                "inputs.": response_bodies.PlanInputs,
            },
        ),
    ],
)
def test_the_reference_lists_the_fields(heading, structs):
    expected = {name for prefix, struct in structs.items() for name in fields_of(struct, prefix)}
    holders = {prefix.rstrip(".") for prefix in structs}

    assert {name for row in rows(own_table(heading)) for name in names_in(row)} - holders == (
        expected - holders
    )


def names_in(row: list[str]) -> list[str]:
    return [name.strip("` ") for name in row[0].split(",")]


def test_the_reference_lists_the_fields_of_a_response():
    response, dialects = split_tables("### The response")
    common = {
        *fields_of(response_bodies.CreateEmbeddingResponse),
        *fields_of(response_bodies.Embedding, "data."),
        *fields_of(response_bodies.Usage, "usage."),
    }

    assert {name for row in response for name in names_in(row)} == common
    assert {(row[0].strip("`"), row[1].strip("`")) for row in dialects} == {
        (dialect, name) for dialect, writer in DIALECTS.items() for name in extras(writer) - common
    }


def extras(writer) -> set[str]:
    body = writer.success_body
    (usage,) = [field.type for field in msgspec.structs.fields(body) if field.name == "usage"]
    return fields_of(body) | fields_of(usage, "usage.")


def split_tables(heading: str) -> list[list[list[str]]]:
    """Return the rows of each table of a section."""
    texts = section(HTTP_API, heading).split("\n\n")
    return [found for text in texts if (found := rows(text))]


def test_the_reference_lists_the_fields_of_models():
    openai, openrouter = split_tables("## List models")

    assert {name for row in openai for name in names_in(row)} == fields_of(response_bodies.Model)
    assert {name for row in openrouter for name in names_in(row)} == {
        *fields_of(response_bodies.OpenRouterModel),
        *fields_of(response_bodies.OpenRouterArchitecture, "architecture."),
    }


def test_the_reference_lists_the_words_for_input_type():
    documented = {
        row[0].strip("`"): {row[0].strip("`"), *names(f"|x|\n|-|\n|{row[1]}|")}
        for row in rows(own_table("### `input_type`"))
    }

    assert documented == {name: set(words) for name, words in requests.SPELLINGS.items()}


def test_the_reference_lists_the_sort_keys_and_quantizations():
    text = own_table("### `provider`")

    choices = [*get_args(requests.SortKey), *get_args(requests.Quantization)]
    assert [choice for choice in choices if f"`{choice}`" not in text] == []


CONFIG = """
[gateway]
auth = "keys"
max_body_bytes = 65536
[keys.a]
key = "a-key-of-16-characters"
[providers.hashed]
[providers.unreachable]
backend = "openai"
base_url = "http://127.0.0.1:9/v1"
[providers.unknown-usage]
backend = "wordllama"
[models.down]
fallback = "hashed"
endpoints = [{ provider = "unreachable" }]
[models.dead]
endpoints = [{ provider = "unreachable" }]
[models.limited]
endpoints = [{ provider = "hashed" }]
limits = { requests_per_minute = 60, tokens_per_minute = 6000 }
"""
GOOD = {"model": "hashed", "input": "a"}
CASES = {
    "success": ("POST", "/v1/embeddings", {}, GOOD),
    "another model": ("POST", "/v1/embeddings", {}, {**GOOD, "model": "down"}),
    "limited": ("POST", "/v1/embeddings", {}, {**GOOD, "model": "limited"}),
    "unreachable": ("POST", "/v1/embeddings", {}, {**GOOD, "model": "dead"}),
    "wrong key": ("POST", "/v1/embeddings", {"authorization": "Bearer x"}, GOOD),
    "wrong method": ("PUT", "/v1/embeddings", {}, GOOD),
    "compressed": ("POST", "/v1/embeddings", {"content-encoding": "gzip"}, GOOD),
    "too large": ("POST", "/v1/embeddings", {}, {**GOOD, "input": "a" * 70_000}),
    "models": ("GET", "/v1/models", {}, None),
}
"""Requests whose responses have, together, most headers that the gateway sends."""
RARE = {
    "x-embedroute-truncated",  # tests/execution/test_over_length.py
    *("retry-after", "retry-after-ms", "x-embedroute-usage", "x-should-retry"),
    *("content-security-policy", "x-content-type-options", "referrer-policy", "cache-control"),
}
"""Headers of responses that need an upstream with a certain fault, and those of the dashboard.

Their own tests provoke them.
"""
OF_THE_SERVER = {"date", "server", "connection"}


def test_the_reference_lists_the_headers_of_responses(tmp_path):
    config = tmp_path / "embedroute.toml"
    config.write_text(CONFIG, encoding="utf-8")
    place = Place(directory=tmp_path, environ={}, path=[])
    command = ["serve", "--config", str(config), "--port", "0"]
    with serving_in(place, run_embedroute, command) as url:
        responses = [send(url, *case) for case in CASES.values()]

    headers = [set(response.headers) - OF_THE_SERVER for response in responses]
    every, some = (
        names(section(HEADERS, "## Response headers").split("Some responses")[0]),
        names(section(HEADERS, "## Response headers").split("Some responses")[1]),
    )
    assert set(every) == set.intersection(*headers)
    assert {*every, *some} == set.union(*headers) | RARE


def send(url, method, path, headers, body):
    known = {"authorization": "Bearer a-key-of-16-characters"}
    return httpx2.request(method, url + path, headers=known | headers, json=body, timeout=60)
