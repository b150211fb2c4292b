"""Owns reading ahead: takes items from a source while those before them are being dealt with.

The source is read in a thread of its own, so that a reply is not held up by the next item.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
U = TypeVar("U")
Source: TypeAlias = Iterable[T]


def pump(source: Source[T], take: Callable[[T], U], window: int) -> Generator[list[U]]:
    """take(item) of each item, in order; as many at once as are there, at most `window`.

    What the source or `take` raises is raised here, after the results before it. However the
    caller leaves, the thread ends; where the source blocks, as soon as the source goes on.
    """
    feed = _Feed(source, take, window)
    try:
        while there := feed.read():
            yield there
        if feed.error is not None:
            raise feed.error
    finally:
        feed.stop()


class _Feed(Generic[T, U]):
    """The thread that reads the source; a daemon, as a source may block for ever."""

    def __init__(self, source: Iterable[T], take: Callable[[T], U], window: int) -> None:
        self._source = source
        self._take = take
        self._window = window
        self._there: list[U] = []
        self._is_over = False  # the source ended, or the reader left
        self._changed = threading.Condition()
        self.error: BaseException | None = None  # what ended the source, once read() has said []
        threading.Thread(target=self._run, name="lstmserve-feed", daemon=True).start()

    def read(self) -> list[U]:
        """Waits for results and returns all that are there, [] once there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._there or self._is_over)
            there, self._there = self._there, []
            self._changed.notify_all()
            return there

    def stop(self) -> None:
        """The reader leaves: the thread reads no further item, and waits for no room."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item):
                    return
        except BaseException as raised:  # whatever it is, the reader gets it
            error = raised
        with self._changed:
            self.error = error
            self._is_over = True
            self._changed.notify_all()

    def _put(self, item: T) -> bool:
        """Whether the reader still wants more."""
        if self._is_over:
            return False
        result = self._take(item)
        with self._changed:
            self._changed.wait_for(lambda: len(self._there) < self._window or self._is_over)
            self._there.append(result)
            self._changed.notify_all()
            return not self._is_over
