"""The state pool of one model: h and c of every session, on the device, and which slots are free.

It holds one tensor [slots, width] per layer for h and one for c. On the CPU it is reserved whole
and takes memory as its slots are used (memory.py, slots.py); on a device it is allocated at once.
Slot 0 is the zero slot: new sessions read it, and nothing writes it. The last slot is the trash
slot: only warm-ups write it, and on CUDA an index out of range lands there. The pool knows no
session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.compute.memory import PoolMemory
from lstmserve.engine.compute.slots import SlotAllocator
from lstmserve.graph.forms import build_read, build_write, state_widths
from lstmserve.runtime import ort
from lstmserve.spec import LstmSpec

ZERO = 0
RESERVED = 2

Slots = npt.NDArray[np.int64]
States = Mapping[str, npt.NDArray[Any]]
"""Name of a state -> [N, *shape], of the spec's dtype."""


def without_denormals(states: States) -> States:
    """The states with 0 for every denormal: one of them makes its step up to 25 times as slow."""
    tiny = np.finfo(np.float32).tiny
    return {
        name: np.where(np.abs(each) < tiny, np.float32(0), each)
        if each.dtype == np.float32
        else each
        for name, each in states.items()
    }


def slot_bytes(spec: LstmSpec) -> int:
    """Bytes of one session's state."""
    return 4 * sum(state_widths(spec).values())


class Pool:
    """`slots` is the number of all slots, including the two reserved ones. Raises MemoryError."""

    _memory: PoolMemory | None = None  # on the CPU

    def __init__(self, spec: LstmSpec, slots: int, device: Device = "cpu") -> None:
        assert slots > RESERVED
        self._spec = spec
        self.slots = slots
        self.trash = slots - 1
        self.widths = state_widths(spec)
        shapes = {name: ((width,), np.float32) for name, width in self.widths.items()}
        memory = PoolMemory(shapes, slots)
        self.tensors = {
            name: ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in memory.arrays.items()
        }
        self._free = SlotAllocator(ZERO + 1, self.trash)
        if device == "cpu":
            self._memory = memory
        self._reader = open_session(build_read(spec), device, threads=1)
        self._writer = open_session(build_write(spec), device, threads=1)

    def __repr__(self) -> str:
        return f"Pool(slots={self.slots}, free={self.free_count})"

    @property
    def free_count(self) -> int:
        """How many slots have no owner."""
        return len(self._free)

    @property
    def taken(self) -> int:
        """How many slots have an owner."""
        return self._free.taken

    @property
    def top(self) -> int:
        """The slots below it may take memory."""
        return self._free.top

    @property
    def touched_bytes(self) -> int:
        """The most memory that its slots take now, in whole pages."""
        return 0 if self._memory is None else self._memory.bytes_below(self.top)

    def allow(self, slots: int) -> None:
        """As many slots of it may be taken ahead of need."""
        self._free.allowance = slots

    def taken_from(self, slot: int) -> Slots:
        """The slots from `slot` on that have an owner. The next ones given out are the lowest."""
        return self._free.taken_from(slot)

    def cut(self, top: int) -> None:
        """Gives back the memory of the slots from `top` on, all of which are free."""
        last = self.top
        self._free.cut(top)
        if self._memory is not None:
            self._memory.give_back(top, last)

    def end(self) -> None:
        """Gives back all its memory. Nothing may use it any more."""
        self.cut(ZERO + 1)
        if self._memory is not None:
            self._memory.give_back(ZERO, self.slots)

    def take(self, count: int) -> Slots:
        """Takes `count` free slots, which the caller owns until it gives them back.

        Their content is stale. A shortage is a bug: the scheduler asks for no more than are free.
        """
        return self._free.take(count)

    def take_one(self) -> int:
        return self._free.take_one()

    def give(self, slots: Slots) -> None:
        """Frees slots [N]; it skips the zero slot, which sessions that never stepped have."""
        self._free.give(slots if slots.all() else slots[slots != ZERO])

    def give_one(self, slot: int) -> None:
        """Frees one slot; does nothing for the zero slot, which has no owner."""
        if slot != ZERO:
            self._free.give_one(slot)

    def read(self, slots: Slots) -> States:
        """Copies the states in these slots [N]."""
        binding = self._reader.io_binding()
        binding.bind_cpu_input("slots", slots)
        for name, tensor in self.tensors.items():
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_output(f"{name}.rows", "cpu")
        binding.synchronize_inputs()
        self._reader.run_with_iobinding(binding)
        outputs = binding.get_outputs()  # in the order they were bound
        rows = {name: outputs[i].numpy() for i, name in enumerate(self.tensors)}
        layers = range(self._spec.num_layers)
        return {kind: np.stack([rows[f"{kind}.{i}"] for i in layers], axis=1) for kind in "hc"}

    def write(self, slots: Slots, states: States) -> None:
        """Overwrites the states in these slots [N] in place."""
        assert ZERO not in slots
        binding = self._writer.io_binding()
        binding.bind_cpu_input("slots", slots.reshape(-1, 1))
        for name, tensor in self.tensors.items():
            kind, _, layer = name.partition(".")
            rows = np.ascontiguousarray(states[kind][:, int(layer)], np.float32)
            binding.bind_cpu_input(f"{name}.rows", rows)
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_ortvalue_output(f"{name}.next", tensor)
        binding.synchronize_inputs()
        self._writer.run_with_iobinding(binding)

    def check_integrity(self, used: Slots) -> None:
        """Every slot is free, reserved or in `used`, once; the zero slot is zero."""
        self._free.check_integrity(used[used != ZERO])
        zeros = self.read(np.array([ZERO], np.int64))
        assert not any(row.any() for row in zeros.values()), "the zero slot was written"
