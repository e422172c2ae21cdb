"""Reads and validates configuration, and provides the catalogue of known models and providers.

Configuration comes from TOML files, from environment variables or from structs made in Python. It
is read in one pass, which finds every mistake of a single table. What depends on several tables is
checked when ``embedroute.bootstrap`` builds the parts of a gateway.
It may import the foundation and ``backend``.
"""

from embedroute.config.catalog import (
    PRICED_ON,
    Listing,
    catalogue,
    known_providers,
    list_catalogue,
    starter_config,
)
from embedroute.config.loader import (
    STATE_AUTH,
    STATE_ENV_AUTH,
    Config,
    PartialConfig,
    environment_config,
    read_config,
    read_secrets,
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
from embedroute.config.policies import BreakerPolicy, Budget, RateLimits, RetryPolicy
from embedroute.config.settings import (
    ApiKey,
    Auth,
    CacheSettings,
    DialectName,
    LimitSettings,
    ProtocolName,
    Settings,
    StoreSettings,
)
from embedroute.config.validation import (
    ConvertResult,
    HeaderSecret,
    Mistake,
    TablePath,
    UnreadPaths,
    convert_fields,
    format_path,
    quoted,
)

__all__ = [
    "PRICED_ON",
    "STATE_AUTH",
    "STATE_ENV_AUTH",
    "ApiKey",
    "Auth",
    "BreakerPolicy",
    "Budget",
    "CacheSettings",
    "Config",
    "ConvertResult",
    "DialectName",
    "Endpoint",
    "HeaderSecret",
    "KnownProvider",
    "LimitSettings",
    "Listing",
    "Mistake",
    "Modality",
    "Model",
    "PartialConfig",
    "PriceTable",
    "ProtocolName",
    "Provider",
    "RateLimits",
    "RetryPolicy",
    "Settings",
    "Stage",
    "StoreSettings",
    "TablePath",
    "UnreadPaths",
    "catalogue",
    "convert_fields",
    "environment_config",
    "format_path",
    "known_providers",
    "list_catalogue",
    "quoted",
    "read_config",
    "read_secrets",
    "starter_config",
]
