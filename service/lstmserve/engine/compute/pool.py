"""Owns h and c of every session of one model, and which slots of them are free. No clock, no await.

One tensor [slots, width] per layer for h and one for c, on the device, for the life of the
process. Slot 0 is the zero slot: what a new session reads, never written. The last slot is the
trash slot: written by warm-ups, read by nobody; on CUDA an index out of range lands there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.free_list import FreeList
from lstmserve.graph.forms import build_read, build_write, state_widths
from lstmserve.runtime import ort
from lstmserve.spec import ModelSpec

ZERO = 0
RESERVED = 2

Slots = npt.NDArray[np.int64]
Rows = Mapping[str, npt.NDArray[np.float32]]
"""Pool tensor name -> [N, width]."""


def slot_bytes(spec: ModelSpec) -> int:
    """Bytes of one session's state."""
    return 4 * sum(state_widths(spec).values())


class Pool:
    """`slots` counts all of them, the two reserved ones too."""

    def __init__(self, spec: ModelSpec, slots: int, device: Device = "cpu") -> None:
        assert slots > RESERVED
        self.slots = slots
        self.trash = slots - 1
        self.widths = state_widths(spec)
        self.tensors = {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros((slots, width), np.float32), device, 0)
            for name, width in self.widths.items()
        }
        self._free = FreeList(ZERO + 1, self.trash)
        self._reader = open_session(build_read(spec), device, threads=1)
        self._writer = open_session(build_write(spec), device, threads=1)

    def __repr__(self) -> str:
        return f"Pool(slots={self.slots}, free={self.free_count})"

    @property
    def free_count(self) -> int:
        """Slots that nobody owns."""
        return len(self._free)

    def take(self, count: int) -> Slots:
        """`count` free slots; the caller owns them until it gives them back. Their content is old.

        The scheduler never asks for more than there are: a shortage is a bug.
        """
        return self._free.take(count)

    def take_one(self) -> int:
        """One free slot."""
        return self._free.take_one()

    def give(self, slots: Slots) -> None:
        """Slots back; the zero slot among them is passed over (a session that never stepped)."""
        self._free.give(slots if slots.all() else slots[slots != ZERO])

    def give_one(self, slot: int) -> None:
        """One slot back, or the zero slot, which nobody owns."""
        if slot != ZERO:
            self._free.give_one(slot)

    def read(self, slots: Slots) -> Rows:
        """Copies of the rows of these slots."""
        binding = self._reader.io_binding()
        binding.bind_cpu_input("slots", slots)
        for name, tensor in self.tensors.items():
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_output(f"{name}.rows", "cpu")
        binding.synchronize_inputs()
        self._reader.run_with_iobinding(binding)
        outputs = binding.get_outputs()  # in the order they were bound
        return {name: outputs[i].numpy() for i, name in enumerate(self.tensors)}

    def write(self, slots: Slots, rows: Rows) -> None:
        """Overwrites the rows of these slots, in place."""
        assert ZERO not in slots
        binding = self._writer.io_binding()
        binding.bind_cpu_input("slots", slots.reshape(-1, 1))
        for name, tensor in self.tensors.items():
            binding.bind_cpu_input(f"{name}.rows", np.ascontiguousarray(rows[name], np.float32))
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_ortvalue_output(f"{name}.next", tensor)
        binding.synchronize_inputs()
        self._writer.run_with_iobinding(binding)

    def check_integrity(self, used: Slots) -> None:
        """Every slot is free, reserved or in `used`, once; the zero slot is zero."""
        self._free.check_integrity(used[used != ZERO])
        zeros = self.read(np.array([ZERO], np.int64))
        assert not any(row.any() for row in zeros.values()), "the zero slot was written"
