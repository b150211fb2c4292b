"""Settings: every limit at its edge and one past it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmserve.address import host_port, is_loopback
from lstmserve.config import FRAME_BYTES, MESSAGE_BYTES_LIMIT, Config, settings
from lstmserve.head_layers import Linear
from lstmserve.server.ports import share_bytes_max
from lstmserve.spec import TENSOR_FRAME_BYTES, LstmSpec, ModelSpec, TensorSpec
from lstmserve.v1 import lstm_pb2 as pb

RANGED = {name: each for name, each in settings().items() if each.metadata["setting"].high}
# These two may not be below another setting, so that one changes with them.
TOGETHER = {"slice_rows_max": "batch_cells_max", "length_max": "predict_rows_max"}


def with_value(name: str, value: float) -> Config:
    """A Config with one setting changed, and the settings that must change with it."""
    values = {name: value}
    if name in TOGETHER:
        values[TOGETHER[name]] = max(value, settings()[TOGETHER[name]].default)
    if name in TOGETHER.values():
        (small,) = (s for s, large in TOGETHER.items() if large == name)
        values[small] = min(value, settings()[small].default)
    return Config(**values)


@pytest.mark.parametrize("name", RANGED)
def test_range_is_inclusive_and_closed(name: str) -> None:
    """Both ends of a range are accepted, and one past each is refused with name, value and
    range."""
    setting = settings()[name].metadata["setting"]
    assert getattr(with_value(name, setting.low), name) == setting.low
    assert getattr(with_value(name, setting.high), name) == setting.high
    for value in (setting.low - 1, setting.high + 1):
        with pytest.raises(ValueError, match=f"{name} is {value}") as refusal:
            Config(**{name: value})
        assert f"[{setting.low}, {setting.high}]" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", True),
        ("threads", "1"),
        ("threads", 1.0),
        ("threads", None),
        ("drain_s_max", float("nan")),
        ("insecure", 1),
        ("device", "gpu"),
        ("log", "xml"),
        ("models", "models"),
        ("listen", "localhost"),
        ("listen", "::1:50051"),
        ("listen", ":50051"),
        ("metrics", "127.0.0.1:65536"),
        ("metrics", "127.0.0.1:http"),
    ],
)
def test_wrong_kind_is_refused_by_name(name: str, value: object) -> None:
    """A value of the wrong kind is refused, and the refusal names the setting."""
    with pytest.raises(ValueError, match=f"^{name} is "):
        Config(**{name: value})


def test_limits_must_fit_each_other() -> None:
    """A slice must fit a batch, and the longest sequence the queue of Predict."""
    with pytest.raises(ValueError, match="batch_cells_max is 8, must be at least slice_rows_max"):
        Config(batch_cells_max=8)
    with pytest.raises(ValueError, match="predict_rows_max is 9, must be at least length_max"):
        Config(predict_rows_max=9)


def test_every_setting_says_what_it_is() -> None:
    """Every setting has help, and its default is allowed."""
    assert Config().models == Path("models")
    for name, each in settings().items():
        assert each.metadata["setting"].help.endswith("."), name


@pytest.mark.parametrize(
    ("spec", "row_bytes"),
    [
        (LstmSpec(2000, 4), 8000),
        (LstmSpec(2, 4, head=(Linear(3000),)), 12_000),
        (LstmSpec(2, 300, num_embeddings=9), 1200),
    ],
    ids=["input", "output", "tokens"],
)
def test_messages_fit_the_longest_step(spec: LstmSpec, row_bytes: int) -> None:
    """The derived message limit fits length_max rows of input or output, with some room."""
    config = Config(pending_bytes_max=1 << 30).resolved([LstmSpec(1, 1), spec])
    assert config.message_bytes_max is not None
    room = config.message_bytes_max - config.length_max * row_bytes
    assert 0 < room <= 1 << 20


def test_message_limit_has_bounds() -> None:
    """Never below gRPC's own default, never above 1 GiB, and a given one stays."""
    assert Config().resolved([LstmSpec(1, 1)]).message_bytes_max == 4 << 20
    huge = Config(pending_bytes_max=1 << 31).resolved([LstmSpec(65_536, 1)])
    assert huge.message_bytes_max == MESSAGE_BYTES_LIMIT
    assert Config(message_bytes_max=5000).resolved([LstmSpec(1, 1)]).message_bytes_max == 5000


