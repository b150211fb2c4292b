"""The short form of faults of a store; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

from soak import failover, failover_behind, outage


def test_a_failover_that_takes_steps_back_is_told_or_healed(tmp_path: Path) -> None:
    """If the replica lacks the last writes, a client with its inputs goes on, and one without gets
    an error."""
    found = failover.run(tmp_path, failovers=2, every_s=0.5, sessions=16)
    print(found.figures())
    found.check()


def test_what_live_servers_have_outlives_the_stores_failover(tmp_path: Path) -> None:
    """In `behind` mode a live server stores again what the replica lacks, and other losses are
    reported or healed."""
    found = failover_behind.run(tmp_path, failovers=1, every_s=1.5, sessions=16)
    print(found.figures())
    found.check()


def test_without_its_store_a_server_acks_nothing(tmp_path: Path) -> None:
    """While the store is dead, and then frozen, steps wait for it, and later all go on by
    themselves."""
    found = outage.run(tmp_path, away_s=(2, 3), sessions=16)
    print(found.figures())
    found.check()
