"""Carries events and messages from the poller's thread to the event loop's. It knows no gRPC.

The poller appends a call's opening before its messages, and its ending after them. So the loop
takes the list of endings before the other lists, and runs it after them. When a connection breaks,
gRPC reports a half-close and then a cancellation; the loop runs cancellations first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger()

Event = Callable[[], None]


class Arrivals:
    """The events of one server. Each list may grow at any moment, and no event is lost by that."""

    def __init__(self) -> None:
        self.openings: list[Event] = []
        self.messages: list[tuple[Any, Any]] = []  # a method, and what it receives
        self.notices: list[Event] = []  # of replies that were sent, and of streams that wait
        self.endings: list[Event] = []
        self.half_closes: list[Event] = []
        self.is_urgent = False  # whether a notice must not wait for something else to arrive

    @property
    def is_due(self) -> bool:
        """Whether the loop must be woken now."""
        return self.is_urgent or bool(
            self.messages or self.endings or self.openings or self.half_closes
        )

    def deliver(self) -> None:
        """Runs every event; each method receives all its messages as one list."""
        self.is_urgent = False
        half_closes = _take(self.half_closes)
        endings = _take(self.endings)
        notices = _take(self.notices)
        messages = _take(self.messages)
        _run(_take(self.openings))
        groups: dict[Any, list[Any]] = {}
        for method, message in messages:
            if method in groups:
                groups[method].append(message)
            else:
                groups[method] = [message]
        del messages  # or the list would hold all of them until the last one was received
        for method in tuple(groups):
            _receive(method, groups.pop(method))
        _run(notices)
        _run(endings)
        _run(half_closes)


def _receive(method: Any, messages: list[Any]) -> None:
    try:
        method.receive(messages)
    except Exception:  # a bug of ours: the other methods' messages must not be lost
        log.exception("a method failed on its messages")


def _take(items: list[Any]) -> list[Any]:
    """All items, in order, while another thread appends."""
    taken = items[:]
    del items[: len(taken)]
    return taken


def _run(events: list[Event]) -> None:
    for event in events:
        try:
            event()
        except Exception:  # a bug of ours: the other calls' events must not be lost
            log.exception("the transport failed on an event")
