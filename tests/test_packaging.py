"""What is shipped: a wheel with all of the package and nothing else, which works in an empty environment."""

import tomllib
import venv
from email.parser import Parser
from zipfile import ZipFile

import httpx2
import pytest

from embedroute.plugins import BUILT_IN, GROUP
from tests.commands import SERVE, pip, run, serving
from tests.documents import README, ROOT, SENTENCES, has, nearer_and_farther

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INFO = f"embedroute-{PROJECT['version']}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", place, ROOT, cwd=place)
    (built,) = place.iterdir()
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())

    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("embedroute/**/*") if path.is_file()}
    shipped = {name for name in package if "__pycache__" not in name}
    info = {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == shipped | info
    assert names >= {"embedroute/py.typed", "embedroute/catalogue.json", "embedroute/providers.json"}


def test_the_wheel_says_what_it_is(wheel):
    with ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{INFO}/METADATA").decode())

    told = [metadata[name] for name in ("Name", "Version", "Requires-Python", "License-Expression")]
    assert told == ["embedroute", PROJECT["version"], ">=3.11", "Apache-2.0"]
    assert metadata.get_payload().strip() == README.read_text(encoding="utf-8").strip()


def test_built_in_backends_are_entry_points_too():
    """One table for the common case that scans nothing, one for everybody who asks the metadata."""
    assert PROJECT["entry-points"][GROUP] == BUILT_IN


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")

    assert [part in text for part in ("Version 2.0, January 2004", "END OF TERMS AND CONDITIONS")] == [True, True]


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
        answer = httpx2.post(f"{url}/ai/v1/embeddings", json={"model": "wordllama", "input": SENTENCES}, timeout=120)

    assert imported.startswith(str(elsewhere))
    assert [line.split()[0] for line in backends.splitlines()] == sorted(BUILT_IN)
    near, far = nearer_and_farther(answer.json())
    assert near > far
