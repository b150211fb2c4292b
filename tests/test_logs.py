"""The log: one JSON object per line, from structlog and from the standard library alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from lstmserve.server.observe import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Restores the log's configuration, which belongs to the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_every_event_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Events, exceptions and foreign log records are one JSON object per line each."""
    logs.configure("json")
    log = structlog.get_logger()
    log.info("ready", sessions={"tiny:1": 3})
    log.error("internal error", exc_info=ValueError("two\nlines"))
    logging.getLogger("grpc").warning("from %s", "elsewhere")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["ready", "internal error", "from elsewhere"]
    assert [line["level"] for line in lines] == ["info", "error", "warning"]
    assert lines[0]["sessions"] == {"tiny:1": 3}
    assert "ValueError: two\nlines" in lines[1]["exception"]
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """The text form has the event and its facts, and prints an exception without a warning."""
    logs.configure("text")
    structlog.get_logger().error("internal error", model="tiny", exc_info=ValueError("why"))
    err = capsys.readouterr().err
    assert "internal error" in err
    assert "model=tiny" in err
    assert "ValueError: why" in err


def test_session_ids_are_hashed() -> None:
    """A session's hash is stable, differs between sessions and does not hold the id."""
    assert logs.session_hash("abc") == logs.session_hash("abc")
    assert logs.session_hash("abc") != logs.session_hash("abd")
    assert "abc" not in logs.session_hash("abc")
