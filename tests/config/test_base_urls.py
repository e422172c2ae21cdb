"""Tests that ``from_env`` honours the variables that redirect the SDKs of the vendors."""

import pytest

from embedroute import ConfigError, Gateway
from embedroute.config import known_providers


@pytest.mark.parametrize(
    ("slug", "environ", "options"),
    [
        (
            "openai",
            {
                "OPENAI_API_KEY": "k",
                "OPENAI_BASE_URL": " http://10.0.0.1/v1 ",
                "OPENAI_ORG_ID": "org",
                "OPENAI_PROJECT_ID": "proj",
            },
            {"base_url": "http://10.0.0.1/v1", "organization": "org", "project": "proj"},
        ),
        (
            "openai",
            {"OPENAI_API_KEY": "k", "OPENAI_API_BASE": "http://10.0.0.1/v1"},
            {"base_url": "http://10.0.0.1/v1", "organization": None},
        ),
        (
            "openai",
            {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": ""},
            {"base_url": "https://api.openai.com/v1"},
        ),
        (
            "mistral",
            {"MISTRAL_API_KEY": "k", "MISTRAL_BASE_URL": "https://eu.example/v1"},
            {"base_url": "https://eu.example/v1"},
        ),
        (
            "gemini",
            {"GEMINI_API_KEY": "k", "GOOGLE_GEMINI_BASE_URL": "https://proxy.example/g/"},
            {"base_url": "https://proxy.example/g/v1beta"},
        ),
        (
            "together",
            {"TOGETHER_API_KEY": "k", "TOGETHER_BASE_URL": "https://proxy.example/v1"},
            {"base_url": "https://proxy.example/v1"},
        ),
        (
            "fireworks",
            {"FIREWORKS_API_KEY": "k", "FIREWORKS_BASE_URL": "https://proxy.example"},
            {"base_url": "https://proxy.example/inference/v1"},
        ),
        (
            "dashscope",
            {
                "DASHSCOPE_API_KEY": "k",
                "DASHSCOPE_HTTP_BASE_URL": "https://w.example.com/api/v1/",
            },
            {"base_url": "https://w.example.com/api/v1/"},
        ),
        (
            "dashscope",
            {
                "DASHSCOPE_API_KEY": "k",
                "DASHSCOPE_BASE_URL": "https://w.example.com/compatible-mode/v1",
            },
            {"base_url": "https://w.example.com/api/v1"},
        ),
        (
            "azure",
            {
                "AZURE_OPENAI_API_KEY": "k",
                "AZURE_OPENAI_ENDPOINT": "https://acme.openai.azure.com/",
                "OPENAI_API_VERSION": "2024-10-21",
            },
            {"base_url": "https://acme.openai.azure.com/", "api_version": "2024-10-21"},
        ),
        (
            "databricks",
            {"DATABRICKS_TOKEN": "k", "DATABRICKS_HOST": "https://acme.cloud.databricks.com"},
            {"base_url": "https://acme.cloud.databricks.com/serving-endpoints"},
        ),
        (
            "snowflake",
            {"SNOWFLAKE_JWT": "k", "SNOWFLAKE_ACCOUNT_ID": "ab12345"},
            {"account": "ab12345", "base_url": None},
        ),
        (
            "cohere",
            {"COHERE_API_KEY": "k", "CO_API_URL": "https://proxy.example"},
            {"base_url": "https://proxy.example"},
        ),
        (
            "digitalocean",
            {"MODEL_ACCESS_KEY": "k", "GRADIENT_INFERENCE_ENDPOINT": "https://proxy.example"},
            {"base_url": "https://proxy.example/v1"},
        ),
        (
            "digitalocean",
            {
                "GRADIENT_MODEL_ACCESS_KEY": "k",
                "GRADIENT_INFERENCE_ENDPOINT": "https://proxy.example/v1",
            },
            {"base_url": "https://proxy.example/v1"},
        ),
    ],
)
def test_texts_go_where_the_sdk_of_the_vendor_would_send_them(slug, environ, options):
    gateway = Gateway.from_env(environ={"EMBEDROUTE_AUTH": "open", **environ})
    backend = gateway.models.providers[slug].backend

    assert options == {name: getattr(backend, name) for name in options}


@pytest.mark.parametrize(
    "slug",
    [
        slug
        for slug, row in known_providers().items()
        if any(name.endswith("_API_KEY") for name in row.env.get("api_key", ()))
    ],
)
def test_every_provider_with_a_key_variable_can_be_redirected(slug):
    row = known_providers()[slug]
    (key, *_), (variable, *_) = row.env["api_key"], row.env["base_url"]
    name = variable.partition("/")[0]
    others = {row.env[option][0]: "k" for option in row.required if option != "api_key"}
    environ = {"EMBEDROUTE_AUTH": "open", **others, key: "k", name: "https://private.example/v1"}

    backend = Gateway.from_env(environ=environ).models.providers[slug].backend

    assert backend.base_url.startswith("https://private.example/v1")


def test_an_address_that_is_no_url_is_a_mistake_and_not_ignored():
    environ = {"EMBEDROUTE_AUTH": "open", "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "localhost"}

    with pytest.raises(ConfigError, match="base_url"):
        Gateway.from_env(environ=environ)
