"""Names the place in the user's code where forward() failed, or called a torch function."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from torch import nn

from lstmserve_export.module.forward import Forward

LINE_LEN_MAX: Final = 80
OWN: Final = str(Path(__file__).parent.parent)
FOREIGN: Final = (str(Path(inspect.getfile(torch)).parent), OWN, "<frozen")


def place(error: BaseException, module: nn.Module) -> str:
    """ " in LAYER (CLASS), FILE line N: CODE", as far as they are known from the traceback."""
    traceback, frames = error.__traceback__, []
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    path, kind, line = located(reversed(frames), module)
    layer = f" in {path} ({kind})" if path else ""
    return f"{layer}{', ' if layer and line else ' in ' if line else ''}{line}"


def callers(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """The frame and its callers, with their lines."""
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def located(frames: Iterable[tuple[FrameType, int]], module: nn.Module) -> tuple[str, str, str]:
    """The innermost layer, its class, and the innermost line of the user's code."""
    paths = {id(each): path for path, each in module.named_modules()}
    path, kind, line = None, "", ""
    for frame, number in frames:
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if path is None and id(owner) in paths:
            path, kind = paths[id(owner)], type(owner).__name__
        file = code.co_filename
        if isinstance(owner, Forward):
            break  # what called it is not the user's forward()
        if not line and not file.startswith(FOREIGN):
            text = linecache.getline(file, number).strip()
            text = text if len(text) <= LINE_LEN_MAX else f"{text[:LINE_LEN_MAX]} ..."
            line = f"{Path(file).name} line {number}" + (f": {text}" if text else "")
    return path or "", kind, line
