"""Owns reading ahead: takes items from a source while those before them are being dealt with.

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


def pump(source: Source[T], take: Callable[[T], U], window: int) -> Generator[list[U]]:
    """take(item) of each item, in order; as many at once as are there, at most `window`.

    What the source or `take` raises is raised here, after the results before it.
    """
    feed = _Feed(source, take, window)
    results = feed.results
    try:
        result: U | _End | None = None
        while not isinstance(result, _End):
            there: list[U] = []
            result = results.get()
            while not isinstance(result, _End):
                there.append(result)
                if results.empty() or len(there) == window:
                    break
                result = results.get_nowait()  # nobody else takes from it
            if there:
                yield there
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

    def __init__(self, source: Iterable[T], take: Callable[[T], U], window: int) -> None:
        self._source = source
        self._take = take
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
                self.results.put(self._take(item))
        except BaseException as error:  # whatever it is, the reader gets it
            self.results.put(_End(error))
        else:
            self.results.put(_End())
