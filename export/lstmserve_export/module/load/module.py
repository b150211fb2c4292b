"""Builds a module from the user's own file. The only place where the export runs a user's code
by name; it must not know what the module is exported as.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lstmserve_export.refusal import Refused, shorten

# The file is not imported under its own name, which a package may have.
PRIVATE_NAME = "lstmserve_export_user_file"
IMPORT = 'correct the file, or put what only a script does below `if __name__ == "__main__":`'
CALL = "correct the file, or give other --module-args"
TEXT_LEN_MAX = 300


@contextlib.contextmanager
def user_code(file: Path) -> Iterator[None]:
    """Lets the code of `file` run as if it were a script: its folder comes first on sys.path.

    What the code prints goes to stderr, because stdout is the command's. Raises Refused.
    """
    if not file.is_file():
        raise Refused(f"--module: there is no file {file}")
    path, arguments = list(sys.path), sys.argv
    sys.path.insert(0, str(file.resolve().parent))
    sys.argv = [str(file)]  # a parser in the file must not read the flags of the export
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:], sys.argv = path, arguments


def build_module(file: Path, name: str, arguments: str = "") -> nn.Module:
    """The module that the class or function `name` of `file` gives, on the CPU, in eval mode.

    `arguments` is a JSON object of keyword arguments, a JSON list of positional ones, or "". Call
    it within user_code(). Raises Refused.
    """
    args, kwargs = _read_arguments(arguments)
    target: Any = _import(file)
    for part in name.split("."):
        if not hasattr(target, part):
            raise Refused(f"--module: {file.name} has no {name}; {_candidates(file)}")
        target = getattr(target, part)
    if isinstance(target, nn.Module) and not arguments:
        module: Any = target
    elif isinstance(target, nn.Module) or not callable(target):
        kind = type(target).__name__
        raise Refused(f"--module: {name} is of type {kind}, and cannot be called: name a class")
    else:
        module = _call(target, name, args, kwargs, file)
    if isinstance(module, nn.DataParallel):
        module = module.module
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        kind = type(module).__name__
        raise Refused(
            f"--module: {name} gives a {kind}, not an nn.Module in Python: name the class of the "
            "module"
        )
    _run(lambda: module.eval().cpu(), file, f"move {name} to the CPU", CALL)
    return module


def _read_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        value = json.loads(text or "[]")
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"--module-args is no JSON ({error}): give an object of keyword arguments, as in "
            "'{\"hidden\": 64}', or a list"
        ) from error
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise Refused(
        f"--module-args is {text}, must be a JSON object of keyword arguments, or a list of "
        "positional ones"
    )


def _import(file: Path) -> ModuleType:
    loader = SourceFileLoader(PRIVATE_NAME, str(file))
    spec = importlib.util.spec_from_loader(PRIVATE_NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PRIVATE_NAME] = module  # dataclasses look themselves up there
    _run(lambda: loader.exec_module(module), file, f"import {file.name}", IMPORT)
    return module


def _call(target: Any, name: str, args: list[Any], kwargs: dict[str, Any], file: Path) -> Any:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # of a class in C
        pass
    else:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            call = f"{name}{signature}".partition(" -> ")[0]
            raise Refused(
                f"--module-args do not fit {call[:TEXT_LEN_MAX]}: {error}; give a JSON object of "
                "keyword arguments, or a list"
            ) from error
    return _run(lambda: target(*args, **kwargs), file, f"call {name}", CALL)


def _run(code: Callable[[], Any], file: Path, doing: str, mend: str) -> Any:
    """What the user's code returns. Raises Refused, with `mend`, for whatever it raises."""
    try:
        return code()
    except SystemExit as error:
        raise Refused(
            f"--module: could not {doing}: it ends the program ({error!r}){_where(error, file)}; "
            f"{mend}"
        ) from error
    except SyntaxError as error:
        at = f"{Path(error.filename or file).name}, line {error.lineno}"
        raise Refused(f"--module: {at} is not Python: {error.msg}") from error
    except ModuleNotFoundError as error:
        raise Refused(
            f"--module: {file.name} needs {error.name}{_where(error, file)}, which is neither "
            f"installed nor in {file.resolve().parent}: install it, or name a file without it"
        ) from error
    except Exception as error:  # the user's code may raise anything
        if isinstance(error, ImportError) and "relative import" in str(error):
            raise Refused(
                f"--module: {file.name} is a part of a package (relative import"
                f"{_where(error, file)}): write a file beside the package that only imports the "
                "class, and name that one"
            ) from error
        text = (str(error).strip() or "no message").splitlines()[0][:TEXT_LEN_MAX]
        raise Refused(
            f"--module: could not {doing}: {type(error).__name__}: {text}{_where(error, file)}; "
            f"{mend}"
        ) from error


def _where(error: BaseException, file: Path) -> str:
    """The last line of the user's own folder that was run, in brackets."""
    folder = file.resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).resolve().parent == folder:
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _candidates(file: Path) -> str:
    """The classes of modules that the file defines or imports, torch's own left out."""
    found = [
        name
        for name, value in vars(sys.modules[PRIVATE_NAME]).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and not value.__module__.startswith("torch.")
    ]
    return f"it has {shorten(found)}" if found else f"{file.name} has no class of nn.Module at all"
