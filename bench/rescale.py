"""Which sessions move when servers come and go: `python -m bench.rescale`, for docs/SCALING.md.

It opens one group after another through Envoys that know different servers, and looks for the
groups on the servers. Hashing depends on addresses alone, so the result holds for one Envoy.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from lstmserve import Client
from routing import envoy_of
from soak.fleet import MODEL, Fleet, fleet_of
from soak.routed import Move

GROUPS, SERVERS = 1000, 6


def homes(fleet: Fleet, servers: int) -> dict[str, str]:
    """Where each group is if Envoy knows the first `servers` servers."""
    found = {}
    pods = fleet.pods[:servers]
    with envoy_of([pod.serving.target for pod in pods]) as envoy, Client(envoy.target) as client:
        for i in range(GROUPS):
            client.session(MODEL, id=f"g{i}:{servers}", keep=True)
    for pod in pods:
        with Client(pod.serving.target) as client:
            for session in client.sessions():
                group, _, opened_with = session.id.partition(":")
                if opened_with == str(servers):
                    found[group] = pod.name
    assert len(found) == GROUPS
    return found


def main() -> None:
    """Prints one table."""
    print("| servers | groups that move | of these, between servers that stay | fewest - most |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, fleet_of(Path(folder), SERVERS) as fleet:
        found = {count: homes(fleet, count) for count in range(2, SERVERS + 1)}
    for few, many in pairwise(found):
        move = Move(found[few], found[many])
        sizes = move.sizes()
        print(
            f"| {few} <-> {many} | {move.moved:.1%} (1/{many} is {1 / many:.1%}) | "
            f"{move.needless:.1%} | {sizes[0]} - {sizes[-1]} of {GROUPS} |"
        )


if __name__ == "__main__":
    main()
