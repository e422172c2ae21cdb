"""Tests backends of other packages: found by name, and imported only if a config names them.

The packages are written into a directory. One process tries all of them, because starting a
process is slow.
"""

import json
import sys
from pathlib import Path

import pytest

from embedroute.backends.openai import OpenAI
from embedroute.errors import EmbedrouteError
from embedroute.plugins import BUILT_IN, list_backends, load
from tests.support.commands import run

GOOD = """
from fractions import Fraction
from typing import ClassVar

import msgspec
from embedroute.backend import Accepts, Backend, HTTPBackend, Secret

class Acme(HTTPBackend):
    api_key: Secret
    size: int = 3

class Nested:
    class Inner(Acme):
        pass

class RaisesKeyError(Acme):
    def __post_init__(self):
        raise KeyError("picky")

class RaisesValueError(Acme):
    def __post_init__(self):
        raise ValueError("size must be even")

class RaisesMultilineError(Acme):
    def __post_init__(self):
        raise ValueError("size must be even,\\n  or not\\n")

class Paired(Acme):
    first: int = 0
    second: int = 0

    def __post_init__(self):
        if not (self.first or self.second):
            raise ValueError("give first or second")
        if self.size % 2:
            raise ValueError("size must be even")
        if self.size == 4:
            self.second.first
        if self.first > 5:
            raise ValueError("that is too much")

class Loose(msgspec.Struct, frozen=True):
    width: int = 0

class Shaped(Acme):
    span: tuple[int, int] = (0, 1)
    loose: Loose = Loose()
    share: Fraction = Fraction(1)

class RaisesEmptyError(Acme):
    def __post_init__(self):
        raise ValueError

class RaisesSystemExit(Acme):
    def __post_init__(self):
        raise SystemExit(3)

class RaisesKeyboardInterrupt(Acme):
    def __post_init__(self):
        raise KeyboardInterrupt

class Unannotated(Acme):
    accepts = {"max_inputs": 3}

class HasUnresolvedAnnotation(Acme):
    answer: "Nowhere" = 3

def function():
    pass
"""

PACKAGES = {
    "acme": (
        "acme_backend",
        GOOD,
        {"acme": "acme_backend:Acme", "inner": "acme_backend:Nested.Inner"},
    ),
    "acme-odd": (
        "acme_odd",
        "from acme_backend import *",
        {
            "picky": "acme_backend:RaisesKeyError",
            "strict": "acme_backend:RaisesValueError",
            "wordy": "acme_backend:RaisesMultilineError",
            "paired": "acme_backend:Paired",
            "shaped": "acme_backend:Shaped",
            "mute": "acme_backend:RaisesEmptyError",
            "leaver": "acme_backend:RaisesSystemExit",
            "stopped": "acme_backend:RaisesKeyboardInterrupt",
            "unannotated": "acme_backend:Unannotated",
            "riddle": "acme_backend:HasUnresolvedAnnotation",
            "function": "acme_backend:function",
            "absent": "acme_backend:Absent",
            "module": "acme_odd",
            "localai": "acme_backend:Acme",
        },
    ),
    "raiser": ("raiser", "raise RuntimeError('out of order')", {"raiser": "raiser:R"}),
    "rambler": (
        "rambler",
        "raise ValueError('out of order:\\n  see\\r\\nthe manual')",
        {"rambler": "rambler:R"},
    ),
    "importer": ("importer", "import nowhere_to_be_found", {"importer": "importer:I"}),
    "panicker": (
        "panicker",
        "class Panic(BaseException): pass\nraise Panic('in Rust')",
        {"panicker": "panicker:P"},
    ),
    "halted": ("halted", "raise KeyboardInterrupt", {"halted": "halted:H"}),
    "quitter": ("quitter", "import sys; sys.exit(3)", {"quitter": "quitter:Q"}),
    "typo": ("typo", "def f(:", {"typo": "typo:T"}),
    "twin-one": ("twin_one", GOOD, {"twin": "twin_one:Acme"}),
    "twin-two": ("twin_two", GOOD, {"twin": "twin_two:Acme", "mistral": "twin_two:Acme"}),
}

