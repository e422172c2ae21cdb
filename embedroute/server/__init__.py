"""Serves a gateway over ASGI: embeddings, model lists, forecasts and the OpenAPI document.

It may import everything except the other entry points ``cli``, ``fastapi`` and ``testing``.
"""

from embedroute.server.app import EmbeddingsApp, EmbeddingsMiddleware, embeddings_app
from embedroute.server.authentication import Authenticator
from embedroute.server.error_response import error_headers, respond_to_error
from embedroute.server.exchange import HTTPExchange
from embedroute.server.explain import explain
from embedroute.server.models import model_card, model_list, openrouter_list
from embedroute.server.openapi import KEY_DESCRIPTION, describe, describe_error
from embedroute.server.routes import API, EMBED, LIST_MODELS, Operation
from embedroute.server.schemas import components, inlined
from embedroute.server.standalone import ASGIApp, PreparedApp, RootPathApp, allow_origins
from embedroute.server.usage import UsageReport, Used

__all__ = [
    "API",
    "EMBED",
    "KEY_DESCRIPTION",
    "LIST_MODELS",
    "ASGIApp",
    "Authenticator",
    "EmbeddingsApp",
    "EmbeddingsMiddleware",
    "HTTPExchange",
    "Operation",
    "PreparedApp",
    "RootPathApp",
    "UsageReport",
    "Used",
    "allow_origins",
    "components",
    "describe",
    "describe_error",
    "embeddings_app",
    "error_headers",
    "explain",
    "inlined",
    "model_card",
    "model_list",
    "openrouter_list",
    "respond_to_error",
]
