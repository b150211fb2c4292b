"""Owns feeding: takes items from a source and sends them while their results are being read.

The source is read in a thread of its own, so that a reply is not held up by the next item.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from queue import Queue
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
U = TypeVar("U")
Source: TypeAlias = Iterable[T]


def pump(source: Source[T], send: Callable[[T], U], window: int) -> Generator[U]:
    """send(item) of each item, in order; at most `window` results wait for the reader.

    What the source or `send` raises is raised here, after the results before it.
    """
    feed = _Feed(source, send, window)
    try:
        while not isinstance(result := feed.results.get(), _End):
            yield result
        if result.error is not None:
            raise result.error
    finally:
        feed.stop()


class _End:
    """Follows the last result: why there is no more."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class _Feed(Generic[T, U]):
    """The thread that reads the source; a daemon, as a source may block for ever."""

    def __init__(self, source: Iterable[T], send: Callable[[T], U], window: int) -> None:
        self._source = source
        self._send = send
        self._is_stopped = False
        self.results: Queue[U | _End] = Queue(window)
        threading.Thread(target=self._run, name="lstmserve-feed", daemon=True).start()

    def stop(self) -> None:
        """Ends it at the next item at the latest; called by the reader of the results."""
        self._is_stopped = True
        while not self.results.empty():  # it may be waiting for room
            self.results.get_nowait()

    def _run(self) -> None:
        try:
            for item in self._source:
                if self._is_stopped:
                    return
                self.results.put(self._send(item))
        except BaseException as error:  # whatever it is, the reader gets it
            self.results.put(_End(error))
        else:
            self.results.put(_End())
