"""Runs `lstmserve export`: from flags to network to folder, with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from lstmserve_export.lstm.assemble import assemble
from lstmserve_export.lstm.checkpoint import read_checkpoint
from lstmserve_export.lstm.choose import Choices
from lstmserve_export.lstm.export import export_network, make_pairs
from lstmserve_export.lstm.flags import read_state
from lstmserve_export.lstm.network import Norm, take_residual, take_state
from lstmserve_export.module.export import export_module
from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.module.load.example import guess_example, read_example
from lstmserve_export.module.load.module import build_module, user_code
from lstmserve_export.module.load.pairs import check_pairs, read_pairs
from lstmserve_export.module.load.weights import fill
from lstmserve_export.module.signature.scaled import probe_scaled
from lstmserve_export.progress import stages
from lstmserve_export.refusal import Faults, Refused
from lstmserve_export.scalers.files import check_names, read_values
from lstmserve_export.scalers.sides import Scalers, Side, with_scalers
from lstmserve_export.summary import show
from lstmserve_export.target import Exported, Target

Say = Callable[[str], None]


def run(checkpoint: Path, **flags: Any) -> None:
    """Runs the command with the flags of cli.py. Raises Refused."""
    with stages(f"read {checkpoint.name}") as stage:
        if flags["module"] is None:
            exported = _export_tensors(checkpoint, flags, stage.progress)
        else:
            exported = _export_module(checkpoint, flags, stage.progress, stage.say)
    show(
        Console(),
        exported,
        is_dry_run=flags["dry_run"],
        way="tensors" if flags["module"] is None else "module",
        has_golden=flags["golden"] is not None,
    )


def _target(checkpoint: Path, flags: dict[str, Any]) -> Target:
    return Target(
        name=flags["name"] or checkpoint.stem,
        models=flags["models"],
        version=flags["model_version"],
        force=flags["force"],
        dry_run=flags["dry_run"],
    )


def _export_module(checkpoint: Path, flags: dict[str, Any], progress: Say, say: Say) -> Exported:
    """Exports the module of the user's file; its code runs nowhere else."""
    target = _target(checkpoint, flags)
    target.choose_version()  # refuses a bad name before the user's code runs
    scalers = _scalers(flags)
    tensors = read_checkpoint(checkpoint)
    file, name = flags["module"]
    with user_code(file):
        say(f"--module runs your own code: {file}")
        progress(f"run {file.name}")
        module = build_module(file, name, flags["module_args"])
        for note in fill(module, tensors, name, checkpoint.name):
            say(f"note: {note}")
        options: dict[str, Any] = {
            "states": flags["states"],
            "output_names": flags["output_names"],
            "axes": Axes.of(flags["axes"] or ""),
            "scalers": scalers,
            "window": flags["window"] or 0,
            "window_fill": flags["window_fill"] or ("wait" if flags["window"] else None),
        }
        example, is_guess = _example(module, flags, options, say)
        return export_module(
            module, example, target, **options, is_guess=is_guess, progress=progress
        )


def _example(
    module: nn.Module, flags: dict[str, Any], options: dict[str, Any], say: Say
) -> tuple[dict[str, Any], bool]:
    """The example of the flags, or a guess, and whether it is one; checks the pairs of --golden
    first."""
    example = read_example(flags["example"], module) if flags["example"] is not None else None
    if flags["golden"] is not None:
        inputs, results = read_pairs(flags["golden"], module)
        excess, inputs = check_pairs(module, inputs, results, lambda each: _scale(each, options))
        say(f"note: forward() gives what {flags['golden']} says ({excess:.2g} of the limit)")
        example = example or inputs
    if example is not None:
        return example, False
    example, words = guess_example(module, options["scalers"].inputs, options["window"])
    say(f"example: {words}; give --example with real rows")
    return example, True


def _scale(forward: Forward, options: dict[str, Any]) -> None:
    """Puts the scalers around forward(), at the places that its signature says."""
    if options["scalers"]:
        fill = "wait" if options["window"] else None  # the places depend on no fill
        probe_scaled(forward, **options | {"window_fill": fill})


def _export_tensors(checkpoint: Path, flags: dict[str, Any], progress: Say) -> Exported:
    """Exports the nn.LSTM and the head that the tensors of a file are."""
    names = flags["initial_state"] if isinstance(flags["initial_state"], tuple) else ()
    choices = Choices(
        lstm=flags["lstm"],
        head=flags["head"],
        embedding=flags["embedding"],
        pre_head=flags["pre_head"],
        output_activation=flags["output_activation"],
        drop=flags["drop"],
        initial_state=names,
    )
    target, faults = _target(checkpoint, flags), Faults()
    with faults.collect():
        target.choose_version()
    with faults.collect():
        pairs = make_pairs(flags["golden"])
    with faults.collect():
        scalers = _scalers(flags)
    with faults.collect():
        state = None if names else read_state(flags["initial_state"])
    with faults.collect():
        network = assemble(read_checkpoint(checkpoint), choices)
    faults.refuse()
    network = replace(
        network,
        residual=take_residual(flags["residual"], network.lstm),
        initial_state=take_state(state, network.lstm) or network.initial_state,
    )
    return export_network(
        with_scalers(network, scalers),
        target,
        pairs,
        progress,
        window=flags["window"] or 0,
        window_fill=flags["window_fill"],
    )


def _scalers(flags: dict[str, Any]) -> Scalers:
    """What the flags say of the scaling of x and y. Raises Refused."""
    found, faults = {}, Faults()
    for side in ("input", "output"):
        with faults.collect():
            found[side] = _norms(side, flags)
    faults.refuse()
    return Scalers(found["input"], found["output"])


def _norms(side: str, flags: dict[str, Any]) -> dict[str, Norm]:
    given = {part: flags[f"{side}_{part}"] for part in ("mean", "scale", "min", "range")}
    names = ("mean", "scale")
    if given["min"] or given["range"]:
        if given["mean"] or given["scale"]:
            raise Refused(f"--{side}-min and --{side}-range are a mean and a scale: give one pair")
        names = ("min", "range")
    check_names(given[names[0]], given[names[1]], side)
    vectors, faults = {}, Faults()
    for name in names:
        with faults.collect():
            vectors[name] = read_values(given[name], f"--{side}-{name}")
    faults.refuse()
    scaler, columns = flags[f"{side}_scaler"], flags[f"{side}_columns"]
    if columns:
        if not isinstance(scaler, Path):
            raise Refused(f"--{side}-columns needs --{side}-scaler with one file")
        scaler = {"scaler": scaler, "columns": columns}
    flag_names = dict(zip(("mean", "scale"), names, strict=True))
    return Side(side, lambda name: f"--{side}-{flag_names.get(name, name)}").norms(
        scaler, *vectors.values()
    )
