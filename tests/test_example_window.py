"""examples/weather/window.py: a network that is trained on windows, served with and without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import lstmserve
from examples.weather import window
from lstmserve.golden import excess
from serving import COMMAND, Serve, Serving
from tritonserving import Triton, request

Floats = npt.NDArray[np.float32]
HOURS = 400


@pytest.fixture(scope="module")
def net() -> window.Net:
    """Trained as the example trains it."""
    return window.train()


@pytest.fixture(scope="module")
def folder(net: window.Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models `windows` and `running`."""
    models = tmp_path_factory.mktemp("models")
    window.export_both(net, models)
    return models


@pytest.fixture(scope="module")
def trained(folder: Path) -> Iterator[Serving]:
    """A server of both."""
    serving = Serving(("--models", folder), COMMAND)
    yield serving
    assert serving.stop() == 0


def by_torch(net: window.Net, x: Floats, dtype: torch.dtype = torch.float64) -> Floats:
    """What forward() says of every whole window of the hours [T]: [T - 23]."""
    with torch.inference_mode():
        windows = torch.from_numpy(window.windows_of(x).copy()).to(dtype)
        found: Floats = net.to(dtype)(windows)[:, 0].numpy()
    net.float()
    return found


def test_every_window_is_as_torch_says(net: window.Net, trained: Serving) -> None:
    """All windows of the year, streamed, are within the parity gate of forward() on each of them;
    the first 23 hours have no forecast."""
    x, _ = window.temperatures()
    found = window.forecasts(trained.target, "windows", x)
    assert np.isnan(found[: window.WINDOW - 1]).all()
    assert excess(found[window.WINDOW - 1 :], by_torch(net, x), 0.0) <= 1


def test_a_running_state_is_worse_for_a_network_of_windows(trained: Serving) -> None:
    """The figure of the docs: the same weights err by more than 5 % more without windows."""
    x, _ = window.temperatures()
    found = {
        name: window.rmse(window.forecasts(trained.target, name, x))
        for name in ("windows", "running")
    }
    assert found["running"] > 1.05 * found["windows"]


def test_many_sessions_at_once_have_the_bits_of_one(trained: Serving) -> None:
    """StepMany of 40 sessions, each at another hour, gives the bits of one session alone."""
    x, _ = window.temperatures()
    whole = window.forecasts(trained.target, "windows", x[:HOURS])
    with lstmserve.Client(trained.target) as client:
        sessions = [client.session("windows") for _ in range(40)]
        for i, session in enumerate(sessions[1:], 1):
            session.step(x[:i, np.newaxis])
        for hour in range(30):
            inputs = {each: x[i + hour : i + hour + 1] for i, each in enumerate(sessions)}
            for i, y in enumerate(client.step_many(inputs).values()):
                given = np.full(1, np.nan, np.float32) if y is None else y
                assert np.array_equal(given, whole[[i + hour]], equal_nan=True)


def test_a_session_outlives_kill_9(folder: Path, tmp_path: Path, serve: Serve) -> None:
    """A session with a store goes on with its window at the server that follows a kill -9."""
    x, _ = window.temperatures()
    rows, store = x[:, np.newaxis], ("--store", f"file:{tmp_path / 'store'}")
    first = serve(*store, models=folder)
    whole = window.forecasts(first.target, "windows", x[:HOURS])
    with lstmserve.Client(first.target) as client:
        session = client.session("windows", id="jfk", keep=True)
        before = [session.step(rows[:10]), session.step(rows[10:200])]
    first.kill()
    second = serve(*store, models=folder)
    with lstmserve.Client(second.target) as client:
        after = client.attach("jfk").step(rows[200:HOURS])
    given = np.concatenate([each[:, 0] for each in (*before, after)])
    assert np.array_equal(given, whole[window.WINDOW - 1 :])


async def test_triton_has_the_same_bits(trained: Serving, triton: Triton) -> None:
    """A sequence of Triton's protocol gives the rows that the native protocol gives."""
    x, _ = window.temperatures()
    whole = window.forecasts(trained.target, "windows", x[:60])
    rows = x[np.newaxis, :, np.newaxis]
    requests = [
        request(rows[:, :20], 7, start=True, model="windows"),
        request(rows[:, 20:60], 7, end=True, model="windows"),
    ]
    first, second = await triton.run("one_by_one", trained.target, requests)
    assert first.y.shape == (1, 0, 1)
    assert first.parameters["missing_rows"] == 4
    assert np.array_equal(second.y[0, :, 0], whole[window.WINDOW - 1 :])
