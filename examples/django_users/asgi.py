"""Django with its own users: those who have signed in may embed."""

import io
import os

from django.contrib.auth import aget_user
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from starlette.types import Scope

from embedroute import Caller, Config, EmbeddingsMiddleware, Gateway, Provider, Settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django_users.settings")
django_app = get_asgi_application()
sessions = SessionMiddleware(lambda _request: HttpResponse())


async def authenticate(scope: Scope) -> Caller | None:
    """Return the user whose session cookie a request has, or None."""
    request = ASGIRequest(scope, io.BytesIO())
    sessions.process_request(request)
    user = await aget_user(request)
    return Caller(name=user.get_username()) if user.is_authenticated else None


gateway = Gateway(Config(gateway=Settings(auth="host"), providers={"wordllama": Provider()}))
app = EmbeddingsMiddleware(django_app, gateway, prefix="/ai/v1", authenticate=authenticate)
