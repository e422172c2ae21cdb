"""Tests that the JSON Schema of a config accepts what the gateway accepts, and rejects wrong types."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import jsonschema
import pytest

from embedroute.cli import main
from embedroute.config_schema import build_schema
from embedroute.plugins import BUILT_IN
from tests.config.test_type_words import FIELDS_BY_TIER, TABLES, WRONG, mistakes_of
from tests.support.commands import run
from tests.support.documents import DOCUMENTS, ROOT, blocks

SCHEMA = build_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
SAMPLES = [
    (document, block)
    for document in DOCUMENTS
    for block in blocks(document, "toml")
    # Not the metadata of a package, and not the config whose mistakes a guide explains.
    if "[project" not in block and document.name != "debugging.md"
]
EXAMPLE = ROOT / "example_app" / "embedroute.toml"
WRONG_TYPE = re.compile('; got |must be a (table|name)|unknown option "wrong"')
OPEN = '[gateway]\nauth = "open"\n'


def errors_of(text):
    return [error.json_path for error in VALIDATOR.iter_errors(tomllib.loads(text))]


def test_the_schema_is_a_valid_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_the_command_prints_the_schema(capsys):
    assert 0 == main(["schema"])
    assert json.loads(json.dumps(SCHEMA)) == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "name", ["embedroute/config/data/descriptions.json", "example_app/embedroute.schema.json"]
)
def test_the_generated_files_are_up_to_date(name, tmp_path):
    """If not, run ``.venv/bin/python scripts/schema``."""
    for part in ("docs/configuration.md", "scripts/schema"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    target = tmp_path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "embedroute/config/data").mkdir(parents=True, exist_ok=True)
    (tmp_path / "example_app").mkdir(exist_ok=True)

    run([sys.executable, "scripts/schema"], tmp_path, {"PYTHONPATH": str(ROOT)})

    assert (ROOT / name).read_text(encoding="utf-8") == target.read_text(encoding="utf-8")


def test_every_option_has_a_description():
    """Editors show it; its source is docs/configuration.md."""
    missing = {
        f"{table}.{name}"
        for table, schema in SCHEMA["definitions"].items()
        if table.removesuffix("-options") not in {*BUILT_IN, "PriceTable"} - {"openai"}
        for name, option in schema.get("properties", {}).items()
        if "description" not in option
    }

    assert {"Provider.options", "Settings.retries", "Settings.breaker"} == missing


@pytest.mark.parametrize(("document", "block"), SAMPLES, ids=lambda item: getattr(item, "name", ""))
def test_the_samples_of_the_documents_fit_the_schema(document, block):
    assert [] == errors_of(block), document


def test_the_config_of_the_example_fits_the_schema_that_it_names():
    text = EXAMPLE.read_text(encoding="utf-8")

    assert text.startswith("#:schema ./embedroute.schema.json\n")
    assert [] == errors_of(text)


@pytest.mark.parametrize(("place", "field"), FIELDS_BY_TIER)
def test_the_schema_rejects_the_same_types_as_the_gateway(place, field, tmp_path):
    """Dates are left out: no JSON has one."""
    _, template = TABLES[place]
    # What the table requires besides, such as the key of a caller.
    others = {*errors_of(template.replace("@", ""))}
    for value in (value for value in WRONG if not value.startswith("1979")):
        text = template.replace("@", f"{field} = {value}")
        is_wrong = any(WRONG_TYPE.search(line) for line in mistakes_of(text, tmp_path / "my.toml"))
        rejected = {*errors_of(text)} - others

        assert is_wrong == bool(rejected), (text, rejected)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "$"),
        ("[gateway]", "$.gateway"),
        (f"{OPEN}deadlin = 1", "$.gateway"),
        (f"{OPEN}[keys.a]", "$.keys.a"),
        (f"{OPEN}[gatway]", "$"),
        (f"{OPEN}[providers.openai]\napi_kye = 'x'", "$.providers.openai"),
        (f"{OPEN}[providers.vllm]\napi_kye = 'x'", "$.providers.vllm"),
        (f"{OPEN}[providers.'tei/eu']\nbase_ulr = 'x'", "$.providers['tei/eu']"),
        (f"{OPEN}[providers.mine]\nbackend = 'tei'\nbase_ulr = 'x'", "$.providers.mine"),
        (f"{OPEN}[providers.mine]\nbackend = 'mistral'\norganization = 'x'", "$.providers.mine"),
        (f"{OPEN}[models.m]\ndimension = 3", "$.models.m"),
        (f"{OPEN}[providers.mine]\nbackend = 'acme'\nsize = 'x'", None),
        (f"{OPEN}[providers.openai]\nbackend = 'acme'\nsize = 'x'", None),
        (f"{OPEN}[providers.openai]\noptions = {{ api_key = 'x' }}\nretries = {{ attempts = 1 }}", None),
        (f"{OPEN}[models.m]\nendpoints = [{{ provider = 'p', price = '0.02' }}]", None),
        (f"{OPEN}[models.m]\nendpoints = [{{ provider = 'p', price = 'free' }}]", "$.models.m.endpoints[0].price"),
    ],
)  # fmt: skip
def test_the_schema_knows_the_options_of_each_table(text, path):
    found = errors_of(text)

    assert path in found if path else [] == found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_taplo_checks_the_config_with_the_schema_that_it_names(tmp_path):
    """As Even Better TOML does in VS Code; the schema is read from the file beside the config."""
    run(["npm", "install", "--no-audit", "--no-fund", "@taplo/cli@0.7.0"], tmp_path)
    main(["init", "--path", str(tmp_path / "good.toml")])
    good = (tmp_path / "good.toml").read_text(encoding="utf-8")
    bad = good.replace('auth = "keys"', 'auth = "key"')
    (tmp_path / "bad.toml").write_text(bad, encoding="utf-8")
    taplo = [str(tmp_path / "node_modules" / ".bin" / "taplo"), "check"]

    run([*taplo, "good.toml"], tmp_path)
    refused = subprocess.run(  # noqa: S603 - the program that was just installed
        [*taplo, "bad.toml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert refused.returncode != 0
    assert '"key" is not one of' in refused.stderr
