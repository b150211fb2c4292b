"""The tokens file: its content, what is refused, which callers it admits, and its reload."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from lstmserve.cli.serve import token as token_command
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import AdminOnly, BadToken, Malformed, Quota
from lstmserve.server.access.auth import (
    AdminAuthenticator,
    AnonymousAuthenticator,
    TokenAuthenticator,
)
from lstmserve.server.access.reloading import BadFile
from lstmserve.server.access.tenants import RateLimiter
from lstmserve.tokens import LIMIT_MAX, BadTokens, Limits, digest, make_token, parse
from tenancy import write_tokens

HEX = digest(b"a token").hex()


class Call:
    """What an authenticator reads of a call."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """What the client sent."""
        return self._metadata


def bearer(token: str) -> Call:
    """A call with that token."""
    return Call(("x-session-id", "s"), ("authorization", f"Bearer {token}"))


class Seconds:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> Now:
        return Now(round(self.at * 1e9), 0)


def test_a_file_has_tenants_tokens_and_limits() -> None:
    """Several lines of one tenant add up, and comments and blank lines are ignored."""
    other = digest(b"another").hex()
    text = (
        f"# ours\n\nacme sha256:{HEX}  # old\nacme sha256:{other} rows_per_s=5\nacme sessions_max=2"
    )
    parsed = parse(text)
    assert parsed.tenants == {bytes.fromhex(HEX): "acme", bytes.fromhex(other): "acme"}
    assert parsed.limits == {"acme": Limits(sessions_max=2, rows_per_s=5)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no token"),
        ("acme rows_per_s=5", "no token"),
        (f"acme {HEX}", "line 1"),
        ("acme hunter2", "line 1"),
        (f"acme sha256:{HEX[1:]}", "line 1"),
        (f"acme sha256:{HEX.upper()}", "line 1"),
        (f"acme sha256:{HEX}\nhunter2", "line 2"),
        (f"a/b sha256:{HEX}", "line 1"),
        (f"{'a' * 65} sha256:{HEX}", "line 1"),
        (f"acme sha256:{HEX}\nother sha256:{HEX}", "line 2: another tenant"),
        (f"acme sha256:{HEX} rows=5", "one of sessions_max"),
        (f"acme sha256:{HEX} rows_per_s=0", f"[1, {LIMIT_MAX}]"),
        (f"acme sha256:{HEX} rows_per_s={LIMIT_MAX + 1}", f"[1, {LIMIT_MAX}]"),
        (f"acme sha256:{HEX} rows_per_s=5 rows_per_s=6", "another value"),
    ],
)
def test_malformed_files_are_refused(text: str, says: str) -> None:
    """A malformed line is refused by its number, and what may be a token is not repeated."""
    with pytest.raises(BadTokens) as refusal:
        parse(text)
    assert says in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_limits_reach_to_their_ends() -> None:
    """The smallest and the largest limit are accepted."""
    for value in (1, LIMIT_MAX):
        assert parse(f"a sha256:{HEX} sessions_max={value}").limits["a"].sessions_max == value


def test_flags_stand_in_for_what_the_file_leaves_out() -> None:
    """A tenant's own limit overrides the server's, which applies if the file sets none."""
    assert Limits(sessions_max=1).over(Limits(2, 3)) == Limits(1, 3, None)


def test_the_command_makes_a_line_and_shows_the_token_once() -> None:
    """stdout has the line for the file, and stderr the token whose hash the line has."""
    done = CliRunner().invoke(token_command, ["acme"])
    made = done.stderr.split()[-1]
    assert done.exit_code == 0
    assert parse(done.stdout).tenants == {digest(made.encode()): "acme"}
    assert made not in done.stdout
    assert len(made) >= 43, "256 bits"
    refused = CliRunner().invoke(token_command, ["a/b"])
    assert refused.exit_code == 2
    assert "TENANT is 'a/b'" in refused.stderr


def test_the_door_knows_tokens(tmp_path: Path) -> None:
    """Every token gives its tenant, always the same object, and the scheme's case does not
    matter."""
    made = write_tokens(tmp_path / "tokens", acme="sessions_max=1", other="")
    authenticator = TokenAuthenticator(tmp_path / "tokens", Limits(9, 9), Seconds())
    acme = authenticator.tenant(bearer(made["acme"]))
    assert (acme.name, acme.limits) == ("acme", Limits(1, 9))
    assert authenticator.tenant(Call(("authorization", f"BEARER {made['acme']}"))) is acme
    assert authenticator.tenant(bearer(made["other"])).name == "other"


def test_a_token_withdrawn_in_place_is_refused(tmp_path: Path) -> None:
    """A change that keeps the file's inode, size and mtime is still seen, by the ctime."""
    path, clock = tmp_path / "tokens", Seconds()
    made = write_tokens(path, acme="", other="")
    authenticator = TokenAuthenticator(path, Limits(), clock)
    assert authenticator.tenant(bearer(made["acme"])).name == "acme"
    before = path.stat()
    with path.open("r+") as file:
        text = file.read().replace(digest(made["acme"].encode()).hex(), "0" * 64)
        file.seek(0)
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    names = ("st_ino", "st_size", "st_mtime_ns")
    assert [getattr(after, n) for n in names] == [getattr(before, n) for n in names]
    clock.at = 60.0
    with pytest.raises(BadToken):
        authenticator.tenant(bearer(made["acme"]))
    assert authenticator.tenant(bearer(made["other"])).name == "other"


