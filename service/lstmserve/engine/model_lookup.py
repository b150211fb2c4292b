"""Finds a model by name and version, or the error that says why it is not served here.

During a rolling update a router may send a session of the new version to a server that does not
have it yet. That error differs from the one for a retired version, because a retry helps.
"""

from __future__ import annotations

from collections.abc import Sequence

from lstmserve.engine.errors import ModelNotFound, ModelNotHereYet, ModelRetired, ServeError
from lstmserve.engine.model import Model

NAME_SHOWN_MAX = 128
SERVED_SHOWN_MAX = 8  # models that a refusal names
RETRY_S = 1.0  # a server that loads the new version takes seconds


def find(models: Sequence[Model], name: str, version: int) -> Model:
    """The model; version 0 is the newest. Raises ModelNotFound, ModelRetired, ModelNotHereYet."""
    found = [each for each in models if each.name == name and version in (0, each.version)]
    if found:
        return max(found, key=lambda model: model.version)
    newest = _newest(models, name)
    if newest is None or version < 0:
        raise ModelNotFound(
            f"no model {_shown(name, version)!r} is served here, but {_served(models)}",
            field="model",
        )
    raise _missing(name, version, newest)


def missing(models: Sequence[Model], name: str, version: int) -> ServeError:
    """The error for a stored session whose version is not served here."""
    return _missing(name, version, _newest(models, name))


def _newest(models: Sequence[Model], name: str) -> int | None:
    return max((each.version for each in models if each.name == name), default=None)


def _missing(name: str, version: int, newest: int | None) -> ServeError:
    """`newest` is the newest version of the name here, None where there is none."""
    shown = _shown(name, version)
    if newest is None or version > newest:
        here = "no version of it" if newest is None else f"version {newest} at most"
        return ModelNotHereYet(
            f"model {shown!r} is not served here yet, this server has {here}: repeat the call, or "
            "give the server that version",
            metadata={"model": shown},
            retry_s=RETRY_S,
        )
    return ModelRetired(
        f"model {shown!r} is not served any more; the newest version here is {newest}",
        metadata={"model": shown, "newest": str(newest)},
    )


def _served(models: Sequence[Model]) -> str:
    """The names a caller may have meant, for the message."""
    known = sorted({each.name for each in models})
    more = f" and {len(known) - SERVED_SHOWN_MAX} more" * (len(known) > SERVED_SHOWN_MAX)
    return ", ".join(each[:NAME_SHOWN_MAX] for each in known[:SERVED_SHOWN_MAX]) + more


def _shown(name: str, version: int) -> str:
    """The name, cut so that the message fits into gRPC's trailers."""
    name = name if len(name) <= NAME_SHOWN_MAX else f"{name[:NAME_SHOWN_MAX]}..."
    return f"{name}:{version}" if version else name
