"""Converts the config of LiteLLM's proxy to one of embedroute.

The result has the embedding models only. What it does not have is described by ``notes``, one line
each. Source: docs.litellm.ai, pages about the proxy's config.yaml and load balancing (2026-10).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final, cast

import msgspec

from embedroute.config import catalogue, known_providers, quoted
from embedroute.plugins import load

Table = Mapping[str, object]

SLUGS: Final = {
    "fireworks_ai": "fireworks",
    "github": "github-models",
    "hosted_vllm": "vllm",
    "jina_ai": "jina",
    "litellm_proxy": "litellm",
    "llamafile": "llama-cpp",
    "lm_studio": "lmstudio",
    "nvidia_nim": "nvidia",
    "together_ai": "together",
    "voyageai": "voyage",
}
"""LiteLLM's prefix of a model → our slug of the provider, where they differ."""

COMPATIBLE: Final = frozenset({"openai", "openai_like", "custom_openai", "xinference"})
"""Prefixes of servers with OpenAI's API, which are known by their ``api_base`` only."""

WITHOUT_VERSION: Final = frozenset({"ollama", "litellm", "tei"})
"""Providers whose ``api_base`` is without the ``/v1`` of their OpenAI-compatible API."""

EMBEDDING: Final = re.compile(r"embed|bge|(\b|[-_/])(e5|gte)\b|minilm|nomic|colbert", re.IGNORECASE)
"""How the names of embedding models look; for entries without a ``mode``."""

OPTIONS: Final = {
    "organization": "organization",
    "extra_headers": "extra_headers",
    "api_version": "api_version",
    "azure_ad_token": "ad_token",
}
"""Parameters of LiteLLM → options of backends, for those that have them."""

