"""Owns the server's certificate: read, proved, and read anew when its files change. Speaks to none.

Proved by a handshake with itself, in memory: key, chain, dates and use are right, or it is refused.
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import grpc

from lstmserve.config import Config
from lstmserve.server.access.reloading import BadFile, Reloading, read_bytes


def credentials(config: Config) -> grpc.ServerCredentials | None:
    """Of --tls-cert; None without it. TLS 1.2 is the least that gRPC speaks. Raises BadFile.

    Connections that exist go on when the files change; new ones are made with the new files.
    """
    cert, key, client_ca = config.tls_cert, config.tls_key, config.tls_client_ca
    if cert is None or key is None:
        return None
    paths = [path for path in (cert, key, client_ca) if path is not None]
    files = Reloading(paths, lambda: _load(cert, key, client_ca))

    def on_handshake() -> grpc.ServerCertificateConfiguration | None:
        return files.value if files.refresh() else None  # on a thread of gRPC's

    return grpc.dynamic_ssl_server_credentials(
        files.value,
        on_handshake,  # type: ignore[arg-type]  # None is no change, says grpc
        require_client_authentication=client_ca is not None,
    )


def _load(cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCertificateConfiguration:
    chain, private = read_bytes("--tls-cert", cert), read_bytes("--tls-key", key)
    authorities = read_bytes("--tls-client-ca", client_ca) if client_ca else None
    _prove(cert, key)
    if client_ca is not None:
        _trust("--tls-client-ca", client_ca)
    return grpc.ssl_server_certificate_configuration([(private, chain)], authorities)


def _prove(cert: Path, key: Path) -> None:
    """Raises BadFile."""
    client = _trust("--tls-cert", cert)
    # The certificate alone is trusted, whoever signed it: that is for the clients to judge.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.check_hostname = False
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key, password="")  # or OpenSSL asks the terminal
        _shake_hands(client, server)
    except ssl.SSLCertVerificationError as error:
        raise BadFile(f"--tls-cert {cert}: {error.verify_message}") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadFile(f"--tls-key {key}: not the key of --tls-cert {cert}") from error
        raise BadFile(f"--tls-key {key}: not an unencrypted key in PEM") from error


def _trust(flag: str, path: Path) -> ssl.SSLContext:
    """A client that trusts the file's certificates. Raises BadFile."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(path)
    except ssl.SSLError as error:
        raise BadFile(f"{flag} {path}: not a certificate in PEM") from error
    return client


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Raises SSLError."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client.wrap_bio(back, there, server_side=False),
        server.wrap_bio(there, back, server_side=True),
    )
    for side in sides * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
