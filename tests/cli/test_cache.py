"""``embedroute cache``, and how ``check`` and ``serve`` handle a store that cannot be used."""

import anyio
import pytest

from embedroute import Gateway
from embedroute.cli import main

CONFIG = """
[gateway]
auth = "open"
[store]
url = "sqlite:///{path}"
[providers.hashed]
[models.m]
dimensions = 64
endpoints = [{{ provider = "hashed" }}]
[models.n]
dimensions = 64
endpoints = [{{ provider = "hashed" }}]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(CONFIG.format(path=tmp_path / "store.db"))
    return path


@pytest.fixture
def full_config(config):
    """The config of a store with two vectors of m and one of n."""

    async def fill():
        gateway = Gateway.from_file(config)
        async with gateway.lifespan():
            await gateway.embed(["a", "b"], model="m")
            await gateway.embed("a", model="n")

    anyio.run(fill)
    return config


def run(capsys, *arguments):
    assert 0 == main(["cache", *map(str, arguments)])
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_vectors_are_counted_and_removed_by_model(full_config, capsys):
    counted = run(capsys, "stats", "--config", full_config)
    assert [["m", "2"], ["n", "1"]] == [row[:2] for row in counted]
    assert 2 * 64 * 4 < int(counted[0][2]) < 4 * 64 * 4
    assert ["n"] == [
        row[0] for row in run(capsys, "stats", "--model", "n", "--config", full_config)
    ]

    assert [["removed:", "2"]] == run(capsys, "purge", "--model", "m", "--config", full_config)
    assert ["n"] == [row[0] for row in run(capsys, "stats", "--config", full_config)]
    assert [["removed:", "1"]] == run(capsys, "purge", "--config", full_config)
    assert [] == run(capsys, "stats", "--config", full_config)


def test_without_a_store_there_is_nothing_to_show(config, capsys):
    config.write_text(config.read_text().replace("[store]\nurl", "#"))

    assert 1 == main(["cache", "stats", "--config", str(config)])
    assert "[store] url is not set" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["check"], ["serve"], ["cache", "stats"]])
def test_a_store_that_cannot_be_used_is_one_line(command, config, capsys, tmp_path):
    (tmp_path / "store.db").mkdir()

    assert 1 == main([*command, "--config", str(config)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot open the file: Is a directory" in line


def test_check_says_that_the_store_can_be_used(config, capsys, tmp_path):
    assert 0 == main(["check", str(config)])

    assert f"store: sqlite:///{tmp_path / 'store.db'} can be used" in capsys.readouterr().out
