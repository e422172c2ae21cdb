"""Tests the output and the exit status of the commands."""

import subprocess
import sys

import httpx2
import pytest

import embedroute
from embedroute.cli import COMMANDS, main
from embedroute.plugins import list_backends
from tests.support.commands import run, serving

GOOD = """
[gateway]
auth = "open"
[providers.hashed]
[providers.again]
backend = "hashed"
[providers.dear]
backend = "hashed"
[models.one]
dimensions = 64
endpoints = [{ provider = "hashed", price = "0.5" }]
[models.two]
endpoints = [{ provider = "hashed" }, { provider = "again", price = 2 }, { provider = "dear", price = 1 }]
"""


@pytest.fixture
def config(tmp_path):
    def write(text=GOOD):
        path = tmp_path / "my.toml"
        path.write_text(text)
        return str(path)

    return write


def rows(capsys):
    out, err = capsys.readouterr()
    assert err == ""
    return [line.split() for line in out.splitlines()]


def test_backends_prints_one_backend_per_line(capsys):
    """A pipe gets no header, so that other programs can read the output."""
    assert 0 == main(["backends"])

    found = rows(capsys)
    assert [entry.name for entry in list_backends()] == [row[0] for row in found]
    assert ["hashed", "embedroute.backends.hashed:Hashed", "embedroute"] in [
        row[:3] for row in found
    ]
    assert len({len(row) for row in found}) == 1


def test_a_reader_that_closes_the_pipe_ends_a_command_silently():
    """As in ``embedroute backends | head -1``."""
    command = [sys.executable, "-m", "embedroute", "backends"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:  # noqa: S603 - fixed arguments
        process.stdout.close()
        errors = process.stderr.read()

    assert (1, "") == (process.returncode, errors)


def test_check_prints_a_summary_and_the_providers(config, capsys):
    path = config()

    assert 0 == main(["check", path])
    out, err = capsys.readouterr()
    first, *providers = out.splitlines()
    assert (f"{path}: OK (providers: 3, models: 3, auth: open)", "") == (first, err)
    assert {tuple(line.split()[1:]) for line in providers} == {
        ("embedroute.backends.hashed:Hashed", "embedroute")
    }
    assert len(providers) == 3


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("", ["[gateway] auth is required"]),
        ("[gateway\n", ["is not valid TOML: line 1, column 9: "]),
        (
            GOOD.replace("dimensions", "dimension"),
            ['[models.one] unknown option "dimension"; did you mean "dimensions"?'],
        ),
        (
            GOOD.replace("auth", "oath").replace("price", "prize", 1),
            [
                'unknown option "oath"; did you mean "auth"?',
                'unknown option "prize"; did you mean "price"?',
            ],
        ),
    ],
)
def test_check_reports_every_mistake_on_stderr(text, mistakes, config, capsys):
    assert 1 == main(["check", config(text)])

    out, err = capsys.readouterr()
    assert "" == out
    assert [] == [mistake for mistake in mistakes if mistake not in err]
    assert "Traceback" not in err


def test_check_reports_a_missing_file(tmp_path, capsys):
    assert 1 == main(["check", str(tmp_path / "no.toml")])
    assert f"{tmp_path / 'no.toml'} cannot be read" in capsys.readouterr().err


def test_models_prints_dimensions_providers_and_lowest_price(config, capsys):
    assert 0 == main(["models", "--config", config()])

    assert [["one", "64", "hashed", "0.5"], ["two", "?", "hashed,again,dear", "1"]] == rows(capsys)[
        :2
    ]


def test_verify_succeeds_when_all_endpoints_agree(config, capsys):
    assert 0 == main(["verify", "--config", config()])

    found = rows(capsys)
    assert [
        ("two", "hashed:two", "again:two"),
        ("two", "hashed:two", "dear:two"),
        ("two", "again:two", "dear:two"),
    ] == [tuple(row[:3]) for row in found]
    assert {("1.000000", "0.00e+00", "verified")} == {tuple(row[3:]) for row in found}


