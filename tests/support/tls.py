"""Creates a self-signed certificate for localhost with openssl."""

import ssl
import subprocess

CA = """
[ca]
default_ca = own
[own]
database = {place}/index
serial = {place}/serial
new_certs_dir = {place}
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = DNS:localhost
[req]
distinguished_name = any
"""


def certified(tmp_path, until="20991231000000Z"):
    """Create a certificate for localhost; return its file and a server context with it."""
    (tmp_path / "index").touch()
    (tmp_path / "serial").write_text("01")
    config, key, request, cert = (
        str(tmp_path / name) for name in ("config", "key.pem", "request.pem", "cert.pem")
    )
    (tmp_path / "config").write_text(CA.format(place=tmp_path))
    new = [
        "req",
        "-config",
        config,
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        key,
        "-out",
        request,
    ]
    sign = [
        "ca",
        "-config",
        config,
        "-batch",
        "-notext",
        "-selfsign",
        "-keyfile",
        key,
        "-in",
        request,
        "-out",
        cert,
    ]
    for command in (new, [*sign, "-startdate", "20200101000000Z", "-enddate", until]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)  # noqa: S603, S607 - fixed arguments
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return cert, context
