r"""`python -m bench.versions NAME=CHECKOUT[,FLAG...] ...`: versions of the server, in turns.

Every version serves from its own checkout, on the same core, with the same model. In each round all
get the same load for the same time. A row of the table gives each version's CPU us a step and steps
a second, as medians. Beside each other version it gives the ratio of the last version's steps in a
CPU second to that version's: the median, lowest and highest of the rounds. bench/measures.py has
the loads, and bench/checkout.py says how a version is named. The whole table of four versions:

    PYTHONPATH=tests python -m bench.versions first=40ac75f old=COMMIT,listener \
        old-off=COMMIT,no-listener new=.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from bench.checkout import Version, all_checked_out, serving_of
from bench.clients import Place
from bench.load import Sample
from bench.machine import commit, description, pin_load
from bench.measures import MEASURES, SPEC, Measure
from bench.rounds import MODEL, Effort, Side, require_applied, take_turns
from modelmaking import make_model
from serving import Serving


def compared(
    versions: Sequence[Version], measure: Measure, store: str, effort: Effort
) -> dict[str, list[Sample]]:
    """The samples of each version, taken in turns; every server is new for each measure."""
    with ExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_model(models, SPEC, name=MODEL)

        def start(version: Version) -> Serving:
            return stack.enter_context(serving_of(version, models, store))

        with ThreadPoolExecutor() as threads:
            servers = list(threads.map(start, versions))
        sides = [
            Side(
                version.name,
                serving.process.pid,
                measure.load(Place(serving.target, version.python_path)),
            )
            for version, serving in zip(versions, servers, strict=True)
        ]
        taken = take_turns(sides, effort)
        for serving in servers:
            require_applied(serving)
    assert all(sample.answers for samples in taken.values() for sample in samples), "no answer"
    return taken


def cells(measure: Measure, taken: dict[str, list[Sample]]) -> list[str]:
    """The cells of a row: each version's cost and rate, then the last one beside each other."""
    *others, last = taken.values()
    found = [
        f"{cost(samples, measure.steps)} ({rate(samples, measure.steps)}/s)"
        for samples in taken.values()
    ]
    return found + [beside(last, samples) for samples in others]


def cost(samples: Sequence[Sample], steps: int = 1) -> str:
    """CPU us a step, the median of the rounds."""
    us = np.median([1e6 / sample.per_cpu_s for sample in samples]) / steps
    return f"{us:.{0 if us >= 100 else 1 if us >= 10 else 2}f}"


def rate(samples: Sequence[Sample], steps: int = 1) -> str:
    """Steps a second, the median of the rounds."""
    return f"{np.median([sample.per_s for sample in samples]) * steps:,.0f}"


def beside(samples: Sequence[Sample], others: Sequence[Sample], what: str = "per_cpu_s") -> str:
    """Ours / theirs round by round: the median, the lowest and the highest."""
    pairs = zip(samples, others, strict=True)
    ratios = [getattr(ours, what) / getattr(theirs, what) for ours, theirs in pairs]
    return f"**{np.median(ratios):.2f}** ({min(ratios):.2f} - {max(ratios):.2f})"


def rows(only: Sequence[str], stores: bool) -> list[tuple[str, Measure, str]]:
    """Title, measure and store of the rows whose title begins with one of `only`."""
    every = [
        (measure.name if store == "memory" else f"{measure.name}, {store}", measure, store)
        for measure in MEASURES
        for store in (measure.stores if stores else ("memory",))
    ]
    return [row for row in every if row[0].startswith(tuple(only) or "")]


@click.command()
@click.argument("texts", nargs=-1, required=True, metavar="NAME=CHECKOUT[,FLAG...]...")
@click.option("--only", multiple=True, help="Measures whose name begins so; may be repeated.")
@click.option("--stores/--memory", default=True, help="Also over file and Valkey.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each version.")
@click.option("--seconds", default=0.35, show_default=True, help="Of one turn.")
def main(
    texts: tuple[str, ...], only: tuple[str, ...], stores: bool, rounds: int, seconds: float
) -> None:
    """Prints a table in Markdown, and how long it took."""
    pin_load()
    start_s = time.monotonic()
    with all_checked_out(texts) as versions:
        *others, last = [version.name for version in versions]
        click.echo(f"`{' '.join(['python -m bench.versions', *sys.argv[1:]])}`, {commit()}.")
        click.echo(f"{description()}.\n")
        heads = [*others, last, *(f"{last} / {other}" for other in others)]
        click.echo(f"| CPU us a step (steps/s) | {' | '.join(heads)} |")
        click.echo("|" + " --- |" * (1 + len(heads)))
        for title, measure, store in rows(only, stores):
            taken = compared(versions, measure, store, Effort(rounds, seconds))
            click.echo(f"| {title} | {' | '.join(cells(measure, taken))} |")
    click.echo(f"\nIt took {(time.monotonic() - start_s) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
