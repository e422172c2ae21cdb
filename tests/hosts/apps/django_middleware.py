"""Django wrapped by the gateway's middleware; Django does not support lifespans."""

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from embedroute import EmbeddingsMiddleware
from tests.hosts.gateways import make


async def hello(_request: HttpRequest) -> JsonResponse:
    return JsonResponse("hello", safe=False)


urlpatterns = [path("hello", hello)]
settings.configure(SECRET_KEY="tests", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])
app = EmbeddingsMiddleware(get_asgi_application(), make(), prefix="/ai/v1")
