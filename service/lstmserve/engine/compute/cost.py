"""Estimates how long a run of a kernel takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a run of T time steps of B rows: run_ns + T * (step_ns + B * row_ns).

    A time step reads the weights, however few rows it has: of a large model that is most of it.
    """

    run_ns: int = 0
    step_ns: int = 0
    row_ns: int = 0

    def of(self, length: int, size: int) -> int:
        """Nanoseconds of T = `length`, B = `size`, about."""
        return self.run_ns + length * (self.step_ns + size * self.row_ns)


def cost_of(alone_ns: int, wide_ns: int, long_ns: int, count: int) -> Cost:
    """From what was measured: T = B = 1, B = `count`, and T = `count`."""
    row_ns = max(1, (wide_ns - alone_ns) // (count - 1))
    step_ns = max(0, (long_ns - alone_ns) // (count - 1) - row_ns)
    return Cost(max(0, alone_ns - step_ns - row_ns), step_ns, row_ns)
