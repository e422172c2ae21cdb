"""Tests the starter config of ``embedroute init``."""

import json
import re
import tomllib

import jsonschema
import pytest

from embedroute import Gateway
from embedroute.cli import main
from embedroute.config import starter_config


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new.toml"


def test_the_starter_config_passes_the_strictest_check(path, capsys):
    assert 0 == main(["init", "--path", str(path)])
    assert f"embedroute check --config {path}" in capsys.readouterr().out

    assert 0 == main(["check", "--strict", "--live", str(path)])
    assert "" == capsys.readouterr().err


def test_the_starter_config_has_a_key_of_its_own_and_names_its_schema(path, tmp_path):
    main(["init", "--path", str(path)])
    text = path.read_text(encoding="utf-8")
    schema = json.loads((tmp_path / "embedroute.schema.json").read_text(encoding="utf-8"))
    document = tomllib.loads(text)
    key = document["keys"]["default"]["key"]

    assert text.startswith("#:schema ./embedroute.schema.json\n")
    jsonschema.Draft7Validator(schema).validate(document)
    assert len(key) >= 32
    assert (
        "default"
        == Gateway.from_file(path).active.keys.authenticate([f"Bearer {key}".encode()]).name
    )
    (tmp_path / "other").mkdir()
    main(["init", "--path", str(tmp_path / "other" / "x.toml")])
    assert key not in (tmp_path / "other" / "x.toml").read_text(encoding="utf-8")


def test_the_commented_lines_of_the_starter_config_are_valid(path):
    """Who removes the comment marks gets a config that loads."""
    lines = starter_config("k" * 32).splitlines()
    text = "\n".join(re.sub(r"^# (?=\[|[a-z_]+ = )", "", line) for line in lines)
    path.write_text(text, encoding="utf-8")

    gateway = Gateway.from_file(path, environ={"OPENAI_API_KEY": "sk"})

    assert {"hashed", "openai", "tei"} == {*gateway.models.providers}


def test_init_overwrites_nothing(path, tmp_path, capsys):
    path.write_text("mine")
    (tmp_path / "embedroute.schema.json").write_text("{}")

    assert 1 == main(["init", "--path", str(path)])
    assert f"{path} exists and is not overwritten" in capsys.readouterr().err
    assert ("mine", "{}") == (
        path.read_text(),
        (tmp_path / "embedroute.schema.json").read_text(),
    )

    assert 0 == main(["init", "--path", str(tmp_path / "another.toml")])
    assert "{}" == (tmp_path / "embedroute.schema.json").read_text()


def test_init_says_why_it_cannot_write(tmp_path, capsys):
    assert 1 == main(["init", "--path", str(tmp_path / "no" / "x.toml")])
    assert "cannot be written: No such file or directory." in capsys.readouterr().err
