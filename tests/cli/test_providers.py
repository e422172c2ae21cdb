"""The table of providers, and the catalogue with its prices and dates."""

import re
import sys
from decimal import Decimal

import pytest

from embedroute import plugins
from embedroute.cli import main
from embedroute.config import PRICED_ON, catalogue, known_providers, list_catalogue
from tests.backends.kinds_of_tests import find_kinds
from tests.support.commands import run
from tests.support.pages import ROOT


def rows(capsys):
    out, err = capsys.readouterr()
    assert err == ""
    return [line.split() for line in out.splitlines()]


def test_the_page_of_providers_is_up_to_date():
    output = run([sys.executable, "scripts/docs_providers.py"], ROOT)

    assert (ROOT / "docs" / "providers.md").read_text(encoding="utf-8") == output, (
        "run scripts/docs"
    )


def test_every_provider_with_a_backend_is_listed_and_no_other(capsys):
    assert 0 == main(["providers"])

    offered = [slug for slug, row in sorted(known_providers().items()) if row.backend]
    assert offered == [row[0] for row in rows(capsys)]


def test_the_cells_of_a_provider_are_those_of_its_backend_and_its_row(capsys):
    main(["providers"])

    cells = {row[0]: row[1:] for row in rows(capsys)}
    caps = "inputs=2048,tokens=300000"
    count = sum(
        any(each.provider == "openai" for each in model.endpoints) for model in catalogue().values()
    )
    assert cells["openai"] == [
        "openai",
        "OPENAI_API_KEY",
        str(count),
        "yes",
        "float",
        "text",
        "yes",
        "yes",
        caps,
        "-",
        "golden",
    ]
    assert cells["zhipu"][3:8] == ["yes", "float", "text", "no", "no"]
    assert cells["zhipu"][8].startswith("inputs=64")
    assert cells["azure"][1] == "AZURE_OPENAI_API_KEY,AZURE_OPENAI_ENDPOINT"


def test_each_backend_is_tested_as_the_table_says(capsys):
    main(["backends"])

    kinds = find_kinds()
    for name, *_, tested in rows(capsys):
        if name in plugins.BUILT_IN:
            expected = [kind for kind, names in kinds.items() if name in names]
            assert tested == (",".join(expected) or "-"), name


@pytest.mark.parametrize(
    ("variables", "missing", "enabled"),
    [
        ({}, {"openai": "OPENAI_API_KEY", "azure": "AZURE_OPENAI_API_KEY AZURE_OPENAI_ENDPOINT"}, set()),
        ({"OPENAI_API_KEY": "sk"}, {"cohere": "CO_API_KEY"}, {"openai"}),
        ({"AZURE_OPENAI_API_KEY": "k"}, {"azure": "AZURE_OPENAI_ENDPOINT"}, set()),
        ({"COHERE_API_KEY": "k"}, {"openai": "OPENAI_API_KEY"}, {"cohere"}),
    ],
)  # fmt: skip
def test_missing_variables_are_named_with_what_they_enable(variables, missing, enabled):
    command = [sys.executable, "-m", "embedroute", "providers", "--missing"]
    found = {}
    for line in run(command, ROOT, environ=variables).splitlines():
        names, slug, *_ = re.split(r" {2,}", line)
        found[slug] = names

    assert missing.items() <= found.items()
    assert found.keys().isdisjoint({"hashed", "wordllama", "tei", *enabled})


def test_the_whole_catalogue_is_listed_with_prices_and_dates(capsys):
    assert 0 == main(["models", "--all"])

    found = {(row[0], row[1]): row[2:] for row in rows(capsys)}
    pairs = {
        (name, each.provider) for name, model in catalogue().items() for each in model.endpoints
    }
    assert pairs == found.keys()
    assert found["text-embedding-3-small", "openai"] == [
        "1536",
        "text",
        "0.02",
        PRICED_ON.isoformat(),
        "-",
    ]
    assert found["text-embedding-3-small", "azure"][-1] == "2028-02-09"
    assert found["nomic-embed-text-v1.5", "nomic"] == ["768", "text", "?", "-", "-"]


def test_prices_of_the_catalogue_are_decimals_and_dates_lie_after_them():
    listings = list_catalogue()

    assert {type(listing.price) for listing in listings} <= {Decimal, type(None)}
    assert any(listing.deprecated for listing in listings)
    assert all(listing.deprecated is None or listing.deprecated > PRICED_ON for listing in listings)
