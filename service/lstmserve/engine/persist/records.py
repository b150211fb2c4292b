"""Translates rows of the session table to a store's records and back.

It reads the table and the pools and writes neither. It must not do I/O or await.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index, Output
from lstmserve.engine.clock import SECOND_NS
from lstmserve.engine.compute.pool import Slots
from lstmserve.engine.errors import ModelMismatch, StateCorrupt
from lstmserve.engine.model import Model
from lstmserve.engine.registry import ModelRegistry
from lstmserve.engine.session.live_sessions import SessionStart
from lstmserve.engine.table import SUSPECT, TRUSTED, SessionTable
from lstmserve.rows import RowFormat
from lstmserve.spec import TensorSpec
from lstmserve.store.record import (
    CorruptRecord,
    Record,
    StoredState,
    Version,
    encode,
    version_of,
)

STORE_TTL_MARGIN_NS = 10 * SECOND_NS


class LastStep(NamedTuple):
    """A record's part about the session's last step: 0 and None where the step had no number.

    `reply` is the saved y [t, ...] in the format of the model's outputs.
    """

    digest: int
    reply: Output | None


class Records:
    """Makes records of sessions, and says what a record means to this server.

    A record says whether its owner let go of the session with nothing left to store (`released`).
    A record that is written through need not say so: it is never older than what was acknowledged.
    `is_behind` says that the records written here may be older.
    """

    def __init__(
        self, table: SessionTable, registry: ModelRegistry, format_max: int, *, is_behind: bool
    ) -> None:
        self._table = table
        self.registry = registry
        self._format_max = format_max
        self._is_behind = is_behind

    def encode(self, record: Record) -> bytes:
        """The record as this server stores it, in no later format than `--store-format`."""
        return encode(record, self._format_max)

    def version(self, row: int) -> Version:
        """What the store had of the session when it last answered."""
        table = self._table
        return Version(
            int(table.incarnation[row]), int(table.epoch[row]), int(table.durable_step[row])
        )

    def released(self, trust: int, *, is_leaving: bool = False) -> bool | None:
        """The `released` field of a session that is here, and that stays unless `is_leaving`.

        No server releases a session whose client may not know of a rollback.
        """
        if trust != TRUSTED:
            return False
        return is_leaving if self._is_behind else None

    def trust(self, record: Record) -> int:
        """The trust in a session that comes from the store. A record without `released` is one of
        an earlier release, or was written through: the mode of this server decides."""
        is_released = not self._is_behind if record.released is None else record.released
        return TRUSTED if is_released else SUSPECT

    def make(
        self, model: Model, rows: Index, slots: Slots, *, is_leaving: bool = False
    ) -> list[Record]:
        """Records of sessions as the table has them, but with the state in `slots` [N]."""
        table = self._table
        lasts = [
            LastStep(digest, table.replies.get(row, model.results))
            for row, digest in zip(rows.tolist(), table.digest[rows].tolist(), strict=True)
        ]
        return self._make(model, rows, slots, table.step[rows], lasts, is_leaving=is_leaving)

    def stepped(
        self, model: Model, rows: Index, slots: Slots, lasts: Sequence[LastStep]
    ) -> list[Record]:
        """Records of these sessions one step further, as they will be once the step settles."""
        return self._make(model, rows, slots, self._table.step[rows] + 1, lasts)

    def _make(
        self,
        model: Model,
        rows: Index,
        slots: Slots,
        steps: Index,
        lasts: Sequence[LastStep],
        *,
        is_leaving: bool = False,
    ) -> list[Record]:
        table = self._table
        assert model.pool is not None
        state = model.pool.read(slots)
        fingerprint = bytes.fromhex(model.fingerprint)
        columns = (table.incarnation, table.epoch, table.ttl_ns, table.open_time_ns, table.trust)
        numbers = zip(*(each[rows].tolist() for each in columns), strict=True)
        states = zip(*(state[each.name] for each in model.spec.states), strict=True)
        return [
            Record(
                incarnation=incarnation,
                epoch=epoch,
                step=step,
                model=model.name,
                model_version=model.version,
                fingerprint=fingerprint,
                ttl_ns=ttl_ns,
                open_time_ns=open_ns,
                states=tuple(
                    StoredState(each.name, each.dtype, each.shape, values.tobytes())
                    for each, values in zip(model.spec.states, own, strict=True)
                ),
                digest=last.digest,
                reply=None if last.reply is None else _bytes(model.results.floats_of(last.reply)),
                reply_length=0 if last.reply is None else len(last.reply),
                reply_ints=b"" if last.reply is None else _bytes(model.results.ints_of(last.reply)),
                request_id=table.request_ids.get(row, ""),
                released=self.released(trust, is_leaving=is_leaving),
            )
            for row, (incarnation, epoch, ttl_ns, open_ns, trust), step, own, last in zip(
                rows.tolist(), numbers, steps.tolist(), states, lasts, strict=True
            )
        ]

    def now(self, row: int) -> Record:
        """The session as it is after its last applied step."""
        model = self.registry.of(self._table.model.item(row))
        (record,) = self.make(model, np.array([row]), self._table.slot[row : row + 1].copy())
        return record

    def model_of(self, record: Record) -> Model:
        """The record's model. Raises ModelRetired and ModelNotHereYet when its version is not
        served here, and ModelMismatch for other weights."""
        model = self.registry.exact(record.model, record.model_version)
        if model is None:
            raise self.registry.missing(record.model, record.model_version)
        if bytes.fromhex(model.fingerprint) != record.fingerprint:
            raise ModelMismatch("the stored session is of other weights than are served")
        return model

    def start(self, record: Record, model: Model) -> SessionStart:
        """The state and step the session continues from. Raises StateCorrupt when a size or a name
        is not the model's."""
        assert model.pool is not None
        expected = model.spec.states
        if [each.name for each in record.states] != [each.name for each in expected]:
            raise StateCorrupt("the stored session has other states than its model")
        states = {
            spec.name: _values(stored, spec)
            for spec, stored in zip(expected, record.states, strict=True)
        }
        reply = None if record.reply is None else _reply(record, model.results)
        initial = model.pool.layout.initial()
        is_new = record.step == 0 and all(
            each.tobytes() == initial[name].tobytes() for name, each in states.items()
        )
        return SessionStart(
            source="load",
            rows=None if is_new else states,
            step=record.step,
            incarnation=record.incarnation,
            epoch=record.epoch,
            open_time_ns=record.open_time_ns,
            digest=record.digest,
            reply=reply,
            request_id=record.request_id,
        )


