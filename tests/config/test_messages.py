"""Tests that the message of a frequent mistake says what to write instead."""

from pathlib import Path

import pytest

from embedroute import ConfigError, Gateway, Provider
from embedroute.config import STATE_AUTH

OPEN = '[gateway]\nauth = "open"\n'
HASHED = "[providers.hashed]\n"
ENDPOINTS = 'endpoints = [{ provider = "hashed" }]'
DOTS = "a dot separates tables in TOML. Write a name that contains one in quotes:"
INSTALL = (
    'Set backend = "openai" and base_url for an OpenAI-compatible API, '
    "or install a package that provides this backend."
)
QUOTE_NAMES = (
    'Write a name in quotes if it contains other characters than letters, digits, "-" and "_": '
    '[models."BAAI/bge-m3"].'
)
QUOTE_TEXT = 'Write text in quotes: auth = "keys".'


def mistakes_of(text, path):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        Gateway.from_file(path, environ={})
    return list(refused.value.mistakes)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("auth = keys", f"line 2, column 8: Invalid value. {QUOTE_TEXT}"),
        ("auth 'keys'", ("line 2, column 6: Expected '=' after a key in a key/value pair. "
         'Write one option a line: auth = "keys".')),
        ("auth = 'keys' debug = true", ("line 2, column 15: Expected newline or end of document after a statement. "
         "Write text in quotes, and one option a line.")),
        ("[models.BAAI/bge-m3]", f"line 2, column 13: Expected ']' at the end of a table declaration. {QUOTE_NAMES}"),
        ("[models.@cf/x]", f"line 2, column 9: Invalid initial character for a key part. {QUOTE_NAMES}"),
        ("[models.m]\n[models.m]", ("line 3, column 10: Cannot declare ('models', 'm') twice. "
         "Write each table once, with all of its options.")),
        ("a = 1\na = 2", "at the end: Cannot overwrite a value. Write each option once."),
        ('a = "x', "at the end: Unterminated string."),
    ],
)  # fmt: skip
def test_a_syntax_error_has_its_file_its_line_and_the_rule_of_toml(text, mistake, tmp_path):
    path = tmp_path / "my.toml"

    assert [f"The config {path} is not valid TOML: {mistake}"] == mistakes_of(f"\n{text}", path)


def test_a_syntax_error_does_not_repeat_the_line(tmp_path):
    """It may hold a secret."""
    (mistake,) = mistakes_of("[keys.a]\nkey = sk-hidden", tmp_path / "my.toml")

    assert "hidden" not in mistake


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (
            f"{OPEN}{HASHED}[models.text-embedding-3.5]\n{ENDPOINTS}",
            [f'[models.text-embedding-3] unknown option "5"; {DOTS} [models."text-embedding-3.5"]'],
        ),
        (
            f"{OPEN}{HASHED}[[models.jina-v2.5-small.endpoints]]\nprovider = 'hashed'",
            [f'[models.jina-v2] unknown option "5-small"; {DOTS} [models."jina-v2.5-small"]'],
        ),
        (
            f"{OPEN}[providers.tei.eu]\nbackend = 'tei'",
            [f'[providers.tei] unknown option "eu"; {DOTS} [providers."tei.eu"]'],
        ),
        (
            "[gateway]\nauth = 'keys'\n[keys.team.a]\nkey = 'k'",
            [f'[keys.team] unknown option "a"; {DOTS} [keys."team.a"]'],
        ),
        (
            f"{OPEN}{HASHED}[models.m]\n{ENDPOINTS}\nprefix = {{}}",
            ['[models.m] unknown option "prefix"; did you mean "prefixes"?'],
        ),
        (
            f"{OPEN}[gateway.retry]\nattempts = 1",
            ['[gateway] unknown option "retry"; did you mean "retries"?'],
        ),
        (f"{OPEN}[gateway.x]\ny = 1", ['[gateway] unknown option "x"']),
    ],
)
def test_an_unquoted_dot_in_a_name_is_explained(text, report, tmp_path):
    assert report == mistakes_of(text, tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("[providers.acme]", [f'[providers.acme] no backend "acme" is installed. {INSTALL}']),
        ("[providers.groq]", [f'[providers.groq] no backend "groq" is installed. {INSTALL}']),
        (
            '[providers.x]\nbackend = "anthropi"',
            [f'[providers.x] no backend "anthropi" is installed. {INSTALL}'],
        ),
        (
            '[providers.x]\nbackend = "opnai"',
            ['[providers.x] no backend "opnai" is installed; did you mean "openai"?'],
        ),
        (
            "[providers.mistral]",
            [
                '[providers.mistral] option "api_key" is missing. Set api_key = "env:MISTRAL_API_KEY".'
            ],
        ),
        (
            '[providers.mine]\nbackend = "mistral"',
            ['[providers.mine] option "api_key" is missing. Set api_key = "env:VARIABLE".'],
        ),
        # A provider without a backend may be in a list, because clients send such lists, but it is
        # not suggested.
        ("[gateway]\nonly = ['anthropic']", []),
        (
            "[gateway]\nonly = ['anthropi']",
            ['[gateway] only: unknown provider "anthropi"'],
        ),
        (
            "[gateway]\nignore = ['mistrl']",
            ['[gateway] ignore: unknown provider "mistrl"; did you mean "mistral"?'],
        ),
        (
            "[gateway]\nignore = ['myserver1']\n[providers.myserver]\nbackend = 'hashed'",
            ['[gateway] ignore: unknown provider "myserver1"; did you mean "myserver"?'],
        ),
    ],
)
def test_a_provider_that_cannot_be_used_has_a_way_out(text, report, tmp_path):
    open_text = text if "[gateway]" in text else f"[gateway]\n{text}"

    assert [STATE_AUTH, *report] == mistakes_of(open_text, tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("name", "environ", "mistake"),
    [
        ("no.toml", {}, "The config no.toml cannot be read: No such file or directory in {cwd}."),
        (
            None,
            {},
            "The config embedroute.toml cannot be read: No such file or directory in {cwd}.",
        ),
        ("/no/x.toml", {}, "The config /no/x.toml cannot be read: No such file or directory."),
        ("/", {}, "The config / cannot be read: Is a directory."),
        (
            None,
            {"EMBEDROUTE_CONFIG": "/no/y.toml"},
            "The config /no/y.toml cannot be read: No such file or directory. EMBEDROUTE_CONFIG names it.",
        ),
    ],
)
def test_a_config_that_cannot_be_read_says_where_it_was_looked_for(name, environ, mistake):
    with pytest.raises(ConfigError) as refused:
        Gateway.from_file(name, environ=environ)

    assert (mistake.format(cwd=Path.cwd()),) == tuple(refused.value.mistakes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"base_url": "http://x", "zdr": True},
            'has no field base_url. Pass the options of its backend as Provider(options={"base_url": …}).',
        ),
        (
            {"base_url": "http://x", "api_key": "sk-hidden"},
            'Pass the options of its backend as Provider(options={"base_url": …, "api_key": …}).',
        ),
    ],
)
def test_a_provider_made_in_python_says_where_options_go(fields, message):
    with pytest.raises(TypeError) as refused:
        Provider(**fields)

    assert message in str(refused.value)
    assert "hidden" not in str(refused.value)
