"""The short form of what a store may do to its servers; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

from soak import failover, failover_behind, outage


def test_a_failover_that_takes_steps_back_is_told_or_healed(tmp_path: Path) -> None:
    """The replica lacks the last writes: who kept his inputs goes on, who did not is told."""
    found = failover.run(tmp_path, failovers=2, every_s=0.5, sessions=16)
    print(found.figures())
    found.check()


def test_what_live_servers_have_outlives_the_stores_failover(tmp_path: Path) -> None:
    """Behind: a live server stores anew what the replica lacks; else it is told or healed."""
    found = failover_behind.run(tmp_path, failovers=1, every_s=1.5, sessions=16)
    print(found.figures())
    found.check()


def test_without_its_store_a_server_acks_nothing(tmp_path: Path) -> None:
    """A dead store, then a frozen one: steps wait for it, and all goes on by itself."""
    found = outage.run(tmp_path, away_s=(2, 3), sessions=16)
    print(found.figures())
    found.check()
