"""Tests the conversion of realistic configs of LiteLLM's proxy."""

import sys
import tomllib

import jsonschema
import pytest

from embedroute import Gateway
from embedroute.cli import main
from embedroute.config_schema import build_schema
from tests.support.commands import run

OPENAI = """
model_list:
  - model_name: text-embedding-3-small
    litellm_params:
      model: openai/text-embedding-3-small
      api_key: os.environ/OPENAI_API_KEY
  - model_name: text-embedding-3-large
    litellm_params: { model: text-embedding-3-large }
    model_info: { mode: embedding }
  - model_name: gpt-4o
    litellm_params: { model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY }
  - model_name: whisper
    litellm_params: { model: openai/whisper-1 }
    model_info: { mode: audio_transcription }
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  database_url: os.environ/DATABASE_URL
litellm_settings:
  drop_params: true
  num_retries: 3
  request_timeout: 30
"""

BALANCED = """
model_list:
  - model_name: bge
    litellm_params:
      model: hosted_vllm/BAAI/bge-m3
      api_base: http://vllm-1:8000/v1/
      weight: 3
      timeout: 7000
  - model_name: bge
    litellm_params:
      model: huggingface/BAAI/bge-m3
      api_base: http://tei:8080
      api_key: hf_secret
      rpm: 60
  - model_name: bge
    litellm_params: { model: ollama/bge-m3, api_base: "http://localhost:11434", max_parallel_requests: 4 }
  - model_name: bge
    litellm_params: { model: together_ai/BAAI/bge-base-en-v1.5 }
  - model_name: e5
    litellm_params: { model: xinference/e5-large, api_base: "http://0.0.0.0:9997/v1" }
    model_info: { mode: embedding, output_vector_size: 1024, input_cost_per_token: 0.00000002, max_input_tokens: 512 }
  - model_name: codebert
    litellm_params: { model: triton/codebert-embed }
router_settings:
  routing_strategy: least-busy
  fallbacks: [{ "bge": ["gpt-4o", "e5"] }, { "gpt-4o": ["gpt-3.5"] }]
  model_group_alias: { "default": "bge", "old": { "model": "none" } }
"""

AZURE = """
model_list:
  - model_name: ada
    litellm_params:
      model: azure/my-ada
      api_base: https://eu.openai.azure.com/
      api_key: os.environ/AZURE_EU
      api_version: "2024-02-01"
    model_info: { mode: embedding, base_model: azure/text-embedding-ada-002 }
  - model_name: ada
    litellm_params:
      model: azure/other-ada
      litellm_credential_name: us
    model_info: { mode: embedding }
  - model_name: ada
    litellm_params: { model: azure/third, api_base: os.environ/AZURE_API_BASE, azure_ad_token: os.environ/TOKEN }
    model_info: { mode: embedding }
  - model_name: jina
    litellm_params: { model: jina_ai/jina-embeddings-v3, litellm_credential_name: lost, extra_headers: { x-team: os.environ/TEAM } }
  - model_name: one
    litellm_params: { model: openai/nomic-embed, api_base: "http://one/v1", organization: o, extra_headers: { x-team: os.environ/TEAM } }
  - model_name: watson
    litellm_params: { model: oci/slate-embed }
  - model_name: "openai/*"
    litellm_params: { model: "openai/*" }
credential_list:
  - credential_name: us
    credential_values: { api_base: "https://us.openai.azure.com/openai", api_key: os.environ/AZURE_US }
general_settings: { master_key: sk-1234 }
environment_variables: { A: b }
"""

