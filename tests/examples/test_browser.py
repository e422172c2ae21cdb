"""Tests the page of the example app, and its Swagger UI, in a browser.

The tools are installed from npm into a temporary folder.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.serving import Serving

SCRIPT = Path(__file__).with_name("browser") / "visit.mjs"
PACKAGES = ["playwright-core@1", "swagger-ui-dist@5"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a person sees who adds notes, searches them, and tries the endpoint in ``/docs``."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES], folder)
    shutil.copy(SCRIPT, folder)
    with Serving("example_app.main", debug=False) as server:
        said = run(["node", SCRIPT.name, server.url, CHROMIUM, "seen.png"], folder)
    return json.loads(said)


def test_the_page_finds_notes_by_their_meaning(seen):
    assert seen["hits"][0] == "a feline rested on the rug"
    assert len(seen["hits"]) == 3


def test_the_endpoint_in_swagger_ui_needs_the_key(seen):
    assert seen["refused"]["status"] == "401"
    assert "An API key is required" in seen["refused"]["body"]


def test_the_endpoint_in_swagger_ui_answers_after_authorize(seen):
    assert seen["answered"]["status"] == "200"
    assert '"object": "list"' in seen["answered"]["body"]


def test_the_pages_raise_no_errors(seen):
    assert seen["errors"] == []
