"""Tests the files of ``deploy``: their syntax, and that what they name exists."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from embedroute import Config, Gateway, embeddings_app
from tests.support.commands import run
from tests.support.documents import ROOT

DEPLOY = ROOT / "deploy"
CONFIG = DEPLOY / "embedroute.toml"
KEY = "a-key-of-enough-characters"


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]


def manifests():
    """The objects of Kubernetes, by kind and name."""
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(text)}


def pod():
    return manifests()["Deployment", "embedroute"]["spec"]["template"]["spec"]


def variables_of_the_pod():
    return {item["name"]: item.get("value") for item in pod()["containers"][0]["env"]}


@pytest.mark.parametrize("variables", [compose()["gateway"]["environment"], variables_of_the_pod()])
def test_the_config_loads_with_the_variables_of_the_deployment(variables):
    text = CONFIG.read_text(encoding="utf-8")
    environ = {**variables, "EMBEDROUTE_KEY": KEY}

    gateway = Gateway.from_file(CONFIG, environ=environ)

    assert set(re.findall(r"env:(\w+)", text)) == set(variables)
    assert gateway.store is not None
    assert gateway.store.place.startswith("valkey://")
    assert list(tomllib.loads(text)["keys"]) == ["clients"]


def test_two_gateways_use_the_valkey_server_of_the_same_file():
    services, objects = compose(), manifests()

    assert services["gateway"]["deploy"]["replicas"] == 2
    assert "//valkey:" in services["gateway"]["environment"]["EMBEDROUTE_STORE"]
    assert set(services["gateway"]["depends_on"]) <= set(services)
    assert objects["Deployment", "embedroute"]["spec"]["replicas"] == 2
    assert "//embedroute-valkey:6379/" in variables_of_the_pod()["EMBEDROUTE_STORE"]
    assert ("Service", "embedroute-valkey") in objects


def test_each_port_of_the_host_leads_to_one_replica():
    gateway = compose()["gateway"]
    (published,) = gateway["ports"]
    _, ports, inside = published.split(":")
    first, last = map(int, ports.split("-"))

    assert last - first + 1 == gateway["deploy"]["replicas"]
    assert inside == "8000"


def test_the_services_and_the_probes_lead_to_the_gateway():
    objects = manifests()
    container = pod()["containers"][0]
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    gateway = Gateway(Config(gateway={"auth": "keys"}, keys={"team": {"key": KEY}}))
    client = TestClient(embeddings_app(gateway))

    assert [200] * 3 == [client.get(probe["path"]).status_code for probe in probes]
    assert {probe["port"] for probe in probes} == {container["ports"][0]["containerPort"]}
    for kind, name in objects:
        if kind != "Service":
            continue
        deployment = objects["Deployment", name]["spec"]["template"]
        assert objects[kind, name]["spec"]["selector"] == deployment["metadata"]["labels"]
        port = objects[kind, name]["spec"]["ports"][0]
        inside = deployment["spec"]["containers"][0]["ports"][0]["containerPort"]
        assert port.get("targetPort", port["port"]) == inside
    volumes = {volume["name"] for volume in pod()["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_paths_of_the_deployment_exist():
    gateway = compose()["gateway"]
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (config,) = re.findall(r"EMBEDROUTE_CONFIG=(\S+)", text)
    (volume,) = gateway["volumes"]
    source, inside, _ = volume.split(":")

    assert (DEPLOY / gateway["build"]["context"] / gateway["build"]["dockerfile"]).is_file()
    assert (DEPLOY / source).is_file()
    assert inside == config
    assert str(Path(config).parent) in {
        mount["mountPath"] for mount in pod()["containers"][0]["volumeMounts"]
    }


def test_the_image_installs_the_extras_that_its_config_needs():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert set(extras.split(",")) == {"standard", "metrics", "redis"}
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_dockerfile_copies_files_that_exist_and_runs_a_command_that_exists():
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    sources = [
        name
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    (command,) = re.findall(r'^CMD \["embedroute", (.+)\]$', text, re.MULTILINE)
    words = re.findall(r'"([^"]+)"', command)
    described = run([Path(sys.executable).with_name("embedroute"), words[0], "--help"], ROOT)

    (health,) = re.findall(r"http://127\.0\.0\.1:8000(/[\w/]+)", text)
    app = embeddings_app(Gateway(Config(gateway={"auth": "keys"}, keys={"team": {"key": "sk"}})))

    assert TestClient(app).get(health).status_code == 200
    assert "pyproject.toml" in sources
    assert [] == [name for name in sources if not (ROOT / name).exists()]
    assert [] == [word for word in words if word.startswith("--") and word not in described]