def test_a_state_fits_a_message() -> None:
    """One of 8 MB needs as much as rows of that size, and room for its name."""
    state = TensorSpec("s", (2000, 1000))
    spec = ModelSpec((TensorSpec("x"),), (TensorSpec("y"),), (state,))
    found = Config().resolved([spec]).message_bytes_max
    assert found == 8_000_000 + TENSOR_FRAME_BYTES + FRAME_BYTES


def test_messages_fit_a_state() -> None:
    """What GetState gives can be opened again: varints of ten bytes, and many small tensors."""
    states = (TensorSpec("h", (1 << 20,)), TensorSpec("n", (1 << 19,), "int64"))
    many = tuple(TensorSpec(f"s{i}", (1,) * 8, "bool") for i in range(900))
    spec = ModelSpec((TensorSpec("x"),), (TensorSpec("y"),), (*states, *many))
    config = Config().resolved([LstmSpec(1, 1), spec])
    state = pb.State(
        tensors=[
            pb.Tensor(name="h", shape=[1 << 20], floats=np.ones(1 << 20)),
            pb.Tensor(name="n", shape=[1 << 19], ints=np.full(1 << 19, -1)),
            *(pb.Tensor(name=each.name, shape=each.shape, ints=[1]) for each in many),
        ]
    )
    assert config.message_bytes_max is not None
    assert 0 < config.message_bytes_max - state.ByteSize() < 1 << 18
    small = Config(pending_bytes_max=16 << 20).resolved([spec])
    assert small.message_bytes_max == 8 << 20, "the bytes that may wait have room for no more"


def test_a_message_and_its_reply_fit_the_bytes_that_may_wait() -> None:
    """Twice a given longest message is enough, and one byte less is refused by name."""
    Config(pending_bytes_max=8192, message_bytes_max=4096).resolved([])
    with pytest.raises(ValueError, match=r"^pending_bytes_max is 8193, must be at least twice"):
        Config(pending_bytes_max=8193, message_bytes_max=4097).resolved([])


def test_wide_rows_have_shorter_messages() -> None:
    """A step of length_max fits if the bytes that may wait have room for it and its reply;
    otherwise as many rows as fit, and a row at the least."""
    wanted = 8000 * 10_000 + FRAME_BYTES
    for room, found in ((2 * wanted, wanted), (2 * wanted - 1, wanted - 1), (16 << 20, 8 << 20)):
        config = Config(pending_bytes_max=room).resolved([LstmSpec(2000, 4)])
        assert config.message_bytes_max == found
    spec = ModelSpec((TensorSpec("x", (1 << 22,)),), (TensorSpec("y"),), (TensorSpec("h"),))
    row = (1 << 24) + FRAME_BYTES
    assert Config(pending_bytes_max=2 * row).resolved([spec]).message_bytes_max == row
    with pytest.raises(ValueError, match=f"message_bytes_max, which is {row}"):
        Config(pending_bytes_max=2 * row - 1).resolved([spec])


def test_a_tenants_share_is_a_quarter_unless_told() -> None:
    """With tokens the share is a quarter, without tokens there is none, and a flag overrides
    both."""
    tokens = Path("tokens")
    assert share_bytes_max(Config(tokens=tokens)) == Config().pending_bytes_max // 4
    assert share_bytes_max(Config()) is None
    assert share_bytes_max(Config(tokens=tokens, tenant_pending_bytes_max=5)) == 5
    assert share_bytes_max(Config(tenant_pending_bytes_max=5)) == 5


@pytest.mark.parametrize(
    ("address", "host", "port", "local"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0, True),
        ("127.8.0.1:5", "127.8.0.1", 5, True),
        ("localhost:65535", "localhost", 65_535, True),
        ("[::1]:50051", "::1", 50_051, True),
        ("0.0.0.0:50051", "0.0.0.0", 50_051, False),
        ("[::]:50051", "::", 50_051, False),
        ("lstm.example:1", "lstm.example", 1, False),
    ],
)
def test_addresses(address: str, host: str, port: int, local: bool) -> None:
    """Host and port are split, and a loopback address is told from one that others can reach."""
    assert host_port("listen", address) == (host, port)
    assert is_loopback(host) is local
