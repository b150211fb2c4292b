"""ListSessions over the wire: pages, models, tokens that lead nowhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelmaking import make_model
from wire import SPECS, Wire, serving


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with two versions of "m"."""
    for version in (1, 2):
        make_model(tmp_path, SPECS["m"], name="m", version=version)
    async with serving(tmp_path) as wire:
        yield wire


async def test_lists_come_in_pages(wire: Wire) -> None:
    """Every session is on one page, of the model that is asked for, with what GetSession says of
    it."""
    ids = {(await wire.open(session_id=f"s{i}", version=1 + i % 2)).id for i in range(7)}
    letters = (await wire.open("letters")).id
    for model, wanted in (("", ids | {letters}), ("m", ids), ("letters", {letters})):
        seen: list[str] = []
        token = ""
        while True:
            page = await wire.call("ListSessions", page_size=3, page_token=token, model=model)
            assert len(page.sessions) <= 3
            seen += [session.id for session in page.sessions]
            if not (token := page.next_page_token):
                break
            assert len(page.sessions) == 3
        assert sorted(seen) == sorted(wanted)
    (listed,) = (await wire.call("ListSessions", model="letters")).sessions
    got = (await wire.call("GetSession", session_id=letters)).session
    for each in (listed, got):
        each.ClearField("expire_time")  # it comes from two readings of the clock
    assert listed == got


async def test_a_page_token_beyond_the_end_is_an_empty_page(wire: Wire) -> None:
    """A token that looks valid but is too large ends the list."""
    for token in ("5", "1000000", "99999999999"):
        page = await wire.call("ListSessions", page_token=token)
        assert not page.sessions
        assert not page.next_page_token
