"""Reads what operators write: TOML files and environment variables, checked, with the catalogue of known models.

It may import the foundation and ``backend``.
"""

from embedroute.config.catalog import catalogue, known_providers
from embedroute.config.loader import (
    STATE_AUTH,
    STATE_ENV_AUTH,
    Config,
    environment_config,
    read_config,
)
from embedroute.config.models import (
    Endpoint,
    KnownProvider,
    Modality,
    Model,
    PriceTable,
    Provider,
    Stage,
)
from embedroute.config.settings import ApiKey, Auth, CacheSettings, DialectName, Settings
from embedroute.config.validation import (
    ALL_READ,
    ConvertResult,
    UnknownFields,
    convert_fields,
    quoted,
)

__all__ = [
    "ALL_READ",
    "STATE_AUTH",
    "STATE_ENV_AUTH",
    "ApiKey",
    "Auth",
    "CacheSettings",
    "Config",
    "ConvertResult",
    "DialectName",
    "Endpoint",
    "KnownProvider",
    "Modality",
    "Model",
    "PriceTable",
    "Provider",
    "Settings",
    "Stage",
    "UnknownFields",
    "catalogue",
    "convert_fields",
    "environment_config",
    "known_providers",
    "quoted",
    "read_config",
]
