"""The bytes of a stored session, in the formats 1 and 2. It does no I/O and never unpickles.

All numbers are little-endian. A crc32c covers everything but itself, so it finds any flipped bit.

Every format begins with the magic, the format's number and, at VERSION_SLICE, the version, which
the stores compare. From format 2 on, every format has the crc at CRC_SLICE, for ever. So whatever
the format's number says, a reader can tell a record of a later release (UnknownRecord: leave it
where it is) from a damaged one (CorruptRecord: put it aside).

Format 1: a fixed header, then the model's name, h, c and the reply. It is read for ever, and still
written for what it can hold.

Format 2: a fixed header, then fields: tag (uint16), size (uint32), content; in the order of their
tags, each at most once, but one STATE for each of the model's states, in the spec's order. A later
release may add fields. A reader that does not know a field's tag
- below OPTIONAL refuses the record (UnknownRecord): to write it without that field would lose what
  the field's release relies on;
- from OPTIONAL on ignores the field, and writes the record's next version without it. Such a field
  may only say what is harmless to lose, because a session moves back and forth between the releases
  of a rolling update.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

import google_crc32c

MAGIC: Final = b"LSTr"
FORMATS: Final = (1, 2)
NUMBER_MAX: Final = 2**53 - 1  # what a double holds exactly: Lua on the store compares epochs
FINGERPRINT_BYTES: Final = 32
REQUEST_ID_BYTES_MAX: Final = 128
NO_REPLY: Final = -1
_H: Final = ("h", "float32")
_C: Final = ("c", "float32")
ITEM_BYTES: Final = {"float32": 4, "int64": 8, "bool": 1}

_HEAD: Final = struct.Struct("<4sHH3q4qQ32sIIi")  # the fields of _Header1; _CRC follows
_CRC: Final = struct.Struct("<I")
_VERSION: Final = struct.Struct("<3q")
HEADER_BYTES: Final = _HEAD.size + _CRC.size  # of format 1
VERSION_SLICE: Final = slice(8, 8 + _VERSION.size)
CRC_SLICE: Final = slice(VERSION_SLICE.stop, VERSION_SLICE.stop + _CRC.size)  # from format 2 on

_START: Final = struct.Struct("<4sHH3q")  # magic, format, 0, version; the crc follows
_CORE: Final = struct.Struct("<4qQ32s")  # ttl, open time, model version, reply length, digest, ...
HEADER2_BYTES: Final = CRC_SLICE.stop + _CORE.size
_FIELD: Final = struct.Struct("<HI")
_TENSOR: Final = struct.Struct(
    "<BBB"
)  # sizes of name and shape, dtype; uint32s of the shape follow
_DTYPES: Final = {"float32": 1, "int64": 2, "bool": 3}
_DTYPE_NAMES: Final = {code: name for name, code in _DTYPES.items()}

# Tags of format 2. A tag is never used again for another field.
MODEL: Final = 1
STATE: Final = 2
REPLY: Final = 3  # float32
REPLY_INTS: Final = 4  # int64
REQUEST_ID: Final = 5
RELEASED: Final = 6  # one byte, 0 or 1
OPTIONAL: Final = 0x8000


class CorruptRecord(ValueError):
    """Bytes that no release wrote: the message says what is wrong. Quarantine them."""


class UnknownRecord(ValueError):
    """A record of a later release: the message says what this one cannot read. Leave it there."""


class Version(NamedTuple):
    """What a compare-and-set compares: the session's life, its owner and its last step."""

    incarnation: int
    epoch: int
    step: int


