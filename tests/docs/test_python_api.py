"""The page of the Python API lists every public name, also where its directives are not rendered."""

import re

import embedroute
from tests.support.documents import ROOT
from tests.support.tables import names

PAGE = ROOT / "docs" / "python-api.md"


def test_the_page_lists_every_public_name_in_order():
    assert names(PAGE.read_text(encoding="utf-8")) == embedroute.__all__


def test_the_page_documents_every_public_name():
    text = PAGE.read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: embedroute\.(\w+)$", text, re.MULTILINE))
    elsewhere = {"ConfigError", "EmbedrouteError", "__version__"}  # below "Errors"; a string

    assert documented - {"backend", "errors", "testing"} == set(embedroute.__all__) - elsewhere