CASES = {
    "one account of OpenAI": (
        OPENAI,
        {
            "gateway": {"auth": "keys", "deadline": 30.0, "retries": {"attempts": 4}},
            "keys": {
                "master": {
                    "key": "env:LITELLM_MASTER_KEY",
                    "models": ["text-embedding-3-small", "text-embedding-3-large"],
                }
            },
            "providers": {"openai": {"api_key": "env:OPENAI_API_KEY"}},
            "models": {
                name: {"endpoints": [{"provider": "openai"}]}
                for name in ("text-embedding-3-small", "text-embedding-3-large")
            },
        },
        [
            ("gpt-4o: left out, because its name is not that of an embedding model. "
            "If it is one, set model_info.mode: embedding, or use --all"),
            "whisper: left out, because its mode is audio_transcription",
            ("virtual keys, which LiteLLM keeps in its database, are not converted; "
            "write a [keys.NAME] table for each"),
            "litellm_settings.drop_params is left out",
            "general_settings.database_url is left out",
        ],
    ),
    "several deployments of one model": (
        BALANCED,
        {
            "gateway": {"auth": "open"},
            "providers": {
                "vllm": {"base_url": "http://vllm-1:8000/v1"},
                "tei": {"api_key": "hf_secret", "base_url": "http://tei:8080/v1"},
                "ollama": {"base_url": "http://localhost:11434/v1"},
                "openai-compatible": {"backend": "openai", "base_url": "http://0.0.0.0:9997/v1"},
            },
            "models": {
                **{
                    name: {
                        "dimensions": 1024,
                        "max_input_tokens": 8192,
                        "fallback": "e5",
                        "endpoints": [
                            {
                                "provider": "vllm",
                                "model": "BAAI/bge-m3",
                                "weight": 3.0,
                                "attempt_timeout": 3600.0,
                            },
                            {"provider": "tei", "model": "BAAI/bge-m3"},
                            {"provider": "ollama", "model": "bge-m3", "max_concurrent": 4},
                        ],
                    }
                    for name in ("bge",)
                },
                "e5": {
                    "dimensions": 1024,
                    "max_input_tokens": 512,
                    "endpoints": [
                        {"provider": "openai-compatible", "model": "e5-large", "price": "0.02"}
                    ],
                },
                "default": {
                    "dimensions": 1024,
                    "max_input_tokens": 8192,
                    "endpoints": [
                        {
                            "provider": "vllm",
                            "model": "BAAI/bge-m3",
                            "weight": 3.0,
                            "attempt_timeout": 3600.0,
                        },
                        {"provider": "tei", "model": "BAAI/bge-m3"},
                        {"provider": "ollama", "model": "bge-m3", "max_concurrent": 4},
                    ],
                },
            },
        },
        [
            'bge: api_key is in the config as text; "env:NAME" is safer',
            "bge: api_base is taken for a server of Text Embeddings Inference; check this",
            "bge: litellm_params.rpm is left out",
            ("bge: the deployment BAAI/bge-base-en-v1.5 is left out, because its vectors are not "
            "those of BAAI/bge-m3; give it a name of its own"),
            'codebert: left out, because no backend supports "triton/"',
            "bge: the fallback gpt-4o is left out",
            "gpt-4o: the fallback gpt-3.5 is left out",
            "old: left out, because its model none is",
            'general_settings has no master_key, so that auth is "open"',
            "router_settings.routing_strategy is left out",
        ],
    ),
    "Azure, credentials and what no backend supports": (
        AZURE,
        {
            "gateway": {"auth": "keys"},
            "keys": {"master": {"key": "sk-1234"}},
            "providers": {
                "azure": {
                    "api_key": "env:AZURE_EU",
                    "api_version": "2024-02-01",
                    "base_url": "https://eu.openai.azure.com",
                },
                "azure/2": {
                    "api_key": "env:AZURE_US",
                    "base_url": "https://us.openai.azure.com/openai",
                },
                "azure/3": {"ad_token": "env:TOKEN", "base_url": "https://azure-api-base.invalid"},
                "jina": {"api_key": "env:JINA_API_KEY"},
                "openai-compatible": {
                    "backend": "openai",
                    "organization": "o",
                    "extra_headers": {"x-team": "env:TEAM"},
                    "base_url": "http://one/v1",
                },
            },
            "models": {
                "ada": {
                    "dimensions": 1536,
                    "max_input_tokens": 8192,
                    "endpoints": [
                        {"provider": "azure", "model": "my-ada"},
                        {"provider": "azure/2", "model": "other-ada"},
                        {"provider": "azure/3", "model": "third"},
                    ],
                },
                "one": {"endpoints": [{"provider": "openai-compatible", "model": "nomic-embed"}]},
                "jina": {
                    "dimensions": 1024,
                    "matryoshka": True,
                    "max_input_tokens": 8192,
                    "endpoints": [{"provider": "jina", "model": "jina-embeddings-v3"}],
                },
            },
        },
        [
            "ada: base_url cannot be read from a variable; write the value of AZURE_API_BASE",
            "jina: the credential lost is not in credential_list",
            "jina: litellm_params.extra_headers is left out",
            'watson: left out, because no backend supports "oci/"',
            "openai/*: patterns are not converted; clients can send PROVIDER/MODEL for any model of a configured provider",
            'general_settings.master_key is in the config as text; "env:NAME" is safer',
            ("virtual keys, which LiteLLM keeps in its database, are not converted; "
            "write a [keys.NAME] table for each"),
            "environment_variables is left out",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("yaml", "expected", "notes"), CASES.values(), ids=CASES)
def test_a_config_is_converted_and_what_is_left_out_is_noted(
    yaml, expected, notes, tmp_path, capsys
):
    """The result is a config from which a gateway can be made."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml, encoding="utf-8")

    assert 0 == main(["import-litellm", str(path)])

    out, err = capsys.readouterr()
    document = tomllib.loads(out)
    assert expected == document
    assert sorted(f"note: {note}" for note in notes) == sorted(err.splitlines())
    jsonschema.Draft7Validator(build_schema()).validate(document)
    result = tmp_path / "embedroute.toml"
    result.write_text(out, encoding="utf-8")
    names = (
        "LITELLM_MASTER_KEY",
        "OPENAI_API_KEY",
        "AZURE_EU",
        "AZURE_US",
        "JINA_API_KEY",
        "TEAM",
        "TOKEN",
    )
    gateway = Gateway.from_file(result, environ=dict.fromkeys(names, "0123456789abcdef"))
    assert {*expected["models"]} <= {*gateway.models.routes}


def test_models_of_any_name_are_converted_on_request(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("model_list: [{ model_name: m, litellm_params: { model: mistral/x } }]")

    main(["import-litellm", str(path)])
    assert "models" not in tomllib.loads(capsys.readouterr().out)
    main(["import-litellm", str(path), "--all"])

    document = tomllib.loads(capsys.readouterr().out)
    assert {"m": {"endpoints": [{"provider": "mistral", "model": "x"}]}} == document["models"]
    assert {"mistral": {"api_key": "env:MISTRAL_API_KEY"}} == document["providers"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.yaml cannot be read: No such file or directory."),
        (b"a: [sk-hidden", "config.yaml is not valid YAML (line 1)."),
        (b"\xff", "config.yaml is not valid YAML."),
        (b"[1]", "is not a config of LiteLLM: it has no model_list."),
        (b"", "is not a config of LiteLLM: it has no model_list."),
    ],
)
def test_a_file_that_cannot_be_converted_is_reported(content, message, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)

    assert 1 == main(["import-litellm", str(path)])

    out, err = capsys.readouterr()
    assert ("", True, False) == (out, message in err, "hidden" in err)


WITHOUT = """
import sys
sys.modules["yaml"] = None
from embedroute.cli import main
sys.stderr = sys.stdout
main(["import-litellm", "config.yaml"])
"""


def test_a_missing_library_names_its_extra(tmp_path):
    assert "pip install 'embedroute[import]'" in run([sys.executable, "-c", WITHOUT], tmp_path)
