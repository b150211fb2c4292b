"""Two live owners of one session with write-behind: the stale one answers what the store has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmserve.wire.v1 import lstm_pb2 as wire
from soak.calls import Calls, Refused
from soak.conversation import Conversation
from soak.fleet import fleet_of
from storing import Valkey


async def test_a_step_is_not_taken_for_an_old_one(tmp_path: Path) -> None:
    """An owner that is ahead of the store, and whose session has moved, says gap and not
    superseded."""
    flags = ("--store-mode", "behind", "--behind-s-max", "3600")
    with Valkey(tmp_path) as valkey, fleet_of(tmp_path, 2, "--store", valkey.url, *flags) as fleet:
        ahead, other = (pod.serving for pod in fleet.pods)
        async with Calls() as calls:
            talk = Conversation(fleet, calls, "a")
            fleet.suspect(other)
            await talk.open()
            for _ in range(5):
                await talk.step(np.random.default_rng(0))
            assert (await calls.step(other, talk.request(1))).y == talk.outputs[0].tobytes()
            with pytest.raises(Refused) as refused:
                await calls.step(ahead, talk.request(2))
    assert refused.value.reason == "STEP_GAP"
    assert refused.value.metadata == {"expected_step": "1"}


async def test_who_opens_anew_is_not_answered_from_steps_that_were_taken_back(
    tmp_path: Path,
) -> None:
    """After a gap and a RESTART the first owner does not answer from its own later steps."""
    flags = ("--store-mode", "behind", "--behind-s-max", "3600")
    with Valkey(tmp_path) as valkey, fleet_of(tmp_path, 2, "--store", valkey.url, *flags) as fleet:
        ahead, other = (pod.serving for pod in fleet.pods)
        async with Calls() as calls:
            talk, anew = (Conversation(fleet, calls, "a") for _ in range(2))
            anew.if_exists = wire.IF_EXISTS_RESTART
            fleet.suspect(other)
            await talk.open()
            for seed in range(2):
                await talk.step(np.random.default_rng(seed))
            talk.prepare(np.random.default_rng(2))
            with pytest.raises(Refused, match="OUT_OF_RANGE"):
                await calls.step(other, talk.request(3))
            fleet.trust(other)
            fleet.suspect(ahead)
            await anew.open()
            for seed in range(3, 5):
                await anew.step(np.random.default_rng(seed))
            anew.prepare(np.random.default_rng(5))
            with pytest.raises(Refused) as refused:
                await calls.step(ahead, anew.request(3))
    assert refused.value.reason == "STEP_GAP"
