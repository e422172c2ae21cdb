"""Tests that the examples run on a real server as their READMEs and comments say."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tests.support.commands import run, serving
from tests.support.documents import CAT, FELINE, ROOT, STOCKS, blocks
from tests.support.serving import Serving

EXAMPLES = ROOT / "examples"
COMPARING = [
    "plain_starlette",
    pytest.param("litestar_app", marks=pytest.mark.slow),
    pytest.param("quart_app", marks=pytest.mark.slow),
]
LOCAL = {"model": "wordllama", "input": CAT}


def post(server, body, key=""):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(f"{server.url}/ai/v1/embeddings", json=body, headers=headers, timeout=120)


@pytest.mark.parametrize("name", COMPARING)
def test_an_example_serves_clients_and_embeds_in_its_own_routes(name):
    with Serving(f"examples.{name}", debug=False) as server:
        served = post(server, LOCAL)
        near, far = (
            httpx2.get(f"{server.url}/compare", params={"a": CAT, "b": other}, timeout=120).json()
            for other in (FELINE, STOCKS)
        )

    assert served.status_code == 200
    assert near["similarity"] > far["similarity"]
    # Litestar logs what the gateway logs at INFO.
    assert not re.search("error|warning|traceback", server.said, re.IGNORECASE)


def test_the_rows_of_a_table_decide_which_models_a_key_may_use():
    with Serving("examples.own_login", debug=False) as server:
        statuses = [post(server, LOCAL, key).status_code for key in ("search-key", "ads-key", "no")]
        own_model = post(server, {"model": "hashed", "input": CAT}, "ads-key").status_code
        document = httpx2.get(f"{server.url}/openapi.json").json()

    assert (statuses, own_model) == ([200, 403, 401], 200)
    assert set(document["components"]["securitySchemes"]) == {"HTTPBearer"}
    assert server.said == ""


@pytest.mark.slow
def test_a_user_of_django_who_has_signed_in_may_embed(tmp_path):
    environ = {
        "DATABASE": str(tmp_path / "users.sqlite3"),
        "DJANGO_SETTINGS_MODULE": "examples.django_users.settings",
        "DJANGO_SUPERUSER_PASSWORD": "secret",
    }
    django = [sys.executable, "-m", "django"]
    run([*django, "migrate", "--verbosity", "0"], ROOT, environ)
    user = ["--username", "ada", "--email", "ada@example.com"]
    run([*django, "createsuperuser", "--noinput", *user], ROOT, environ)

    with (
        Serving("examples.django_users.asgi", environ=environ, debug=False) as server,
        httpx2.Client(base_url=server.url, timeout=120, follow_redirects=True) as client,
    ):
        before = client.post("/ai/v1/embeddings", json=LOCAL)
        page = client.get("/admin/login/").text
        (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        form = {"username": "ada", "password": "secret", "csrfmiddlewaretoken": token}
        client.post("/admin/login/?next=/admin/", data=form)
        after = client.post("/ai/v1/embeddings", json=LOCAL)

    assert (before.status_code, after.status_code) == (401, 200)
    assert server.said == ""


class Step(NamedTuple):
    """A request to the fallback example: its preferred provider, and the headers of the answer."""

    text: str
    first: str
    provider: str | None
    cache: str


STEPS = [
    Step("a text", "openai", "backup", "hits=0 misses=1"),
    Step("a text", "openai", None, "hits=1 misses=0"),
    Step("another", "backup", "backup", "hits=0 misses=1"),
]


@pytest.mark.slow
def test_the_fallback_example_falls_back_and_caches(tmp_path):
    """Only the ports of its config are replaced, by free ones."""
    config = tmp_path / "embedroute.toml"
    embedroute = Path(sys.executable).with_name("embedroute")
    with Serving("examples.fallback.fake_openai", debug=False) as upstream:
        text = (EXAMPLES / "fallback/embedroute.toml").read_text(encoding="utf-8")
        config.write_text(text.replace("http://127.0.0.1:9001", upstream.url), encoding="utf-8")
        with serving([embedroute, "serve", "--port", "0", "--config", config], tmp_path) as url:
            for step in STEPS:
                others = ["openai", "backup"]
                order = sorted(others, key=lambda name: name != step.first)
                body = {"model": "letters", "input": step.text, "provider": {"order": order}}
                answer = httpx2.post(f"{url}/v1/embeddings", json=body, timeout=60)

                assert answer.status_code == 200
                assert answer.headers.get("x-embedroute-provider") == step.provider
                assert answer.headers["x-embedroute-cache"] == step.cache


def test_every_example_is_listed_and_every_command_of_the_list_names_one():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = {path.stem if path.is_file() else path.name for path in EXAMPLES.iterdir()}
    modules = re.findall(r"(?:uvicorn|hypercorn) examples\.([\w.]+):app", text)

    assert [] == [name for name in names - {"README", "__pycache__"} if f"]({name}" not in text]
    assert modules
    assert [] == [
        name for name in modules if not (EXAMPLES / f"{name.replace('.', '/')}.py").exists()
    ]


@pytest.mark.parametrize(
    "path", ["examples/own_login.py", "examples/django_users/asgi.py"], ids=lambda path: path
)
def test_the_guide_shows_the_example_as_it_is(path):
    assert (ROOT / path).read_text(encoding="utf-8") in blocks(
        ROOT / "docs/authentication.md", "python"
    )