DIFFERENT = """
[gateway]
auth = "open"
[providers.hashed]
[providers.dead]
backend = "openai"
api_key = "k"
base_url = "http://127.0.0.1:9"
[models.m]
endpoints = [{ provider = "hashed" }, { provider = "dead" }]
"""


def test_verify_has_an_exit_status_of_its_own_for_an_unreachable_endpoint(config, capsys):
    assert 3 == main(["verify", "m", "--config", config(DIFFERENT)])
    (found,) = rows(capsys)
    assert (["m", "hashed:m", "dead:m", "-", "-", "unreachable"], ["dead:m", "failed:"]) == (
        found[:6],
        found[6:8],
    )


@pytest.mark.parametrize(
    ("thresholds", "verdict"),
    [(["--verified", "1.1"], "near"), (["--verified", "1.1", "--near", "1.05"], "different")],
)
def test_verify_takes_thresholds(thresholds, verdict, config, capsys):
    assert int(verdict == "different") == main(["verify", "two", "--config", config(), *thresholds])
    assert {verdict} == {row[-1] for row in rows(capsys)}


@pytest.mark.parametrize(
    ("model", "text", "shown"),
    [
        (["absent"], GOOD, "does not exist"),
        (["one"], GOOD, "one endpoint"),
        (
            [],
            GOOD.replace(
                ', { provider = "again", price = 2 }, { provider = "dear", price = 1 }', ""
            ),
            "several endpoints",
        ),
    ],
)
def test_verify_fails_when_there_is_nothing_to_compare(model, text, shown, config, capsys):
    """No output would look like agreement."""
    assert 1 == main(["verify", *model, "--config", config(text)])
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["nonsense"], ["check", "a", "b"], ["serve", "--port", "x"]])
def test_wrong_usage_exits_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)

    assert (2, True) == (ended.value.code, "usage: embedroute" in capsys.readouterr().err)


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    out = capsys.readouterr().out
    assert ended.value.code == 0
    first_words = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert {command.name for command in COMMANDS} <= first_words
    assert {"serve", "check", "backends", "models", "verify"} <= {one.name for one in COMMANDS}


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_has_the_option_config(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])

    assert (0, True) == (ended.value.code, "--config FILE" in capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [["models", "--config"], ["check", "--config"], ["check"]],
    ids=" ".join,
)
def test_a_config_is_named_by_an_option_or_the_argument_of_check(words, config, capsys):
    assert 0 == main([*words, config()])
    assert "hashed" in capsys.readouterr().out


def test_the_option_config_may_stand_before_the_command(config, capsys):
    assert 0 == main(["--config", config(), "models"])
    assert "one" == rows(capsys)[0][0]


def test_check_takes_one_config_only(config, capsys):
    assert 1 == main(["check", config(), "--config", config()])
    assert "Name the config once: either FILE or --config FILE." in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert (0, f"embedroute {embedroute.__version__}\n") == (
        ended.value.code,
        capsys.readouterr().out,
    )


def test_the_package_runs_as_a_command(tmp_path):
    assert f"embedroute {embedroute.__version__}\n" == run(
        [sys.executable, "-m", "embedroute", "--version"], tmp_path
    )


MAIN = "import sys; from embedroute.cli import main; sys.exit(main())"
EACH = """
import contextlib, sys
from embedroute.cli import main
with contextlib.redirect_stderr(sys.stdout):
    for command in ("serve", "models", "verify", "check"):
        print(main([command]))
"""


def test_without_a_config_every_command_prints_what_to_do(tmp_path):
    """In a directory and an environment without one."""
    out = run(
        [sys.executable, "-c", EACH], tmp_path, {"EMBEDROUTE_CONFIG": "", "EMBEDROUTE_AUTH": ""}
    )

    assert ["1", "1", "1", "1"] == out.splitlines()[1::2]
    missing = f"No config found: {tmp_path / 'embedroute.toml'} does not exist"
    assert 4 == out.count(missing)
    assert 4 == out.count("--config FILE")
    assert 4 == out.count("set EMBEDROUTE_AUTH to keys")
    assert "Gateway" not in out


