"""Runs the command of lstmserve, and reports which functions of a folder it entered.

`python -P traced.py SOCKET FOLDER ARGUMENTS...`. A client connects to SOCKET, begins a window with
a line `start`, and ends it with a line `stop`. The answer is a line of JSON: a list of [file, line,
function, file of the caller or null, thread, entries]. This file needs the standard library only,
because it runs in checkouts of any age; it must not know what the server does.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from types import CodeType, FrameType
from typing import Any

QUIET_S = 0.03  # after this time without an entry the window's work is over

Entry = tuple[CodeType, CodeType | None, int]


class Entries:
    """Notes the entries into functions whose file lies in the folder, while a window is open.

    A generator or coroutine that goes on is entered again. Code that Python makes for a
    comprehension belongs to the function around it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._noted: list[Entry] | None = None

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """The hook for sys.setprofile and threading.setprofile."""
        noted = self._noted
        if noted is None or event != "call" or not self._is_ours(frame):
            return
        caller = frame.f_back
        while caller is not None and not self._is_ours(caller):
            caller = caller.f_back
        noted.append((frame.f_code, caller and caller.f_code, threading.get_ident()))

    def _is_ours(self, frame: FrameType) -> bool:
        code = frame.f_code
        is_part = code.co_name.startswith("<") and code.co_name != "<lambda>"
        return not is_part and code.co_filename.startswith(self._folder)

    def start(self) -> None:
        """Opens a window."""
        self._noted = []

    def stop(self) -> list[list[Any]]:
        """Waits until the window's work is over, and closes it. Returns its entries."""
        noted = self._noted
        assert noted is not None, "stop without start"
        before = -1
        while len(noted) != before:
            before = len(noted)
            threading.Event().wait(QUIET_S)
        self._noted = None
        return [
            [
                code.co_filename,
                code.co_firstlineno,
                code.co_qualname,
                caller and caller.co_filename,
                thread,
                count,
            ]
            for (code, caller, thread), count in Counter(noted).items()
        ]


def answer(listener: socket.socket, entries: Entries) -> None:
    """Serves one connection until it ends."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            if line.strip() == "start":
                entries.start()
                lines.write("started\n")
            else:
                lines.write(json.dumps(entries.stop()) + "\n")
            lines.flush()


def main() -> None:
    """Runs what the command line names."""
    path, folder, *arguments = sys.argv[1:]
    entries = Entries(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    threading.Thread(target=answer, args=(listener, entries), daemon=True).start()
    threading.setprofile(entries.profile)
    sys.setprofile(entries.profile)
    from lstmserve.cli import main as command

    sys.argv[1:] = arguments
    command()


if __name__ == "__main__":
    main()
