"""Tenants with a network of five states: same ids, states that move, and limits in its bytes.

Every reply and every state has the bits of a plain loop over its step graph (tests/stepgraph.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

import stepgraph
from lstmserve.client import AsyncSession, LstmServeError, SessionNotFound, State
from lstmserve.config import Config
from lstmserve.engine.model import slots_for
from lstmserve.rows import FLOATS, INTS
from lstmserve.tokens import Limits
from lstmserve.v1 import lstm_pb2 as pb
from stepgraph import INPUTS, OUTPUTS, SPEC, Arrays, Loop, random_rows
from tenancy import Tenancy, limited
from wire import serving, tensor

TENANTS = ("acme", "other")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A models folder with the network "n"."""
    stepgraph.make_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
async def running(folder: Path, tmp_path: Path) -> AsyncIterator[Tenancy]:
    """A server with the tenants acme and other."""
    async with limited(folder, tmp_path, "") as running:
        yield running


class Net:
    """A tenant's session, whose whole past is known by the plain loop."""

    loop = Loop()

    def __init__(self, session: AsyncSession, seed: int, states: Arrays | None = None) -> None:
        self.session = session
        self.states = states
        self._rng = np.random.default_rng(seed)

    async def step(self, length: int) -> None:
        """One step, checked."""
        rows = random_rows(self._rng, length)
        y, states = self.loop.run(rows, self.states)
        found = await self.session.step(INPUTS.split(rows))
        self.states = states
        for name, wanted in OUTPUTS.split(y).items():
            assert found[name].tobytes() == wanted.tobytes()

    async def check(self) -> State:
        """The state is the loop's."""
        state = await self.session.state()
        wanted = stepgraph.initial() if self.states is None else self.states
        assert list(state.tensors) == [each.name for each in SPEC.states]
        for name, each in wanted.items():
            assert state.tensors[name].tobytes() == np.asarray(each).tobytes()
        return state


async def test_the_same_id_is_two_sessions(running: Tenancy) -> None:
    """Two tenants step one id in turn, in the same batches, and each has its own five states."""
    acme, other = [
        Net(await running.client(t).session("n", id="s"), i) for i, t in enumerate(TENANTS)
    ]
    for length in (1, 3, 1, 7, 2):
        await acme.step(length)
        await other.step(length + 1)
    for net in (acme, other):
        await net.check()
    await acme.session.close()
    await other.step(2)
    await other.check()


async def test_a_session_is_exported_and_forked_by_its_own_tenant_alone(running: Tenancy) -> None:
    """Another tenant can neither read nor fork it, but imports what the owner exported; both go on
    from there, apart from each other."""
    clients = {tenant: running.client(tenant) for tenant in TENANTS}
    ours = Net(await clients["acme"].session("n", id="ours"), 0)
    await ours.step(5)
    exported = await clients["acme"].export("ours")
    with pytest.raises(SessionNotFound):
        await clients["other"].export("ours")
    with pytest.raises(SessionNotFound):
        await (await clients["other"].attach("ours")).fork("theirs")
    info = await clients["other"].model("n")
    state = State.from_bytes(exported, info)
    theirs = Net(await clients["other"].session("n", id="ours", state=state), 1, ours.states)
    assert await theirs.check() == await ours.check() == state
    fork = Net(await ours.session.fork(), 2, ours.states)
    for net, length in ((ours, 4), (theirs, 2), (fork, 1)):
        await net.step(length)
    states = [await net.check() for net in (ours, theirs, fork)]
    assert [state.step for state in states] == [2, 2, 2]
    assert len({state.crc32c for state in states}) == 3


async def test_the_pool_holds_as_many_sessions_as_its_bytes(folder: Path, tmp_path: Path) -> None:
    """Of all tenants together: one byte less than four sessions need holds three, and a session
    that ends makes room for another tenant's."""
    small = {"batch_sessions_max": 8, "long_steps_max": 8}
    pool_bytes = slots_for(4, Config(**small)) * SPEC.state_bytes - 1
    async with limited(folder, tmp_path, "", pool_bytes=pool_bytes, **small) as running:
        clients = {tenant: running.client(tenant) for tenant in TENANTS}
        nets = [Net(await clients[t].session("n"), i) for i, t in enumerate((*TENANTS, "acme"))]
        for tenant in TENANTS:
            error = await refused(clients[tenant].session("n"))
            assert (error.code, error.reason) == (StatusCode.RESOURCE_EXHAUSTED, "SESSION_LIMIT")
        for net in nets:
            await net.step(3)
        await nets.pop(0).session.close()
        nets.append(Net(await clients["other"].session("n"), 9))
        for net in nets:
            await net.step(2)
            await net.check()


@pytest.mark.parametrize("has_states", [True, False])
async def test_a_share_counts_the_bytes_of_states(folder: Path, has_states: bool) -> None:
    """Of whole sequences that wait, with their given and their final states: to the last byte the
    share is full, and one byte less refuses the last call."""
    count = 200
    initial = {n: np.stack([each] * count) for n, each in stepgraph.initial().items()}
    rows = random_rows(np.random.default_rng(3), count)
    request = pb.PredictRequest(
        model="n",
        lengths=[1] * count,
        x=rows[FLOATS].ravel(),
        tokens=rows[INTS].ravel(),
        initial=[tensor(name, each) for name, each in initial.items()] if has_states else [],
        with_state=has_states,
    )
    states = sum(each.wire_bytes for each in SPEC.states)
    each_bytes = rows.nbytes + count * (2 * 4 + 10 + 2 * states * has_states)
    for missing in (0, 1):
        limits = Limits(pending_bytes_max=2 * each_bytes - missing)
        async with serving(folder, is_running=False, limits=limits) as wire:
            calls = [asyncio.ensure_future(wire.call("Predict", request))]
            await wire.until(lambda: wire.engine.batch_loop.pending_steps == count)
            if missing:
                said = await wire.refused("Predict", request.SerializeToString())
                assert (said.code, said.reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUOTA")
                assert said.retry_s
            else:
                calls.append(asyncio.ensure_future(wire.call("Predict", request)))
                await wire.until(lambda: wire.engine.batch_loop.pending_steps == 2 * count)
                assert wire.pending.held == 2 * each_bytes
            wire.run()
            await asyncio.gather(*calls)


async def test_rows_and_sessions_are_limited(folder: Path, tmp_path: Path) -> None:
    """A refused step changes none of the states, and the one after it goes on from there."""
    async with limited(folder, tmp_path, "rows_per_s=8 sessions_max=1") as running:
        running.clock.add(1.0)
        client = running.client("acme")
        net = Net(await client.session("n", id="s"), 0)
        assert (await refused(client.session("n"))).reason == "QUOTA"
        await net.step(8)
        before = net.states
        error = await refused(
            net.session.step(INPUTS.split(random_rows(np.random.default_rng(1), 1)))
        )
        assert error.reason == "QUOTA"
        assert net.states is before
        await net.check()
        running.clock.add(1.0)
        await net.step(3)
        await net.check()


async def refused(call: Any) -> LstmServeError:
    """The error of a call."""
    with pytest.raises(LstmServeError) as caught:
        await call
    return caught.value
