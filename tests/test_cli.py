"""The command line of a client, as processes of its own against a real server."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lstmserve import Client
from serving import ROOT, WAIT_S_MAX, environment
from zoo import TOLERANCE, Zoo

MAIN = "from lstmserve.cli import main; main()"
COMMAND = [sys.executable, "-W", "error", "-c", MAIN]
# A job in a shell's background ignores Ctrl-C, and so would its children. Not a preexec_fn: that
# forks, and gRPC's threads here do not survive it.
HEEDS_CTRL_C = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
)
INTERRUPTIBLE = [*COMMAND[:-1], HEEDS_CTRL_C + MAIN]
ROWS = "0.5,-1,2\n1,0.25,-3\n-1,0,1e-1\n2,2,2\n"


class Shell:
    """Runs `lstmserve ...` with the zoo's server as LSTMSERVE_TARGET."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.environment = environment(LSTMSERVE_TARGET=target)

    def run(self, *arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
        """To its end, `text` on stdin."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=WAIT_S_MAX,
            check=False,
        )

    def out(self, *arguments: str | Path, text: str = "") -> str:
        """What it prints; it succeeds, and says nothing on stderr."""
        done = self.run(*arguments, text=text)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def refusal(self, *arguments: str | Path, text: str = "", code: int = 1) -> str:
        """What it says on stderr; it fails, and for 1 in one line."""
        done = self.run(*arguments, text=text)
        assert done.returncode == code
        assert code != 1 or done.stderr.count("\n") == 1
        return done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A process to talk to."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*INTERRUPTIBLE, *arguments],
            env=self.environment,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )


@pytest.fixture
def shell(zoo: Zoo) -> Shell:
    """A shell whose lstmserve talks to the zoo's server."""
    return Shell(zoo.target)


def numbers(text: str) -> np.ndarray:
    """CSV rows as floats."""
    return np.array([line.split(",") for line in text.splitlines()], np.float64)


def test_step_is_csv_in_and_out(shell: Shell, zoo: Zoo) -> None:
    """A row of y for each row of x; blank lines, spaces and a missing last newline are fine."""
    y = zoo.expected("tiny", numbers(ROWS))[0]
    out = shell.out("step", "tiny", text=f"\n {ROWS.strip()} \n\n".removesuffix("\n"))
    np.testing.assert_allclose(numbers(out), y, rtol=TOLERANCE, atol=TOLERANCE)
    assert shell.out("step", "tiny", "--last-only", text=ROWS) == out.splitlines(True)[-1]
    assert shell.out("step", "tiny") == shell.out("step", "tiny", "--last-only") == ""
    assert shell.out("step", "letters:1", text="3\n4\n").count("\n") == 2


def test_step_twice_continues_the_sequence(shell: Shell) -> None:
    """With --session two calls print what one would; --close ends it, and the next starts anew."""
    first, second = ROWS[:18], ROWS[18:]
    whole = shell.out("step", "tiny", text=ROWS)
    with_id = ("step", "tiny", "--session", "twice")
    assert shell.out(*with_id, text=first) + shell.out(*with_id, text=second) == whole
    assert shell.out(*with_id, "--close") == ""
    assert shell.out(*with_id, "--close", text=ROWS) == whole


def test_a_row_does_not_wait_for_the_next(shell: Shell) -> None:
    """Each y is there before the next x is written, and Ctrl-C ends it without a word."""
    with shell.start("step", "tiny") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for row in ROWS.splitlines(True):
            process.stdin.write(row)
            process.stdin.flush()
            assert process.stdout.readline().count(",") == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S_MAX) == 130
        assert process.stderr.read().strip() == ""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_an_ended_command_closes_its_session(shell: Shell, name: str) -> None:
    """As Ctrl-C does: a terminal that closes leaves no session that lives on for a day."""
    with Client(shell.target) as client, shell.start("step", "tiny") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(ROWS)
        process.stdin.flush()
        process.stdout.readline()
        newest = max(client.sessions(), key=lambda session: session.incarnation).id
        process.send_signal(signal.Signals[name])
        assert process.wait(WAIT_S_MAX) == 128 + signal.Signals[name]
        assert process.stderr.read() == ""
        assert newest not in [session.id for session in client.sessions()]


