"""What a client without step numbers knows of its session, and the oracle that checks it."""

from __future__ import annotations

from simulation.faults import Faults
from simulation.kernel import ZERO_STATE, advance


class Belief:
    """The states that the session may be in as far as its client can know, mostly one.

    A step whose end is unknown doubles them; the next y tells which it was. `floor` is the last
    step that cannot be lost. Stepper.call needs the last four attributes of any conversation.
    """

    def __init__(self, faults: Faults, name: str, model: str) -> None:
        self.faults = faults
        self.model = model
        self.incarnation = 0
        self.begin()
        self.name = name
        self.home = 0
        self.sent = self.acked = 0

    def begin(self) -> None:
        """Begins a new life, from zeros."""
        self.floor = 0
        self._now = {(0, ZERO_STATE)}
        self._known = {0: {ZERO_STATE}}
        self._late: set[tuple[int, bytes]] = set()  # a late write may lead an older store there

    def __len__(self) -> int:
        return len(self._now)

    @property
    def step(self) -> int:
        """The number of the last step, if all were applied."""
        return max(step for step, _ in self._now)

    def applied(self, x: bytes, step: int, y: bytes) -> None:
        """Notes an answered step, which must have gone on from a state that the client knows of."""
        after = [(self._advance(each, x), each) for each in self._now]
        self._now = {new for (new, out), _ in after if out == y and new[0] == step}
        self.require(bool(self._now), f"step {step} went on from another state than the last one")
        self._keep()

    def doubted(self, x: bytes) -> None:
        """Notes a step that may have been applied, or not."""
        self._now |= {self._advance(each, x)[0] for each in self._now}
        if self.faults.odds.store_older:
            self._late |= self._now
        for step, state in self._now:
            self._known.setdefault(step, set()).add(state)

    def told(self, step: int) -> None:
        """Notes that the server names this as the last step; the client goes on from there."""
        self.require(step in self._known, f"step {step} is said to be the last")
        is_safe = self.faults.is_store_older or step >= self.floor
        self.require(is_safe, f"step {step} is said to be the last, and {self.floor} was durable")
        self._now = {(step, state) for state in self._known[step]}
        self._keep()

    def looked(self, step: int, state: bytes) -> None:
        """Checks that the client knows of an exported state, which may end a doubt."""
        self.require(state in self._known.get(step, ()), f"the state of step {step} is wrong")
        if (step, state) in self._now:
            self._now = {(step, state)}
            if not self.faults.odds.store_older:  # else a late write may bring it back
                self._keep()

    @property
    def is_doubtful(self) -> bool:
        """Whether there are several states."""
        return len(self._now) > 1

    def _keep(self) -> None:
        last = self.step
        self._known = {step: states for step, states in self._known.items() if step < last}
        for step, state in self._now | self._late:
            self._known.setdefault(step, set()).add(state)

    def _advance(self, place: tuple[int, bytes], x: bytes) -> tuple[tuple[int, bytes], bytes]:
        step, state = place
        out = []
        for i in range(0, len(x), 4):
            state, y = advance(self.model.encode(), state, x[i : i + 4])
            out.append(y)
        return (step + 1, state), b"".join(out)

    def require(self, is_true: bool, text: str) -> None:
        """Raises Violation."""
        self.faults.require(is_true, f"{self.name}: {text} {self}")

    def __repr__(self) -> str:
        return f"(believed {sorted(step for step, _ in self._now)}, floor {self.floor})"
