"""What is shipped: a wheel with all of the package and nothing else, which works in an empty environment."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
from email.parser import Parser
from importlib.metadata import requires
from zipfile import ZipFile

import httpx2
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import embedroute
from embedroute.errors import MissingExtra
from embedroute.plugins import BUILT_IN, GROUP
from tests.support.commands import SERVE, pip, run, serving
from tests.support.documents import README, ROOT, SENTENCES, has, nearer_and_farther

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = "https://github.com/embedroute/embedroute"
INFO = f"embedroute-{embedroute.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def build_wheel(source, place):
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", place]
    pip("wheel", *options, source, cwd=place)
    (built,) = place.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    place = tmp_path_factory.mktemp("sdist")
    run(
        [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", place],
        ROOT,
    )
    (built,) = place.iterdir()
    return built


@pytest.mark.slow
def test_the_sdist_holds_all_files_of_the_repository(sdist):
    if not (ROOT / ".git").exists():
        pytest.skip("these tests do not run in a clone")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}

    tracked = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT)
    assert names == {*tracked.split(), "PKG-INFO"}
    assert names >= {"LICENSE", "README.md", "docs/index.md", "tests/conftest.py", "scripts/test"}


@pytest.mark.slow
def test_the_wheel_of_the_sdist_is_the_wheel_of_the_repository(sdist, wheel, tmp_path):
    with ZipFile(build_wheel(sdist, tmp_path)) as of_sdist, ZipFile(wheel) as of_repository:
        actual = {name: of_sdist.read(name) for name in of_sdist.namelist()}
        expected = {name: of_repository.read(name) for name in of_repository.namelist()}

    assert actual == expected


@pytest.fixture(scope="module")
def metadata(wheel):
    with ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"{INFO}/METADATA").decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())

    package = {
        str(path.relative_to(ROOT)) for path in ROOT.glob("embedroute/**/*") if path.is_file()
    }
    shipped = {name for name in package if "__pycache__" not in name}
    info = {
        f"{INFO}/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    assert names == shipped | info | {"pytest_embedroute.py"}
    assert names >= {
        "embedroute/py.typed",
        "embedroute/config/data/models.json",
        "embedroute/config/data/providers.json",
    }


def test_the_wheel_says_what_it_is(metadata):
    actual = [
        metadata[name] for name in ("Name", "Version", "Requires-Python", "License-Expression")
    ]
    assert actual == ["embedroute", embedroute.__version__, ">=3.11", "Apache-2.0"]


def test_the_metadata_links_to_the_repository_and_to_files_that_exist(metadata):
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))

    assert list(urls) == ["Homepage", "Documentation", "Repository", "Issues", "Changelog"]
    assert all(url.startswith(REPOSITORY) for url in urls.values())
    assert [] == missing_files(urls.values())


def test_the_readme_of_the_metadata_has_only_absolute_links(metadata):
    """PyPI shows it away from the repository."""
    text = metadata.get_payload()
    links = re.findall(r"\]\(([^)]*)\)", text)

    assert [] == [link for link in links if not link.startswith("https://")]
    assert [] == missing_files(links)
    assert (
        text.replace(f"{REPOSITORY}/blob/main/", "").strip()
        == README.read_text(encoding="utf-8").strip()
    )


def missing_files(urls):
    """The URLs that lead to a file of the repository that is not there."""
    prefix = f"{REPOSITORY}/blob/main/"
    files = {
        url: url.removeprefix(prefix).partition("#")[0] for url in urls if url.startswith(prefix)
    }
    assert files
    return [url for url, path in files.items() if not (ROOT / path).is_file()]


def test_built_in_backends_are_entry_points_too():
    """One table for the common case that scans nothing, one for everybody who asks the metadata."""
    assert PROJECT["entry-points"][GROUP] == BUILT_IN


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")

    assert [
        part in text for part in ("Version 2.0, January 2004", "END OF TERMS AND CONDITIONS")
    ] == [True, True]


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path):
    """The README's mounted application, installed and run elsewhere."""
    elsewhere = tmp_path / "venv"
    venv.create(elsewhere)
    python = elsewhere / "bin" / "python"
    pip("--python", python, "install", f"{wheel}[standard,fastapi]", cwd=tmp_path)
    (tmp_path / "app.py").write_text(has(README, "app.mount"), encoding="utf-8")

    imported = run([python, "-c", "import embedroute; print(embedroute.__file__)"], tmp_path)
    backends = run([elsewhere / "bin" / "embedroute", "backends"], tmp_path)
    with serving([python, *SERVE, "app:app"], tmp_path) as url:
        answer = httpx2.post(
            f"{url}/ai/v1/embeddings", json={"model": "wordllama", "input": SENTENCES}, timeout=120
        )

    assert imported.startswith(str(elsewhere))
    assert [line.split()[0] for line in backends.splitlines()] == sorted(BUILT_IN)
    near, far = nearer_and_farther(answer.json())
    assert near > far


