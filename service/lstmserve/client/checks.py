"""Checks a caller's plain arguments: names, numbers, seconds. No I/O, no arrays.

Each check raises ValueError with the argument's name, its value and what it must be, before
anything is sent. A value that no header or message can carry would otherwise break the call, and
the client would retry it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from numbers import Real
from typing import Any, Final, TypeVar

from lstmserve.address import host_port
from lstmserve.errors import InvalidInput
from lstmserve.reasons import REASONS

T = TypeVar("T")

SECONDS_MAX: Final = 1e9  # more counts as for ever, and clocks and locks take no more
VERSION_MAX: Final = 2**31 - 1
_ID: Final = re.compile(r"[A-Za-z0-9._~:/%-]{1,1800}")  # of sessions, and names of sequences
SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


def _refused(name: str, value: object, expected: str) -> ValueError:
    text = repr(value)
    return ValueError(f"{name} is {text[:80]}{'...' * (len(text) > 80)}, must be {expected}")


def seconds(name: str, value: Any, *, may_be_zero: bool = False) -> float:
    """A positive time; infinity is allowed."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and (value > 0 or (may_be_zero and value == 0)):
        return min(float(value), SECONDS_MAX)
    raise _refused(name, value, f"a number of seconds, {'0 or more' if may_be_zero else 'above 0'}")


def timeout(value: Any) -> float | None:
    """A call's `timeout_s`, or None."""
    return None if value is None else seconds("timeout_s", value)


def ttl(value: Any) -> float:
    """A session's `ttl_s`; the server knows the largest."""
    ttl_s = seconds("ttl_s", value)
    if math.isinf(float(value)):
        raise _refused("ttl_s", value, "finite")
    return ttl_s


def count(name: str, value: Any, low: int, high: int = VERSION_MAX) -> int:
    """A whole number, also one of numpy's."""
    try:
        number = -1 if isinstance(value, bool) else value.__index__()
    except (AttributeError, TypeError):
        number = -1
    if not low <= number <= high:
        raise _refused(name, value, f"a whole number from {low} to {high}")
    return int(number)


def version(value: Any) -> int:
    """A model's version; None becomes 0."""
    return 0 if value is None else count("version", value, 0)


def name(argument: str, value: Any) -> str:
    """A model's name."""
    if not isinstance(value, str) or not value:
        raise _refused(argument, value, "a name")
    return value


def session_id(value: Any) -> str:
    """An id that a header can carry; the server checks the rest. Raises InvalidInput."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        error = _refused("id", value, "1 to 128 of A-Z a-z 0-9 . _ ~ : -")
        raise InvalidInput(str(error), code=REASONS["BAD_SESSION_ID"].code, reason="BAD_SESSION_ID")
    return value


def choice(argument: str, value: Any, allowed: Collection[str]) -> str:
    """One of the allowed words."""
    if not isinstance(value, str) or value not in allowed:
        raise _refused(argument, value, f"one of {', '.join(allowed)}")
    return value


def target(value: Any) -> str:
    """HOST:PORT, or an address with one of gRPC's schemes."""
    if not isinstance(value, str):
        raise _refused("target", value, "HOST:PORT")
    if not value.startswith(SCHEMES):
        host_port("target", value)
    return value


def token(value: Any) -> str | None:
    """A token that a header can carry; the error does not show it."""
    if value is not None and (
        not isinstance(value, str) or not value.isascii() or not value.isprintable()
    ):
        raise ValueError("token must be text of printable ASCII characters, and is not")
    return value


def instance(argument: str, value: Any, kind: type[T]) -> T:
    """An instance of that class."""
    if not isinstance(value, kind):
        raise _refused(argument, value, f"a {kind.__name__}")
    return value
