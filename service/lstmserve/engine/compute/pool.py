"""The state pool of one model: all states of every session, on the device, and the free slots.

It holds one tensor [slots, *shape] for each state, or for each layer's part of it, as the model's
layout says. On the CPU they are reserved whole and take memory as slots are used (memory.py,
slots.py); on a device they are allocated at once. Slot 0 holds the model's initial state: new
sessions read it, and nothing writes it. The last slot is the trash slot: only warm-ups write it,
and on CUDA an index out of range lands there. The pool knows no session.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.device import Device, open_session
from lstmserve.engine.compute.memory import PoolMemory
from lstmserve.engine.compute.slots import SlotAllocator
from lstmserve.graph.forms import NEXT_SLOTS
from lstmserve.graph.network import ROWS_OF, PoolLayout
from lstmserve.graph.network import States as States  # the engine has it from here
from lstmserve.runtime import ort

INITIAL = 0  # the slot of the model's initial state
RESERVED = 2

Slots = npt.NDArray[np.int64]


def without_denormals(states: States) -> States:
    """The states with 0, of its sign, for every denormal: one of them makes its step up to 25 times
    as slow."""
    tiny = np.finfo(np.float32).tiny
    return {
        name: np.where(np.abs(each) < tiny, np.copysign(np.float32(0), each), each)
        if each.dtype == np.float32
        else each
        for name, each in states.items()
    }


class Pool:
    """`slots` is the number of all slots, including the two reserved ones. Raises MemoryError."""

    _memory: PoolMemory | None = None  # on the CPU

    def __init__(self, layout: PoolLayout, slots: int, device: Device = "cpu") -> None:
        assert slots > RESERVED
        self.layout = layout
        self.slots = slots
        self.trash = slots - 1
        memory = PoolMemory({name: (shape, dtype) for name, shape, dtype in layout.tensors}, slots)
        self.tensors = {
            name: ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in memory.arrays.items()
        }
        self._free = SlotAllocator(INITIAL + 1, self.trash)
        if device == "cpu":
            self._memory = memory
        self._reader = open_session(layout.build_read(), device, threads=1)
        self._writer = open_session(layout.build_write(), device, threads=1)
        self._write(np.array([INITIAL]), layout.initial())

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
        """The slot from which on no slot takes memory."""
        return self._free.top

    @property
    def touched_bytes(self) -> int:
        """The most memory that its slots take now, in whole pages."""
        return 0 if self._memory is None else self._memory.bytes_below(self.top)

    def allow(self, slots: int) -> None:
        """Lets the pool take slots ahead of need, `slots` in all."""
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
        """Gives back all its memory. The caller uses the pool no more."""
        self.cut(INITIAL + 1)
        if self._memory is not None:
            self._memory.give_back(INITIAL, self.slots)

    def take(self, count: int) -> Slots:
        """Takes `count` free slots, which are the caller's until it gives them back.

        Their content is stale. A shortage is a bug: the scheduler asks for no more than are free.
        """
        return self._free.take(count)

    def take_one(self) -> int:
        return self._free.take_one()

    def give(self, slots: Slots) -> None:
        """Frees slots [N]; it skips slot 0, which sessions that never stepped have."""
        self._free.give(slots if slots.all() else slots[slots != INITIAL])

    def give_one(self, slot: int) -> None:
        """Frees one slot; does nothing for slot 0, which has no owner."""
        if slot != INITIAL:
            self._free.give_one(slot)

    def read(self, slots: Slots) -> States:
        """Copies the states in these slots [N]."""
        binding = self._reader.io_binding()
        binding.bind_cpu_input("slots", slots)
        for name, tensor in self.tensors.items():
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_output(name + ROWS_OF, "cpu")
        binding.synchronize_inputs()
        self._reader.run_with_iobinding(binding)
        outputs = binding.get_outputs()  # in the order they were bound
        rows = {name: outputs[i].numpy() for i, name in enumerate(self.tensors)}
        return self.layout.to_states(rows)

    def write(self, slots: Slots, states: States) -> None:
        """Overwrites the states in these slots [N] in place."""
        assert INITIAL not in slots
        self._write(slots, states)

    def _write(self, slots: Slots, states: States) -> None:
        binding = self._writer.io_binding()
        binding.bind_cpu_input("slots", slots.reshape(-1, 1))
        rows = self.layout.to_rows(states)
        for name, _, dtype in self.layout.tensors:
            binding.bind_cpu_input(name + ROWS_OF, np.ascontiguousarray(rows[name], dtype))
            binding.bind_ortvalue_input(name, self.tensors[name])
            binding.bind_ortvalue_output(name + NEXT_SLOTS, self.tensors[name])
        binding.synchronize_inputs()
        self._writer.run_with_iobinding(binding)

    def check_integrity(self, used: Slots) -> None:
        """Asserts that every slot is free, reserved or in `used`, once, and slot 0 has the initial
        state."""
        self._free.check_integrity(used[used != INITIAL])
        found, initial = self.read(np.array([INITIAL])), self.layout.initial()
        is_same = all(np.array_equal(found[name], each) for name, each in initial.items())
        assert is_same, "the slot of the initial state was written"