def test_a_reader_that_leaves_ends_it_quietly(shell: Shell) -> None:
    """As in `lstmserve step ... | head -1`."""
    with shell.start("step", "tiny") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(ROWS)
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(ROWS)
        process.stdin.flush()
        assert process.wait(WAIT_S_MAX) == 1
        assert process.stderr.read() == ""
        process.stdin.close()


@pytest.mark.parametrize(
    ("model", "row", "message"),
    [
        ("tiny", "x,1,2", "line 3: column 1: 'x' is not a number (rows only, no header)"),
        ("tiny", "1,2", "line 3: 2 columns, tiny takes 3"),
        ("tiny", "1,nan,2", "line 3: column 2: 'nan' is not finite in float32"),
        ("tiny", "1,2,1e39", "line 3: column 3: '1e39' is not finite in float32"),
        ("tiny", "1,,2", "line 3: column 2: '' is not a number"),
        ("tiny", "1,1_000,2", "line 3: column 2: '1_000' is not a number"),
        ("tiny", "1,\u0661,2", "line 3: column 2: '\u0661' is not a number"),
        ("tiny", "1,\ufeff2,2", "line 3: column 2: '\\ufeff2' is not a number"),
        ("tiny", '"1,000",2,3', "line 3: 4 columns, tiny takes 3"),
        ("tiny", "1\r2\r3", "line 3: 1 columns, tiny takes 3"),
        ("tiny", "1,2,3\0", "line 3: column 3: '3\\x00' is not a number"),
        ("tiny", "1" * 1_100_000, "line 3: longer than 1048576 bytes"),
        ("letters", "1.5", "line 3: '1.5' is not a token, a whole number below 10"),
        ("letters", "10", "line 3: '10' is not a token"),
        ("letters", "-1", "line 3: '-1' is not a token"),
        ("letters", "1,2", "line 3: '1,2' is not a token"),
        ("letters", "9" * 30, "line 3: '99"),
    ],
)
def test_a_bad_row_is_named(shell: Shell, model: str, row: str, message: str) -> None:
    """The line and what is wrong with it."""
    good = "1,2,3\n" if model == "tiny" else "1\n"
    text = f"{good}\n{row}\n{good}"
    said = shell.refusal("step", model, text=text)
    assert message in said
    assert said.endswith("; 1 rows before it were stepped\n")


def test_rows_as_spreadsheets_write_them(shell: Shell) -> None:
    """A byte order mark, carriage returns and plus signs change nothing."""
    plain = shell.out("step", "tiny", text="1,2,3\n4,5,6\n")
    assert shell.out("step", "tiny", text="\ufeff1,+2,3\r\n4,5,6e0\r\n") == plain
    assert shell.out("step", "tiny", text="\ufeff1,2,3") == plain.splitlines(True)[0]
    assert shell.out("step", "letters", text="\ufeff1\r\n").count("\n") == 1


@pytest.mark.timeout(60)
def test_an_endless_line_is_not_read_to_its_end(shell: Shell) -> None:
    """It is refused once it is too long, whatever still comes."""
    with shell.start("step", "tiny") as process, Path("/dev/zero").open("rb") as zeros:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):
            while process.poll() is None:
                process.stdin.buffer.write(zeros.read(1 << 16))
        assert process.wait(WAIT_S_MAX) == 1
        assert "line 1: longer than" in process.stderr.read()
        with suppress(BrokenPipeError):
            process.stdin.close()


def test_the_last_row_before_a_bad_one_is_printed(shell: Shell) -> None:
    """With --last-only too what counts is seen."""
    last = shell.out("step", "tiny", "--last-only", text="1,2,3\n")
    done = shell.run("step", "tiny", "--last-only", text="1,2,3\nbad\n")
    assert (done.returncode, done.stdout) == (1, last)


