"""Servers whose file: store is removed, replaced or cut under them, or may not be used at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lstmserve.store.file import FILE_NAME
from lstmserve.v1 import lstm_pb2 as pb
from lstmserve.v1 import lstm_pb2_grpc
from modelmaking import TINY, random_input
from refusals import refusal
from serving import WAIT_S_MAX, Serve, Serving, environment

NOBODY = 65534
LOST = "store lost: sessions are refused until this server is restarted"


def removed(folder: Path) -> None:
    """Removes the folder."""
    for each in folder.iterdir():
        each.unlink()


def moved(folder: Path) -> None:
    """Renames the folder."""
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    """Puts a backup back."""
    shutil.copy(folder / FILE_NAME, folder / "copy")
    (folder / "copy").rename(folder / FILE_NAME)


def truncated(folder: Path) -> None:
    """Empties the file and its log."""
    for each in folder.iterdir():
        os.truncate(each, 0)


LOSSES = {
    removed: "was removed or moved away",
    moved: "was removed or moved away",
    replaced: "was replaced by another file",
    truncated: "was truncated",
}


class Caller:
    """One numbered session, by the plain contract, whose errors are the server's own words."""

    def __init__(self, serving: Serving) -> None:
        self._channel = grpc.insecure_channel(serving.target)
        self._stub = lstm_pb2_grpc.LstmServiceStub(self._channel)
        self.opened = self._stub.OpenSession(
            pb.OpenSessionRequest(
                model="tiny", session_id="a", if_exists=pb.IF_EXISTS_RESUME, request_id="once"
            )
        ).session
        self.step = self.opened.step

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def next(self) -> pb.StepResponse:
        """Makes the next step. Raises grpc.RpcError."""
        reply = self._stub.Step(
            pb.StepRequest(
                session_id="a",
                incarnation=self.opened.incarnation,
                step=self.step + 1,
                length=1,
                x=random_input(TINY, (1,), self.step).ravel().tolist(),
            ),
            timeout=WAIT_S_MAX,
        )
        self.step += 1
        return reply

    def health(self) -> int:
        """The health that a router would see."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest()).status
        return status


def until_noticed(serving: Serving) -> str:
    """Waits until /readyz says that it is not ready. Returns its text."""
    while True:
        status, text = serving.get("/readyz")
        if status != 200:
            assert status == 503
            return text


def refused(caller: Caller) -> Any:
    """The error of the next step."""
    with pytest.raises(grpc.RpcError) as error:
        caller.next()
    return refusal(error.value)  # type: ignore[arg-type]  # has all that is read


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
@pytest.mark.parametrize("mode", ["through", "behind"])
def test_a_server_notices_that_its_file_is_lost(
    lose: Callable[[Path], None], mode: str, serve: Serve, tmp_path: Path
) -> None:
    """No step is reported as stored any more, /readyz and health say so, and the log does once."""
    folder = tmp_path / "store"
    flags = ("--store", f"file:{folder}", "--store-mode", mode, "--behind-s-max", "0.1")
    serving = serve(*flags)
    with Caller(serving) as caller:
        for _ in range(3):
            caller.next()
        lose(folder)
        if mode == "through":  # every flush checks: not one step more is acknowledged
            assert refused(caller).reason == "STORE_UNAVAILABLE"
        text = until_noticed(serving)
        assert str(folder) in text
        assert LOSSES[lose] in text
        said = refused(caller)
        assert (said.code, said.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert str(folder) not in said.message
        assert caller.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        assert until_noticed(serving) == text
        assert serving.get("/livez")[0] == 200
    (line,) = serving.events(LOST)
    assert LOSSES[lose] in line["cause"]
    serving.stop()


def test_the_next_server_has_the_folder_for_itself(serve: Serve, tmp_path: Path) -> None:
    """A server that lost the folder acks nothing beside a second server, and leaves its file
    alone."""
    flags = ("--store", f"file:{tmp_path / 'store'}")
    first = serve(*flags)
    with Caller(first) as stale:
        assert stale.next().durable_step == 1
        removed(tmp_path / "store")
        second = serve(*flags)
        with Caller(second) as fresh:
            for number in range(1, 4):
                assert fresh.next().durable_step == number
                assert refused(stale).reason == "STORE_UNAVAILABLE"
            first.stop()
            assert fresh.next().durable_step == 4
    second.kill()
    with Caller(serve(*flags)) as caller:
        assert caller.step == 4


OPENS = """
import os, sys
from lstmserve.store import StoreRefused, open_store
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
try:
    open_store("file:" + sys.argv[1])
except StoreRefused as refused:
    print(refused)
"""


def unwritable(folder: Path) -> Path:
    """Makes it another user's folder."""
    folder.mkdir(mode=0o755)
    return folder


def hidden(folder: Path) -> Path:
    """Makes it a folder that no user may enter."""
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0)
    return folder


def no_parent(folder: Path) -> Path:
    """Names a folder inside another user's folder."""
    folder.mkdir(mode=0o755)
    return folder


def foreign_file(folder: Path) -> Path:
    """Makes the file root's, in a folder that any user may use."""
    folder.mkdir()
    folder.chmod(0o777)
    (folder / FILE_NAME).touch(mode=0o644)
    return folder / FILE_NAME


def read_only_file(folder: Path) -> Path:
    """Makes its own file read-only."""
    folder.mkdir()
    folder.chmod(0o777)
    (folder / FILE_NAME).touch()
    os.chown(folder / FILE_NAME, NOBODY, NOBODY)
    (folder / FILE_NAME).chmod(0o400)
    return folder / FILE_NAME


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose parents any user may enter."""
    if os.geteuid():
        pytest.skip("needs root, to be another user")
    opened = []
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o001:
            opened.append((parent, parent.stat().st_mode))
            parent.chmod(parent.stat().st_mode | 0o011)
    yield tmp_path
    for parent, mode in opened:
        parent.chmod(mode)


@pytest.mark.parametrize(
    ("spoil", "inside", "owner", "mode"),
    [
        (unwritable, "", "root (uid 0)", "0755"),
        (hidden, "", f"(uid {NOBODY})", "0000"),
        (no_parent, "a/b", "root (uid 0)", "0755"),
        (foreign_file, "", "root (uid 0)", "0644"),
        (read_only_file, "", f"(uid {NOBODY})", "0400"),
    ],
)
def test_want_of_rights_names_path_owner_and_uid(
    spoil: Callable[[Path], Path], inside: str, owner: str, mode: str, open_folder: Path
) -> None:
    """A store that this user may not use is refused in one line that says what to do."""
    folder = open_folder / "store"
    obstacle = spoil(folder)
    said = subprocess.run(
        [sys.executable, "-c", OPENS, folder / inside, str(NOBODY)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S_MAX,
        check=False,
    )
    line = said.stdout.strip()
    assert "\n" not in line
    assert f"on {obstacle}, which belongs to " in line, (line, said.stderr)
    assert f"{owner} with mode {mode}" in line
    assert f"(uid {NOBODY}), needs rw" in line
    assert "run the server as its owner" in line or "chmod" in line
