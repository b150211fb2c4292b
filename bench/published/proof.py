"""Hands one published model to lstmserve, serves it in a process, and compares what it streams.

The reference is io.npz: x, and y that the model's original runtime gave step by step.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.published.loop import calls
from bench.published.recipes import Recipe
from lstmserve import Client
from lstmserve.client import ModelInfo
from lstmserve.golden import excess
from lstmserve.manifest import Manifest
from serving import COMMAND, Serving, environment

Array = npt.NDArray[Any]
SESSIONS, CHUNK_MAX = 7, 24
USERS = Path(__file__).parent / "users"
VERSION = "1"


@dataclass(frozen=True, slots=True)
class Compared:
    """`difference` is the largest of all y; `share` what it is of the parity gate.

    `is_exact`: steps, ragged batches of chunks and whole sequences gave the same bits. `of_loop` is
    the largest difference of all outputs and states from plain onnxruntime on this machine, after
    each step, for an ONNX file.
    """

    kind: str
    difference: float
    share: float
    is_exact: bool
    of_loop: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one recipe: figures, or what lstmserve said instead."""

    model: str
    recipe: Recipe
    lines: int
    compared: Compared | None = None
    said: str = ""


class NotServed(RuntimeError):
    """lstmserve refused the model; the message is the line it printed."""


def try_out(folder: Path, recipe: Recipe, models: Path) -> Result:
    """Exports into `models`, which must be empty, and compares."""
    lines = 0
    if recipe.is_module or recipe.is_dict:
        lines = count_lines(folder.name + "_dict" * recipe.is_dict)
    try:
        export_model(folder, recipe, models)
        return Result(folder.name, recipe, lines, compare(folder, recipe, models))
    except NotServed as error:
        return Result(folder.name, recipe, lines, said=str(error))


def export_model(folder: Path, recipe: Recipe, models: Path) -> None:
    """As its user would. Raises NotServed."""
    if recipe.is_module:
        _export_module(folder, models)
        return
    with tempfile.TemporaryDirectory() as own:
        file = _saved(folder, Path(own)) if recipe.is_dict else folder / recipe.file
        _run_export(folder, file, recipe, models)


def _saved(folder: Path, own: Path) -> Path:
    """The file that torch.save makes of the user's dict."""
    import torch

    user = importlib.import_module(f"bench.published.users.{folder.name}_dict")
    torch.save(user.tensors(folder), own / "net.pt")
    return own / "net.pt"


def _run_export(folder: Path, file: Path, recipe: Recipe, models: Path) -> None:
    flags = [flag.format(folder=folder, users=USERS) for flag in recipe.flags]
    ours = ["--name", folder.name, "--models", str(models)]
    done = subprocess.run(
        [*COMMAND[:-1], recipe.command, str(file), *flags, *ours],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        line = done.stderr.strip().splitlines()[-1]
        raise NotServed(line.removeprefix("Error: ").replace(f"{folder}/", ""))


def _export_module(folder: Path, models: Path) -> None:
    import torch

    from lstmserve_export import Refused, export

    user = importlib.import_module(f"bench.published.users.{folder.name}")
    x, _ = reference(folder)
    try:
        module = user.load(folder).eval()
        export(module, example=user.example(torch.from_numpy(x)), name=folder.name, models=models)
    except Refused as error:
        raise NotServed(str(error)) from error


def reference(folder: Path) -> tuple[Array, Array]:
    """x [T, *shape] and y [T, *shape] of io.npz."""
    with np.load(folder / "io.npz") as file:
        return file["x"], file["y"]


def count_lines(model: str) -> int:
    """The lines of code that the user wrote, without docstrings and comments."""
    text = (USERS / f"{model}.py").read_text()
    start = ast.parse(text).body[1].lineno
    lines = map(str.strip, text.splitlines()[start - 1 :])
    return sum(1 for line in lines if line and not line.startswith("#"))


def compare(folder: Path, recipe: Recipe, models: Path) -> Compared:
    """Streams x of io.npz in three ways. Raises NotServed."""
    x, y = reference(folder)
    manifest = Manifest.from_json((models / folder.name / VERSION / "manifest.json").read_text())
    try:
        serving = Serving(("--models", models), COMMAND)
    except AssertionError as error:
        raise NotServed(str(error)) from error
    try:
        with Client(serving.target) as client:
            model = client.model(folder.name)
            answers = list(streamed(client, model, x))
            loop = loop_difference(client, model, x, folder, recipe) if recipe.states else None
    finally:
        serving.kill()
    found = [answer.reshape(y.shape) for answer in answers]
    torch_error = float(manifest.parity.get("torch_error", 0.0))
    return Compared(
        manifest.spec.kind,
        max(float(np.abs(each.astype(np.float64) - y).max()) for each in found),
        max(excess(each, y.astype(np.float64), torch_error) for each in found),
        all(each.tobytes() == found[0].tobytes() for each in found),
        loop,
    )


def loop_difference(
    client: Client, model: ModelInfo, x: Array, folder: Path, recipe: Recipe
) -> float:
    """The largest of every output and every state after each step of one session."""
    (given,) = model.inputs
    worst = 0.0
    with client.session(model.name) as session:
        for row, call in zip(x, calls(folder / recipe.file, recipe.pairs, x), strict=True):
            answer = session.step(row.reshape(given.shape).astype(given.dtype))
            outputs = answer if isinstance(answer, dict) else {model.outputs[0].name: answer}
            states = session.state().tensors
            pairs = [(outputs[name], each) for name, each in call.outputs.items()]
            pairs += [(states[name], each) for name, each in call.states.items()]
            for ours, theirs in pairs:
                off = np.subtract(ours.reshape(theirs.shape), theirs, dtype=np.float64)
                worst = max(worst, float(np.abs(off).max()))
    return worst


def streamed(client: Client, model: ModelInfo, x: Array) -> Iterator[Array]:
    """y [T, *shape] in single steps of one session; then of each session of ragged batches of
    random chunks; then of a whole sequence."""
    (given,) = model.inputs
    x = x.reshape(len(x), *given.shape).astype(given.dtype)
    with client.session(model.name) as session:
        yield np.stack([_first(model, session.step(row)) for row in x])
    sessions = [client.session(model.name) for _ in range(SESSIONS)]
    rng = np.random.default_rng(0)
    parts: list[list[Array]] = [[] for _ in sessions]
    at = np.zeros(SESSIONS, int)
    while (at < len(x)).any():
        lengths = np.minimum(rng.integers(1, CHUNK_MAX, SESSIONS), len(x) - at)
        taking = np.flatnonzero(lengths)
        steps = {sessions[i]: x[at[i] : at[i] + lengths[i]] for i in taking}
        answers = client.step_many(steps)
        for i in taking:
            parts[i].append(_first(model, answers[sessions[i]]))
        at += lengths
    for session, part in zip(sessions, parts, strict=True):
        session.close()
        yield np.concatenate(part)
    for answer in client.predict(model.name, [x]):
        yield _first(model, answer)


def _first(model: ModelInfo, answer: Any) -> Array:
    """The first output."""
    return np.asarray(answer[model.outputs[0].name] if isinstance(answer, dict) else answer)
