"""Credentials of clouds: AWS signatures, Google's tokens and IBM's, each against its own service."""

import json
from urllib.parse import parse_qs

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as AwsCredentials
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from embedroute.backend import Batch, Credentials, Secret, UpstreamRequest, UpstreamResponse
from embedroute.backends.bedrock import Bedrock
from embedroute.backends.sagemaker import SageMaker
from embedroute.backends.vertex import Vertex
from embedroute.backends.watsonx import WatsonX
from embedroute.errors import ConnectError, UpstreamAuthError, UpstreamUnavailable

KEYS = {"access_key_id": Secret("AKIAEXAMPLE"), "secret_access_key": Secret("s3cret")}


class Upstream:
    """Records the requests for credentials, and answers them with ``response``."""

    def __init__(self, status=200, body=None, error=None):
        self.response = UpstreamResponse(status, {}, json.dumps(body or {}).encode())
        self.error = error
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return self.response


def refuse(request):
    raise AssertionError(f"no request is expected: {request}")


def signature_of(request, service, region, token=None):
    """Sign the request as botocore does, at the time of its own signature."""
    headers = {
        name: value if isinstance(value, str) else value.reveal()
        for name, value in request.headers.items()
    }
    sent = headers.pop("authorization")
    date = headers.pop("x-amz-date")
    signed = AWSRequest(request.method, request.url, data=request.content, headers=headers)
    signed.context["timestamp"] = date
    signed.headers["X-Amz-Date"] = date
    auth = SigV4Auth(AwsCredentials("AKIAEXAMPLE", "s3cret", token), service, region)
    signature = auth.signature(auth.string_to_sign(signed, auth.canonical_request(signed)), signed)
    return sent, signature


@pytest.mark.parametrize(
    ("backend", "service", "model"),
    [
        (Bedrock, "bedrock", "amazon.titan-embed-text-v2:0"),
        (SageMaker, "sagemaker", "my-endpoint"),
    ],
)
@pytest.mark.parametrize("token", [None, "session"])
def test_signs_the_exact_request(backend, service, model, token):
    options = {**KEYS, **({"session_token": Secret(token)} if token else {})}
    backend = backend(region="eu-central-1", **options)
    request = backend.build(Batch(model=model, texts=("a",)))
    credentials = backend.fetch_credentials(refuse)
    signed = backend.authorize(request, credentials)
    sent, signature = signature_of(signed, service, "eu-central-1", token)

    assert (request.url, request.content) == (signed.url, signed.content)
    assert f"eu-central-1/{service}/aws4_request" in sent
    assert sent.endswith(f"Signature={signature}")
    assert ("x-amz-security-token" in signed.headers) == (token is not None)
    assert "s3cret" not in repr(signed.headers)
    assert "session'" not in repr(signed.headers)
    changed = UpstreamRequest(url=signed.url, content=b"{}", headers=signed.headers)
    assert signature != signature_of(changed, service, "eu-central-1", token)[1]


def test_an_api_key_of_bedrock_needs_no_signature():
    backend = Bedrock(region="us-east-1", api_key=Secret("k"))
    request = backend.build(Batch(model="amazon.titan-embed-text-v1", texts=("a",)))

    assert backend.fetch_credentials(refuse) is None
    assert Secret("Bearer k") == request.headers["authorization"]


def test_a_profile_that_does_not_exist_is_an_error_of_the_account():
    backend = Bedrock(region="us-east-1", profile="no-such-profile-of-embedroute")

    with pytest.raises(UpstreamAuthError, match="ProfileNotFound"):
        backend.fetch_credentials(refuse)


@pytest.fixture(scope="module")
def service_account(tmp_path_factory):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path_factory.mktemp("google") / "account.json"
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "x@p.iam.gserviceaccount.com",
                "private_key": pem.decode(),
                "private_key_id": "1",
                "token_uri": "https://oauth2.googleapis.com/token",
                "project_id": "p",
            }
        ),
        encoding="utf-8",
    )
    return str(path)


def test_a_google_service_account_is_exchanged_for_a_token(service_account):
    upstream = Upstream(body={"access_token": "t", "expires_in": 3599, "token_type": "Bearer"})
    backend = Vertex(project="p", credentials_file=service_account)
    credentials = backend.fetch_credentials(upstream)
    [request] = upstream.requests

    assert ("POST", "https://oauth2.googleapis.com/token") == (request.method, request.url)
    assert ["urn:ietf:params:oauth:grant-type:jwt-bearer"] == parse_qs(request.content.decode())[
        "grant_type"
    ]
    assert {"authorization": Secret("Bearer t")} == credentials.values
    assert 3500 < credentials.lifetime < 3600
    built = backend.build(Batch(model="text-embedding-005", texts=("a",)))
    assert Secret("Bearer t") == backend.authorize(built, credentials).headers["authorization"]


@pytest.mark.parametrize(
    ("upstream", "kind"),
    [
        (Upstream(400, {"error": "invalid_grant"}), UpstreamAuthError),
        (Upstream(error=ConnectError("no route")), UpstreamUnavailable),
    ],
)
def test_a_google_token_that_cannot_be_obtained_is_an_error(service_account, upstream, kind):
    backend = Vertex(project="p", credentials_file=service_account)

    with pytest.raises(kind) as caught:
        backend.fetch_credentials(upstream)
    assert kind is type(caught.value)


def test_a_missing_google_file_says_what_to_do():
    backend = Vertex(project="p", credentials_file="/no/such/file.json")

    with pytest.raises(UpstreamAuthError, match="Set credentials_file"):
        backend.fetch_credentials(refuse)


def test_an_express_key_of_vertex_needs_no_token():
    backend = Vertex(project="p", api_key=Secret("k"))
    request = backend.build(Batch(model="text-embedding-005", texts=("a",)))

    assert backend.fetch_credentials(refuse) is None
    assert Secret("k") == request.headers["x-goog-api-key"]


def test_an_api_key_of_ibm_is_exchanged_for_a_token():
    upstream = Upstream(body={"access_token": "t", "expires_in": 3600, "expiration": 1})
    backend = WatsonX(api_key=Secret("a+b"), project_id="p")
    credentials = backend.fetch_credentials(upstream)
    [request] = upstream.requests

    assert "https://iam.cloud.ibm.com/identity/token" == request.url
    assert (
        b"grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey=a%2Bb"
        == request.content
    )
    assert Credentials(values={"authorization": Secret("Bearer t")}, lifetime=3600.0) == credentials


@pytest.mark.parametrize(("status", "kind"), [(400, UpstreamAuthError), (503, UpstreamUnavailable)])
def test_a_token_of_ibm_that_cannot_be_obtained_is_an_error(status, kind):
    with pytest.raises(kind):
        WatsonX(api_key=Secret("k"), project_id="p").fetch_credentials(Upstream(status))


def test_a_token_of_ibm_is_sent_as_it_is():
    backend = WatsonX(token=Secret("t"), project_id="p")
    request = backend.build(Batch(model="m", texts=("a",)))

    assert backend.fetch_credentials(refuse) is None
    assert Secret("Bearer t") == request.headers["authorization"]
