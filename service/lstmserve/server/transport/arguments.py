"""The channel arguments of the gRPC server, each with its reason."""

from __future__ import annotations

from lstmserve.config import Config

KEEPALIVE_MS = 30_000
PING_TIMEOUT_MS = 10_000
PING_INTERVAL_MS_MIN = 9_000  # Go's shortest keepalive is 10 s, and a network makes it less
PING_STRIKES_MAX = 2
HANDSHAKE_MS_MAX = 10_000  # gRPC's own limit is 120 s: a half-open handshake holds 15 to 50 kB
STREAM_BYTES_UNREAD = 256 << 10  # a window of 64 messages of 4 KiB
CONNECTION_IDLE_MS_MAX = 15 * 60 * 1000
CONNECTION_GRACE_MS = 60_000


def options(config: Config) -> list[tuple[str, int]]:
    """The channel arguments; `config` is resolved."""
    assert config.message_bytes_max is not None
    # Off by default: it cuts streams, and their sessions stay with this server.
    age = (
        []
        if config.connection_age_s_max is None
        else [
            ("grpc.max_connection_age_ms", round(1000 * config.connection_age_s_max)),
            ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
        ]
    )
    return [
        # Two servers on one port would share its connections, and each have half of the sessions.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.message_bytes_max),
        # A step is accepted only if its reply will fit; gRPC must not refuse it once it is applied.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", config.streams_max),
        ("grpc.max_allowed_incoming_connections", config.connections_max),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        # Without this one gRPC cuts a frozen peer after a minute, whatever keepalive_timeout_ms is.
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
        ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
        # These two bound what a peer may send on a stream that we do not read. Without them gRPC
        # guesses from the network's speed: 50 to 90 MB a stream on a fast network.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_BYTES_UNREAD),
        ("grpc.max_connection_idle_ms", CONNECTION_IDLE_MS_MAX),
        *age,
    ]
