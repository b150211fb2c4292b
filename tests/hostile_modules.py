"""The files, classes and examples that export --module refuses, each by its row in docs/EXPORT.md.

Every maker gets an empty folder, and returns the checkpoint and the flags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exporting import save

Case = tuple[Path, list[str]]
Maker = Callable[[Path], Case]
ROWS: dict[str, tuple[str, Maker]] = {}
WIDTH, HIDDEN, OUTPUTS = 5, 8, 3
TEXT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=8, *, bias=True):
        super().__init__()
        self.front = nn.Linear(5, hidden, bias=bias)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 3)

    def forward(self, x):
        return self.fc(self.gru(torch.relu(self.front(x)))[0])

def make(hidden):
    return Net(hidden)

class Outer:
    class Inner(Net):
        pass

ready = Net()
size = 8
"""
# A state among the arguments, and a constructor that changes what a layer computes.
STATEFUL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, slope=0.0):
        super().__init__()
        self.slope = slope
        self.cell = nn.LSTMCell(5, 8)

    def forward(self, x, state):
        h, c = self.cell(x, state)
        return h + self.slope * x.mean(), (h, c)
"""


class Net(nn.Module):
    """The network of TEXT, to make its checkpoint."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.front = nn.Linear(WIDTH, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As TEXT has it."""
        y: torch.Tensor = self.fc(self.gru(torch.relu(self.front(x)))[0])
        return y


def write(
    folder: Path, text: str = TEXT, name: str = "Net", content: object = None, **flags: object
) -> Case:
    """The text in train.py, a checkpoint, and the flags: --module, and the keywords as flags."""
    (folder / "train.py").write_text(text)
    path = save(Net().state_dict() if content is None else content, folder / "net.pt")
    given = ["--module", f"{folder / 'train.py'}:{name}"]
    for flag, value in flags.items():
        given += [f"--{flag.replace('_', '-')}", str(value)]
    return path, given


def arrays(folder: Path, **content: np.ndarray[Any, Any]) -> Path:
    """The arrays in rows.npz."""
    np.savez(folder / "rows.npz", **content)
    return folder / "rows.npz"


def stateful(folder: Path, flag: str, content: Mapping[str, np.ndarray[Any, Any]]) -> Case:
    """The module of STATEFUL with arrays."""
    cell = nn.LSTMCell(WIDTH, HIDDEN).state_dict(prefix="cell.")
    given = {flag: arrays(folder, **content)}
    return write(folder, STATEFUL, content=cell, **given)


def rows(*shape: int) -> np.ndarray[Any, Any]:
    """Zeros."""
    return np.zeros(shape, np.float32)


def row(label: str, says: str) -> Callable[[Maker], Maker]:
    """Enters a maker as the row with this label; the refusal must contain `says`."""

    def enter(maker: Maker) -> Maker:
        assert label not in ROWS
        ROWS[label] = (says, maker)
        return maker

    return enter


def text_row(label: str, says: str, text: str, name: str = "Net") -> None:
    """A row of which the file's text is all."""
    row(label, says)(lambda folder: write(folder, text, name))


def args_row(label: str, says: str, arguments: str, name: str = "Net") -> None:
    """A row of which --module-args is all."""
    row(label, says)(lambda folder: write(folder, name=name, module_args=arguments))


@row("--module of a file that does not exist", "there is no file")
def _no_file(folder: Path) -> Case:
    path, _ = write(folder)
    return path, ["--module", f"{folder / 'other.py'}:Net"]


text_row(
    "a file that is not Python", "train.py, line 2 is not Python", "import torch\nclass Net(:\n"
)
text_row(
    "a file that imports what is not there",
    "needs a_package_of_mine (train.py, line 1), which is neither installed nor in",
    "import a_package_of_mine\n",
)
text_row("a file with relative imports", "is a part of a package", "from . import layers\n")
text_row(
    "a file that ends the program", "ends the program (SystemExit(3)", "import sys\nsys.exit(3)\n"
)
text_row(
    "a file that raises an error",
    "could not import train.py: ZeroDivisionError: division by zero (train.py, line 2)",
    "\nx = 1 / 0\n",
)
text_row("a class that the file does not have", "has no Nett; it has Net", TEXT, "Nett")
text_row("a file without modules", "has no class of nn.Module at all", "x = 1\n")
text_row("a name that is no class or function", "size is of type int", TEXT, "size")
text_row(
    "a function that gives no module",
    "float gives a float, not an nn.Module",
    "float = float\n",
    "float",
)
args_row("--module-args that is no JSON", "--module-args is no JSON", "{hidden: 8}")
args_row("--module-args that is no object and no list", "must be a JSON object", "8")
args_row(
    "arguments that the class does not take",
    "do not fit Net(hidden=8, *, bias=True): got an unexpected keyword argument 'width'",
    '{"width": 8}',
)
args_row(
    "an argument that the class needs",
    "do not fit make(hidden): missing a required argument: 'hidden'",
    "[]",
    "make",
)
args_row(
    "a constructor that raises an error",
    "could not call Net: TypeError",
    '["wide"]',
)
args_row(
    "a checkpoint of other sizes",
    "front.weight is [8, 5] in the file and [4, 5] in Net",
    '{"hidden": 4}',
)