@pytest.mark.parametrize("command", ["step tiny", "predict tiny -", "models", "sessions list"])
def test_a_broken_standard_stream_is_one_line(shell: Shell, command: str) -> None:
    """Output on a full disk, and standard input closed."""
    call = f"{shlex.join(COMMAND)} {command}"
    for redirect, text in ((">/dev/full", "output: No space left"), ("<&-", "input is closed")):
        if redirect == "<&-" and "tiny" not in command:
            continue
        done = subprocess.run(
            ["sh", "-c", f"{call} {redirect}"],
            env=shell.environment,
            input=ROWS,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert text in done.stderr


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--target", "", "target is '', must be HOST:PORT"),
        ("--target", "localhost", "target is 'localhost', must be HOST:PORT"),
        ("--target", "h:99999", "target is 'h:99999', its port must be in [0, 65535]"),
        ("--token", "a\nb", "token must be text of printable ASCII"),
    ],
)
def test_a_bad_address_or_token_exits_2(shell: Shell, flag: str, value: str, message: str) -> None:
    """Named before anything is sent; nobody else's port is asked."""
    for command in (("models",), ("health",), ("step", "tiny")):
        assert message in shell.refusal(*command, flag, value, code=2)


def test_rows_before_a_bad_row_count(shell: Shell) -> None:
    """They are stepped and printed, and a session that is kept goes on after them."""
    two = shell.out("step", "tiny", text="1,2,3\n4,5,6\n")
    done = shell.run("step", "tiny", "--session", "bad", text="1,2,3\nbad\n4,5,6\n")
    assert (done.returncode, done.stdout) == (1, two.splitlines(True)[0])
    rest = shell.out("step", "tiny", "--session", "bad", "--close", text="4,5,6\n")
    assert rest == two.splitlines(True)[1]


def test_predict_reads_files(shell: Shell, tmp_path: Path) -> None:
    """Files are sequences of their own; the newest version answers unless one is named."""
    file = tmp_path / "x.csv"
    file.write_text(ROWS)
    stepped = shell.out("step", "tiny", text=ROWS)
    assert shell.out("predict", "tiny", file) == stepped
    assert shell.out("predict", "tiny:2", file, "-", text=ROWS) == f"{stepped}\n{stepped}"
    last = stepped.splitlines(True)[-1]
    assert shell.out("predict", "tiny", "--last-only", file, file) == last * 2
    assert shell.out("predict", "tiny:1", file) != stepped
    assert shell.out("predict", "both", file).count("\n") == 4
    file.write_text("1,2\n")
    assert f"{file}: line 1: 2 columns" in shell.refusal("predict", "tiny", file)
    assert "-: no rows" in shell.refusal("predict", "tiny", "-")


def test_models_and_health(shell: Shell, zoo: Zoo) -> None:
    """models is a table of every version; health says SERVING of the server and its service."""
    lines = shell.out("models").splitlines()
    assert lines[0].split()[:2] == ["MODEL", "VERSION"]
    assert sorted(line.split()[0] for line in lines[1:]) == sorted(
        ["tiny", "tiny", "letters", "projected", "both"]
    )
    assert shell.out("health", "--target", zoo.target) == "SERVING\n"
    assert shell.out("health", "--service", "lstmserve.v1.LstmService") == "SERVING\n"
    assert "NOT_FOUND" in shell.refusal("health", "--service", "nobody")


