"""The server: everything between the engine and the outside world."""

from __future__ import annotations

import os

# grpc reads it when it is first imported. Its event engine's listener reads sockets in threads of
# its own: a call takes 13 to 18 % more CPU with it (docs/ARCHITECTURE.md). Who sets it decides.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
