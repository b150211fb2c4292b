"""One name has one meaning: public classes, and the modules of one package."""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterable

import pytest

from lstmserve import errors
from lstmserve.client.status import from_status
from lstmserve.engine import errors as engine_errors
from lstmserve.server.status import to_status
from test_tidy import PRODUCT_TREES

PACKAGE = "service/lstmserve/"
SYNC = PACKAGE + "client/_sync/"  # generated from _async
# The two dialects have one part each for every kind of call.
DIALECTS = ("server/native/", "server/kserve/")


def trees() -> dict[str, ast.Module]:
    """The hand-written modules of the package, by their path below it."""
    found = {
        path.removeprefix(PACKAGE): tree
        for path, tree in PRODUCT_TREES.items()
        if path.startswith(PACKAGE) and not path.startswith(SYNC)
    }
    assert found
    return found


def either_io(path: str) -> str:
    """One path for the client's two ways to wait, whose names are the same on purpose."""
    return path.replace("_threads/", "_aio/").replace("threads.py", "aio.py")


def homes(names: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Of (name, path): the paths of each name that has several."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in names:
        found[name].add(either_io(path))
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def public_classes(modules: dict[str, ast.Module]) -> Iterable[tuple[str, str]]:
    """Every class, protocols too, whose name has no underscore in front, with its path."""
    for path, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, path


DOUBLE = homes(public_classes(trees()))


def raised_on_both_sides() -> list[str]:
    """Errors that the engine raises and errors that the client raises, by their common names."""
    return sorted(
        name
        for name, kind in inspect.getmembers(engine_errors, inspect.isclass)
        if issubclass(kind, engine_errors.ServeError) and name in errors.__all__
    )


def test_a_class_name_has_one_meaning() -> None:
    """No two public classes have one name, apart from an error's on both sides of the wire."""
    double = dict(DOUBLE)
    for name in raised_on_both_sides():
        assert double.pop(name) == {"engine/errors.py", "errors.py"}
    assert double == {}


def test_a_second_meaning_would_be_found() -> None:
    """Two modules with a class of one name count; the client's two ways to wait do not."""
    one = ast.parse("class A: ...\nclass _B: ...\ndef f():\n    class C: ...")
    found = homes(public_classes({"x/a.py": one, "y/a.py": one}))
    assert found == {"A": {"x/a.py", "y/a.py"}, "C": {"x/a.py", "y/a.py"}}
    assert homes(public_classes({"client/_io/aio.py": one, "client/_io/threads.py": one})) == {}


@pytest.mark.parametrize("name", raised_on_both_sides())
def test_an_error_means_the_same_on_both_sides(name: str) -> None:
    """The client raises its error of this name where the engine raised its own."""
    status = to_status(getattr(engine_errors, name)("it failed"))
    assert type(from_status(status)) is getattr(errors, name)


def test_a_module_name_is_used_once_in_a_package() -> None:
    """Below engine/, server/, client/ and the like no two modules have one name, dialects aside."""
    names = []
    for path in trees():
        top, _, rest = path.partition("/")
        stem = path.rpartition("/")[2]
        if rest and stem != "__init__.py":
            for dialect in DIALECTS:
                path = path.replace(dialect, "server/")
            names.append((f"{top}/**/{stem}", path))
    assert homes(names) == {}
