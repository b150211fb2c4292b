"""The server's settings, each with its default, allowed range and help. Reads no flag and no file.

cli/serve.py makes one flag and one environment variable of every field; tests construct Config
directly.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lstmserve.address import host_port, is_loopback
from lstmserve.rows import RowFormat
from lstmserve.spec import ModelSpec, tensor_messages_bytes
from lstmserve.tokens import LIMIT_MAX

DAY_S = 86_400
MESSAGE_BYTES_MIN = 4 << 20
MESSAGE_BYTES_LIMIT = 1 << 30
FRAME_BYTES = 64 << 10
# The groups of `lstmserve serve --help`. Each field is in one of them.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Models": ("models", "strict_models", "device", "threads", "cpu"),
    "Network": (
        "listen",
        "metrics",
        "insecure",
        "reflection",
        "admin",
        "message_bytes_max",
        "connections_max",
        "streams_max",
        "stream_window",
        "call_s_max",
        "write_s_max",
        "connection_age_s_max",
    ),
    "TLS and tenants": (
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "tokens",
        "tenant_sessions_max",
        "tenant_pending_steps_max",
        "tenant_pending_bytes_max",
        "tenant_rows_per_s",
    ),
    "Sessions": (
        "pool_bytes",
        "session_ttl_s",
        "reply_bytes_max",
        "tombstones_max",
        "tombstone_s",
        "open_requests_max",
        "request_id_s",
    ),
    "Store": (
        "store",
        "store_sync",
        "store_timeout_s",
        "store_mode",
        "store_format",
        "behind_s_max",
        "behind_steps_max",
    ),
    "Load": (
        "length_max",
        "pending_steps_max",
        "pending_bytes_max",
        "session_pending_max",
        "predict_rows_max",
        "batch_sessions_max",
        "batch_cells_max",
        "slice_rows_max",
        "long_steps_max",
        "batches_in_flight_max",
    ),
    "Logs and shutdown": ("log", "debug", "drain_delay_s", "drain_s_max"),
}
STORE = re.compile(r"memory|file:.+|(redis|valkey)s?://.+", re.DOTALL)
STORE_SCHEME = re.compile(r"(memory|file|(redis|valkey)s?):|[a-z]{1,9}://")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field may hold; low and high are inclusive, in the unit that ends the name."""

    kind: type
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: object) -> None:
        """Raises ValueError with the setting's name, its value and what is allowed."""
        if not (self._is_kind(value) and self._is_within(value)):
            raise ValueError(f"{name} is {value!r}, must be {self.allowed()}")

    def _is_kind(self, value: object) -> bool:
        kinds = (int, float) if self.kind is float else (self.kind,)
        return isinstance(value, kinds) and (self.kind is bool or not isinstance(value, bool))

    def _is_within(self, value: Any) -> bool:
        if self.low is None or self.high is None:
            return not self.choices or value in self.choices
        return bool(self.low <= value <= self.high)

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        text = words.get(self.kind, self.kind.__name__)
        return text if self.low is None else f"{text} in [{self.low}, {self.high}]"


def _int(default: int | None, low: int, high: int, text: str) -> Any:
    """A field for a whole number in [low, high], or None if that is the default."""
    return field(default=default, metadata={"setting": Setting(int, text, low, high)})


def _limit(text: str) -> Any:
    """A field for a tenant's limit, off by default."""
    return _int(None, 1, LIMIT_MAX, f"{text}, unless the tokens file has a limit.")


def _float(default: float | None, low: float, high: float, text: str) -> Any:
    """A field for a number in [low, high], or None if that is the default."""
    return field(default=default, metadata={"setting": Setting(float, text, low, high)})


def _other(default: object, text: str, *choices: str, kind: type | None = None) -> Any:
    """A field for text, a choice or a switch."""
    setting = Setting(kind or type(default), text, choices=choices)
    return field(default=default, metadata={"setting": setting})