PROBE = """
import contextlib, io, json, sys
from embedroute.cli import main
from embedroute import Config, ConfigError, Gateway
from embedroute.plugins import list_backends

def start(names, **options):
    providers = {name: {"options": {"api_key": "k", **options}} for name in names} | {"hashed": {}}
    try:
        return sorted(Gateway(Config(gateway={"auth": "open"}, providers=providers)).models.providers)
    except ConfigError as error:
        return list(error.mistakes)
    except KeyboardInterrupt:
        return "stopped by hand"

results = {"listed": [[entry.name, entry.distribution] for entry in list_backends()]}
results["acme"] = start(["acme", "inner"])
results["imported"] = sorted(set(sys.modules) & {MODULES})
results |= {name: start([name]) for name in NAMES}
results["paired"] = [start(["paired"], **options) for options in PAIRED]
results["shaped"] = [start(["shaped"], **options) for options in SHAPED]
results["all"] = start(NAMES)
both = {"localai": {}, "localai/acme": {"backend": "localai", "options": {"api_key": "k"}}, "acme": {"options": {"api_key": "k"}}}
found = Gateway(Config(gateway={"auth": "open"}, providers=both)).models.providers
results["taken"] = {slug: type(provider.backend).__name__ for slug, provider in found.items()}
toml = '[gateway]\\nauth = "open"\\n[providers."localai/eu"]\\nbackend = "localai"\\n[providers.acme]\\napi_key = "k"'
open("my.toml", "w").write(toml)
with contextlib.redirect_stdout(io.StringIO()) as shown:
    main(["check", "my.toml"])
results["checked"] = shown.getvalue().splitlines()
results["stopped"] = [start([name]) for name in ("halted", "stopped")]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of a process in which all these packages are installed."""
    place = tmp_path_factory.mktemp("site")
    for name, (module, code, entries) in PACKAGES.items():
        (place / f"{module}.py").write_text(code)
        info = place / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "\n".join(f"{entry} = {value}" for entry, value in entries.items())
        (info / "entry_points.txt").write_text(f"[embedroute.backends]\n{lines}\n")
    probe = PROBE.replace(
        "MODULES", ", ".join(repr(module) for module, _, _ in PACKAGES.values())
    ).replace("NAMES", repr(NAMES))
    probe = probe.replace("PAIRED", repr([options for options, _ in PAIRED]))
    probe = probe.replace("SHAPED", repr([options for options, _ in SHAPED]))
    return json.loads(
        run(
            [sys.executable, "-c", probe],
            place,
            {"PYTHONPATH": f"{place}:{Path(__file__).parent.parent}"},
        )
    )


MISTAKES = {
    "picky": "the backend \"picky\" (acme_backend:RaisesKeyError of acme-odd) cannot be built: KeyError: 'picky'",
    "strict": 'the backend "strict" (acme_backend:RaisesValueError of acme-odd) cannot be built: size must be even',
    "wordy": 'the backend "wordy" (acme_backend:RaisesMultilineError of acme-odd) cannot be built: size must be even, or not',
    "mute": 'the backend "mute" (acme_backend:RaisesEmptyError of acme-odd) cannot be built: ValueError:',
    "leaver": 'the backend "leaver" (acme_backend:RaisesSystemExit of acme-odd) cannot be built: SystemExit: 3',
    "unannotated": 'the backend "unannotated" (acme_backend:Unannotated of acme-odd) must declare accepts',
    "riddle": "the backend \"riddle\" (acme_backend:HasUnresolvedAnnotation of acme-odd) cannot be built: NameError: name 'Nowhere' is not",
    "function": 'the backend "function" (acme_backend:function of acme-odd) is not an HTTPBackend, LocalBackend or Backend',
    "absent": 'the backend "absent" (acme_backend:Absent of acme-odd) cannot be imported: AttributeError',
    "module": 'the backend "module" (acme_odd of acme-odd) cannot be imported',
    "raiser": 'the backend "raiser" (raiser:R of raiser) cannot be imported: RuntimeError: out of order',
    "rambler": 'the backend "rambler" (rambler:R of rambler) cannot be imported: ValueError: out of order: see the manual',
    "importer": 'the backend "importer" (importer:I of importer) cannot be imported: ModuleNotFoundError',
    "panicker": 'the backend "panicker" (panicker:P of panicker) cannot be imported: Panic: in Rust',
    "quitter": 'the backend "quitter" (quitter:Q of quitter) cannot be imported: SystemExit: 3',
    "typo": 'the backend "typo" (typo:T of typo) cannot be imported: SyntaxError',
    "twin": 'more than one package provides a backend "twin": twin-one, twin-two; uninstall all but one',
    "mistral": 'more than one package provides a backend "mistral": embedroute, twin-two; uninstall all but one',
    "acne": 'no backend "acne" is installed; did you mean "acme"?',
}
NAMES = list(MISTAKES)


