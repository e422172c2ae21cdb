"""docs/cli.md holds the help of every command."""

import sys

from tests.support.commands import run
from tests.support.documents import ROOT


def test_the_reference_of_the_command_line_is_up_to_date():
    output = run([sys.executable, "scripts/docs_cli.py"], ROOT)
    documented = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

    if sys.version_info >= (3, 13):  # argparse aligns the list of commands differently
        assert documented.split() == output.split(), "run scripts/docs"
    else:
        assert documented == output, "run scripts/docs"
