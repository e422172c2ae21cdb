"""Prints docs/providers.md, the table of providers, from the code.

Usage: scripts/docs_providers.py > docs/providers.md; ``scripts/docs`` does it.
"""

from embedroute.cli.provider_table import HEADER, list_providers
from embedroute.config import PRICED_ON

HEAD = f"""\
# Providers

`scripts/docs` writes this page from the code. `embedroute providers` prints the table, and
`embedroute providers --missing` the environment variables that would enable more.
`embedroute backends` lists the backends, those of other packages among them.

- PROVIDER is the slug in `[providers.SLUG]`.
- KEY are the environment variables that enable the provider without a config file.
- MODELS counts the models of the catalogue. `embedroute models --all` lists them with the prices of
  {PRICED_ON.isoformat()} and the days on which providers stop serving them. Any other model of a
  provider needs a [`[models.NAME]`](configuration.md#modelsname) table.
- WIDTH: the API takes `dimensions`. IDS: it takes token ids. BASE64: it returns vectors as base64.
- CAPS are the limits of one call; the gateway splits larger requests.
- TESTED: `golden` compares the bytes of requests and responses, `server` uses a loopback server
  with the API of the provider, `client` compares both with the provider's own Python package,
  `library` runs the real library with a small model, and `weights` with a real one. A row with the
  backend `openai` is tested as that backend.

What an API accepts may differ by model; [`accepts`](configuration.md#accepts) of an endpoint
changes it.

"""


def main() -> None:
    """Print the page."""
    print(HEAD, end="")
    print("| " + " | ".join(HEADER) + " |")
    print("| " + " | ".join("---" for _ in HEADER) + " |")
    for row in list_providers():
        slug, backend, _, models, *capabilities = row.cells()
        key = " ".join(f"`{name}`" for name in row.variables) or "-"
        cells = [f"`{slug}`", f"`{backend}`", key, models]
        cells += [cell.replace(",", ", ") for cell in capabilities]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
