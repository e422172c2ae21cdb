"""The house as data: which file may import, call and hold what. A rule that no planted breach sets off is no rule."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import embedroute

PACKAGE = Path(embedroute.__file__).parent

FLOORS = (
    (
        *("wording", "failures", "errors", "shared_failures", "inputs", "turns", "vectors"),
        *("hints", "signals", "faults", "journal", "due", "tasks"),
    ),
    ("secret", "upstream", "backend", "models", "reading", "settings", "tables", "config", "wire", "redact"),
    ("access", "admission", "routing"),
    (
        *("cache", "batching", "flights", "http", "workers", "local", "exchange", "orders", "attempts", "calls"),
        *("perloop", "plugins", "assembly"),
    ),
    ("gateway",),
    ("listing", "headers", "inbound", "explain", "verify", "door", "asgi", "fastapi", "cli"),
)
"""From the ground up; a room imports from floors below, and on its own floor from rooms named before it."""

BESIDE = {
    "backends": {"backend", "errors", "inputs", "turns", "vectors", "backends"},
    "conformance": {"backend", "errors", "inputs", "vectors", "conformance"},
    "testing": {"backend", "errors", "inputs", "vectors", "backends", "conformance"},
}
"""Rooms beside the house → what they may import: what a third party may."""

DOORS = {f"{room}.py" for room in FLOORS[-1]}
HTTP = {
    f"http/{name}.py" for name in ("__init__", "choose", "connection", "fast_engine", "httpx2_connections", "httpx2_engine")
}

HOLDERS = {
    "numpy": {"vectors.py"},
    "orjson": {"vectors.py"},
    "httpx2": {*HTTP, "assembly.py", "gateway.py"},
    "httptools": {"http/connection.py"},
    "starlette": DOORS,
    "fastapi": {"fastapi.py"},
    "uvicorn": {"cli.py"},
    "wordllama": {"backends/wordllama.py"},
    "asyncio": {"due.py", "tasks.py", "perloop.py", "http/connection.py", "http/fast_engine.py"},
    **dict.fromkeys(("aiohttp", "pyreqwest", "requests", "httpx", "urllib3", "trio", "sniffio"), frozenset[str]()),
    **dict.fromkeys(("pickle", "marshal", "shelve", "yaml", "torch", "subprocess", "ctypes"), frozenset[str]()),
}
"""Package → the only files that may know it."""

CALLERS = {
    "create_task_group": {"tasks.py"},
    "start_soon": {"tasks.py"},
    "start_task_soon": {"tasks.py"},
    "create_task": {"tasks.py"},
    "ensure_future": {"tasks.py"},
    "sleep": {"calls.py", "tasks.py", "testing.py", "turns.py"},
    "judge": {"calls.py", "verify.py"},
    "wait_before": {"calls.py"},
    **dict.fromkeys(("eval", "exec", "__import__", "breakpoint"), frozenset[str]()),
}
"""Function → the only files that may call it: one place starts tasks, one retries, none runs text as code."""

LONGEST_FILE, LONGEST_FUNCTION, DEEPEST = 400, 40, 3


def room_of(module: str) -> str:
    """``embedroute.routing.plan`` → ``routing``."""
    return module.split(".")[1] if "." in module else "embedroute"


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, at the top, inside functions, or by ``import_module`` of a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "relative"
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "embedroute" else [module]
        elif isinstance(node, ast.Call) and called(node) == "import_module" and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def allowed(room: str) -> set[str]:
    """The rooms that files of a room may import from, its own among them."""
    if room in BESIDE:
        return BESIDE[room]
    floor = next((at for at, rooms in enumerate(FLOORS) if room in rooms), None)
    if floor is None:
        return set()
    return {name for rooms in FLOORS[:floor] for name in rooms} | set(FLOORS[floor][: FLOORS[floor].index(room) + 1])


def imports_down(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    room = path.partition("/")[0].removesuffix(".py")
    within = allowed(room)
    for module in imported(tree):
        if module == "relative" or (module.partition(".")[0] == "embedroute" and room_of(module) not in within):
            yield f"{path} imports {module}"


def keeps_to_its_packages(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    for module in imported(tree):
        holders = HOLDERS.get(module.partition(".")[0])
        if holders is not None and path not in holders:
            yield f"{path} imports {module}"


def leaves_calls_to_their_place(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and path not in CALLERS.get(called(node), {path}) and not only_yields(node):
            yield f"{path}:{node.lineno} calls {called(node)}"


def only_yields(node: ast.Call) -> bool:
    """``sleep(0)`` lets others run; it is no wait."""
    return called(node) == "sleep" and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0


def is_short(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    if text.count("\n") > LONGEST_FILE:
        yield f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > (LONGEST_FUNCTION if path != "exchange.py" else 40):
                yield f"{path}:{node.name} has {lines} lines"
            if depth(node) > DEEPEST:
                yield f"{path}:{node.name} is {depth(node)} levels deep"


BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def depth(node: ast.AST) -> int:
    """Blocks inside blocks below a function; an ``elif`` is no deeper than its ``if``."""
    below = 0
    for field, children in ast.iter_fields(node):
        for child in children if isinstance(children, list) else [children]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                elif_ = field == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If)
                below = max(below, depth(child) + (isinstance(child, BLOCKS) and not elif_))
    return below


SILENCERS = re.compile(r"#\s*(type|pyright):\s*(ignore|basic)|pragma:\s*no cover")


def silences_no_checker(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del tree
    yield from (f"{path}: {found[0]}" for found in SILENCERS.finditer(text))


def is_named_for_one_thing(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    if Path(path).stem in {"utils", "util", "helpers", "common", "manager", "misc", "base", "core"}:
        yield f"{path} is named for nothing"
    if not (isinstance(tree, ast.Module) and ast.get_docstring(tree)):
        yield f"{path} does not say what it knows"


RULES = (
    imports_down,
    keeps_to_its_packages,
    leaves_calls_to_their_place,
    is_short,
    silences_no_checker,
    is_named_for_one_thing,
)
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def breaches(rule, sources) -> list[str]:
    return [breach for path, text in sources.items() for breach in rule(path, ast.parse(text), text)]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(rule):
    sources = {path: text for path, text in SOURCES.items() if path != "__init__.py" or rule is not imports_down}

    assert [] == breaches(rule, sources)


DOC = '"""Says."""\n'


@pytest.mark.parametrize(
    ("rule", "path", "text", "breach"),
    [
        (imports_down, "errors.py", "from embedroute.inputs import Input", "errors.py imports embedroute.inputs"),
        (imports_down, "routing/plan.py", "def f():\n    from embedroute.calls import Desk", "imports embedroute.calls"),
        (imports_down, "calls.py", "import embedroute.gateway", "imports embedroute.gateway"),
        (imports_down, "calls.py", "from embedroute import asgi", "imports embedroute.asgi"),
        (
            imports_down,
            "models.py",
            "from importlib import import_module\nimport_module('embedroute.config')",
            "imports embedroute.config",
        ),
        (imports_down, "wire/decode.py", "from . import strict", "imports relative"),
        (imports_down, "backends/acme.py", "from embedroute.routing.plan import Key", "imports embedroute.routing.plan"),
        (imports_down, "gateway.py", "from embedroute.testing import ScriptedBackend", "imports embedroute.testing"),
        (imports_down, "newcomer.py", "from embedroute.wording import echo", "newcomer.py imports"),
        (keeps_to_its_packages, "calls.py", "import numpy as np", "calls.py imports numpy"),
        (keeps_to_its_packages, "calls.py", "from numpy.typing import NDArray", "imports numpy.typing"),
        (keeps_to_its_packages, "backends/acme.py", "import httpx2", "imports httpx2"),
        (keeps_to_its_packages, "gateway.py", "def f():\n    import starlette.types", "imports starlette.types"),
        (keeps_to_its_packages, "cache/memory.py", "import pickle", "imports pickle"),
        (leaves_calls_to_their_place, "flights.py", "anyio.create_task_group()", "flights.py:1 calls create_task_group"),
        (leaves_calls_to_their_place, "flights.py", "loop.create_task(f())", "calls create_task"),
        (leaves_calls_to_their_place, "exchange.py", "sleep(1)", "calls sleep"),
        (leaves_calls_to_their_place, "exchange.py", "judge(1, 2, 3)", "calls judge"),
        (leaves_calls_to_their_place, "config.py", "eval('1')", "calls eval"),
        (is_short, "new.py", "x = 1\n" * 401, "new.py has 401 lines"),
        (is_short, "new.py", "def f():\n" + "    x = 1\n" * 40, "new.py:f has 41 lines"),
        (
            is_short,
            "new.py",
            "def f():\n for a in b:\n  if a:\n   with a:\n    while a:\n     pass",
            "new.py:f is 4 levels deep",
        ),
        (silences_no_checker, "new.py", "x = 1  # type: ignore[int]", "new.py: # type"),
        (silences_no_checker, "new.py", "x = 1  # pyright: ignore", "new.py: # pyright"),
        (silences_no_checker, "new.py", "x = 1  # pragma: no cover", "pragma"),
        (is_named_for_one_thing, "wire/utils.py", DOC, "wire/utils.py is named"),
        (is_named_for_one_thing, "new.py", "x = 1", "does not say"),
    ],
)
def test_a_planted_breach_is_found(rule, path, text, breach):
    assert breach in "\n".join(breaches(rule, {path: text}))


def test_code_that_keeps_the_rules_is_left_alone():
    text = DOC + "from embedroute.wording import echo\n\ndef f(a):\n    if a:\n        pass\n    elif echo:\n        pass\n"

    assert [] == [breach for rule in RULES for breach in breaches(rule, {"routing/plan.py": text})]


def test_the_map_in_the_packages_docstring_is_this_one():
    """Whoever reads the package begins there."""
    floors = re.findall(r"^- (.*(?:\n  .*)*)$", str(embedroute.__doc__), re.MULTILINE)
    beside = str(embedroute.__doc__).partition("Beside the house")[2]

    assert list(FLOORS) == [tuple(re.findall(r"``(\w+)``", floor)) for floor in floors]
    assert set(BESIDE) == set(re.findall(r"``(\w+)``", beside))


def test_every_room_is_on_the_map():
    rooms = {path.partition("/")[0].removesuffix(".py") for path in SOURCES} - {"__init__"}

    assert rooms == {room for floor in FLOORS for room in floor} | set(BESIDE)


def test_the_package_exports_what_it_says_in_order():
    assert sorted(embedroute.__all__) == embedroute.__all__
    assert [] == [name for name in embedroute.__all__ if not hasattr(embedroute, name)]


REPLACERS = re.compile(r"unittest\s*import\s*mock|unittest\.mock|\bmocker\b|\bmonkey" + r"patch\b")


def test_tests_replace_nothing():
    """What cannot be tested without a mock is tangled: a script, a policy or a loopback server does."""
    tests = Path(__file__).parent

    assert [] == [str(path) for path in tests.rglob("*.py") if path != Path(__file__) and REPLACERS.search(path.read_text())]
