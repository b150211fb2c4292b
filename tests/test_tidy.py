"""Holds the source to the house rules that a machine can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")
FILE_LINES_MAX, FUNCTION_LINES_MAX, LINE_MAX = 200, 50, 100
BANNED_NAME = re.compile(r"manager|helper|handler|utils", re.IGNORECASE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> dict[str, str]:
    """Hand-written Python below the folders: path from the root -> text."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): path.read_text()
        for path in paths
        if not GENERATED.search(path.name)
    }
    assert found
    return found


PRODUCT = sources("service", "export")
TESTS = sources("tests")
ALL = PRODUCT | TESTS | sources("proto", "examples", "soak")
PRODUCT_TREES = {path: ast.parse(text) for path, text in PRODUCT.items()}
ALL_TREES = {path: ast.parse(text) for path, text in ALL.items()}


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def imports(tree: ast.Module) -> Iterator[str]:
    """Every absolute module name that is imported anywhere in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_files_are_short() -> None:
    """No file of the product is longer than the limit."""
    lengths = {path: text.count("\n") for path, text in PRODUCT.items()}
    assert {path: n for path, n in lengths.items() if n > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    """No function of the product is longer than the limit."""
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in PRODUCT_TREES.items()
        for node in functions(tree)
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_lines_are_short() -> None:
    """No line of any source file is longer than the limit; a pragma at its end does not count."""
    long = [
        f"{path}:{number}"
        for path, text in ALL.items()
        for number, line in enumerate(text.splitlines(), 1)
        if len(re.sub(r"  # (noqa|type:).*", "", line)) > LINE_MAX
    ]
    assert long == []


def test_modules_say_what_they_are() -> None:
    """Every module of the product begins with a docstring whose first line is a sentence."""
    silent = [
        path
        for path, tree in PRODUCT_TREES.items()
        if not re.match(r".*[.:](\s|$)", (ast.get_docstring(tree) or "").partition("\n")[0])
    ]
    assert silent == []


def test_public_functions_have_docstrings() -> None:
    """Every public class, function and method of the product says what it is for."""
    silent = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in PRODUCT_TREES.items()
        for node in public_definitions(tree)
        if ast.get_docstring(node) is None and ast.unparse(node.body[-1]) != "..."
    ]
    assert silent == []


def public_definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions of the module, and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            members = node.body if isinstance(node, ast.ClassDef) else []
            yield from (m for m in members if isinstance(m, Function) and m.name[0] != "_")


def test_every_test_says_what_it_shows() -> None:
    """Every test has a docstring of one sentence."""
    wrong = []
    for path, tree in ALL_TREES.items():
        for node in functions(tree):
            if path in TESTS and node.name.startswith("test_"):
                text = " ".join((ast.get_docstring(node) or "").split())
                if not text.endswith((".", "?")) or re.search(r"[.?!] [A-Z]", text):
                    wrong.append(f"{path}:{node.lineno} {node.name}")
    assert wrong == []


def test_names_say_something() -> None:
    """No module and no class is named after nothing in particular."""
    classes = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in ALL_TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and BANNED_NAME.search(node.name)
    ]
    assert classes == []
    assert [path for path in ALL if BANNED_NAME.search(Path(path).stem)] == []


def test_every_ignore_has_its_reason() -> None:
    """A noqa or a type: ignore is followed by its reason on the same line."""
    ignore = re.compile(r"#\s*(noqa|type:\s*ignore|mypy:)")
    reasoned = re.compile(r"#\s*(noqa:[^#]*?(--|#)|type:\s*ignore\[[^]]+\]\s*#)\s*\w+")
    bare = [
        f"{path}:{number}"
        for path, text in ALL.items()
        for number, line in enumerate(text.splitlines(), 1)
        if ignore.search(line) and not reasoned.search(line) and "re.compile" not in line
    ]
    assert bare == []


def test_nothing_sleeps() -> None:
    """Neither product nor tests wait by the clock; sleep(0) is a pass of the event loop."""
    sleeps = [
        f"{path}:{node.lineno}"
        for path in [*PRODUCT, *TESTS]
        for node in ast.walk(ALL_TREES[path])
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("sleep")
        and [ast.unparse(argument) for argument in node.args] != ["0"]
    ]
    assert sleeps == []


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        (
            "service/lstmserve/",
            ("pickle", "shelve", "dill", "marshal", "torch", "lstmserve_export"),
        ),
        ("service/lstmserve/engine/", ("grpc", "structlog", "prometheus_client", "google")),
        ("service/lstmserve/client/", ("onnxruntime", "onnx", "structlog", "prometheus_client")),
        ("service/lstmserve/graph/", ("onnxruntime", "grpc")),
        ("service/lstmserve/store/", ("grpc", "structlog", "prometheus_client", "onnxruntime")),
    ],
)
def test_layers_do_not_reach_up(folder: str, banned: tuple[str, ...]) -> None:
    """A package imports nothing that its place in the layers forbids; nothing unpickles."""
    found = [
        f"{path} {name}"
        for path, tree in PRODUCT_TREES.items()
        if path.startswith(folder)
        for name in imports(tree)
        if name.partition(".")[0] in banned and path not in LAZY
    ]
    assert found == []


# The console script offers `export`, and imports it only when it is called.
LAZY = {"service/lstmserve/cli/__init__.py"}
