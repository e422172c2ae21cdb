"""Backends of other people's packages: found by name, loaded only when named, and each harmless to the others.

The packages are real ones, written into a folder of their own; one process tries them all, for starting one is dear.
"""

import json
import sys
from pathlib import Path

import pytest

from embedroute.backends.openai import OpenAI
from embedroute.errors import EmbedrouteError
from embedroute.plugins import BUILT_IN, listed, load
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

class Picky(Acme):
    def __post_init__(self):
        raise KeyError("picky")

class Strict(Acme):
    def __post_init__(self):
        raise ValueError("size must be even")

class Wordy(Acme):
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

class Mute(Acme):
    def __post_init__(self):
        raise ValueError

class Leaver(Acme):
    def __post_init__(self):
        raise SystemExit(3)

class Stopped(Acme):
    def __post_init__(self):
        raise KeyboardInterrupt

class Unannotated(Acme):
    accepts = {"max_inputs": 3}

class Riddle(Acme):
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
            "picky": "acme_backend:Picky",
            "strict": "acme_backend:Strict",
            "wordy": "acme_backend:Wordy",
            "paired": "acme_backend:Paired",
            "shaped": "acme_backend:Shaped",
            "mute": "acme_backend:Mute",
            "leaver": "acme_backend:Leaver",
            "stopped": "acme_backend:Stopped",
            "unannotated": "acme_backend:Unannotated",
            "riddle": "acme_backend:Riddle",
            "function": "acme_backend:function",
            "absent": "acme_backend:Absent",
            "module": "acme_odd",
            "vllm": "acme_backend:Acme",
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
from embedroute.plugins import listed

def start(names, **options):
    providers = {name: {"options": {"api_key": "k", **options}} for name in names} | {"hashed": {}}
    try:
        return sorted(Gateway(Config(gateway={"auth": "open"}, providers=providers)).directory.providers)
    except ConfigError as error:
        return list(error.mistakes)
    except KeyboardInterrupt:
        return "stopped by hand"

told = {"listed": [[it.name, it.distribution] for it in listed()]}
told["acme"] = start(["acme", "inner"])
told["imported"] = sorted(set(sys.modules) & {MODULES})
told |= {name: start([name]) for name in NAMES}
told["paired"] = [start(["paired"], **options) for options in PAIRED]
told["shaped"] = [start(["shaped"], **options) for options in SHAPED]
told["all"] = start(NAMES)
both = {"vllm": {}, "vllm/acme": {"backend": "vllm", "options": {"api_key": "k"}}, "acme": {"options": {"api_key": "k"}}}
found = Gateway(Config(gateway={"auth": "open"}, providers=both)).directory.providers
told["taken"] = {slug: type(it.backend).__name__ for slug, it in found.items()}
toml = '[gateway]\\nauth = "open"\\n[providers."vllm/eu"]\\nbackend = "vllm"\\n[providers.acme]\\napi_key = "k"'
open("my.toml", "w").write(toml)
with contextlib.redirect_stdout(io.StringIO()) as shown:
    main(["check", "my.toml"])
