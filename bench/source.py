"""Counts what a package's hand-written source holds, from its text alone.

It must not import the package, whose checkout may be of any age.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from test_tidy import circles, imported_modules

PROTOBUF = re.compile(r"_pb2(_grpc)?\.py$")
MADE_FROM = re.compile(r"\bgenerated from\b")  # in the docstring of a package that a tool wrote


@dataclass(frozen=True, slots=True)
class Source:
    """The hand-written modules of a checkout: path below the package -> its tree and its lines."""

    package: str
    trees: dict[str, ast.Module]
    lines: int

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Reads the package in that folder."""
        generated = {
            path.parent
            for path in folder.rglob("__init__.py")
            if MADE_FROM.search(ast.get_docstring(ast.parse(path.read_text())) or "")
        }
        texts = {
            str(path.relative_to(folder)): path.read_text()
            for path in sorted(folder.rglob("*.py"))
            if not PROTOBUF.search(path.name) and generated.isdisjoint(path.parents)
        }
        trees = {path: ast.parse(text) for path, text in texts.items()}
        return cls(folder.name, trees, sum(text.count("\n") for text in texts.values()))

    def statements(self) -> int:
        """Nodes of the grammar's `stmt`, without docstrings."""
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree)]
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        docstrings = [n for n in nodes if isinstance(n, documented) and ast.get_docstring(n)]
        return sum(isinstance(node, ast.stmt) for node in nodes) - len(docstrings)

    def circles(self, *, with_types: bool) -> list[list[str]]:
        """Sets of modules that import each other; `with_types`: also below TYPE_CHECKING."""
        modules = {_module(self.package, path): tree for path, tree in self.trees.items()}
        graph = {
            name: set(imported_modules(tree if with_types else _executed(tree), modules.keys()))
            for name, tree in modules.items()
        }
        return circles(graph)

    def namesakes(self) -> dict[str, list[str]]:
        """Public class names that are defined more than once, and where."""
        found = defaultdict(list)
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(path)
        return {name: paths for name, paths in sorted(found.items()) if len(paths) > 1}


def _module(package: str, path: str) -> str:
    parts = [package, *Path(path).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _executed(tree: ast.Module) -> ast.Module:
    """The module's own statements that run when it is imported, without functions and types."""

    def kept(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                yield from kept(node.orelse)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                yield node
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "orelse", "finalbody"):
                    yield from kept(getattr(node, field, []))

    return ast.Module(list(kept(tree.body)), [])
