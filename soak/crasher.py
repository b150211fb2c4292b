"""A client to be killed: it streams steps of one session, and prints a line for each reply.

It is a program: `python -m soak.crasher TARGET ID`.
"""

from __future__ import annotations

import sys

from lstmserve import Client
from soak.fleet import MODEL, SPEC

ROW = [1.0] * SPEC.input_size


def main(target: str, session_id: str) -> None:
    """Streams until it is killed."""
    with Client(target) as client:
        session = client.session(MODEL, id=session_id, if_exists="restart")
        while True:
            for _ in session.stream([ROW] * 100):
                print("answered", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
