"""``new-backend`` writes a package that installs and passes its tests."""

import sys
import tomllib
import venv

import pytest

from embedroute.cli import main
from embedroute.plugins import GROUP
from tests.support.commands import pip, run
from tests.support.documents import ROOT
from tests.support.forked import Place, run_tests, run_to_end
from tests.support.pages import read_blocks


@pytest.mark.parametrize("options", [[], ["--local"]], ids=["HTTP API", "local model"])
@pytest.mark.thorough
def test_the_test_of_a_new_backend_passes(options, tmp_path, capsys):
    assert main(["new-backend", "acme-2", *options, "--directory", str(tmp_path)]) == 0

    package = tmp_path / "embedroute-acme-2"
    files = {path.name for path in package.iterdir()}
    assert files == {"pyproject.toml", "embedroute_acme_2.py", "test_embedroute_acme_2.py"}
    assert f"cd {package}" in capsys.readouterr().out
    place = Place(directory=package, environ={}, path=[])
    status, output = run_to_end(place, run_tests, "test_embedroute_acme_2.py")
    assert (status, "1 passed" in output) == (0, True), output


def test_a_new_backend_registers_its_class(tmp_path):
    main(["new-backend", "acme", "--directory", str(tmp_path)])

    text = (tmp_path / "embedroute-acme" / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    assert project["name"] == "embedroute-acme"
    assert project["entry-points"][GROUP] == {"acme": "embedroute_acme:Acme"}


def test_the_guide_shows_what_the_command_writes(tmp_path):
    main(["new-backend", "acme", "--directory", str(tmp_path)])

    shown = {
        block.title: block.code
        for block in read_blocks(ROOT / "docs" / "backends.md")
        if block.title.startswith("embedroute-acme/")
    }
    files = (tmp_path / "embedroute-acme").iterdir()
    assert shown == {
        f"embedroute-acme/{path.name}": path.read_text(encoding="utf-8") for path in files
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Acme", "'Acme' is not a name"),
        ("acme_2", "'acme_2' is not a name"),
        ("../acme", "'../acme' is not a name"),
        ("2acme", "'2acme' is not a name"),
        ("acme\n", "is not a name"),
        ("hashed", 'ships a provider named "hashed"'),
        ("jina", 'ships a provider named "jina"'),
    ],
)
def test_a_name_that_no_config_could_use_is_refused(name, message, tmp_path, capsys):
    assert main(["new-backend", name, "--directory", str(tmp_path)]) == 1

    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_package_is_not_overwritten(tmp_path, capsys):
    package = tmp_path / "embedroute-acme"
    package.mkdir()

    assert main(["new-backend", "acme", "--directory", str(tmp_path)]) == 1
    assert f"{package} exists" in capsys.readouterr().err
    assert list(package.iterdir()) == []


@pytest.mark.slow
def test_a_new_backend_works_where_embedroute_is_installed(tmp_path):
    """Its package and the wheel of embedroute, in an empty environment."""
    pip("wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    elsewhere = tmp_path / "venv"
    venv.create(elsewhere)
    python = elsewhere / "bin" / "python"
    pip("--python", python, "install", wheel, "pytest", "hatchling", cwd=tmp_path)
    command = elsewhere / "bin" / "embedroute"

    run([command, "new-backend", "acme"], tmp_path)
    package = tmp_path / "embedroute-acme"
    pip("--python", python, "install", "--no-build-isolation", package, cwd=tmp_path)

    assert "1 passed" in run([python, "-m", "pytest"], package)
    rows = [line.split()[:3] for line in run([command, "backends"], tmp_path).splitlines()]
    assert ["acme", "embedroute_acme:Acme", "embedroute-acme"] in rows


def test_pytest_does_not_import_embedroute_when_it_starts():
    code = (
        "import sys, pytest_embedroute; print('embedroute' in sys.modules, 'numpy' in sys.modules)"
    )

    assert run([sys.executable, "-c", code], ROOT).split() == ["False", "False"]