def test_sessions_are_looked_at_moved_and_closed(shell: Shell, tmp_path: Path) -> None:
    """list, get, state, export, import, fork and close; a moved session answers as the first."""
    first, second = ROWS[:18], ROWS[18:]
    shell.out("step", "tiny", "--session", "moved", text=first)
    assert shell.out("sessions", "list").splitlines()[1].split()[:2] == ["moved", "tiny:2"]
    assert shell.out("sessions", "list", "--model", "both").count("\n") == 1
    got = dict(line.split(None, 1) for line in shell.out("sessions", "get", "moved").splitlines())
    assert (got["id"], got["model"], got["version"]) == ("moved", "tiny", "2")
    state = shell.out("sessions", "state", "moved")
    assert [line[:3] for line in state.splitlines()] == ["h,0", "h,1", "c,0", "c,1"]
    assert shell.out("sessions", "fork", "moved", "--to", "fork") == "fork\n"
    file = tmp_path / "state"
    shell.out("sessions", "export", "moved", file)
    assert shell.out("sessions", "import", "tiny", file, "--session", "import") == "import\n"
    made = shell.out("sessions", "import", "tiny", file).strip()
    assert shell.out("sessions", "state", made) == state
    close = ("step", "tiny", "--close", "--session")
    y = shell.out(*close, "moved", text=second)
    assert shell.out(*close, "fork", text=second) == y
    assert shell.out(*close, "import", text=second) == y
    for _ in range(2):
        shell.out("sessions", "close", made)
    assert "SESSION_CLOSED" in shell.refusal("sessions", "get", made)
    file.write_bytes(b"no state")
    assert "not a " in shell.refusal("sessions", "import", "tiny", file)
    assert "MODEL_MISMATCH" not in shell.refusal("sessions", "get", "nobody")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step",), "Missing argument 'NAME[:VERSION]'"),
        (("step", "tiny:0"), "version is '0', must be a whole number in [1, 2147483647]"),
        (("step", "tiny:x"), "version is 'x'"),
        (("step", ":1"), "':1' names no model"),
        (("predict", "tiny", "no-such-file"), "'no-such-file' does not exist"),
        (("bogus",), "No such command 'bogus'"),
    ],
)
def test_bad_usage_exits_2(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    """With what was given and what is allowed."""
    assert message in shell.refusal(*arguments, code=2)


def test_a_refusal_is_one_line(shell: Shell) -> None:
    """An unknown model, and nobody there, exit 1 and name the reason."""
    assert "MODEL_NOT_FOUND" in shell.refusal("step", "none")
    for command in (("models",), ("health",), ("step", "tiny"), ("sessions", "list")):
        assert "UNAVAILABLE" in shell.refusal(*command, "--target", "127.0.0.1:1")


def test_proto_hands_out_the_contract(shell: Shell, tmp_path: Path) -> None:
    """The files of proto/, byte for byte, and their paths."""
    written = shell.out("proto", tmp_path / "new").split()
    assert [Path(path).name for path in written] == ["error_reason.proto", "lstm.proto"]
    for path in map(Path, written):
        assert path.read_bytes() == (ROOT / "proto/lstmserve/v1" / path.name).read_bytes()
    (tmp_path / "file").write_text("")
    assert "file" in shell.refusal("proto", tmp_path / "file" / "below")


def test_help_costs_nothing(shell: Shell) -> None:
    """--help lists every subcommand without an import of gRPC, numpy or the server."""
    code = (
        "import sys; from lstmserve.cli import commands; "
        "commands.main(['--help'], standalone_mode=False); "
        "assert not {'grpc', 'numpy', 'onnxruntime', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=shell.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split()
    assert {"export", "serve", "models", "step", "predict", "sessions", "health", "proto"} < {
        *words
    }


def test_many_rows_at_once_are_the_same_bits(shell: Shell, zoo: Zoo) -> None:
    """A file of 3,000 rows prints what single steps give, to the last digit."""
    x = np.random.default_rng(3).standard_normal((3000, 3)).astype(np.float32)
    text = "".join(",".join(map(str, row)) + "\n" for row in x)
    out = shell.out("step", "tiny", text=text)
    with Client(zoo.target) as client, client.session("tiny") as session:
        expected = np.stack([session.step(row) for row in x[:300]])
    np.testing.assert_array_equal(numbers(out)[:300].astype(np.float32), expected)
    assert out.count("\n") == 3000
