"""Holds the source to the house rules that a machine can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")
FUNCTION_LINES_MAX, LINE_MAX = 50, 100
# What a signature does not say of these: the axes of an array.
ARRAY = re.compile(r"\b(NDArray|ArrayLike|ndarray|Index|Floats|Rows|States|StepInput)\b")
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


def test_docstrings_say_what_signatures_do_not() -> None:
    """Public classes have a docstring, and so do public functions that raise or handle arrays."""
    silent = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in PRODUCT_TREES.items()
        for node in public_definitions(tree)
        if ast.get_docstring(node) is None
        and ast.unparse(node.body[-1]) != "..."
        and (isinstance(node, ast.ClassDef) or says_too_little(node))
    ]
    assert silent == []


def says_too_little(function: Function) -> bool:
    """Whether its signature leaves out what a caller must know: axes, or what it raises."""
    arguments = function.args
    annotations = [a.annotation for a in (*arguments.args, *arguments.kwonlyargs)]
    annotations.append(function.returns)
    text = " ".join(ast.unparse(each) for each in annotations if each is not None)
    raises = any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(function))
    return bool(ARRAY.search(text)) or raises


def public_definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions of the module, and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            members = node.body if isinstance(node, ast.ClassDef) else []
            yield from (m for m in members if isinstance(m, Function) and m.name[0] != "_")


def test_imports_make_no_circle() -> None:
    """No module of the product imports itself by way of others, not even for its types."""
    graph = import_graph()
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def import_graph() -> dict[str, set[str]]:
    """Module -> the modules of the product that its text imports."""
    trees = {module_name(path): tree for path, tree in PRODUCT_TREES.items()}
    return {name: set(imported_modules(tree, trees.keys())) for name, tree in trees.items()}


def imported_modules(tree: ast.Module, modules: Set[str]) -> Iterator[str]:
    """Those of `modules` that it imports; `from package import module` is not the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from {name if name in modules else node.module} & modules


def module_name(path: str) -> str:
    """The dotted name of a product's file."""
    parts = Path(path).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other, each sorted."""
    reach = {name: reachable(graph, name) for name in graph}
    found = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return sorted(map(list, found))


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every module that `start` imports, at once or by others."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen


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


@pytest.mark.parametrize(
    ("package", "unknown"),
    [
        ("client", "server engine store graph cli top config"),
        ("engine", "server client cli top errors reasons"),
        ("graph", "server engine store client config errors reasons"),
        ("server", "client cli top errors"),
        ("store", "server engine client config errors reasons"),
        ("top", "server engine client cli config errors reasons"),
    ],
)
def test_packages_do_not_know_each_other(package: str, unknown: str) -> None:
    """No package imports one that its place forbids, not even by way of others."""
    graph = import_graph()
    own = [name for name in graph if f"{name}.".startswith(f"lstmserve.{package}.")]
    known = {name.split(".")[1] for each in own for name in reachable(graph, each)}
    assert own
    assert known & set(unknown.split()) == set()


def test_one_folder_knows_the_inside_of_grpc() -> None:
    """The server's transport alone imports grpc._cython; the server does without grpc.aio."""
    inside = {
        path
        for path, tree in PRODUCT_TREES.items()
        if any(name.startswith("grpc._cython") for name in imports(tree))
    }
    folder = "service/lstmserve/server/transport/"
    assert inside
    assert {path for path in inside if not path.startswith(folder)} == set()
    server = [path for path in PRODUCT if path.startswith("service/lstmserve/server/")]
    assert [path for path in server if "grpc.aio" in PRODUCT[path]] == []


def test_one_module_imports_onnxruntime() -> None:
    """Its telemetry is off only where runtime.py turns it off before the import."""
    found = [path for path, tree in PRODUCT_TREES.items() if "onnxruntime" in imports(tree)]
    assert found == ["service/lstmserve/runtime.py"]


# The console script offers `export`, and imports it only when it is called.
LAZY = {"service/lstmserve/cli/__init__.py"}
