"""The domain errors that say what stands between a request and its session or model."""

from lstmserve.errors.base import ServeError


class SessionNotFound(ServeError):
    """Never opened here, or someone else's."""

    reason = "SESSION_NOT_FOUND"


class SessionExpired(ServeError):
    """Idle for longer than its TTL."""

    reason = "SESSION_EXPIRED"


class SessionLost(ServeError):
    """Had an incarnation and is gone: this server restarted, or another one held it."""

    reason = "SESSION_LOST"


class SessionClosed(ServeError):
    """Closed by its client."""

    reason = "SESSION_CLOSED"


class SessionReplaced(ServeError):
    """The id lives on with another incarnation."""

    reason = "SESSION_REPLACED"


class SessionExists(ServeError):
    """The id is taken."""

    reason = "SESSION_EXISTS"


class ModelNotFound(ServeError):
    """No such model or version is served."""

    reason = "MODEL_NOT_FOUND"


class ModelRetired(ServeError):
    """The session's version is no longer served."""

    reason = "MODEL_RETIRED"


class ModelMismatch(ServeError):
    """A state or session of another model."""

    reason = "MODEL_MISMATCH"


class ModelNotSteppable(ServeError):
    """A bidirectional model: it reads whole sequences, by Predict."""

    reason = "MODEL_NOT_STEPPABLE"


class StateCorrupt(ServeError):
    """A state that fails its checksum."""

    reason = "STATE_CORRUPT"