class StoredState(NamedTuple):
    """One of a session's states: little-endian values, row-major, of float32, int64 or bool.

    A record of format 1 has no shapes: what it held is read as one-dimensional.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is stored of one session after its `step`th step, except its key.

    `states` are all of the model's, in the order of its spec. `digest` is the last input's, and
    `reply_length` the number of its rows. `reply` has the float32 values of the saved answer to it
    and `reply_ints` the int64 values; `reply` is None if no answer was saved. `request_id` is that
    of the OpenSession which began the session. `released` says whether the owner let go of the
    session with nothing left to store; None if the record does not say. Times are in nanoseconds,
    `open_time_ns` since 1970.
    """

    incarnation: int
    epoch: int
    step: int
    model: str
    model_version: int
    fingerprint: bytes
    ttl_ns: int
    open_time_ns: int
    states: tuple[StoredState, ...]
    digest: int = 0
    reply: bytes | None = None
    reply_length: int = 0
    reply_ints: bytes = b""
    request_id: str = ""
    released: bool | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, which says what is wrong, for what no session can have."""
        numbers = (self.incarnation, self.epoch, self.step, self.model_version, self.reply_length)
        if min(numbers) < 0 or max(numbers) > NUMBER_MAX:
            raise ValueError(f"incarnation, epoch, step, model_version or reply_length: {numbers}")
        if self.ttl_ns <= 0 or self.open_time_ns < 0:
            raise ValueError("ttl_ns or open_time_ns is negative")
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"fingerprint is not {FINGERPRINT_BYTES} bytes")
        if not self.model or not self.states:
            raise ValueError("model or states is empty")
        _check_states(self.states)
        if len(self.reply_ints) % ITEM_BYTES["int64"] or (self.reply_ints and self.reply is None):
            raise ValueError("reply_ints is not whole int64, or without reply")
        if len(self.request_id) > REQUEST_ID_BYTES_MAX or not self.request_id.isascii():
            raise ValueError(f"request_id is not up to {REQUEST_ID_BYTES_MAX} of ASCII")

    @property
    def version(self) -> Version:
        """What `version_of` reads from the encoded record."""
        return Version(self.incarnation, self.epoch, self.step)

    def state(self, name: str) -> StoredState:
        """The state of that name. Raises KeyError."""
        for each in self.states:
            if each.name == name:
                return each
        raise KeyError(name)


def _check_states(states: tuple[StoredState, ...]) -> None:
    """Raises ValueError, which says what is wrong, for what no model can have."""
    names = set()
    for name, dtype, shape, data in states:
        if len(data) != _size(name, dtype, shape):
            raise ValueError(f"state {name} has {len(data)} bytes for {dtype} {list(shape)}")
        names.add(name)
    if len(names) != len(states):
        raise ValueError("two states have one name")


@lru_cache(maxsize=1024)  # a record is made at each step, of few shapes
def _size(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """The size of a state in bytes. Raises ValueError."""
    if not name or dtype not in ITEM_BYTES:
        raise ValueError(f"a state has no name, or is of {dtype!r}")
    return math.prod(shape) * ITEM_BYTES[dtype]


def lstm_states(h: bytes, c: bytes, layers: int | None = None) -> tuple[StoredState, StoredState]:
    """An nn.LSTM's states, float32 [layers, width] each, or [values] if `layers` is None."""
    h_size, c_size = len(h) // ITEM_BYTES["float32"], len(c) // ITEM_BYTES["float32"]
    if layers is None:
        return StoredState(*_H, (h_size,), h), StoredState(*_C, (c_size,), c)
    return StoredState(*_H, (layers, h_size // layers), h), StoredState(
        *_C, (layers, c_size // layers), c
    )


def encode(record: Record, format_max: int = FORMATS[-1]) -> bytes:
    """The record's bytes: in format 1 if that holds all of it, otherwise in format 2.

    `format_max` 1 leaves out the request id and `released`, and raises ValueError for states or a
    reply that format 1 cannot hold. A number or a size that has no room raises ValueError, too.
    """
    why = _more_than_format_1(record)
    try:
        if not why and (format_max == 1 or not (record.request_id or record.released is not None)):
            return _encode_1(record)
        if format_max == 1:
            raise ValueError(f"format 1 holds no {why}")
        return _encode_2(record)
    except struct.error as error:
        raise ValueError(f"no room in a record: {error}") from error


def decode(content: bytes) -> Record:
    """The record that `encode` made into these bytes. Raises CorruptRecord and UnknownRecord."""
    found = _check_start(content)
    try:
        return _decode_1(content) if found == 1 else _decode_2(content)
    except (CorruptRecord, UnknownRecord):
        raise
    except (ValueError, struct.error) as error:  # right checksum, wrong content
        raise CorruptRecord(str(error)) from error


def version_of(content: bytes) -> Version:
    """The version in an encoded record of any format, without decoding the rest.

    Raises CorruptRecord.
    """
    with contextlib.suppress(UnknownRecord):
        _check_start(content)
    return unpack_version(content[VERSION_SLICE])


def unpack_version(raw: bytes) -> Version:
    """The version that `pack_version` packed."""
    return Version(*_VERSION.unpack(raw))


def pack_version(version: Version) -> bytes:
    """The version as it lies in an encoded record at VERSION_SLICE."""
    return _VERSION.pack(*version)


def _check_start(content: bytes) -> int:
    """The record's format. Raises CorruptRecord, and UnknownRecord for a later format."""
    if len(content) < HEADER2_BYTES:
        raise CorruptRecord(f"{len(content)} bytes, less than the header's {HEADER2_BYTES}")
    if content[:4] != MAGIC:
        raise CorruptRecord("does not begin as a record")
    found = int.from_bytes(content[4:6], "little")
    if found not in FORMATS:
        _check_sum(content, CRC_SLICE.start)  # else it is the format's number that is damaged
        raise UnknownRecord(f"format {found}, this release reads {FORMATS[0]} to {FORMATS[-1]}")
    return found


def _check_sum(content: bytes, at: int) -> None:
    """Raises CorruptRecord unless the bytes at `at` are the checksum of all the others."""
    if _CRC.unpack_from(content, at)[0] != _checksum(content[:at], content[at + _CRC.size :]):
        raise CorruptRecord("checksum differs")


def _checksum(head: bytes, body: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(head), body))


class _Header1(NamedTuple):
    """What _HEAD packs. The crc follows it, then model, h, c and reply, of these sizes in bytes."""

    magic: bytes
    format: int
    model_size: int
    incarnation: int
    epoch: int
    step: int
    ttl_ns: int
    open_time_ns: int
    model_version: int
    reply_length: int
    digest: int
    fingerprint: bytes
    h_size: int
    c_size: int
    reply_size: int  # NO_REPLY: none was saved

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes in bytes of the parts that follow the header."""
        return self.model_size, self.h_size, self.c_size, max(self.reply_size, 0)


def _more_than_format_1(record: Record) -> str:
    """What of the states and the reply format 1 cannot hold, in words; "" if it holds them."""
    if len(record.states) == 2:
        h, c = record.states
        if h[:2] == _H and c[:2] == _C and h.data:
            return "int64 in a reply" if record.reply_ints else ""
    return f"states but h and c of float32: {[each[:2] for each in record.states]}"


def _encode_1(record: Record) -> bytes:
    model, reply = record.model.encode(), record.reply
    h, c = record.states[0].data, record.states[1].data
    head = _HEAD.pack(  # as _Header1 names them
        MAGIC,
        1,
        len(model),
        record.incarnation,
        record.epoch,
        record.step,
        record.ttl_ns,
        record.open_time_ns,
        record.model_version,
        record.reply_length,
        record.digest,
        record.fingerprint,
        len(h),
        len(c),
        NO_REPLY if reply is None else len(reply),
    )
    body = b"".join((model, h, c, reply or b""))
    return b"".join((head, _CRC.pack(_checksum(head, body)), body))


def _decode_1(content: bytes) -> Record:
    if len(content) < HEADER_BYTES:
        raise CorruptRecord(f"{len(content)} bytes, less than the header's {HEADER_BYTES}")
    header = _Header1(*_HEAD.unpack_from(content))
    body = content[HEADER_BYTES:]
    if header.reply_size < NO_REPLY or sum(header.sizes) != len(body):
        raise CorruptRecord(f"{len(body)} bytes follow the header, which says {header.sizes}")
    _check_sum(content, _HEAD.size)
    ends = list(accumulate(header.sizes))
    model, h, c, reply = (body[end - n : end] for n, end in zip(header.sizes, ends, strict=True))
    if not h:
        raise CorruptRecord("h is empty")
    return Record(
        incarnation=header.incarnation,
        epoch=header.epoch,
        step=header.step,
        model=model.decode(),
        model_version=header.model_version,
        fingerprint=header.fingerprint,
        ttl_ns=header.ttl_ns,
        open_time_ns=header.open_time_ns,
        states=lstm_states(h, c),
        digest=header.digest,
        reply=None if header.reply_size == NO_REPLY else reply,
        reply_length=header.reply_length,
    )


def _encode_2(record: Record) -> bytes:
    start = _START.pack(MAGIC, 2, 0, record.incarnation, record.epoch, record.step)
    core = _CORE.pack(
        record.ttl_ns,
        record.open_time_ns,
        record.model_version,
        record.reply_length,
        record.digest,
        record.fingerprint,
    )
    model = record.model.encode()
    parts = [core, _FIELD.pack(MODEL, len(model)), model]
    for name, dtype, shape, data in record.states:
        head = _tensor_head(name, dtype, shape)
        parts += (_FIELD.pack(STATE, len(head) + len(data)), head, data)
    if record.reply is not None:
        parts += (_FIELD.pack(REPLY, len(record.reply)), record.reply)
    if record.reply_ints:
        parts += (_FIELD.pack(REPLY_INTS, len(record.reply_ints)), record.reply_ints)
    if record.request_id:
        request_id = record.request_id.encode()
        parts += (_FIELD.pack(REQUEST_ID, len(request_id)), request_id)
    if record.released is not None:
        parts += (_FIELD.pack(RELEASED, 1), bytes([record.released]))
    body = b"".join(parts)
    return b"".join((start, _CRC.pack(_checksum(start, body)), body))


@lru_cache(maxsize=1024)
def _tensor_head(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    raw = name.encode()
    return b"".join(
        (
            _TENSOR.pack(_DTYPES[dtype], len(raw), len(shape)),
            struct.pack(f"<{len(shape)}I", *shape),
            raw,
        )
    )


def _decode_2(content: bytes) -> Record:
    _check_sum(content, CRC_SLICE.start)
    _, _, reserved, incarnation, epoch, step = _START.unpack_from(content)
    if reserved:
        raise UnknownRecord(f"format 2 with {reserved:#x} where this release knows of nothing")
    core = _CORE.unpack_from(content, CRC_SLICE.stop)
    ttl_ns, open_time_ns, model_version, reply_length, digest, fingerprint = core
    states, one = [], dict[int, bytes]()
    for tag, value in _fields(content):
        if tag == STATE:
            states.append(_tensor(value))
        elif tag <= RELEASED:
            one[tag] = value
        elif tag < OPTIONAL:
            raise UnknownRecord(f"a field {tag}, which this release does not know")
    released = one.get(RELEASED)
    if released not in (None, b"\0", b"\1"):
        raise CorruptRecord("released is neither 0 nor 1")
    return Record(
        incarnation,
        epoch,
        step,
        model=one.get(MODEL, b"").decode(),
        model_version=model_version,
        fingerprint=fingerprint,
        ttl_ns=ttl_ns,
        open_time_ns=open_time_ns,
        states=tuple(states),
        digest=digest,
        reply=one.get(REPLY),
        reply_length=reply_length,
        reply_ints=one.get(REPLY_INTS, b""),
        request_id=one.get(REQUEST_ID, b"").decode("ascii"),
        released=None if released is None else released == b"\1",
    )


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each field. Raises CorruptRecord where fields are out of order or cut."""
    at, before = HEADER2_BYTES, 0
    while at < len(content):
        tag, size = _FIELD.unpack_from(content, at)
        at += _FIELD.size
        if tag < before or (tag == before and tag != STATE):
            raise CorruptRecord(f"a field {tag} follows a field {before}")
        if at + size > len(content):
            raise CorruptRecord(f"a field of {size} bytes goes beyond the end")
        yield tag, content[at : at + size]
        at, before = at + size, tag


def _tensor(value: bytes) -> StoredState:
    dtype, name_size, rank = _TENSOR.unpack_from(value)
    shape = struct.unpack_from(f"<{rank}I", value, _TENSOR.size)
    at = _TENSOR.size + 4 * rank
    if at + name_size > len(value):
        raise CorruptRecord("a state ends before its name does")
    name = value[at : at + name_size].decode()
    if dtype not in _DTYPE_NAMES:
        raise UnknownRecord(f"a state of type {dtype}, which this release does not know")
    return StoredState(name, _DTYPE_NAMES[dtype], shape, value[at + name_size :])
