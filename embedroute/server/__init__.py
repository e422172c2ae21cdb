"""Serves a gateway over ASGI: requests in, responses out, models, explain and the OpenAPI document.

It may import everything but the other entry points ``cli``, ``fastapi`` and ``testing``.
"""

from embedroute.server.app import EmbeddingsApp, EmbeddingsMiddleware, embeddings_app
from embedroute.server.handler import FindCaller
from embedroute.server.models import model_card, model_list, openrouter_list
from embedroute.server.openapi import components, inlined, models_operation, operation
from embedroute.server.request import Inbound
from embedroute.server.response import hints_of

__all__ = [
    "EmbeddingsApp",
    "EmbeddingsMiddleware",
    "FindCaller",
    "Inbound",
    "components",
    "embeddings_app",
    "hints_of",
    "inlined",
    "model_card",
    "model_list",
    "models_operation",
    "openrouter_list",
    "operation",
]
