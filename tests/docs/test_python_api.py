"""docs/python-api.md holds the signatures and docstrings of every public name."""

import re
import sys

import embedroute
from embedroute import errors
from tests.support.commands import run
from tests.support.documents import ROOT
from tests.support.tables import names, section

PAGE = ROOT / "docs" / "python-api.md"


def test_the_reference_of_the_python_api_is_up_to_date():
    output = run([sys.executable, "scripts/docs_python.py"], ROOT)

    assert PAGE.read_text(encoding="utf-8") == output, "run scripts/docs"


def test_the_page_lists_every_public_name_in_order():
    first_table = PAGE.read_text(encoding="utf-8").split("\n## ")[0].split("Other modules")[0]

    assert names(first_table) == embedroute.__all__


def test_the_page_documents_every_public_name():
    documented = re.findall(r"^### `(\w+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert set(embedroute.__all__) - set(documented) == {"__version__"}
    assert len(documented) == len(set(documented))


def test_the_page_lists_every_error():
    in_table = names(section(PAGE, "## Errors"))

    assert set(errors.__all__) - set(in_table) == {"LONGEST_RETRY_AFTER", "Measure"}


def test_the_page_shows_signatures_as_users_write_them():
    text = PAGE.read_text(encoding="utf-8")

    assert "#### `Gateway.embed_sync`" in text
    assert "    retry_after: float | None = None," in text
    assert not re.search(
        r"Annotated\[|__rich_repr__|[^`]``[^`]|:class:|0x[0-9a-f]{6}| object at ", text
    )
