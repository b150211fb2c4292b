"""Input above the size of a message: steps are cut, bit for bit; the rest says what to do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lstmserve import Client
from lstmserve.client import InvalidInput
from modelmaking import TINY, random_input
from serving import Serve

X = random_input(TINY, (3000,), 11)  # 36 kB


@pytest.fixture(params=["4096", "8192"])
def client(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Client]:
    """A client of a server with small messages."""
    with Client(serve("--message-bytes-max", request.param).target, retry_s_max=0) as client:
        yield client


def test_steps_above_a_message_are_cut(client: Client) -> None:
    """Steps alone, among many and on a stream, with all rows or the last, keep their bits."""
    with client.session("tiny") as parts:
        y = np.concatenate([parts.step(X[n : n + 100]) for n in range(0, len(X), 100)])
    for session_id in (None, "alone"):
        for turn in ("step", "many", "stream"):
            with client.session("tiny", id=session_id) as session:
                if turn == "step":
                    got = session.step(X)
                elif turn == "many":
                    got = client.step_many({session: X})[session]
                else:
                    (got,) = session.stream([X])
                np.testing.assert_array_equal(got, y, strict=True)
                assert session.step_count == session.info().step > 4
    for last in (True, False):
        with client.session("tiny") as session:
            if last:
                got = session.step(X, return_sequences=False)
            else:
                got = client.step_many({session: X}, return_sequences=False)[session]
            np.testing.assert_array_equal(got, y[-1], strict=True)
            np.testing.assert_array_equal(session.step(X[0]), parts_after(client, X), strict=True)


def parts_after(client: Client, x: np.ndarray) -> np.ndarray:
    """y of x[0] after all of x."""
    with client.session("tiny") as session:
        session.step(x)
        return session.step(x[0])


def test_a_sequence_above_a_message_is_refused(client: Client) -> None:
    """A sequence above a message is refused with advice, and others are sent in several
    messages."""
    with pytest.raises(InvalidInput, match=r"36000 bytes, .*: step it in a session \(TOO_LONG"):
        client.predict("tiny", [X[:10], X], return_sequences=False)
    assert len(client.predict("tiny", [X[:100]] * 60)) == 60
    with pytest.raises(InvalidInput, match="takes 10000 at once: step them in parts"):
        client.predict("tiny", [np.zeros((10_001, 3))])
