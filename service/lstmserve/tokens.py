"""Reads the tokens file: the tenant of each bearer token, and the limits of each tenant.

It keeps hashes only, no token. A line is a tenant's name and facts about it; # begins a comment:

    acme  sha256:9f86d081884c7d65...  sessions_max=1000 pending_steps_max=2000 rows_per_s=50000

A tenant may have several lines, so that its new token works before the old one is removed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

TENANT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
TOKEN_BYTES: Final = 32
LIMIT_MAX: Final = 10**12
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LIMIT: Final = re.compile(r"([a-z_]+)=([0-9]{1,13})")


class BadTokens(ValueError):
    """Not a tokens file. The message names the line but does not repeat it: it may be a token."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one tenant on one server; None: no limit. A row is one time step."""

    sessions_max: int | None = None
    pending_steps_max: int | None = None
    rows_per_s: int | None = None
    pending_bytes_max: int | None = None

    def over(self, others: Limits) -> Limits:
        """These limits; those of `others` replace None."""
        names = [field.name for field in fields(Limits)]
        own = {name: getattr(self, name) for name in names}
        return Limits(**{k: getattr(others, k) if own[k] is None else own[k] for k in names})


@dataclass(frozen=True, slots=True)
class Tokens:
    """The content of a tokens file: `tenants` by the digest of each token, `limits` by tenant."""

    tenants: dict[bytes, str]
    limits: dict[str, Limits]


def digest(token: bytes) -> bytes:
    """The hash of a token. A token is 256 random bits: salt and stretching would add nothing."""
    return hashlib.sha256(token).digest()


def make_token(tenant: str) -> tuple[str, str]:
    """A new token, and its line for the file. Raises ValueError for a name no tenant may have."""
    if not TENANT.fullmatch(tenant):
        raise ValueError(f"{tenant!r} must be 1 to 64 of A-Z a-z 0-9 . _ -")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return token, f"{tenant}  sha256:{digest(token.encode()).hex()}"


def parse(text: str) -> Tokens:
    """Reads the file's content. Raises BadTokens."""
    tenants: dict[bytes, str] = {}
    limits: dict[str, dict[str, int]] = {}
    for number, tenant, word in _words(text):
        own = limits.setdefault(tenant, {})
        if found := _HASH.fullmatch(word):
            if tenants.setdefault(bytes.fromhex(found[1]), tenant) != tenant:
                raise BadTokens(f"line {number}: another tenant has this token")
        elif found := _LIMIT.fullmatch(word):
            _add_limit(own, found[1], int(found[2]), number)
        else:
            raise BadTokens(
                f"line {number}: must be TENANT sha256:HEX LIMIT=NUMBER ...; "
                "`lstmserve token TENANT` makes a line"
            )
    if not tenants:
        raise BadTokens("there is no token in it: `lstmserve token TENANT` makes one")
    return Tokens(tenants, {tenant: Limits(**own) for tenant, own in limits.items()})


def _words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields line number, tenant and one word about it."""
    for number, line in enumerate(text.splitlines(), 1):
        tenant, *words = line.partition("#")[0].split() or [""]
        if tenant and not (words and TENANT.fullmatch(tenant)):
            raise BadTokens(f"line {number}: must be a tenant's name, then a token or a limit")
        yield from ((number, tenant, word) for word in words)


def _add_limit(own: dict[str, int], name: str, value: int, number: int) -> None:
    names = [field.name for field in fields(Limits)]
    if name not in names:
        raise BadTokens(f"line {number}: a limit is one of {', '.join(names)}")
    if not 1 <= value <= LIMIT_MAX:
        raise BadTokens(f"line {number}: {name} must be in [1, {LIMIT_MAX}]")
    if own.setdefault(name, value) != value:
        raise BadTokens(f"line {number}: {name} has another value above")