def _bytes(values: npt.NDArray[Any] | None) -> bytes:
    return b"" if values is None else values.tobytes()


def _reply(record: Record, form: RowFormat) -> Output:
    """The saved y [t, ...]. Raises StateCorrupt."""
    assert record.reply is not None
    length = record.reply_length
    sizes = len(record.reply), len(record.reply_ints)
    if sizes != (4 * form.floats * length, 8 * form.ints * length):
        raise StateCorrupt("the stored reply has the wrong size")
    floats = np.frombuffer(record.reply, "<f4").reshape(length, form.floats)
    return form.join(floats, np.frombuffer(record.reply_ints, "<i8").reshape(length, form.ints))


def _values(stored: StoredState, spec: TensorSpec) -> npt.NDArray[Any]:
    """The state's values [1, *shape]; a record of format 1 does not say its shape. Raises
    StateCorrupt."""
    is_flat = stored.shape == (spec.size,)
    if stored.dtype != spec.dtype or not (is_flat or stored.shape == spec.shape):
        raise StateCorrupt("the stored state has the wrong size")
    return np.frombuffer(stored.data, spec.dtype).reshape(1, *spec.shape)


def store_ttl_s(ttl_ns: int) -> float:
    """How long a store keeps a record: longer than the session's TTL, so that the session expires
    on its server, which can say so."""
    return (ttl_ns + STORE_TTL_MARGIN_NS) / 1e9


def found_version(content: bytes | None) -> Version | None:
    """The version of what a store has; None also for a damaged record, which a load reports."""
    try:
        return None if content is None else version_of(content)
    except CorruptRecord:
        return None


def is_same_life(stored: Version | None, known: Version) -> bool:
    """Whether the store has that life of the id, under the same owner; the step may differ."""
    return stored is not None and stored[:2] == known[:2]
