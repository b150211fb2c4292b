"""Proves a model of kind "lstm" with a window, run as the server runs it. Never writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lstmserve.golden import Golden, excess
from lstmserve.graph import LstmWindowNetwork
from lstmserve.lstm_golden import LstmGolden
from lstmserve_export.lstm.mends import matches, mends
from lstmserve_export.lstm.network import Network
from lstmserve_export.lstm.windows import CELLS_MAX, as_steps, random_cases, stored
from lstmserve_export.refusal import Refused
from lstmserve_export.streaming import BATCH, Mismatch, Stream, prove

Proof = tuple[dict[str, Golden], dict[str, Any], tuple[str, ...]]


def prove_windows(
    network: Network,
    served: LstmWindowNetwork,
    user: LstmGolden | None,
    progress: Callable[[str], None],
) -> Proof:
    """The golden cases, the parity report and notes. `user` has the windows of the user's pairs.

    Raises Refused.
    """
    progress("parity: torch's own answers to windows")
    cases, notes = random_cases(network, served.spec, user)
    if user is not None:
        cases["user"] = as_steps(served.spec, stored(served.spec, user))
    try:
        return cases, prove(Stream(served), cases, {}, progress), notes
    except Mismatch as error:
        raise Refused(
            f"parity failed: {error}; nothing was written. This is a bug, or a fault of this "
            "machine: please report it"
        ) from error


def prove_window_pairs(
    network: Network, served: LstmWindowNetwork, user: LstmGolden, pairs: LstmGolden
) -> float:
    """How far the model is from the y of the user's windows, in units of the allowed error, at most
    1. `pairs` are the sequences that the windows are of.

    Raises Refused, naming the one change that would make the pairs match, if there is one.
    """
    stream = Stream(served)
    some, value = min(BATCH, max(1, CELLS_MAX // served.spec.window)), 0.0
    for start in range(0, len(user.x), some):
        case = as_steps(served.spec, user.part(slice(start, start + some)))
        y = stream.run(case, [0, 1])["y"]
        value = max(value, excess(y, case.outputs["y"], user.torch_error))
    if value <= 1:
        return value
    raise Refused(
        f"--golden: the exported model is not your forward(): the difference is {value:.3g} times "
        f"the allowed one; {_mend(network, user, pairs)}; nothing was written"
    )


def _mend(network: Network, user: LstmGolden, pairs: LstmGolden) -> str:
    """What would make the pairs match, in words."""
    if not matches(network, pairs):
        return next(mends(network, user), "check --window, normalisation, order of the axes")
    length = int(pairs.lengths.max())
    if pairs.y.ndim == 2 and (pairs.lengths == length).all():
        # As pairs_proof.choice_notes() has it: a state that runs on would match as well.
        return f"with --window {length} it would match: each y is of all {length} rows"
    return "without --window it would match: each y is of all rows of its sequence so far"