told["checked"] = shown.getvalue().splitlines()
told["stopped"] = [start([name]) for name in ("halted", "stopped")]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process with all these packages installed tells."""
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
    "picky": "the backend \"picky\" (acme_backend:Picky of acme-odd) cannot be made: KeyError: 'picky'",
    "strict": 'the backend "strict" (acme_backend:Strict of acme-odd) cannot be made: size must be even',
    "wordy": 'the backend "wordy" (acme_backend:Wordy of acme-odd) cannot be made: size must be even, or not',
    "mute": 'the backend "mute" (acme_backend:Mute of acme-odd) cannot be made: ValueError:',
    "leaver": 'the backend "leaver" (acme_backend:Leaver of acme-odd) cannot be made: SystemExit: 3',
    "unannotated": 'the backend "unannotated" (acme_backend:Unannotated of acme-odd) must declare accepts',
    "riddle": "the backend \"riddle\" (acme_backend:Riddle of acme-odd) cannot be made: NameError: name 'Nowhere' is not",
    "function": 'the backend "function" (acme_backend:function of acme-odd) is not an HTTPBackend, LocalBackend or Backend',
    "absent": 'the backend "absent" (acme_backend:Absent of acme-odd) does not import: AttributeError',
    "module": 'the backend "module" (acme_odd of acme-odd) does not import',
    "raiser": 'the backend "raiser" (raiser:R of raiser) does not import: RuntimeError: out of order',
    "rambler": 'the backend "rambler" (rambler:R of rambler) does not import: ValueError: out of order: see the manual',
    "importer": 'the backend "importer" (importer:I of importer) does not import: ModuleNotFoundError',
    "panicker": 'the backend "panicker" (panicker:P of panicker) does not import: Panic: in Rust',
    "quitter": 'the backend "quitter" (quitter:Q of quitter) does not import: SystemExit: 3',
    "typo": 'the backend "typo" (typo:T of typo) does not import: SyntaxError',
    "twin": 'two packages bring a backend "twin": twin-one, twin-two; uninstall one',
    "mistral": 'two packages bring a backend "mistral": embedroute, twin-two; uninstall one',
    "acne": 'no backend "acne" is installed; did you mean "acme"?',
}
NAMES = list(MISTAKES)


def test_installed_backends_are_found(told):
    assert {*map(tuple, told["listed"])} >= {
        ("acme", "acme"),
        ("hashed", "embedroute"),
        ("twin", "twin-one"),
        ("raiser", "raiser"),
    }
    assert sorted(told["listed"]) == sorted(told["listed"], key=lambda it: it[0])
    assert ["acme", "hashed", "inner"] == told["acme"]


def test_only_what_a_config_names_is_imported(told):
    """A package that is merely installed costs nothing and cannot break anything."""
    assert ["acme_backend"] == told["imported"]


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_backend_names_itself_and_its_package(name, told):
    (mistake,) = told[name]

    assert 1 == len(mistake.splitlines())
    assert mistake.startswith(f"[providers.{name}] ")
    assert MISTAKES[name] in mistake


def test_a_broken_backend_harms_no_other(told):
    """All of them at once: each has its own line and nothing else is lost."""
    assert sorted(it for name in NAMES for it in told[name]) == sorted(told["all"])


def test_a_known_provider_goes_before_an_installed_backend_of_its_name(told):
    """A package that is merely installed must not be given the key that was meant for a shipped provider."""
    assert {"vllm": "OpenAI", "vllm/acme": "OpenAI", "acme": "Acme"} == told["taken"]
    assert ["vllm", "acme-odd"] not in told["listed"]


def test_check_says_whose_code_runs_for_each_provider(told):
    assert [line.split() for line in told["checked"][1:3]] == [
        ["vllm/eu", "embedroute.backends.openai:OpenAI", "embedroute"],
        ["acme", "acme_backend:Acme", "acme"],
    ]


def test_check_names_a_backend_that_is_not_used(told):
    assert told["checked"][3:] == [
        'the backend "vllm" (acme_backend:Acme of acme-odd) is not used: embedroute itself ships a provider "vllm"'
    ]


UNKNOWN = 'unknown option "colour"'
PAIRED = [
    ({}, ["give first or second"]),
    ({"size": 2, "first": "x"}, ["first: Expected int, got str"]),
    ({"size": "3", "first": 1}, ["size: Expected int, got str"]),
    ({"size": 3, "first": 1, "colour": 1}, [UNKNOWN, "size must be even"]),
    (
        {"size": 3, "first": 1, "second": "x"},
        ["second: Expected int, got str", "size must be even"],
    ),
    ({"size": 2, "first": 9, "colour": 1}, [UNKNOWN]),
    ({"size": 4, "first": 1, "second": "x"}, ["second: Expected int, got str"]),
    ({"size": 4, "first": 1}, ["AttributeError: 'int' object has no attribute 'first'"]),
    ({"size": 2, "first": 9}, ["that is too much"]),
]


def test_what_a_backend_says_of_its_options_is_told_with_what_they_are_not(told):
    """If it names an option that could be read and none that could not: of the rest nobody knows."""
    assert [mistakes for _, mistakes in PAIRED] == [
        [
            it.removeprefix("[providers.paired] ").rpartition("cannot be made: ")[2]
            for it in mistakes
        ]
        for mistakes in told["paired"]
    ]


SHAPED = [
    ({"span": [1, "x"]}, "span: Expected int, got str at [1]"),
    ({"loose": {"width": "x"}}, "loose: Expected int, got str at .width"),
    (
        {"share": "x"},
        'the backend "shaped" (acme_backend:Shaped of acme-odd) cannot be made: NotImplementedError:',
    ),
]


def test_an_option_of_any_shape_is_named(told):
    """Where it is not a table or a list of one kind, its own mistake says where in it; some types only Python can fill."""
    assert [[f"[providers.shaped] {mistake}"] for _, mistake in SHAPED] == told["shaped"]


def test_whoever_stops_the_start_by_hand_is_obeyed(told):
    assert ["stopped by hand"] * 2 == told["stopped"]


def test_a_built_in_is_found_by_its_name():
    assert OpenAI is load("openai")
    assert set(BUILT_IN) <= {it.name for it in listed()}


def test_an_unknown_name_is_refused_with_advice():
    with pytest.raises(
        EmbedrouteError, match='no backend "opnai" is installed; did you mean "openai"'
    ):
        load("opnai")
