"""The cipher demo: python -m examples.cipher.demo.

It exports both nets, starts a server and sends encrypted texts one letter at a time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples.cipher.ciphers import KEY, SHIFT, encrypt_key, encrypt_shift, letters, tokens
from examples.cipher.train import CHECKPOINT
from examples.serving import LSTMSERVE, ServerDied, serve
from lstmserve import Client
from lstmserve.client import LstmServeError

MODELS = CHECKPOINT.with_name("out") / "models"
TEXT = "THE-SERVER-REMEMBERS-WHERE-IN-THE-KEY-IT-IS"


def export(name: str, models: Path) -> None:
    """Exports checkpoint/NAME.pt to models/NAME/1."""
    flags = ["--embedding", "embedding", "--model-version", "1", "--force", "--models", models]
    subprocess.run([LSTMSERVE, "export", CHECKPOINT / f"{name}.pt", *flags], check=True)


def decrypt(client: Client, model: str, encrypted: str) -> str:
    """Decrypts letter by letter, through one session that begins with the text."""
    with client.session(model) as session:
        scores = [session.step(token) for token in tokens(encrypted)]
    return letters(int(score.argmax()) for score in scores)


def decrypt_without_state(client: Client, model: str, encrypted: str) -> str:
    """Decrypts letter by letter, and drops the state before every letter."""
    scores = client.predict(model, tokens(encrypted))
    return letters(int(score.argmax()) for score in scores)


def run(client: Client) -> None:
    """Prints the decrypted texts. Raises ValueError if one is wrong."""
    secret, encrypted = encrypt_shift("SECRET"), encrypt_key(TEXT)
    shifted, kept = decrypt(client, "shift", secret), decrypt(client, "key", encrypted)
    print(f"shift by {SHIFT}:      {secret} -> {shifted}")
    print(f"the key {KEY}:   {encrypted}\n  state kept:     {kept}")
    print(f"  state dropped:  {decrypt_without_state(client, 'key', encrypted)}")
    if (shifted, kept) != ("SECRET", TEXT):
        raise ValueError("the served model did not decrypt the text")


def main() -> None:
    """Runs the demo. Exits with 0, or with 1 and one error on stderr."""
    try:
        for name in ("shift", "key"):
            export(name, MODELS)
        with serve(MODELS) as server, Client(server.target, retry_s_max=2) as client:
            run(client)
    except (ServerDied, LstmServeError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"demo failed: {error}")


if __name__ == "__main__":
    main()