def test_the_door_says_one_thing_to_all_others(tmp_path: Path) -> None:
    """No token, a wrong one, a hash in place of a token and another scheme get the same text."""
    made = write_tokens(tmp_path / "tokens", acme="")["acme"]
    authenticator = TokenAuthenticator(tmp_path / "tokens", Limits(), Seconds())
    calls = [
        Call(),
        bearer(""),
        bearer(made[:-1]),
        bearer(made + "A"),
        bearer(digest(made.encode()).hex()),
        Call(("authorization", f"Basic {made}")),
        Call(("authorization", made)),
        Call(("x-token", f"Bearer {made}")),
        Call(("x-lstmserve-tenant", "acme")),
    ]
    texts = set()
    for call in calls:
        with pytest.raises(BadToken) as refusal:
            authenticator.tenant(call)
        texts.add((str(refusal.value), str(refusal.value.metadata)))
    assert len(texts) == 1


def test_only_the_operator_acts_as_another(tmp_path: Path) -> None:
    """The operator's port takes a tenant's name, and a tenant that sends one is refused."""
    made = write_tokens(tmp_path / "tokens", acme="", other="")
    authenticator = TokenAuthenticator(tmp_path / "tokens", Limits(), Seconds())
    name = ("x-lstmserve-tenant", "other")
    with pytest.raises(AdminOnly):
        authenticator.tenant(Call(("authorization", f"Bearer {made['acme']}"), name))
    assert AdminAuthenticator().tenant(Call(name)).name == "other"
    assert (
        AdminAuthenticator().tenant(Call()).name
        == AnonymousAuthenticator(Limits()).tenant(Call()).name
        == ""
    )
    with pytest.raises(Malformed):
        AdminAuthenticator().tenant(Call(("x-lstmserve-tenant", "a/b")))


def test_the_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    """A changed file counts within a second, a tenant's use is kept, and a bad file changes
    nothing."""
    file, clock = tmp_path / "tokens", Seconds()
    old = write_tokens(file, acme="")["acme"]
    authenticator = TokenAuthenticator(file, Limits(), clock)
    acme = authenticator.tenant(bearer(old))
    new = write_tokens(file, acme="rows_per_s=7", late="")
    assert authenticator.tenant(bearer(old)) is acme, "not looked at within the second"
    clock.at = 1.0
    assert authenticator.tenant(bearer(new["acme"])) is acme
    assert acme.limits == Limits(rows_per_s=7)
    assert authenticator.tenant(bearer(new["late"])).name == "late"
    with pytest.raises(BadToken):
        authenticator.tenant(bearer(old))
    for spoil in (lambda: file.write_text("acme hunter2"), file.unlink):
        spoil()
        clock.at += 1.0
        with structlog.testing.capture_logs() as lines:
            assert authenticator.tenant(bearer(new["acme"])) is acme
            clock.at += 1.0
            assert authenticator.tenant(bearer(new["acme"])) is acme
        assert [line["log_level"] for line in lines] == ["error"], "once per change"
        assert "hunter2" not in str(lines)


def test_a_bad_file_is_refused_at_start(tmp_path: Path) -> None:
    """A missing, a malformed and a binary file end the start with one line that names it."""
    file = tmp_path / "tokens"
    for content in (None, b"acme hunter2", os.urandom(64)):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(BadFile, match=r"^--tokens .*tokens: [^\n]+$"):
            TokenAuthenticator(file, Limits(), Seconds())


def test_a_limiter_does_not_run_backwards() -> None:
    """Rows that are taken with an older time than the last find what is left then."""
    limiter, now_ns = RateLimiter(), 5 * 10**9
    for _ in range(10):
        limiter.take(1, 10, now_ns)
        now_ns -= 10**9


def test_an_limiter_holds_one_second() -> None:
    """The rows of one second pass at once, and one more waits for as long as it takes."""
    limiter, now_ns = RateLimiter(), 5 * 10**9
    for _ in range(10):
        limiter.take(1, 10, now_ns)
    with pytest.raises(Quota) as refusal:
        limiter.take(1, 10, now_ns)
    assert refusal.value.retry_s == pytest.approx(0.1)
    limiter.take(1, 10, now_ns + 10**8)
    with pytest.raises(Quota):
        limiter.take(1, 10, now_ns + 10**8)


def test_a_large_step_is_paid_off_afterwards() -> None:
    """A step of more rows than the limiter holds passes when it is full, and later ones wait."""
    limiter = RateLimiter()
    limiter.take(1, 10, 0)
    with pytest.raises(Quota) as early:
        limiter.take(35, 10, 0)
    assert early.value.retry_s == pytest.approx(0.1)
    limiter.take(35, 10, 10**8)
    with pytest.raises(Quota) as refusal:
        limiter.take(1, 10, 10**8)
    assert refusal.value.retry_s == pytest.approx(2.6)
    limiter.take(1, 10, 27 * 10**8)


def test_tokens_are_random() -> None:
    """Two tokens of one tenant differ."""
    assert make_token("acme")[0] != make_token("acme")[0]
