"""Tests that a value of a wrong type is reported in the words of a config, in every field of every table."""

import re

import msgspec
import pytest

from embedroute import ConfigError, Gateway
from embedroute.backend import Accepts
from embedroute.config import (
    ApiKey,
    BreakerPolicy,
    CacheSettings,
    Endpoint,
    Model,
    PriceTable,
    Provider,
    RetryPolicy,
    Settings,
)
from embedroute.plugins import BUILT_IN, load
from tests.support.slow import thorough_rows_unless

OPEN = 'gateway = { auth = "open" }\n'
MODEL = f'{OPEN}[providers.p]\nbackend = "hashed"\n[models.m]\n'
TABLES = {
    "[gateway]": (Settings, "[gateway]\n@"),
    "[gateway.retries]": (RetryPolicy, "[gateway.retries]\n@"),
    "[gateway.breaker]": (BreakerPolicy, "[gateway.breaker]\n@"),
    "[keys.k]": (ApiKey, "[keys.k]\n@"),
    "[cache]": (CacheSettings, "[cache]\n@"),
    "[providers.p]": (Provider, f"{OPEN}[providers.p]\n@"),
    "[providers.p.retries]": (RetryPolicy, f"{OPEN}[providers.p.retries]\n@"),
    "[models.m]": (Model, f"{OPEN}[models.m]\n@"),
    "[models.m.endpoints.0]": (Endpoint, f"{MODEL}endpoints = [{{ @ }}]"),
    "[models.m.endpoints.0.price]": (
        PriceTable,
        f'{MODEL}endpoints = [{{ provider = "p", price = {{ @ }} }}]',
    ),
    "[models.m.endpoints.p.accepts]": (
        Accepts,
        f'{MODEL}endpoints = [{{ provider = "p", accepts = {{ @ }} }}]',
    ),
    **{f"[providers.{name}]": (load(name), f"{OPEN}[providers.{name}]\n@") for name in BUILT_IN},
}
FIELDS = [
    (place, field.name)
    for place, (struct, _) in TABLES.items()
    for field in msgspec.structs.fields(struct)
]


def of_each_type():
    """Return the first field of each table and type, which the default run tests."""
    types = {
        (place, field.name): (place.startswith("[providers.") or struct, str(field.type))
        for place, (struct, _) in TABLES.items()
        for field in msgspec.structs.fields(struct)
    }
    first = {}
    for field, kind in types.items():
        first.setdefault(kind, field)
    return set(first.values())


FIELDS_BY_TIER = thorough_rows_unless(of_each_type().__contains__, FIELDS)
WRONG = ['"wrong"', "3", "2.5", "true", "1979-05-27", "[[3]]", "{ wrong = [3] }"]
QUOTED = re.compile(r'"[^"]*"|an object whose class')
SERIALIZER = re.compile(r"Expected|Invalid|`|\b(array|object|str|int|float|bool|null|enum|dict)\b")


def mistakes_of(text, path):
    path.write_text(text, encoding="utf-8")
    try:
        Gateway.from_file(path, environ={})
    except ConfigError as error:
        return error.mistakes
    return []


@pytest.mark.parametrize(("place", "field"), FIELDS_BY_TIER)
def test_a_value_of_a_wrong_type_is_described_in_the_words_of_the_config(place, field, tmp_path):
    """At least three of the values are wrong for any field."""
    _, template = TABLES[place]
    reports = [
        [
            line
            for line in mistakes_of(
                template.replace("@", f"{field} = {value}"), tmp_path / "my.toml"
            )
            if line.startswith((f"{place} {field}", f"{place[:-1]}.{field}]"))
        ]
        for value in WRONG
    ]

    found = [line for report in reports for line in report]
    assert [] == [line for line in found if SERIALIZER.search(QUOTED.sub("", line))]
    assert (
        len([line for line in found if re.search("must be (a table$|a name, |.*; got )", line)])
        >= 3
    )


def test_every_table_is_tested():
    """A new table of the config has its wrong types described too."""
    structs = {struct for struct, _ in TABLES.values()}

    assert {Settings, ApiKey, CacheSettings, Provider, Model, Endpoint} <= structs
    assert {load(name) for name in BUILT_IN} <= structs


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('auth = "key"', 'auth must be one of "keys", "open", "host"; got "key"'),
        ('deadline = "30s"', 'deadline must be a number of seconds; got "30s"'),
        ("deadline = -1.5", "deadline must be a number of seconds greater than 0; got -1.5"),
        ("deadline = 07:32:00", "deadline must be a number of seconds; got a date or a time"),
        ("max_body_bytes = 1.5", "max_body_bytes must be a whole number of bytes; got 1.5"),
        ("debug = 'no'", 'debug must be true or false; got "no"'),
        ("only = [[]]", "only[0] must be a string; got an empty list"),
        ("only = [['a']]", "only[0] must be a string; got a list"),
        ("ca_file = {a = 1}", "ca_file must be a string; got a table"),
        (f"deadline = '{'x' * 40}'", f'deadline must be a number of seconds; got "{"x" * 40}"'),
        (f"deadline = '{'x' * 41}'", "deadline must be a number of seconds; got a string"),
        ('deadline = "\\n\\""', 'deadline must be a number of seconds; got "\\n\\""'),
    ],
)
def test_a_mistake_says_what_is_expected_and_what_is_there(text, mistake, tmp_path):
    assert f"[gateway] {mistake}" in mistakes_of(f"[gateway]\n{text}", tmp_path / "my.toml")


@pytest.mark.parametrize(
    "options",
    [
        'extra_headers = "sk-hidden"',
        'extra_headers = ["sk-hidden"]',
        "extra_headers = { x = 1234567 }",
        "api_key = 1234567",
        'api_key = ["sk-hidden"]',
    ],
)
def test_a_value_that_may_be_a_secret_is_not_repeated(options, tmp_path):
    found = mistakes_of(
        f'[gateway]\nauth = "open"\n[providers.openai]\n{options}', tmp_path / "my.toml"
    )

    assert 1 == len(found)
    assert not re.search("hidden|1234567", found[0])