def test_installed_backends_are_found(results):
    assert {*map(tuple, results["listed"])} >= {
        ("acme", "acme"),
        ("hashed", "embedroute"),
        ("twin", "twin-one"),
        ("raiser", "raiser"),
    }
    assert sorted(results["listed"]) == sorted(results["listed"], key=lambda item: item[0])
    assert ["acme", "hashed", "inner"] == results["acme"]


def test_only_what_a_config_names_is_imported(results):
    """Installed packages that no config names cost nothing and cannot break anything."""
    assert ["acme_backend"] == results["imported"]


@pytest.mark.parametrize("name", NAMES)
def test_an_error_names_the_broken_backend_and_its_package(name, results):
    (mistake,) = results[name]

    assert 1 == len(mistake.splitlines())
    assert mistake.startswith(f"[providers.{name}] ")
    assert MISTAKES[name] in mistake


def test_a_broken_backend_does_not_affect_the_others(results):
    """With all of them in one config, each has its own mistake and the others still load."""
    assert sorted(item for name in NAMES for item in results[name]) == sorted(results["all"])


def test_a_known_provider_takes_precedence_over_a_plugin_of_its_name(results):
    """An installed package must not receive the API key of a shipped provider."""
    assert {"localai": "OpenAI", "localai/acme": "OpenAI", "acme": "Acme"} == results["taken"]
    assert ["localai", "acme-odd"] not in results["listed"]


def test_check_prints_the_code_and_package_of_each_provider(results):
    assert [line.split() for line in results["checked"][1:3]] == [
        ["localai/eu", "embedroute.backends.openai:OpenAI", "embedroute"],
        ["acme", "acme_backend:Acme", "acme"],
    ]


def test_check_names_a_backend_that_is_not_used(results):
    assert results["checked"][3:] == [
        'the backend "localai" (acme_backend:Acme of acme-odd) is not used: embedroute ships a provider named "localai"'
    ]


UNKNOWN = 'unknown option "colour"'
PAIRED = [
    ({}, ["give first or second"]),
    ({"size": 2, "first": "x"}, ['first must be a whole number; got "x"']),
    ({"size": "3", "first": 1}, ['size must be a whole number; got "3"']),
    ({"size": 3, "first": 1, "colour": 1}, [UNKNOWN, "size must be even"]),
    (
        {"size": 3, "first": 1, "second": "x"},
        ['second must be a whole number; got "x"', "size must be even"],
    ),
    ({"size": 2, "first": 9, "colour": 1}, [UNKNOWN]),
    ({"size": 4, "first": 1, "second": "x"}, ['second must be a whole number; got "x"']),
    ({"size": 4, "first": 1}, ["AttributeError: 'int' object has no attribute 'first'"]),
    ({"size": 2, "first": 9}, ["that is too much"]),
]


def test_errors_from_a_backend_are_reported_with_mistakes_in_its_options(results):
    """Only if the error names an option that could be read, and none that could not."""
    assert [mistakes for _, mistakes in PAIRED] == [
        [
            item.removeprefix("[providers.paired] ").rpartition("cannot be built: ")[2]
            for item in mistakes
        ]
        for mistakes in results["paired"]
    ]


SHAPED = [
    ({"span": [1, "x"]}, 'span[1] must be a whole number; got "x"'),
    ({"loose": {"width": "x"}}, 'loose.width must be a whole number; got "x"'),
    (
        {"share": "x"},
        'the backend "shaped" (acme_backend:Shaped of acme-odd) cannot be built: NotImplementedError:',
    ),
]


def test_a_mistake_in_an_option_of_any_type_is_reported(results):
    """The mistake says where in the value it is; some types can be set in Python only."""
    assert [[f"[providers.shaped] {mistake}"] for _, mistake in SHAPED] == results["shaped"]


def test_keyboard_interrupt_during_an_import_is_propagated(results):
    assert ["stopped by hand"] * 2 == results["stopped"]


def test_a_built_in_backend_is_found_by_name():
    assert OpenAI is load("openai")
    assert set(BUILT_IN) <= {item.name for item in list_backends()}


def test_an_unknown_backend_is_an_error_with_a_suggestion():
    with pytest.raises(
        EmbedrouteError, match='no backend "opnai" is installed; did you mean "openai"'
    ):
        load("opnai")
