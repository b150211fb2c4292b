"""Certificates made for a test: an authority, and files of what it signed."""

from __future__ import annotations

import datetime
from pathlib import Path

import grpc
import trustme

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
EXPIRED = {"not_before": NOW - 2 * DAY, "not_after": NOW - DAY}
NOT_YET = {"not_before": NOW + DAY, "not_after": NOW + 2 * DAY}


class Authority:
    """A CA of its own; `path` is its certificate."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def sign(
        self, name: str, host: str = "127.0.0.1", **dates: datetime.datetime
    ) -> tuple[Path, Path]:
        """Certificate chain and key of `host`, in files that are replaced when they exist."""
        made = self._ca.issue_cert(host, **dates)
        cert, key = self._folder / f"{name}-cert.pem", self._folder / f"{name}-key.pem"
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return cert, key

    def credentials(self, client: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
        """Credentials of a client that trusts this authority; `client` is its own certificate."""
        cert, key = (path.read_bytes() for path in client) if client else (None, None)
        return grpc.ssl_channel_credentials(self.path.read_bytes(), key, cert)
