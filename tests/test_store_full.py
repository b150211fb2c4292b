"""A store without room, on a real full disk and in a real full Valkey: reported, harmless,
healed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from redis import Redis

from lstmserve import Client
from lstmserve.errors import LstmServeError
from modelmaking import TINY, random_input
from serving import COMMAND, Serve, Serving
from storing import Valkey
from traffic import Oracle

X = random_input(TINY, (200,), 7)
MIB = 1 << 20


class Narrow(NamedTuple):
    """A server whose store can be filled up, and given room again."""

    serving: Serving
    fill: Callable[[], None]
    give_room: Callable[[], None]
    takes_deletes: bool


def on_disk(serve: Serve, folder: Path) -> Narrow:
    """Runs it in a mount namespace of its own, on a disk of 8 MB that a ballast fills."""
    script = 'mount -t tmpfs -o size=8m none "$0" && exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine allows no mount of its own")
    serving = serve("--store", f"file:{folder / 'store'}", command=[*inside, *COMMAND])
    ballast = Path(f"/proc/{serving.process.pid}/root") / folder.relative_to("/") / "ballast"

    def fill() -> None:
        with suppress(OSError), ballast.open("wb", 0) as file:  # no space left
            while file.write(bytes(4096)):
                pass

    return Narrow(serving, fill, ballast.unlink, takes_deletes=False)


def in_valkey(serve: Serve, valkey: Valkey) -> Narrow:
    """Runs it with maxmemory as low as its use, or high enough."""
    serving = serve("--store", valkey.url)

    def allow(size: int) -> None:
        with closing(Redis(port=valkey.port)) as client:
            client.config_set("maxmemory", size)

    return Narrow(serving, lambda: allow(1), lambda: allow(64 * MIB), takes_deletes=True)


@pytest.fixture(params=["disk", "valkey"])
def narrow(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Iterator[Narrow]:
    """A server with such a store."""
    if request.param == "disk":
        yield on_disk(serve, tmp_path)
    else:
        with Valkey(tmp_path, "--maxmemory-policy", "noeviction") as valkey:
            yield in_valkey(serve, valkey)


def refusal(call: Callable[[], object]) -> LstmServeError:
    """The error of a call for which the store has no room."""
    with pytest.raises(LstmServeError) as refused:
        call()
    assert refused.value.reason == "STORE_FULL"
    assert refused.value.applied is False
    assert "the store is full, until its operator makes room" in str(refused.value)
    return refused.value


def test_a_full_store_is_told_and_heals(narrow: Narrow, models: Path) -> None:
    """Steps, sessions and closes that find no room change nothing and say what to do, and with room
    again the same session goes on bit for bit."""
    with Client(narrow.serving.target) as client:
        sessions = [client.session("tiny", keep=True) for _ in range(4)]
        first = sessions[0].step(X[:50])
        narrow.fill()
        for _ in range(3):
            assert "send the step again" in str(refusal(lambda: sessions[0].step(X[50:])))
        refusal(lambda: client.session("tiny"))
        if narrow.takes_deletes:
            sessions[1].close()
        else:
            assert "close it again" in str(refusal(sessions[1].close))
            refusal(sessions[1].close)
            refusal(lambda: sessions[1].step(X))
        narrow.give_room()
        rest = sessions[0].step(X[50:])
        for session in sessions:
            session.close()
        assert client.sessions() == []
    whole = Oracle(models / "tiny" / "1", TINY).run(X)[0]
    assert np.array_equal(np.concatenate([first, rest]), whole)
    assert narrow.serving.stop() == 0  # its whole log has been read then
    assert [line["level"] for line in narrow.serving.log if "store full" in line["event"]] == [
        "error"
    ]