def _path(text: str) -> dict[str, Setting]:
    """The metadata of a field for a path."""
    return {"setting": Setting(Path, text)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting and every limit of one server. Raises ValueError for a value out of range."""

    models: Path = field(
        default=Path("models"), metadata=_path("Folder that holds the models, as NAME/VERSION.")
    )
    strict_models: bool = _other(
        False, "Refuse to start if a model cannot be served, instead of serving the others."
    )
    listen: str = _other("127.0.0.1:50051", "HOST:PORT for gRPC; port 0 takes a free one.")
    metrics: str = _other(
        "127.0.0.1:9464", "HOST:PORT for /metrics, /livez, /readyz and the status page."
    )
    device: str = _other(
        "cpu",
        "Device that runs the models; auto takes cuda if it works, else cpu.",
        "cpu",
        "cuda",
        "auto",
    )
    threads: int = _int(1, 1, 256, "Threads for one onnxruntime run.")
    cpu: int | None = _int(None, 0, 4095, "Pin the process to this CPU core.")
    insecure: bool = _other(False, "Allow plain text on an address that other machines can reach.")
    reflection: bool | None = _other(
        None, "Serve gRPC reflection [default: on for loopback].", kind=bool
    )
    tls_cert: Path | None = field(
        default=None, metadata=_path("Certificate chain in PEM; reloaded when the file changes.")
    )
    tls_key: Path | None = field(default=None, metadata=_path("The certificate's key in PEM."))
    tls_client_ca: Path | None = field(
        default=None,
        metadata=_path("Authorities in PEM; a client then needs a certificate from one."),
    )
    tokens: Path | None = field(
        default=None,
        metadata=_path("File of tenants and the hashes of their tokens (see `lstmserve token`)."),
    )
    admin: str | None = _other(
        None, "Loopback HOST:PORT where the operator may act as any tenant.", kind=str
    )
    tenant_sessions_max: int | None = _limit("Most sessions of one tenant")
    tenant_pending_steps_max: int | None = _limit("Most waiting steps of one tenant")
    tenant_rows_per_s: int | None = _limit("Most rows a second of one tenant")
    tenant_pending_bytes_max: int | None = _int(
        None,
        1,
        LIMIT_MAX,
        "Most bytes of waiting messages of one tenant, unless the tokens file has a limit "
        "[default: a quarter of pending_bytes_max with --tokens, else all of it].",
    )
    pool_bytes: int = _int(
        256 << 20, 1 << 12, 1 << 40, "Memory for the states of sessions, over all models."
    )
    session_ttl_s: float = _float(
        DAY_S,
        1,
        30 * DAY_S,
        "Idle time after which a session ends, unless its client sets another.",
    )
    batch_sessions_max: int = _int(256, 1, 65_536, "Most sessions in one batch.")
    batch_cells_max: int = _int(
        1024, 1, 1 << 24, "Most cells of one batch: its sessions x its longest step, in rows."
    )
    slice_rows_max: int = _int(
        32, 1, 65_536, "Most rows of one step in a batch; a longer step runs in several."
    )
    long_steps_max: int = _int(256, 1, 65_536, "Most such longer steps under way at once.")
    batches_in_flight_max: int = _int(
        2, 1, 64, "Most batches that are computed but not yet settled."
    )
    length_max: int = _int(10_000, 1, 1_000_000, "Most rows in one step or sequence.")
    message_bytes_max: int | None = _int(
        None,
        1 << 12,
        MESSAGE_BYTES_LIMIT,
        "Largest message [default: fits a step of length_max and a session's states].",
    )
    pending_steps_max: int = _int(10_000, 1, 10_000_000, "Most waiting steps, over all sessions.")
    session_pending_max: int = _int(64, 1, 65_536, "Most waiting steps in one session.")
    pending_bytes_max: int = _int(
        128 << 20, 2 << 12, 1 << 40, "Most bytes of waiting messages, over all calls."
    )
    predict_rows_max: int = _int(1_000_000, 1, 1 << 30, "Most waiting rows of Predict calls.")
    reply_bytes_max: int = _int(
        65_536, 0, 1 << 26, "Largest reply that is kept, to answer a repeat of its step."
    )
    stream_window: int = _int(
        64, 1, 65_536, "Most messages of one stream that are read but not yet answered."
    )
    streams_max: int = _int(256, 1, 65_536, "Most calls at once on one connection.")
    connections_max: int = _int(
        4096, 1, 1_000_000, "Most connections to one gRPC port; further ones are closed at once."
    )
    call_s_max: float = _float(
        30, 0.001, 3600, "Time limit of a unary call whose client sets no deadline."
    )
    write_s_max: float = _float(
        10, 0.001, 3600, "A stream ends when its client reads no reply for this long."
    )
    connection_age_s_max: float | None = _float(
        None, 1, 30 * DAY_S, "Age at which a connection and its streams end; clients reconnect."
    )
    tombstones_max: int = _int(100_000, 0, 10_000_000, "Most ended sessions to remember.")
    tombstone_s: float = _float(600, 0, DAY_S, "How long to remember an ended session.")
    open_requests_max: int = _int(
        100_000, 0, 10_000_000, "Most request_ids of OpenSession to remember."
    )
    request_id_s: float = _float(600, 0, DAY_S, "How long to remember a request_id.")
    drain_delay_s: float = _float(0, 0, 3600, "How long to go on serving after SIGTERM.")
    drain_s_max: float = _float(20, 0, 3600, "Longest time to finish the queued steps after that.")
    store: str = _other(
        "memory",
        "Where to keep sessions beyond the process: memory (nowhere), file:DIR, redis[s]://...",
    )
    store_sync: bool = _other(
        False, "With file:DIR, an answered step survives a power loss, not only a crash."
    )
    store_timeout_s: float = _float(2, 0.01, 600, "Longest wait for one answer from the store.")
    store_mode: str = _other(
        "through",
        "through stores a step before answering it, behind stores it later.",
        "through",
        "behind",
    )
    store_format: int = _int(
        2, 1, 2, "Newest record format to write; 1 while servers run that read no other."
    )
    behind_s_max: float = _float(
        1, 0.001, 3600, "With behind, the longest time until a step is stored."
    )
    behind_steps_max: int = _int(
        10_000, 2, 1 << 30, "With behind, the most steps of a session not yet stored."
    )
    log: str = _other("json", "Format of the log lines on stderr.", "json", "text")
    debug: bool = _other(False, "Check the integrity of pool and scheduler while idle.")

    def __post_init__(self) -> None:
        for name, setting in settings().items():
            value = getattr(self, name)
            if value is not None or setting.default is not None:
                setting.metadata["setting"].check(name, value)
        for name in ("listen", "metrics"):
            host_port(name, getattr(self, name))
        if not STORE.fullmatch(self.store):
            scheme = STORE_SCHEME.match(self.store)  # only the scheme: the rest may be a password
            shown = f", which begins with {scheme[0]}," if scheme else ""
            raise ValueError(f"store{shown} must be memory, file:DIR or redis[s]://HOST")
        if self.admin is not None and not is_loopback(host_port("admin", self.admin)[0]):
            raise ValueError(
                f"admin is {self.admin!r}, must be a loopback address: it checks no token"
            )
        self._together("tls_cert", "tls_key")
        self._together("tls_key", "tls_cert")
        self._together("tls_client_ca", "tls_cert")
        self._at_least("batch_cells_max", "slice_rows_max")
        self._at_least("predict_rows_max", "length_max")

    def _together(self, name: str, other: str) -> None:
        if getattr(self, name) is not None and getattr(self, other) is None:
            raise ValueError(f"{name} is {str(getattr(self, name))!r}, and {other} is missing")

    def _at_least(self, name: str, other: str) -> None:
        value, low = getattr(self, name), getattr(self, other)
        if value < low:
            raise ValueError(f"{name} is {value}, must be at least {other}, which is {low}")

    def for_cells(self, cells: int) -> Config:
        """The limits of a model whose network reads so many rows for one time step.

        Its batches and slices have that many fewer time steps, and at least one. It has no more
        sessions in a batch than that, and no more long steps under way than fill two batches.
        """
        if cells == 1:
            return self
        batch = max(1, self.batch_cells_max // cells)
        return dataclasses.replace(
            self,
            batch_cells_max=batch,
            slice_rows_max=max(1, self.slice_rows_max // cells),
            batch_sessions_max=min(self.batch_sessions_max, batch),
            long_steps_max=min(self.long_steps_max, 2 * batch),
        )

    def resolved(self, specs: Iterable[ModelSpec]) -> Config:
        """A Config whose message_bytes_max is set: a row fits, and where pending_bytes_max has room
        for them, so do a step of length_max and a session's states.

        Raises ValueError if the longest message and its reply do not fit pending_bytes_max.
        """
        config = self
        if self.message_bytes_max is None:
            least = wanted = MESSAGE_BYTES_MIN
            for spec in specs:
                row_bytes = max(RowFormat(each).wire_bytes for each in (spec.inputs, spec.outputs))
                states = tensor_messages_bytes(spec.states)
                least = max(least, row_bytes + FRAME_BYTES)
                wanted = max(wanted, max(self.length_max * row_bytes, states) + FRAME_BYTES)
            size = max(least, min(wanted, self.pending_bytes_max // 2))
            size = min(size, MESSAGE_BYTES_LIMIT)
            config = dataclasses.replace(self, message_bytes_max=size)
        assert config.message_bytes_max is not None
        if (value := self.pending_bytes_max) < 2 * config.message_bytes_max:
            raise ValueError(
                f"pending_bytes_max is {value}, must be at least twice message_bytes_max, which "
                f"is {config.message_bytes_max}: a message and its reply"
            )
        return config


def settings() -> dict[str, dataclasses.Field[Any]]:
    """Config's fields by name; metadata["setting"] of each is its Setting."""
    return {each.name: each for each in dataclasses.fields(Config)}
