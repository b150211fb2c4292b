"""The server's TLS certificate: loads it, tests it, and reloads it when its files change.

The test is a handshake with itself, in memory: it refuses a wrong key, chain, date or use. It makes
no connection.
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import grpc

from lstmserve.config import Config
from lstmserve.server.access.reloading import BadFile, FileReloader, read_bytes


def credentials(config: Config) -> grpc.ServerCredentials | None:
    """Credentials for --tls-cert, None without it. gRPC speaks TLS 1.2 or later. Raises BadFile.

    When the files change, existing connections stay, and new ones use the new files.
    """
    cert, key, client_ca = config.tls_cert, config.tls_key, config.tls_client_ca
    if cert is None or key is None:
        return None
    paths = [path for path in (cert, key, client_ca) if path is not None]
    files = FileReloader(paths, lambda: _load(cert, key, client_ca))

    def on_handshake() -> grpc.ServerCertificateConfiguration | None:
        return files.value if files.refresh() else None  # on a thread of gRPC

    return grpc.dynamic_ssl_server_credentials(
        files.value,
        on_handshake,  # type: ignore[arg-type]  # None is no change, says grpc
        require_client_authentication=client_ca is not None,
    )


def _load(cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCertificateConfiguration:
    chain, private = read_bytes("--tls-cert", cert), read_bytes("--tls-key", key)
    authorities = read_bytes("--tls-client-ca", client_ca) if client_ca else None
    _test(cert, key)
    if client_ca is not None:
        _trust("--tls-client-ca", client_ca)
    return grpc.ssl_server_certificate_configuration([(private, chain)], authorities)


def _test(cert: Path, key: Path) -> None:
    """Raises BadFile unless the certificate passes a handshake."""
    client = _trust("--tls-cert", cert)
    # Trust the certificate whoever signed it: only clients can judge its issuer.
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
    """A client context that trusts the file's certificates. Raises BadFile."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(path)
    except ssl.SSLError as error:
        raise BadFile(f"{flag} {path}: not a certificate in PEM") from error
    return client


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Runs a handshake between the two in memory. Raises SSLError."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client.wrap_bio(back, there, server_side=False),
        server.wrap_bio(there, back, server_side=True),
    )
    for side in sides * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
