"""`python -m bench [NAME ...]`: the measures of the issue and the docs, each beside its limit.

`make bench` runs all of them and writes bench/RESULTS.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import click

from bench import context, growth, report
from bench.growth import LARGE, SMALL
from bench.h2load import h2load
from bench.machine import pin_load
from bench.pairs import pairs
from bench.patience import patience
from bench.rounds import Effort
from bench.rows import Goal, Row
from bench.starting import starting
from bench.wire import STREAM_GOALS, UNARY_GOALS, Wire
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec

TINY = LstmSpec(16, 32, head=(Linear(8),))
NAMES = {"H = 32": TINY, "H = 128": SMALL, "H = 512 x 2": LARGE}
MANY_GOALS = {"H = 128": Goal(0.60), "H = 512 x 2": Goal(0.80)}


def wire(effort: Effort) -> list[Row]:
    """Measures 1 to 4."""
    rows = []
    for name, spec in NAMES.items():
        is_main = spec is SMALL
        with ExitStack() as stack:
            served = Wire(stack, name, spec, by_hand=True)
            for count, goal in UNARY_GOALS.items():
                rows.append(served.unary(count, effort, Goal(goal) if is_main else None))
            for count, goal in STREAM_GOALS.items():
                rows.append(served.stream(count, effort, Goal(goal) if is_main else None))
            rows.append(served.many(effort, MANY_GOALS.get(name)))
            rows.append(served.predict(effort, Goal(0.90)))
    return sorted(rows, key=lambda row: row.measure)


MEASURES: dict[str, Callable[[Effort], Sequence[Row]]] = {
    "wire": wire,
    "patience": lambda effort: [patience(SMALL, "H = 128", effort)],
    "growth": growth.rows,
    "starting": lambda effort: starting(SMALL, "H = 128", effort),
    "pairs": lambda effort: pairs(SMALL, "H = 128", effort),
    "stores": lambda effort: context.stores(SMALL, "H = 128", effort),
    "h2load": h2load,
    "client": lambda effort: context.client(SMALL, "H = 128", effort),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASURES)))
@click.option("--rounds", default=5, show_default=True, help="Turns of each side.")
@click.option("--seconds", default=1.0, show_default=True, help="Of one turn.")
@click.option("--write", is_flag=True, help="Put the figures into bench/RESULTS.md.")
def main(names: tuple[str, ...], rounds: int, seconds: float, write: bool) -> None:
    """Runs the measures by NAME, or all of them."""
    pin_load()
    effort = Effort(rounds, seconds)
    rows: list[Row] = []
    for name in names or MEASURES:
        found = MEASURES[name](effort)
        click.echo(report.table(found))
        rows += found
    if write:
        report.write(rows, " ".join(["python -m bench", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
