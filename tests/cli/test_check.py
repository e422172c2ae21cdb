"""Tests the warnings of ``embedroute check`` and ``embedroute serve``, and the calls of ``--live``."""

import socket

import pytest

from embedroute import Config, Gateway, Provider
from embedroute.backend import Vectors
from embedroute.cli import call_endpoints, main
from embedroute.errors import UpstreamUnavailable
from embedroute.testing import ScriptedBackend

GOOD = """
[gateway]
auth = "open"
[providers.hashed]
[models.m]
dimensions = 64
endpoints = [{ provider = "hashed" }]
"""
SHORT = GOOD.replace('"open"', '"keys"') + '[keys.a]\nkey = "hidden"\n'
DEAD = (
    GOOD.replace("}]", '}, { provider = "dead", model = "x" }]')
    + '[providers.dead]\nbackend = "openai"\nbase_url = "http://127.0.0.1:9"\n'
)
WARNING = "warning: [keys.a] key has only 6 characters"


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "my.toml"
        path.write_text(text)
        return str(path)

    return write


def rows(capsys, *models):
    """Return the cells of the rows of the table for these models."""
    lines = [line.split(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line[1] in models]


@pytest.mark.parametrize(
    ("text", "options", "status", "warned", "summary"),
    [
        (GOOD, [], 0, False, True),
        (GOOD, ["--strict"], 0, False, True),
        (SHORT, [], 0, True, True),
        (SHORT, ["--strict"], 1, True, False),
    ],
)
def test_check_prints_warnings_and_fails_on_them_if_strict(
    text, options, status, warned, summary, config, capsys
):
    assert status == main(["check", config(text), *options])

    out, err = capsys.readouterr()
    assert (warned, summary) == (err.startswith(WARNING), ": OK (" in out)
    assert "hidden" not in out + err


def test_check_live_prints_one_row_for_each_endpoint(config, capsys):
    assert 0 == main(["check", "--live", config(GOOD)])

    (row,) = rows(capsys, "m")
    provider, model, milliseconds, width, norm = row
    assert ("hashed", "m", "64", "1.000") == (provider, model, width, norm)
    assert milliseconds.isdigit()


def test_check_live_fails_if_an_endpoint_fails(config, capsys):
    assert 1 == main(["check", "--live", config(DEAD)])

    good, dead = rows(capsys, "m", "x")
    assert (5, ["-", "-"]) == (len(good), dead[3:5])


def test_check_live_shows_where_an_endpoint_was_called(config, capsys):
    main(["check", "--live", config(DEAD)])

    (dead,) = rows(capsys, "x")
    assert dead[5].endswith("connection refused. (http://127.0.0.1:9)")


def test_check_live_shows_no_password_of_an_address(config, capsys):
    main(["check", "--live", config(DEAD.replace("//127", "//user:pass-word@127"))])

    captured = capsys.readouterr()
    assert "(http://127.0.0.1:9)" in captured.out
    assert "pass-word" not in captured.out + captured.err


def test_check_live_names_providers_that_no_model_uses(config, capsys):
    main(["check", "--live", config(f"{GOOD}[providers.tei]\n")])

    assert "tei was not called: no model has it as an endpoint" in capsys.readouterr().out


def test_check_live_gives_each_call_the_seconds_of_its_timeout(config, capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = DEAD.replace("127.0.0.1:9", f"127.0.0.1:{silent.getsockname()[1]}")
        assert 1 == main(["check", "--live", "--timeout", "0.5", config(hanging)])

    (row,) = rows(capsys, "x")
    assert "0.5 s" in row[5]


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "x"])
def test_check_refuses_a_timeout_that_is_no_number_of_seconds(config, capsys, seconds):
    with pytest.raises(SystemExit):
        main(["check", "--live", f"--timeout={seconds}", config(GOOD)])
    assert "--timeout" in capsys.readouterr().err


def test_check_live_fails_if_there_is_nothing_to_call(config, capsys):
    assert 1 == main(["check", "--live", config('[gateway]\nauth = "open"\n[providers.tei]\n')])
    assert "No endpoint to call" in capsys.readouterr().err


def test_check_understands_keys_that_callers_send_and_calls_no_provider_with_them(config, capsys):
    own = DEAD + 'api_key = "header:X-Own-Key"\n'
    assert 0 == main(["check", "--strict", "--live", config(own)])

    out = capsys.readouterr().out
    assert "dead was not called: callers send their own keys in x-own-key" in out


@pytest.mark.anyio
async def test_each_endpoint_is_called_with_one_text():
    """Also those that the lists of the gateway exclude."""
    one = ScriptedBackend(width=3)
    two = ScriptedBackend(then=Vectors.from_lists([[0.0, 3.0, 4.0]]))
    down = ScriptedBackend(then=UpstreamUnavailable("no\nroute"))
    providers = {
        "one": Provider(backend=one),
        "two": Provider(backend=two),
        "down": Provider(backend=down),
    }
    models = {
        "m": {
            "endpoints": [
                {"provider": "one"},
                {"provider": "down"},
                {"provider": "two", "model": "x"},
            ]
        },
        "n": {"endpoints": [{"provider": "one", "model": "y"}]},
    }
    gateway = Gateway(
        Config(gateway={"auth": "open", "only": ["down"]}, providers=providers, models=models)
    )

    found = await call_endpoints(gateway)

    assert [("one", "m"), ("down", "m"), ("two", "x"), ("one", "y")] == [
        (result.provider, result.model) for result in found
    ]
    assert [3, 0, 3, 3] == [result.width for result in found]
    assert ["1.000", "-", "5.000", "1.000"] == [result.row()[4] for result in found]
    assert ["", "Provider down: no\\nroute", "", ""] == [result.error for result in found]
    assert [1, 1] == [len(batch) for batch in one.batches]
    assert all(result.seconds > 0 for result in found)


def test_serve_refuses_the_authentication_of_a_host(config, capsys):
    """There is no host, so that every request would get a 401."""
    text = GOOD.replace('"open"', '"host"')

    assert 1 == main(["serve", "--config", config(text)])
    assert 'Set auth = "keys" or auth = "open"' in capsys.readouterr().err
