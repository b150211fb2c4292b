"""Authentication: which tenant a call belongs to, by its metadata alone.

Each port has one authenticator: for anyone, bearers of a token, or the operator. All but knows()
runs on the event loop's thread.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from lstmserve import tokens
from lstmserve.engine.clock import SECOND_NS, Now
from lstmserve.engine.errors import AdminOnly, BadToken, Malformed
from lstmserve.server.access.reloading import BadFile, FileReloader, read_bytes
from lstmserve.server.access.tenants import Tenant
from lstmserve.tokens import BadTokens, Limits, Tokens

TENANT_KEY: Final = "x-lstmserve-tenant"
_AUTHORIZATION: Final = "authorization"
_SCHEME: Final = b"bearer "
_RELOAD_NS: Final = SECOND_NS
_UNKNOWN: Final = (bytes(32), "")  # no token has this digest


class IncomingCall(Protocol):
    """What an authenticator reads of a call."""

    def invocation_metadata(self) -> Any:
        """Pairs of a key and its value, str or bytes; None without metadata."""

    def peer(self) -> str:
        """The connection's remote address; over TCP it ends with a colon and a port."""


class Authenticator(Protocol):
    """Decides who calls on one port."""

    def tenant(self, call: IncomingCall) -> Tenant:
        """The tenant that calls. Raises BadToken, AdminOnly, Malformed."""

    def knows(self, call: IncomingCall) -> bool:
        """Whether the call's message may be read before tenant() was called.

        Any thread may call it; it changes nothing.
        """


class AnonymousAuthenticator:
    """Without --tokens: all callers are one tenant with an empty name."""

    def __init__(self, limits: Limits) -> None:
        self._tenant = Tenant("", limits)

    def tenant(self, call: IncomingCall) -> Tenant:
        return self._tenant

    def knows(self, call: IncomingCall) -> bool:
        return True


class TokenAuthenticator:
    """Tenants by bearer token, from a file that is read again when it changes.

    `limits` apply to tenants for which the file has none. Raises BadFile.
    """

    def __init__(self, path: Path, limits: Limits, clock: Callable[[], Now]) -> None:
        self._path = path
        self._limits = limits
        self._clock = clock
        self._file = FileReloader([path], self._load)
        self._checked_ns = clock().monotonic_ns
        self._tenants: dict[str, Tenant] = {}
        self._known: dict[bytes, tuple[bytes, str]] = {}
        self._use_file()

    def tenant(self, call: IncomingCall) -> Tenant:
        """The tenant of the call's token. Raises BadToken, AdminOnly.

        A missing token and a wrong one get the same error.
        """
        self._look()
        sent, is_admin = _credentials(call)
        # The dict compares hashes of digests, and their key is this process's own, so no time
        # depends on how much of a token is right.
        digest = tokens.digest(sent[len(_SCHEME) :])
        expected, name = self._known.get(digest, _UNKNOWN)
        is_known = hmac.compare_digest(digest, expected)
        if not (is_known and sent[: len(_SCHEME)].lower() == _SCHEME):
            raise BadToken("the call needs a valid token: metadata authorization: Bearer TOKEN")
        if is_admin:
            raise AdminOnly(f"{TENANT_KEY} is for the operator's port (--admin)")
        return self._tenants[name]

    def knows(self, call: IncomingCall) -> bool:
        """Whether the call has a token that was valid at the last look at the file."""
        sent, _ = _credentials(call)
        return tokens.digest(sent[len(_SCHEME) :]) in self._known

    def _look(self) -> None:
        now_ns = self._clock().monotonic_ns
        if now_ns - self._checked_ns >= _RELOAD_NS:
            self._checked_ns = now_ns
            if self._file.refresh():
                self._use_file()

    def _load(self) -> Tokens:
        try:
            return tokens.parse(read_bytes("--tokens", self._path).decode())
        except UnicodeDecodeError as error:
            raise BadFile(f"--tokens {self._path}: not a text file") from error
        except BadTokens as error:
            raise BadFile(f"--tokens {self._path}: {error}") from error

    def _use_file(self) -> None:
        """Takes tokens and limits from the file. What tenants have used so far stays counted."""
        file = self._file.value
        self._known = {digest: (digest, name) for digest, name in file.tenants.items()}
        for name, limits in file.limits.items():
            tenant = self._tenants.setdefault(name, Tenant(name, limits))
            tenant.limits = limits.over(self._limits)


def _credentials(call: IncomingCall) -> tuple[bytes, bool]:
    """The authorization that the call sent, and whether it names a tenant as the operator does."""
    sent, is_admin = b"", False
    for key, value in call.invocation_metadata() or ():
        if key == _AUTHORIZATION:
            sent = value.encode() if isinstance(value, str) else value
        elif key == TENANT_KEY:
            is_admin = True
    return sent, is_admin


class AdminAuthenticator:
    """The operator acts as any tenant, the one that the call's metadata names, without limits."""

    def knows(self, call: IncomingCall) -> bool:
        """Always: only the operator reaches this port."""
        return True

    def tenant(self, call: IncomingCall) -> Tenant:
        """The tenant that the operator acts as. Raises Malformed."""
        metadata = call.invocation_metadata() or ()
        name = next((value for key, value in metadata if key == TENANT_KEY), "")
        if name and not tokens.TENANT.fullmatch(name):
            raise Malformed(f"{TENANT_KEY} is no tenant's name")
        return Tenant(name, Limits())
