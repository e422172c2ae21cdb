"""Tests that a gateway reads all secrets from its own ``environ``, also for a config made in Python."""

import pytest

from embedroute import ApiKey, Config, ConfigError, Gateway, Provider, Settings
from embedroute.backend import Secret
from embedroute.bootstrap import make_transport_config

ENVIRON = {
    "TEAM_KEY": "team-secret",
    "PROXY": "http://user:pass@127.0.0.1:3128",
    "UPSTREAM_KEY": "sk-upstream",
}


def config_of(**gateway) -> Config:
    return Config(
        gateway={"auth": "keys", **gateway},
        keys={"team": {"key": "env:TEAM_KEY"}},
        providers={"openai": {"options": {"api_key": "env:UPSTREAM_KEY"}}},
    )


def test_every_secret_comes_from_the_environ_of_the_gateway():
    gateway = Gateway(config_of(proxy="env:PROXY"), environ=ENVIRON)

    assert "team" == gateway.active.keys.authenticate([b"Bearer team-secret"]).name
    assert Secret(ENVIRON["PROXY"]) == make_transport_config(gateway.settings, ENVIRON).proxy
    assert Secret("sk-upstream") == gateway.models.providers["openai"].backend.api_key


def test_two_gateways_of_one_config_have_their_own_secrets():
    config = config_of()

    one = Gateway(config, environ={**ENVIRON, "TEAM_KEY": "one"})
    two = Gateway(config, environ={**ENVIRON, "TEAM_KEY": "two"})

    assert "team" == one.active.keys.authenticate([b"Bearer one"]).name
    assert "team" == two.active.keys.authenticate([b"Bearer two"]).name


@pytest.mark.parametrize(
    ("environ", "mistakes"),
    [
        (
            {},
            [
                "[gateway] proxy: the environment variable PROXY is not set",
                "[keys.team] key: the environment variable TEAM_KEY is not set",
                "[providers.openai] api_key: the environment variable UPSTREAM_KEY is not set",
            ],
        ),
        (
            {**ENVIRON, "PROXY": "socks5://h:1", "TEAM_KEY": "two words"},
            [
                "[keys.team] key must be 1 to 256 visible ASCII characters",
                "[gateway] proxy must be http://HOST:PORT or https://HOST:PORT",
            ],
        ),
    ],
)
def test_secrets_of_a_config_made_in_python_are_checked_by_the_gateway(environ, mistakes):
    config = config_of(proxy="env:PROXY")

    with pytest.raises(ConfigError) as refused:
        Gateway(config, environ=environ)

    assert mistakes == list(refused.value.mistakes)


def test_two_keys_of_two_variables_must_differ():
    config = Config(
        gateway=Settings(auth="keys"),
        keys={"a": {"key": "env:A"}, "b": {"key": "env:B"}},
        providers={"hashed": Provider()},
    )

    with pytest.raises(ConfigError) as refused:
        Gateway(config, environ={"A": "same", "B": "same"})

    assert ['[keys.b] key is the same as that of "a"'] == list(refused.value.mistakes)


def test_a_secret_object_is_the_secret_itself():
    gateway = Gateway(
        Config(
            gateway=Settings(auth="keys"),
            keys={"a": ApiKey(key=Secret("env:A"))},
            providers={"hashed": Provider()},
        ),
        environ={"A": "other"},
    )

    assert "a" == gateway.active.keys.authenticate([b"Bearer env:A"]).name


def test_the_config_does_not_show_the_secret_of_a_gateway():
    config = config_of(proxy="env:PROXY")

    Gateway(config, environ=ENVIRON)

    assert "secret" not in repr(config)
    assert "team-secret" != config.keys["team"].key.reveal()