@pytest.mark.parametrize(("transport", "shown"), [("auto", "http1"), ("httpx2", "httpx2")])
def test_serve_logs_the_transport_to_stderr(transport, shown, tmp_path):
    """Once, at startup, before the first request."""
    (tmp_path / "embedroute.toml").write_text(
        GOOD.replace('"open"', f'"open"\ntransport = "{transport}"')
    )
    errors = tmp_path / "errors"

    def lines():
        found = [line for line in errors.read_text().splitlines() if "transport " in line]
        return sorted(line.split(",")[-1].lstrip("0123456789 ") for line in found)

    with serving(
        [sys.executable, "-c", MAIN, "serve", "--port", "0"], tmp_path, errors=errors
    ) as url:
        at_start = lines()
        statuses = [
            httpx2.post(f"{url}/v1/embeddings", json={"model": "one", "input": text}).status_code
            for text in "ab"
        ]

    assert (at_start, [200, 200], at_start) == (
        [f"INFO embedroute.http: transport selected: transport={shown}", f"transport  {shown}"],
        statuses,
        lines(),
    )


FROZEN = """
import atexit, gc, sys
from embedroute.cli import main
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 10_000, file=sys.stderr))
sys.exit(main())
"""


def test_serve_excludes_loaded_modules_from_garbage_collection(tmp_path):
    (tmp_path / "embedroute.toml").write_text(GOOD)
    errors = tmp_path / "errors"

    with serving([sys.executable, "-c", FROZEN, "serve", "--port", "0"], tmp_path, errors=errors):
        pass

    assert "frozen True" in errors.read_text().splitlines()


WITHOUT = """
import contextlib, sys
sys.modules |= dict.fromkeys(("wordllama", "azure.identity", "azure"))
from embedroute.cli import main
with contextlib.redirect_stderr(sys.stdout):
    print(main(["check", "my.toml"]))
"""


def test_check_reports_missing_extras(config, tmp_path):
    """At startup, with all other mistakes, and not as a 500 for each request."""
    config('[gateway]\nauth = "open"\n[providers.wordllama]\ncolour = 1\n[cache]\nttl = 0')

    assert [
        "[cache] ttl must be a number of seconds greater than 0; got 0",
        '[providers.wordllama] unknown option "colour"',
        (
            '[providers.wordllama] the backend "wordllama" (embedroute.backends.wordllama:WordLlama of embedroute) cannot be '
            "built: wordllama is not installed; run: pip install 'embedroute[local]'"
        ),
        "1",
    ] == run([sys.executable, "-c", WITHOUT], tmp_path).splitlines()


def test_check_reports_no_missing_extra_that_an_unread_option_makes_unnecessary(config, tmp_path):
    """With a key, the backend needs no package for tokens."""
    base_url = "https://one.openai.azure.com"
    config(
        f'[gateway]\nauth = "open"\n'
        f'[providers.azure]\napi_key = "env:NO_SUCH_KEY"\nbase_url = "{base_url}"\n'
        f'[providers."azure/token"]\nbase_url = "{base_url}"'
    )
    unset, missing, code = run([sys.executable, "-c", WITHOUT], tmp_path).splitlines()

    assert "[providers.azure] api_key: the environment variable NO_SUCH_KEY is not set" == unset
    assert missing.startswith('[providers."azure/token"]')
    assert missing.endswith("azure-identity is not installed; run: pip install 'embedroute[azure]'")
    assert "1" == code


@pytest.mark.parametrize("command", ["models", "check"])
@pytest.mark.parametrize(
    ("named", "shown"),
    [("", "one"), ("other.toml", "three")],
    ids=["the working directory", "the environment variable"],
)
def test_the_config_comes_from_the_environment_variable_or_the_working_directory(
    command, named, shown, tmp_path
):
    (tmp_path / "embedroute.toml").write_text(GOOD)
    (tmp_path / "other.toml").write_text(GOOD.replace("models.one", "models.three"))

    out = run([sys.executable, "-c", MAIN, command], tmp_path, {"EMBEDROUTE_CONFIG": named})

    first = out.split()[0]
    assert first == {"models": shown, "check": f"{named or 'embedroute.toml'}:"}[command]
