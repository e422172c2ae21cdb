"""Every code block of the documentation runs."""

import pytest

from tests.support.page_session import PageSession
from tests.support.pages import PAGES, name_of, read_blocks

NOT_RUN = {
    "docs/configuration.md": ["tests/cli runs import-litellm"],
    "docs/guides/other-apis.md": [
        "needs keys of a deployed gateway; tests/clients runs these clients"
    ],
    "docs/clients.md": [
        "needs Node.js; tests/clients replays the requests of these clients",
        "needs Node.js; tests/clients generates and compiles this client",
    ],
}
"""Page → why its marked blocks cannot run here."""


@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(page)], ids=name_of)
@pytest.mark.thorough
def test_the_code_of_the_documentation_runs(page, tmp_path):
    blocks = read_blocks(page)

    PageSession(tmp_path, blocks).run(blocks)


def test_only_blocks_with_a_known_reason_are_not_run():
    reasons = {
        name_of(page): found
        for page in PAGES
        if (found := [block.reason for block in read_blocks(page) if block.reason])
    }

    assert reasons == NOT_RUN
