"""What every test module shares: the --long option, the tiny model and servers of it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import pytest

from modelmaking import make_model
from router import router
from serving import serve, server
from tritonserving import triton
from zoo import zoo

# No time is pass or fail: an example may run during a garbage collection, or on a busy machine.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

# All servers of tests are on this machine, so they are not reached through a developer's proxy.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,::1,localhost"

# torch, in tests and in the processes they start: two threads that wait for each other make the
# small networks of tests up to ten times as slow where other processes use the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

__all__ = ["router", "serve", "server", "triton", "zoo"]  # fixtures


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --long, which runs the long form of the proofs."""
    parser.addoption("--long", action="store_true", help="also run the long form of the proofs")
    parser.addoption("--seed", type=int, help="tests/simulation: this seed alone, told in full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the tests that are marked long, unless --long is given."""
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="the long form; run with --long"))


def pytest_collection_finish() -> None:
    """Leaves all that the imports made out of later garbage collections, each of which would walk
    through torch for a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with tiny:1; not to be written to."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder)
    return folder
