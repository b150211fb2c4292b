"""The cipher example: its claims, letter by letter through a real server."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from examples.cipher.ciphers import (
    ALPHABET,
    KEY,
    encrypt_key,
    encrypt_shift,
    letters,
)
from examples.cipher.demo import decrypt, decrypt_without_state, export, run
from examples.serving import serve
from lstmserve import Client

SEED = 27


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server that serves both committed checkpoints."""
    models = tmp_path_factory.mktemp("models")
    for name in ("shift", "key"):
        export(name, models)
    with serve(models) as server, Client(server.target) as client:
        yield client


def draw_text(length: int) -> str:
    """Letters drawn at random."""
    print(f"seed {SEED}")
    return letters(np.random.default_rng(SEED).integers(len(ALPHABET), size=length).tolist())


def share_right(decrypted: str, text: str) -> float:
    """The share of equal letters."""
    return sum(a == b for a, b in zip(decrypted, text, strict=True)) / len(text)


def test_erpdrf_is_secret(client: Client) -> None:
    """The shift's net turns ERPDRF into SECRET, letter by letter."""
    assert encrypt_shift("SECRET") == "ERPDRF"
    assert decrypt(client, "shift", "ERPDRF") == "SECRET"


def test_the_shift_net_knows_every_letter(client: Client) -> None:
    """A random text with all 27 letters comes back."""
    text = ALPHABET + draw_text(200)
    assert decrypt(client, "shift", encrypt_shift(text)) == text


def test_the_key_net_remembers_where_it_is(client: Client) -> None:
    """500 random letters under the repeating key come back, except for a few."""
    text = draw_text(500)
    assert share_right(decrypt(client, "key", encrypt_key(text)), text) >= 0.99


def test_the_key_net_fails_without_state(client: Client) -> None:
    """Without its state it is right no more often than a net that knows one letter of the key."""
    text = draw_text(500)
    without = share_right(decrypt_without_state(client, "key", encrypt_key(text)), text)
    assert without < 2.5 / len(KEY)


def test_the_demo_prints_both(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo prints the secret, the text decrypted with state, and the failure without state."""
    run(client)
    printed = capsys.readouterr().out
    assert "ERPDRF -> SECRET" in printed
    assert printed.count("THE-SERVER-REMEMBERS-WHERE-IN-THE-KEY-IT-IS") == 1
