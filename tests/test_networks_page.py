"""docs/NETWORKS.md: its five examples run as a reader runs them, and the page shows the files."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator

import pytest

from lstmserve.manifest import MODEL
from serving import COMMAND, ROOT, Serving
from shell import Shell, blocks

PAGE = (ROOT / "docs" / "NETWORKS.md").read_text()
EXAMPLES = ROOT / "examples" / "networks"
NAMES = ("forecaster", "policy", "stacked", "speller", "start")
SHOWN = re.compile(r"(class \w+\(nn\.Module\)|def (train|stream)\()")
PRINTED = {
    "forecaster": r"100 steps differ from forward\(\) by \d\.\de-0[678] at most",
    "policy": r"50 steps are forward\(\)'s, and so is the state \(64,\); the last value is \[",
    "stacked": r"wide\.h \(1, 48\)\nwide\.c \(1, 48\)\nnarrow\.h \(2, 16\)\nnarrow\.c \(2, 16\)\n"
    r"40 rows over two sessions are forward\(\)'s",
    "speller": r"the server remembers where in the line it is\. ",
    "start": r"the session begins from h0 and c0, and 60 steps are forward\(\)'s",
}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A folder with the five files, whose networks a server serves."""
    shell = Shell(tmp_path_factory.mktemp("networks"))
    for name in NAMES:
        shutil.copy(EXAMPLES / f"{name}.py", shell.folder)
        shell.run(f"python {name}.py train")
    serving = Serving(("--models", shell.folder / "models"), COMMAND)
    shell.target = serving.target
    yield shell
    assert serving.stop() == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_the_example_streams_what_forward_gives(shell: Shell, name: str) -> None:
    """Each is trained and exported in Python, and compares a session's answers with forward()."""
    printed = shell.run(f"python {name}.py stream {shell.target}")
    assert re.match(PRINTED[name], printed), printed


@pytest.mark.timeout(600)
def test_the_command_line_exports_the_same_graph(shell: Shell) -> None:
    """The page's commands give the bytes that Python gave; one needs the page's example."""
    (save,) = [each for each in blocks(PAGE, "python") if "np.savez(" in each]
    shell.python(save)
    commands = [each for each in blocks(PAGE) if "--example x.npy" not in each]
    exported = re.findall(r"^lstmserve export (\w+)\.pt .*", "".join(commands), re.M)
    assert exported == ["forecaster", "policy"]
    for name, command in zip(exported, commands, strict=True):
        printed = shell.run(f"{command.strip()} --models by-command")
        assert f"--module runs your own code: {name}.py" in printed
        ours, theirs = (
            shell.folder / each / name / "1" / MODEL for each in ("models", "by-command")
        )
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_page_shows_the_files() -> None:
    """The first file is there whole, of every other the class and how it is streamed."""
    shown = blocks(PAGE, "python")
    sources = {name: (EXAMPLES / f"{name}.py").read_text() for name in NAMES}
    assert sources["forecaster"] in shown
    for name in NAMES[1:]:
        parts = {
            each.name: ast.get_source_segment(sources[name], each)
            for each in definitions(sources[name])
        }
        network = name.capitalize()
        assert f"{parts[network]}\n" in shown
        assert f"{parts['stream']}\n" in shown
    for block in shown:
        if SHOWN.match(block):
            assert any(block in source for source in sources.values())
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NAMES)


def definitions(source: str) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """The classes and functions of a file."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node
