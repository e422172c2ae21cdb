"""The HTTP client of the JDK, which Spring AI and LangChain4j use, against ``embedroute serve``.

By default it offers HTTP/2 with every plain request (``Upgrade: h2c``), and a server that takes the
offer amiss loses the body.
"""

import shutil
import sys
from pathlib import Path

import pytest

from tests.support.commands import run, serving
from tests.support.tls import certified

SERVE = (sys.executable, "-m", "embedroute", "serve", "--port", "0")
SOURCE = Path(__file__).parent / "jdk" / "Embed.java"
KEY = "sk-served-0123456789"
CONFIG = f"""
[gateway]
auth = "keys"
[keys.team]
key = "{KEY}"
[providers.hashed]
[models.m]
dimensions = 8
endpoints = [{{ provider = "hashed" }}]
"""
ALL_ANSWERED = ["200 3 HTTP_1_1"] * 4


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The command that runs the compiled client."""
    if not (shutil.which("java") and shutil.which("javac")):
        pytest.skip("a JDK is not installed: no java or no javac in PATH")
    classes = tmp_path_factory.mktemp("classes")
    run(["javac", "-d", classes, SOURCE], classes)
    return ["java", "-cp", classes, "Embed"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "embedroute.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.slow
def test_the_client_of_the_jdk_keeps_its_bodies(client, place):
    with serving(SERVE, place) as url:
        assert run([*client, url, KEY], place).splitlines() == ALL_ANSWERED


@pytest.mark.slow
def test_the_client_of_the_jdk_works_over_tls(client, place):
    certificate, _ = certified(place)
    files = ["--ssl-certfile", certificate, "--ssl-keyfile", place / "key.pem"]

    with serving([*SERVE, *files], place) as url:
        address = url.replace("127.0.0.1", "localhost")
        assert run([*client, address, KEY, certificate], place).splitlines() == ALL_ANSWERED
