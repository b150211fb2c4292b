"""The command line of a client: processes of its own against a real server."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from lstmserve import Client
from lstmserve.cli import commands, known_sessions
from serving import ROOT, WAIT_S_MAX, Serve, environment
from zoo import SPECS, TOLERANCE, Zoo

MAIN = "from lstmserve.cli import main; main()"
COMMAND = [sys.executable, "-W", "error", "-c", MAIN]
# A job in a shell's background ignores Ctrl-C, and so would its children. A preexec_fn would not
# help: it forks, and gRPC's threads here do not survive that.
HEEDS_CTRL_C = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
)
INTERRUPTIBLE = [*COMMAND[:-1], HEEDS_CTRL_C + MAIN]
ROWS = "0.5,-1,2\n1,0.25,-3\n-1,0,1e-1\n2,2,2\n"


class Shell:
    """Runs `lstmserve ...` with the zoo's server as LSTMSERVE_TARGET."""

    def __init__(self, target: str, home: Path) -> None:
        self.target = target
        self.environment = environment(LSTMSERVE_TARGET=target, XDG_STATE_HOME=str(home))

    def run(self, *arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, with `text` on stdin."""
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
        """The output of a command that succeeds and prints nothing on stderr."""
        done = self.run(*arguments, text=text)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def refusal(self, *arguments: str | Path, text: str = "", code: int = 1) -> str:
        """What a failing command prints on stderr: one line if the exit code is 1."""
        done = self.run(*arguments, text=text)
        assert done.returncode == code
        assert code != 1 or done.stderr.count("\n") == 1
        return done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a process to talk to."""
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
def shell(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell whose lstmserve talks to the zoo's server; it remembers no session yet."""
    return Shell(zoo.target, tmp_path_factory.mktemp("home"))


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
    """With --session two calls print what one would, and --close ends it, so the next starts
    over."""
    first, second = ROWS[:18], ROWS[18:]
    whole = shell.out("step", "tiny", text=ROWS)
    with_id = ("step", "tiny", "--session", "twice")
    assert shell.out(*with_id, text=first) + shell.out(*with_id, text=second) == whole
    assert shell.out(*with_id, "--close") == ""
    assert shell.out(*with_id, "--close", text=ROWS) == whole


def test_a_lost_session_is_not_begun_in_silence(
    serve: Serve, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A first use opens the session; after a loss only --if-lost new opens it again, and without
    that the command exits with 1 and SESSION_LOST."""
    first, second = ROWS[:18], ROWS[18:]
    serving = serve()
    shell = Shell(serving.target, tmp_path)
    call = ("step", "tiny", "--session", "jfk")
    y = shell.out(*call, text=first)
    assert shell.out(*call, text=second) != shell.out("step", "tiny", text=second)
    serving.kill()
    serving = serve("--listen", serving.target)
    for _ in range(2):
        said = shell.refusal(*call, text=first)
        assert "(SESSION_LOST)" in said
        assert "--if-lost new" in said
    assert shell.out("sessions", "list").count("\n") == 1
    assert shell.out(*call, "--if-lost", "new", text=first) == y
    assert shell.out(*call, "--close", text=second) != y
    other = Shell(serving.target, tmp_path_factory.mktemp("home"))
    assert other.out(*call, text=first) == y
    other.out("sessions", "close", "jfk")
    assert shell.out(*call, "--close", text=first) == y
    assert serving.stop() == 0


def test_a_session_that_another_opened_again_is_not_this_one(shell: Shell, zoo: Zoo) -> None:
    """The shell continues its own incarnation of the id only, unless it is allowed another one."""
    call = ("step", "tiny", "--session", "again")
    shell.out(*call, text=ROWS)
    with Client(zoo.target) as client:
        client.session("tiny", id="again", if_exists="restart")
    assert "(SESSION_REPLACED)" in shell.refusal(*call, text=ROWS)
    shell.out(*call, "--if-lost", "new", text=ROWS)
    with Client(zoo.target) as client:
        client.attach("again").close()
    assert "(SESSION_CLOSED)" in shell.refusal(*call, text=ROWS)
    shell.out(*call, "--if-lost", "new", "--close", text=ROWS)


@pytest.mark.parametrize("command", ["import", "fork"])
def test_a_session_that_a_command_made_is_remembered(
    serve: Serve, tmp_path: Path, command: str
) -> None:
    """A lost session that import or fork opened is not silently opened again, either."""
    serving = serve()
    shell = Shell(serving.target, tmp_path)
    shell.out("step", "tiny", "--session", "one", text=ROWS)
    if command == "fork":
        shell.out("sessions", "fork", "one", "--to", "two")
    else:
        shell.out("sessions", "export", "one", tmp_path / "state")
        shell.out("sessions", "import", "tiny", tmp_path / "state", "--session", "two")
    serving.kill()
    serve("--listen", serving.target)
    assert "(SESSION_LOST)" in shell.refusal("step", "tiny", "--session", "two", text=ROWS)


def test_a_shell_that_cannot_remember_says_so(shell: Shell, tmp_path: Path) -> None:
    """Without a folder for its notes the shell serves the step, and warns."""
    (tmp_path / "file").write_text("")
    shell.environment["XDG_STATE_HOME"] = str(tmp_path / "file")
    done = shell.run("step", "tiny", "--session", "unkept", "--close", text=ROWS)
    assert done.returncode == 0
    assert done.stdout.count("\n") == ROWS.count("\n")
    assert done.stderr.count("a lost session will go unnoticed") == 1


def test_a_shell_remembers_so_many_sessions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file keeps the sessions that were used last, up to the limit."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(known_sessions, "SESSIONS_MAX", 3)
    known = known_sessions.KnownSessions("h:1")
    for name in ("a", "b", "c"):
        known.put(name, 1)
    assert [known.get(name) for name in ("a", "b", "c")] == [1, 1, 1]
    known.put("a", 2)
    known.put("d", 1)
    assert [known.get(name) for name in ("a", "b", "c", "d")] == [2, None, 1, 1]
    assert known_sessions.KnownSessions("h:2").get("a") is None
    known.forget("a")
    assert known.get("a") is None


def test_a_row_does_not_wait_for_the_next(shell: Shell) -> None:
    """Each y is printed before the next x is written, and Ctrl-C ends the command quietly."""
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
    """A terminal that closes ends the command like Ctrl-C, and leaves no session open."""
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
    """`lstmserve step ... | head -1` ends quietly."""
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
    """A bad row is refused with its line number and its fault."""
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
    """A line that is too long is refused, however much of it is still to come."""
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
    """With --last-only, too, the last good row's output is printed."""
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
    """A bad address or token is refused by name before anything is sent."""
    for command in (("models",), ("health",), ("step", "tiny")):
        assert message in shell.refusal(*command, flag, value, code=2)


def test_rows_before_a_bad_row_count(shell: Shell) -> None:
    """The rows before a bad row are stepped and printed, and a session that is kept goes on after
    them."""
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
    assert sorted(line.split()[0] for line in lines[1:]) == sorted([*SPECS, "tiny"])
    assert shell.out("health", "--target", zoo.target) == "SERVING\n"
    assert shell.out("health", "--service", "lstmserve.v1.LstmService") == "SERVING\n"
    assert "NOT_FOUND" in shell.refusal("health", "--service", "nobody")


def test_sessions_are_looked_at_moved_and_closed(shell: Shell, tmp_path: Path) -> None:
    """list, get, state, export, import, fork and close work; an imported session answers like the
    first."""
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
    """Bad usage exits with 2, and names what was given and what is allowed."""
    assert message in shell.refusal(*arguments, code=2)


def test_a_refusal_is_one_line(shell: Shell) -> None:
    """An unknown model, and a missing server, exit with 1 and one line with the reason."""
    assert "MODEL_NOT_FOUND" in shell.refusal("step", "none")
    for command in (("models",), ("health",), ("step", "tiny"), ("sessions", "list")):
        assert "UNAVAILABLE" in shell.refusal(*command, "--target", "127.0.0.1:1")


def test_proto_hands_out_the_contract(shell: Shell, tmp_path: Path) -> None:
    """The files of proto/ are written byte for byte over existing ones, and their paths are
    printed."""
    for _ in range(2):
        written = shell.out("proto", tmp_path / "new").split()
    names = [str(Path(path).relative_to(tmp_path / "new")) for path in written]
    ours = [name for name in names if name.startswith("lstmserve/")]
    assert sorted(ours) == sorted(
        str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")
    )
    assert set(names) - set(ours) == {"google/rpc/status.proto", "google/rpc/error_details.proto"}
    for name in ours:
        assert (tmp_path / "new" / name).read_bytes() == (ROOT / "proto" / name).read_bytes()
    (tmp_path / "file").write_text("")
    assert "file" in shell.refusal("proto", tmp_path / "file" / "below")


def test_the_contract_compiles_from_an_empty_folder(shell: Shell, tmp_path: Path) -> None:
    """Protoc makes stubs of every file, with no other source than its own google/protobuf."""
    written = [
        str(Path(path).relative_to(tmp_path)) for path in shell.out("proto", tmp_path).split()
    ]
    out = tmp_path / "out"
    out.mkdir()
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={out}"]
    # Its own include path, of google/protobuf alone, is what every protoc brings along.
    done = subprocess.run(
        [*protoc, f"--grpc_python_out={out}", *written],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in out.rglob("*_pb2_grpc.py")} >= {
        "lstm_pb2_grpc.py",
        "inference_pb2_grpc.py",
    }


def test_help_costs_nothing(shell: Shell) -> None:
    """--help lists every subcommand without importing gRPC, numpy or the server."""
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


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[Any]:
    """Every command and subcommand with the words that call it, the group itself first."""
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*each, id=" ".join(each[0])) for each in every_command(commands)],
)
@pytest.mark.parametrize("width", [60, 80, 132])
def test_help_is_whole(path: tuple[str, ...], command: click.Command, width: int) -> None:
    """No line of the help is cut, and the help of every flag is a whole sentence."""
    done = CliRunner().invoke(commands, [*path, "--help"], terminal_width=width)
    assert done.exit_code == 0
    _, _, after = done.output.partition("\n\n")  # behind the usage line, which may have FILE...
    assert [line for line in after.splitlines() if re.search(r"[^/]\.\.\.$", line)] == []
    for option in command.params:
        if isinstance(option, click.Option):
            assert (option.help or "").rstrip().endswith((".", "]", ")")), option.name
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            assert re.search(rf"^  {name} +\S.*", after, re.MULTILINE)


def test_many_rows_at_once_are_the_same_bits(shell: Shell, zoo: Zoo) -> None:
    """A file of 3,000 rows prints what single steps print, to the last digit."""
    x = np.random.default_rng(3).standard_normal((3000, 3)).astype(np.float32)
    text = "".join(",".join(map(str, row)) + "\n" for row in x)
    out = shell.out("step", "tiny", text=text)
    with Client(zoo.target) as client, client.session("tiny") as session:
        expected = np.stack([session.step(row) for row in x[:300]])
    np.testing.assert_array_equal(numbers(out)[:300].astype(np.float32), expected)
    assert out.count("\n") == 3000
