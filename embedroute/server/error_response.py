"""Answers an error of an in-process call, in a route of the host, as the API answers it."""

from starlette.responses import Response

from embedroute.errors import EmbedrouteError
from embedroute.protocol import DIALECTS
from embedroute.server.exchange import error_headers
from embedroute.trace import RequestTrace, new_request_id


def respond_to_error(error: EmbedrouteError, dialect: str) -> Response:
    """Return the response that a client of the API would get for ``error``."""
    error = DIALECTS[dialect].adapt(error)
    body = DIALECTS[dialect].error(error, RequestTrace(new_request_id()))
    response = Response(body, error.status, media_type="application/json")
    response.raw_headers += error_headers(error, error.status)
    return response
