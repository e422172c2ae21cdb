"""Tests ``embedroute explain``."""

import pytest

from embedroute.cli import main

CONFIG = """
[gateway]
auth = "open"
[providers.cheap]
backend = "hashed"
[providers.dear]
backend = "hashed"
data_collection = "deny"
[models.m]
dimensions = 8
fallback = "other"
endpoints = [{ provider = "dear", price = 2 }, { provider = "cheap", price = 1, accepts = { max_inputs = 1 } }]
[models.other]
endpoints = [{ provider = "dear" }]
"""


@pytest.fixture
def explain(tmp_path, capsys):
    path = tmp_path / "my.toml"
    path.write_text(CONFIG)

    def run(*words):
        code = main(["explain", "--config", str(path), "--model", "m", *words])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return run


def test_prints_the_order_with_calls_and_prices(explain):
    code, lines, _ = explain("--provider", '{"sort": "price"}', "one", "two")

    assert code == 0
    assert lines == [
        "m: 2 inputs, about 2 tokens",
        "  1. cheap (m): 2 calls, $1 per million tokens, costs $0.000002",
        "  2. dear (m): 1 call, $2 per million tokens, costs $0.000004",
        "  if all fail: the model other",
    ]


def test_prints_what_filters_dropped(explain):
    _, lines, _ = explain("--provider", '{"data_collection": "deny"}', "one")

    assert lines[1].startswith("  1. dear (m): 1 call")
    assert lines[2].startswith("  -  cheap (m): data_collection")


def test_a_name_means_only_that_provider(explain):
    _, lines, _ = explain("--provider", "cheap", "one")

    assert lines[1].startswith("  1. cheap")
    assert not any("2." in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--provider", '{"sort"', "one"), "--provider is not valid JSON"),
        (("--provider", '{"sort": "cost"}', "one"), "sort"),
        (("--dimensions", "9", "one"), "dimensions"),
    ],
    ids=["json", "preference", "dimensions"],
)
def test_a_mistake_is_an_error_of_one_line(explain, words, message):
    code, lines, error = explain(*words)

    assert (code, lines) == (1, [])
    assert message in error
    assert error.count("\n") == 1