@row("a checkpoint that lacks tensors of the module", "the file has no fc.weight, fc.bias")
def _missing(folder: Path) -> Case:
    content = {name: part for name, part in Net().state_dict().items() if name[:3] != "fc."}
    return write(folder, content=content)


@row("a checkpoint with tensors that the module lacks", "Net has no norm.weight")
def _unexpected(folder: Path) -> Case:
    return write(folder, content={**Net().state_dict(), "norm.weight": torch.ones(3)})


@row("a checkpoint that holds the module twice", "2 times: model, ema; save one of them")
def _twice(folder: Path) -> Case:
    tensors = Net().state_dict()
    return write(folder, content={"model": tensors, "ema": dict(tensors)})


@row("integers where the module has floats", "fc.weight is int8 in net.pt, float32 in Net")
def _integers(folder: Path) -> Case:
    fc = torch.ones(OUTPUTS, HIDDEN, dtype=torch.int8)
    return write(folder, content={**Net().state_dict(), "fc.weight": fc})


@row("weights of a module that are NaN", "fc.bias has NaN or infinite values")
def _nan(folder: Path) -> Case:
    return write(folder, content={**Net().state_dict(), "fc.bias": torch.full((3,), torch.nan)})


@row("an example that is no .npy or .npz", "x.npy is no .npy of a plain array")
def _no_arrays(folder: Path) -> Case:
    (folder / "x.npy").write_text("1 2 3")
    return write(folder, example=folder / "x.npy")


@row("an example of objects, which would be unpickled", "is no .npy of a plain array")
def _objects(folder: Path) -> Case:
    np.save(folder / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    return write(folder, example=folder / "x.npy")


@row("an example of text", "must be numbers")
def _text(folder: Path) -> Case:
    np.save(folder / "x.npy", np.array(["a", "b"]))
    return write(folder, example=folder / "x.npy")


@row("an example with arrays that forward() does not take", "forward() has no argument z; it has x")
def _no_argument(folder: Path) -> Case:
    example = arrays(folder, x=rows(2, 4, WIDTH), z=rows(2))
    return write(folder, example=example)


@row("an example that lacks an argument", "forward() also needs state")
def _lacking(folder: Path) -> Case:
    return stateful(folder, "example", {"x": rows(2, WIDTH)})


@row(
    "an example with a part of a tuple only", "state has the parts 1, must be one array, or state.0"
)
def _part(folder: Path) -> Case:
    return stateful(folder, "example", {"x": rows(2, WIDTH), "state.1": rows(2, HIDDEN)})


@row("no example for several arguments", "forward() needs x, state: give --example")
def _several(folder: Path) -> Case:
    path, flags = stateful(folder, "example", {})
    return path, flags[:2]


@row("no example where the layers leave a choice", "do not say what forward(x) takes")
def _open(folder: Path) -> Case:
    text = TEXT.replace("self.front(x)", "self.front(x[..., :5])")
    return write(folder, text)


@row("pairs of a module without inputs or without outputs", "what forward() takes, such as x")
def _halves(folder: Path) -> Case:
    return write(folder, golden=arrays(folder, x=rows(2, 4, WIDTH)))


@row("pairs with results that forward() does not give", "no argument and no result z; it gives y")
def _no_result(folder: Path) -> Case:
    golden = arrays(folder, x=rows(2, 4, WIDTH), z=rows(2))
    return write(folder, golden=golden)


@row("pairs whose y has another shape than forward() gives", "y is float32 [2, 3], forward() gives")
def _other_shape(folder: Path) -> Case:
    return write(folder, golden=arrays(folder, x=rows(2, 4, WIDTH), y=rows(2, OUTPUTS)))


@row("pairs that forward() does not take", "forward() fails on it")
def _other_width(folder: Path) -> Case:
    return write(folder, golden=arrays(folder, x=rows(2, 4, 4), y=rows(2, 4, OUTPUTS)))


@row("pairs that forward() does not give, as with other --module-args", "check --module-args")
def _other_results(folder: Path) -> Case:
    x = np.ones((2, WIDTH), np.float32)
    state = {"state.0": rows(2, HIDDEN), "state.1": rows(2, HIDDEN)}
    path, flags = stateful(folder, "golden", {"x": x, **state, "y": rows(2, HIDDEN)})
    return path, [*flags, "--module-args", json.dumps({"slope": 0.5})]
