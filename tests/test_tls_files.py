"""Certificates that the server refuses at its start: each with one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from certificates import EXPIRED, NOT_YET, Authority
from lstmserve.config import Config
from lstmserve.server.access import tls
from lstmserve.server.access.reloading import BadFile
from serving import FREE_PORTS, run_serve


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    """The authority that signed the server."""
    return Authority(tmp_path)


def encrypt(key: Path) -> None:
    """Replaces the key by one with a password."""
    private = load_pem_private_key(key.read_bytes(), None)
    with_password = BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, with_password))


SPOILT = {
    "certificate missing": (lambda cert, key: cert.unlink(), "--tls-cert .*No such file"),
    "key missing": (lambda cert, key: key.unlink(), "--tls-key .*No such file"),
    "no certificate": (lambda cert, key: cert.write_text("x"), "--tls-cert .*not a certificate"),
    "no key": (lambda cert, key: key.write_text("x"), "--tls-key .*not an unencrypted key"),
    "key with a password": (lambda cert, key: encrypt(key), "--tls-key .*not an unencrypted key"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_files_are_refused(ours: Authority, name: str) -> None:
    """A missing or wrong file is refused in one line with its name."""
    spoil, says = SPOILT[name]
    cert, key = ours.sign("server")
    spoil(cert, key)
    with pytest.raises(BadFile, match=rf"^{says}[^\n]*$"):
        tls.credentials(Config(tls_cert=cert, tls_key=key))


def test_certificates_are_proved_at_start(ours: Authority) -> None:
    """An expired certificate, an early one, another key and a bad client CA are refused."""
    good, other = ours.sign("good"), ours.sign("other")
    for dates, says in ((EXPIRED, "expired"), (NOT_YET, "not yet valid")):
        cert, key = ours.sign("dated", **dates)
        with pytest.raises(BadFile, match=says):
            tls.credentials(Config(tls_cert=cert, tls_key=key))
    with pytest.raises(BadFile, match="not the key of"):
        tls.credentials(Config(tls_cert=good[0], tls_key=other[1]))
    with pytest.raises(BadFile, match=r"--tls-client-ca .*not a certificate"):
        tls.credentials(Config(tls_cert=good[0], tls_key=good[1], tls_client_ca=good[1]))
    assert tls.credentials(Config(tls_cert=good[0], tls_key=good[1])) is not None


def test_bad_files_exit_1(models: Path, ours: Authority, tmp_path: Path) -> None:
    """Another certificate's key, and a missing tokens file, end the start with one line."""
    cert, _ = ours.sign("server")
    _, key = ours.sign("other")
    for flags, says in (
        (("--tls-cert", cert, "--tls-key", key), "not the key of --tls-cert"),
        (("--tokens", tmp_path / "nowhere"), "nowhere: No such file"),
    ):
        ended = run_serve("--models", models, *FREE_PORTS, *flags)
        assert ended.returncode == 1
        assert says in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
