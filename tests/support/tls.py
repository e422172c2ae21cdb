"""A certificate of one's own for localhost, as openssl makes them."""

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
    """Make a certificate for localhost: its file, and a server's context with it."""
    (tmp_path / "index").touch()
    (tmp_path / "serial").write_text("01")
    config, key, wish, cert = (
        str(tmp_path / name) for name in ("config", "key.pem", "wish.pem", "cert.pem")
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
        wish,
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
        wish,
        "-out",
        cert,
    ]
    for command in (new, [*sign, "-startdate", "20200101000000Z", "-enddate", until]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)  # noqa: S603, S607 - our own words
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return cert, context