READ_PARAMETERS: Final = frozenset(
    {
        *("model", "api_key", "api_base", "base_url", "timeout"),
        *("weight", "max_parallel_requests", "input_cost_per_token", *OPTIONS),
        *("litellm_credential_name", "custom_llm_provider"),
    }
)
READ_SETTINGS: Final[Mapping[str, frozenset[str]]] = {
    "litellm_settings": frozenset({"fallbacks", "num_retries", "request_timeout"}),
    "router_settings": frozenset({"fallbacks", "num_retries", "timeout", "model_group_alias"}),
    "general_settings": frozenset({"master_key"}),
}


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of ``model_list`` whose provider embedroute supports."""

    name: str
    slug: str
    backend: str | None
    model: str
    options: dict[str, object]
    endpoint: dict[str, object]
    facts: dict[str, object]


class Converted(msgspec.Struct, frozen=True):
    """A config in TOML, and what it does not have of the original, one line each."""

    text: str
    notes: list[str]


def convert(document: Table, *, every_model: bool = False) -> Converted:
    """Convert the parsed config.yaml; ``every_model`` includes models without a ``mode``."""
    return _Converter(document, every_model=every_model).convert()


class _Converter:
    def __init__(self, document: Table, *, every_model: bool) -> None:
        self.document = document
        self.every_model = every_model
        self.notes: list[str] = []
        self.has_patterns = False
        self.providers: dict[str, tuple[str, dict[str, object]]] = {}
        self.models: dict[str, list[tuple[str, Deployment]]] = {}

    def convert(self) -> Converted:
        for entry in _tables(self.document.get("model_list")):
            deployment = self.deployment(entry)
            if deployment is not None:
                self.add(deployment)
        if not self.models:
            self.notes.append("model_list has no embedding model that can be converted")
        fallbacks = self.fallbacks()
        self.copy_aliases()
        blocks = [*self.settings(), *self.provider_blocks(), *self.model_blocks(fallbacks)]
        self.note_rest()
        return Converted("\n\n".join(blocks) + "\n", self.notes)

    def deployment(self, entry: Table) -> Deployment | None:
        """Convert an entry of ``model_list``, or note why it is left out."""
        name = str(entry.get("model_name", ""))
        info = _table(entry.get("model_info"))
        parameters = self.with_credential(name, _table(entry.get("litellm_params")))
        prefix, model = _split(parameters)
        if "*" in name or "*" in model:
            self.has_patterns = True
            self.notes.append(
                f"{name}: patterns are not converted; clients can send PROVIDER/MODEL for any "
                "model of a configured provider"
            )
            return None
        if not self.is_embedding(name, info, prefix, model):
            return None
        found = self.provider(name, prefix, parameters)
        if found is None:
            return None
        slug, backend, options = found
        self.notes += [
            f"{name}: litellm_params.{field} is left out"
            for field in parameters
            if field not in READ_PARAMETERS
        ]
        return Deployment(
            name=name,
            slug=slug,
            backend=backend,
            model=model,
            options=options,
            endpoint=_endpoint(parameters, info),
            facts=_facts(name, model, info),
        )

    def with_credential(self, name: str, parameters: Table) -> Table:
        """Add the values of the named entry of ``credential_list``."""
        credential = parameters.get("litellm_credential_name")
        for item in _tables(self.document.get("credential_list")):
            if credential is not None and item.get("credential_name") == credential:
                return {**_table(item.get("credential_values")), **parameters}
        if credential is not None:
            self.notes.append(f"{name}: the credential {credential} is not in credential_list")
        return parameters

    def is_embedding(self, name: str, info: Table, prefix: str, model: str) -> bool:
        mode = info.get("mode")
        if mode is not None:
            if mode != "embedding":
                self.notes.append(f"{name}: left out, because its mode is {mode}")
            return mode == "embedding"
        is_known = self.every_model or model in catalogue() or EMBEDDING.search(f"{prefix}/{model}")
        if not is_known:
            self.notes.append(
                f"{name}: left out, because its name is not that of an embedding model. "
                "If it is one, set model_info.mode: embedding, or use --all"
            )
        return bool(is_known)

    def provider(
        self, name: str, prefix: str, parameters: Table
    ) -> tuple[str, str | None, dict[str, object]] | None:
        """Return the slug, the backend if the slug does not name it, and the options."""
        base_url = parameters.get("api_base") or parameters.get("base_url")
        slug = SLUGS.get(prefix, prefix.replace("_", "-"))
        if prefix == "huggingface" and base_url:
            slug = "tei"
            self.notes.append(
                f"{name}: api_base is taken for a server of Text Embeddings Inference; check this"
            )
        row = known_providers().get(slug)
        backend = row.backend if row else None
        if prefix in COMPATIBLE and base_url:
            slug, backend, row = "openai-compatible", "openai", None
        if backend is None:
            self.notes.append(f'{name}: left out, because no backend supports "{prefix}/"')
            return None
        variables = row.env.get("api_key", []) if row else []
        options = self.options(name, backend, parameters, variables)
        if base_url:
            options["base_url"] = self.base_url(name, slug, str(base_url))
        for option in row.env if row else ():
            has_token = option == "api_key" and "ad_token" in options
            if row and option in row.required and option not in options and not has_token:
                self.notes.append(f"{name}: set {option} in [providers.{slug}]")
        return slug, None if row else backend, options

    def options(
        self, name: str, backend: str, parameters: Table, variables: Sequence[str]
    ) -> dict[str, object]:
        key = parameters.get("api_key")
        options: dict[str, object] = {}
        if key is not None or (variables and "azure_ad_token" not in parameters):
            options["api_key"] = self.secret(f"{name}: api_key", key, variables)
        fields = load(backend).__struct_fields__
        for parameter, option in OPTIONS.items():
            value = parameters.get(parameter)
            if value is None:
                continue
            if option in fields:
                options[option] = _secrets(value)
            else:
                self.notes.append(f"{name}: litellm_params.{parameter} is left out")
        return options

    def secret(self, place: str, value: object, variables: Sequence[str]) -> str:
        if value is None:
            return f"env:{variables[0]}"
        text = _secret(value)
        if not text.startswith("env:"):
            self.notes.append(f'{place} is in the config as text; "env:NAME" is safer')
        return text

    def base_url(self, name: str, slug: str, text: str) -> str:
        """Return the address of the OpenAI-compatible API behind an ``api_base``."""
        if text.startswith("os.environ/"):
            variable = text.removeprefix("os.environ/")
            self.notes.append(
                f"{name}: base_url cannot be read from a variable; write the value of {variable}"
            )
            text = f"https://{variable.lower().replace('_', '-')}.invalid"
        url = text.rstrip("/")
        return f"{url}/v1" if slug in WITHOUT_VERSION and not url.endswith("/v1") else url

    def add(self, deployment: Deployment) -> None:
        """Add a deployment as an endpoint, unless its vectors are known to be others."""
        endpoints = self.models.setdefault(deployment.name, [])
        if endpoints and deployment.slug != "azure":
            first = endpoints[0][1]
            if first.slug != "azure" and _bare(first.model) != _bare(deployment.model):
                self.notes.append(
                    f"{deployment.name}: the deployment {deployment.model} is left out, because "
                    f"its vectors are not those of {first.model}; give it a name of its own"
                )
                return
        endpoints.append((self.slug_of(deployment), deployment))

    def slug_of(self, deployment: Deployment) -> str:
        """Return the provider with these options; a further account of a provider is a variant."""
        wanted = (deployment.backend or deployment.slug, deployment.options)
        number = 1
        while True:
            slug = deployment.slug if number == 1 else f"{deployment.slug}/{number}"
            if self.providers.setdefault(slug, wanted) == wanted:
                return slug
            number += 1

    def setting(self, name: str) -> object:
        """Return a setting of the router, or else of the library."""
        for section in ("router_settings", "litellm_settings"):
            if (value := _table(self.document.get(section)).get(name)) is not None:
                return value
        return None

    def fallbacks(self) -> dict[str, str]:
        """Return the first fallback of each model that is converted."""
        chosen: dict[str, str] = {}
        for item in _tables(self.setting("fallbacks")):
            for name, names in item.items():
                options = [str(option) for option in cast("list[object]", names)]
                usable = [option for option in options if option in self.models and option != name]
                if name in self.models and usable:
                    chosen[name] = usable[0]
                    options.remove(usable[0])
                self.notes += [f"{name}: the fallback {option} is left out" for option in options]
        return chosen

    def copy_aliases(self) -> None:
        """Declare each alias of a model as a model with the same endpoints."""
        for alias, target in _table(self.setting("model_group_alias")).items():
            name = str(_table(target).get("model", target))
            if name in self.models:
                self.models[alias] = self.models[name]
            else:
                self.notes.append(f"{alias}: left out, because its model {name} is")

    def settings(self) -> Iterator[str]:
        master_key = _table(self.document.get("general_settings")).get("master_key")
        gateway: dict[str, object] = {"auth": "open" if master_key is None else "keys"}
        deadline = self.setting("timeout") or self.setting("request_timeout")
        if isinstance(deadline, int | float) and deadline > 0:
            gateway["deadline"] = float(deadline)
        yield _block("[gateway]", gateway)
        retries = self.setting("num_retries")
        if isinstance(retries, int) and 0 <= retries < 100:
            yield _block("[gateway.retries]", {"attempts": retries + 1})
        if master_key is None:
            self.notes.append('general_settings has no master_key, so that auth is "open"')
            return
        key = self.secret("general_settings.master_key", master_key, ())
        # Without the list, the key could also use the catalogue's other models of these providers.
        models = {} if self.has_patterns else {"models": list(self.models)}
        yield _block("[keys.master]", {"key": key, **models})
        self.notes.append(
            "virtual keys, which LiteLLM keeps in its database, are not converted; "
            "write a [keys.NAME] table for each"
        )

    def note_rest(self) -> None:
        """Note the settings that have no counterpart."""
        read = {"model_list", "credential_list", *READ_SETTINGS}
        self.notes += [f"{name} is left out" for name in self.document if name not in read]
        for section, names in READ_SETTINGS.items():
            unread = [name for name in _table(self.document.get(section)) if name not in names]
            self.notes += [f"{section}.{name} is left out" for name in unread]

    def provider_blocks(self) -> Iterator[str]:
        for slug, (backend, options) in self.providers.items():
            named = {} if backend == slug.partition("/")[0] else {"backend": backend}
            yield _block(f"[providers.{quoted(slug)}]", {**named, **options})

    def model_blocks(self, fallbacks: Mapping[str, str]) -> Iterator[str]:
        for name, endpoints in self.models.items():
            facts: dict[str, object] = {}
            for _, deployment in endpoints:
                facts = {**deployment.facts, **facts}
            if name in fallbacks:
                facts["fallback"] = fallbacks[name]
            header = f"models.{quoted(name)}"
            yield _block(f"[{header}]", facts)
            for slug, deployment in endpoints:
                named = {} if deployment.model == name else {"model": deployment.model}
                endpoint = {"provider": slug, **named, **deployment.endpoint}
                yield _block(f"[[{header}.endpoints]]", endpoint)


def _split(parameters: Table) -> tuple[str, str]:
    """Split ``jina_ai/jina-embeddings-v3``; a name without a provider is one of OpenAI."""
    text = str(parameters.get("model", ""))
    provider = parameters.get("custom_llm_provider")
    if provider is not None:
        return str(provider), text.removeprefix(f"{provider}/")
    prefix, slash, model = text.partition("/")
    return (prefix, model) if slash else ("openai", text)


def _endpoint(parameters: Table, info: Table) -> dict[str, object]:
    endpoint: dict[str, object] = {}
    cost = parameters.get("input_cost_per_token", info.get("input_cost_per_token"))
    if isinstance(cost, int | float | str):
        endpoint["price"] = f"{(Decimal(str(cost)) * 1_000_000).normalize():f}"
    for field, name in (
        ("weight", "weight"),
        ("max_parallel_requests", "max_concurrent"),
        ("timeout", "attempt_timeout"),
    ):
        value = parameters.get(field)
        if isinstance(value, int | float) and value > 0:
            endpoint[name] = int(value) if name == "max_concurrent" else float(value)
    if "attempt_timeout" in endpoint:
        endpoint["attempt_timeout"] = min(cast("float", endpoint["attempt_timeout"]), 3600.0)
    return endpoint


def _facts(name: str, model: str, info: Table) -> dict[str, object]:
    """Return the facts of a model that the catalogue does not know by its public name."""
    known = catalogue().get(model) or catalogue().get(_base_model(info))
    facts: dict[str, object] = {}
    if name not in catalogue():
        dimensions = info.get("output_vector_size") or (known.dimensions if known else None)
        tokens = info.get("max_input_tokens") or (known.max_input_tokens if known else None)
        if dimensions is not None:
            facts["dimensions"] = dimensions
        if known is not None and known.matryoshka:
            facts["matryoshka"] = True
        if tokens is not None:
            facts["max_input_tokens"] = tokens
    return facts


def _base_model(info: Table) -> str:
    return str(info.get("base_model", "")).rpartition("/")[2]


def _bare(model: str) -> str:
    return model.rpartition("/")[2].lower()


def _secret(value: object) -> str:
    text = str(value)
    return f"env:{text.removeprefix('os.environ/')}" if text.startswith("os.environ/") else text


def _secrets(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _secret(item) for name, item in cast("Table", value).items()}
    return _secret(value)


def _table(value: object) -> Table:
    return cast("Table", value) if isinstance(value, Mapping) else {}


def _tables(value: object) -> list[Table]:
    return [_table(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _block(header: str, values: Mapping[str, object]) -> str:
    return "\n".join(
        [header, *(f"{quoted(name)} = {_toml(item)}" for name, item in values.items())]
    )


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        table = cast("Table", value)
        items = ", ".join(f"{quoted(name)} = {_toml(item)}" for name, item in table.items())
        return f"{{ {items} }}"
    return msgspec.json.encode(value).decode()
