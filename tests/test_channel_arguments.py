"""gRPC ignores channel arguments that it does not know: each of ours is looked up in its library.

The library holds the names as C strings, which end with a NUL.
"""

from __future__ import annotations

import re
from pathlib import Path

from grpc._cython import cygrpc

from lstmserve.client.channels import Endpoint
from lstmserve.config import Config
from lstmserve.server.transport import arguments as transport
from test_tidy import PRODUCT

LIBRARY = Path(cygrpc.__file__).read_bytes()
ARGUMENT = re.compile(r'\(\s*"(grpc\.[\w.]+)"\s*,')


def is_known(name: str) -> bool:
    """Whether this grpcio reads an argument of that name."""
    return name.encode() + b"\0" in LIBRARY


class Flavour:
    """Records the options of the channels that it makes."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def insecure_channel(self, target: str, options: tuple[tuple[str, object], ...]) -> None:
        """As grpc.insecure_channel."""
        self.names |= {name for name, _ in options}


def test_every_channel_argument_is_one_that_grpc_reads() -> None:
    """gRPC reads every argument that server and client set, and every name in the product's
    text."""
    config = Config(connection_age_s_max=60).resolved([])
    client = Flavour()
    for target in ("127.0.0.1:1", "example.org:1"):
        Endpoint(target, None, False).open_channel(client)
    written = {name for text in PRODUCT.values() for name in ARGUMENT.findall(text)}
    names = written | client.names | set(dict(transport.options(config)))
    assert len(names) > 15
    assert [name for name in sorted(names) if not is_known(name)] == []


def test_a_name_that_grpc_does_not_read_is_seen() -> None:
    """The look-up in the library tells a wrong name from the right one."""
    assert not is_known("grpc.http2.min_recv_ping_interval_without_data_ms")
    assert is_known("grpc.http2.min_ping_interval_without_data_ms")
