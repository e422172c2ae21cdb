"""Tests the warnings about a valid config that cannot work, or not as its author wants."""

import pytest

from embedroute import Gateway
from embedroute.bootstrap import config_from_file
from embedroute.config_warnings import find_warnings

OPEN = '[gateway]\nauth = "open"\n'
KEYS = '[gateway]\nauth = "keys"\n'
HASHED = "[providers.hashed]\n"
MODEL = '[models.m]\nendpoints = [{ provider = "hashed" }]\n'
GOOD = f"{OPEN}{HASHED}{MODEL}"
LONG = "0123456789abcdef"
GUESSED = "can be guessed. Use at least 16 random ones, such as the output of: openssl rand -hex 24"


def literal(place, option, variable="NAME"):
    return (
        f"[{place}] {option} is not a reference to a variable but this text itself. "
        f'Write {option} = "env:{variable}".'
    )


CASES = {
    "nothing to say": (GOOD, []),
    "no provider": (
        OPEN,
        [
            ("No provider is configured, so no request can be served. "
            'Add one, for example [providers.openai] with api_key = "env:OPENAI_API_KEY".')
        ],
    ),
    "no model": (
        f"{OPEN}[providers.tei]",
        [
            ('No model is declared, so requests must name a provider and its model ("tei/…"). Declare one: '
            '[models.NAME] with dimensions and endpoints = [{ provider = "tei" }].')
        ],
    ),
    "no key": (
        f"{OPEN}[providers.openai]",
        [
            ("[providers.openai] api_key is missing, and OpenAI requires one. "
            'Set api_key = "env:OPENAI_API_KEY".')
        ],
    ),
    "no key of a known provider under another name": (
        f'{OPEN}[providers.mine]\nbackend = "together"\n{HASHED}{MODEL}',
        [
            ("[providers.mine] api_key is missing, and Together requires one. "
            'Set api_key = "env:TOGETHER_API_KEY".')
        ],
    ),
    "a key": (f'{OPEN}[providers.openai]\napi_key = "sk-x"', []),
    "no key for another server": (f'{OPEN}[providers.openai]\nbase_url = "http://x"', []),
    "a key in a header": (
        f'{OPEN}[providers.openai]\nextra_headers = {{ Authorization = "Basic x" }}',
        [],
    ),
    "no key for a local server": (f"{OPEN}[providers.ollama]", []),
    "a shipped address to complete": (
        f'{OPEN}[providers.databricks]\napi_key = "k"',
        [
            ("[providers.databricks] base_url is an example. Set base_url, "
            "with your own value for your-workspace.invalid.")
        ],
    ),
    **{
        f"a literal {text}": (
            f'{OPEN}[providers.openai]\napi_key = "{text}"',
            [literal("providers.openai", "api_key")],
        )
        for text in (
            "${NAME}",
            "${NAME:-x}",
            "$NAME",
            "%NAME%",
            "os.environ/NAME",
            "{{ NAME }}",
            "{{ env.NAME }}",
        )
    },
    "a literal reference in a header": (
        f'{OPEN}[providers.openai]\napi_key = "k"\nextra_headers = {{ x-key = "${{NAME}}" }}',
        [literal("providers.openai", "extra_headers.x-key")],
    ),
    "a literal reference as the key of a caller": (
        f'{KEYS}[keys.a]\nkey = "${{A}}"\n{HASHED}{MODEL}',
        [literal("keys.a", "key", "A")],
    ),
    "a dollar in a secret": (f'{OPEN}[providers.openai]\napi_key = "a$b${{c}}"', []),
    "keys that are not used": (
        f'{OPEN}[keys.a]\nkey = "x"\n{HASHED}{MODEL}',
        [
            ('[keys] is not used with auth = "open": anyone may call. '
            'Set auth = "keys", or remove the [keys] tables.')
        ],
    ),
    "keys beside those of the host": (
        f'[gateway]\nauth = "host"\n[keys.a]\nkey = "{LONG}"\n{HASHED}{MODEL}',
        [
            ('[keys] is not used with auth = "host": the host application authenticates callers. '
            'Set auth = "keys", or remove the [keys] tables.')
        ],
    ),
    "a short key": (
        f'{KEYS}[keys."a b"]\nkey = "{LONG[1:]}"\n{HASHED}{MODEL}',
        [f'[keys."a b"] key has only 15 characters and {GUESSED}'],
    ),
    "a long key": (f'{KEYS}[keys.a]\nkey = "{LONG}"\n{HASHED}{MODEL}', []),
    **{
        f"an address that ends in {end}": (
            f'{OPEN}[providers.x]\nbackend = "openai"\nbase_url = "http://x/v1{end}"\n{HASHED}{MODEL}',
            [
                ("[providers.x] base_url ends in /embeddings, and the backend adds that path. "
                "Remove /embeddings from base_url.")
            ],
        )
        for end in ("/embeddings", "/embeddings/")
    },
    "an address with that word elsewhere": (
        f'{OPEN}[providers.x]\nbackend = "openai"\nbase_url = "http://embeddings/embeddings/v1"\n{HASHED}{MODEL}',
        [],
    ),
    "fallbacks in a circle": (
        (
            f"{OPEN}{HASHED}"
            + "".join(
                f'[models.{name}]\nfallback = "{fallback}"\nendpoints = [{{ provider = "hashed" }}]\n'
                for name, fallback in ("xa", "ab", "bc", "ca")
            )
        ),
        [
            ("[models.a] fallback is part of a cycle: a → b → c → a. A request uses at most one "
            "fallback. Remove one of them.")
        ],
    ),
    "fallbacks in a line": (
        f'{GOOD}[models.n]\nfallback = "m"\nendpoints = [{{ provider = "hashed" }}]\n',
        [],
    ),
    **{
        f"a model that is excluded by {lists}": (
            f"[gateway]\nauth = 'open'\n{lists}\n{HASHED}[providers.tei]\n{MODEL}",
            [
                ("[models.m] is served by no provider: 'only' and 'ignore' of [gateway] exclude "
                "all of its endpoints. Change these lists.")
            ],
        )
        for lists in ('only = ["tei"]', 'ignore = ["Hashed"]')
    },
}  # fmt: skip


@pytest.mark.parametrize(("text", "warnings"), CASES.values(), ids=CASES)
def test_a_config_that_cannot_work_has_warnings(text, warnings, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    config = config_from_file(path, {})

    found = find_warnings(config, Gateway(config, environ={}).models)

    assert warnings == [
        line for line in found if not line.startswith("No model is declared") or line in warnings
    ]
    assert not any("sk-" in line or LONG in line for line in found)