def requirements():
    """Every dependency of the package and of its extras, but the extras that name others of its own."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(text) for texts in lists for text in texts]
    return [item for item in found if item.name != PROJECT["name"]]


REQUIREMENTS = requirements()
ADVISORIES = tomllib.loads((ROOT / "scripts" / "advisories.toml").read_text(encoding="utf-8"))[
    "advisory"
]


def lowest(requirement):
    return next(item.version for item in requirement.specifier if item.operator in {">=", "=="})


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement):
    assert {item.operator for item in requirement.specifier} == {">=", "<"}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_no_lower_bound_lets_in_a_version_with_a_known_vulnerability(requirement):
    affecting = [item for item in ADVISORIES if item["package"] == requirement.name]

    assert [] == [
        item["ids"]
        for item in affecting
        if SpecifierSet(item["affected"]).contains(lowest(requirement))
    ]


def test_every_advisory_is_about_a_package_that_is_installed_and_names_its_source():
    known = {item.name for item in REQUIREMENTS} | {
        "h11",
        "httpcore2",
    }  # what the others use for HTTP

    assert {item["package"] for item in ADVISORIES} <= known
    assert [] == [
        item
        for item in ADVISORIES
        if not (item["ids"] and item["summary"] and item["source"].startswith("https://"))
    ]


def audit(*arguments):
    command = [sys.executable, ROOT / "scripts" / "audit", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own script
    return ended.returncode, ended.stdout


ADVISORY = """date = {date}
[[advisory]]
package = "{package}"
affected = "{affected}"
ids = ["CVE-2000-0001"]
summary = "It is planted."
source = "https://example.com"
"""


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"affected": "<9999"}, 1, "CVE-2000-0001: It is planted."),
        ({"affected": "<0.0.1"}, 0, "1 packages, 0 advisories apply; data of 2026-11-28"),
        ({"package": "is-not-installed", "affected": "<9999"}, 0, "0 packages, 0 advisories apply"),
        (
            {"affected": "<9999", "date": "2020-01-01"},
            1,
            "older than 90 days: look for new advisories",
        ),
        ({"affected": "no version"}, 2, "could not be made: InvalidSpecifier"),
        ({"date": "[["}, 2, "could not be made: TOMLDecodeError"),
    ],
)
def test_the_audit_says_what_applies_or_that_it_could_not_be_made(changes, status, said, tmp_path):
    fields = {"date": "2026-11-28", "package": "msgspec", "affected": "<0.0.1", **changes}
    (tmp_path / "advisories.toml").write_text(ADVISORY.format(**fields), encoding="utf-8")

    assert audit(tmp_path / "advisories.toml")[0] == status
    assert said in audit(tmp_path / "advisories.toml")[1]


def test_an_audit_without_its_file_could_not_be_made(tmp_path):
    status, said = audit(tmp_path / "nowhere.toml")

    assert status == 2
    assert "could not be made: FileNotFoundError" in said


def test_no_known_vulnerability_applies_to_what_is_installed():
    assert audit()[0] == 0, audit()[1]


def test_ci_checks_vulnerabilities_and_runs_all_tests_and_the_lowest_versions():
    assert "scripts/audit" in (ROOT / "scripts" / "check").read_text(encoding="utf-8")
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    runs = {
        "scripts/test --coverage",
        "scripts/test --slow",
        "scripts/test-lowest",
    }
    assert runs <= set(lines)


def test_every_test_that_the_security_page_names_exists():
    """The page must not promise what is no longer tested."""
    named = set(
        re.findall(r"`(tests/[\w/.]+\.py)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    )

    assert [] == sorted(path for path in named if not (ROOT / path).is_file())
    assert len(named) >= 10


def test_every_test_that_a_script_names_exists():
    """A script that names no test runs none."""
    script = (ROOT / "scripts/test-lowest").read_text(encoding="utf-8")
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", script)

    assert named
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def missing_extras():
    """The extra and the package of every ``MissingExtra`` that the package raises or quotes."""
    nodes = (
        node
        for path in (ROOT / "embedroute").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )
    return {
        tuple(argument.value for argument in node.args)
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtra"
    }


def installs(requirement):
    """The packages that a requirement names, with those of its extras."""
    if not requirement.extras:
        return {requirement.name}  # it need not be installed here
    needs = [Requirement(text) for text in requires(requirement.name) or []]
    return {requirement.name} | {
        need.name
        for need in needs
        for extra in requirement.extras
        if need.marker and need.marker.evaluate({"extra": extra})
    }


@pytest.mark.parametrize(("extra", "package"), sorted(missing_extras()))
def test_the_extra_that_an_error_names_installs_the_missing_package(extra, package):
    requirements = map(Requirement, PROJECT["optional-dependencies"][extra])
    packages = set[str]().union(*map(installs, requirements))

    assert canonicalize_name(package) in set(map(canonicalize_name, packages))
    assert MissingExtra(extra, package).message.endswith(f"pip install 'embedroute[{extra}]'")


def test_every_extra_is_named_by_an_error():
    """``standard`` only joins others."""
    assert {extra for extra, _ in missing_extras()} == {*PROJECT["optional-dependencies"]} - {
        "standard"
    }
