"""Owns the bytes of a stored session: one fixed header, then raw floats. No I/O; never unpickles.

Little-endian throughout. The crc32c covers everything but itself, so any flipped bit is found.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

import google_crc32c

MAGIC: Final = b"LSTr"
FORMAT: Final = 1
NUMBER_MAX: Final = 2**53 - 1  # what a double holds exactly: Lua on the store compares epochs
FINGERPRINT_BYTES: Final = 32
NO_REPLY: Final = -1
FLOAT_BYTES: Final = 4

_HEAD: Final = struct.Struct("<4sHH3q4qQ32sIIi")  # the fields of _Header; _CRC follows
_CRC: Final = struct.Struct("<I")
_VERSION: Final = struct.Struct("<3q")
HEADER_BYTES: Final = _HEAD.size + _CRC.size
VERSION_SLICE: Final = slice(8, 8 + _VERSION.size)


class CorruptRecord(ValueError):
    """Bytes that `encode` did not write, with what is wrong with them. Quarantine them."""


class Version(NamedTuple):
    """What a compare-and-set compares: the session's life, its owner and its last step."""

    incarnation: int
    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Record:
    """All there is to keep of one session after its `step`th step; its key is not part of it.

    `h` and `c` are float32 little-endian, layer by layer in the pool's order. `digest` is of the
    last step's input, `reply` the saved answer to it (None: none was saved) and `reply_length` the
    rows that input had. Times in nanoseconds; `open_time_ns` since 1970.
    """

    incarnation: int
    epoch: int
    step: int
    model: str
    model_version: int
    fingerprint: bytes
    ttl_ns: int
    open_time_ns: int
    h: bytes
    c: bytes
    digest: int = 0
    reply: bytes | None = None
    reply_length: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, with what is wrong, for what no session can have."""
        numbers = (self.incarnation, self.epoch, self.step, self.model_version, self.reply_length)
        if min(numbers) < 0 or max(numbers) > NUMBER_MAX:
            raise ValueError(f"incarnation, epoch, step, model_version or reply_length: {numbers}")
        if self.ttl_ns <= 0 or self.open_time_ns < 0:
            raise ValueError("ttl_ns or open_time_ns is negative")
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"fingerprint is not {FINGERPRINT_BYTES} bytes")
        if not self.model or not self.h or len(self.h) % FLOAT_BYTES or len(self.c) % FLOAT_BYTES:
            raise ValueError("model or h is empty, or h or c not whole float32")

    @property
    def version(self) -> Version:
        """As `version_of` reads it from the encoded record."""
        return Version(self.incarnation, self.epoch, self.step)


class _Header(NamedTuple):
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
        """In bytes, of the parts that follow the header."""
        return self.model_size, self.h_size, self.c_size, max(self.reply_size, 0)


def encode(record: Record) -> bytes:
    """The record's bytes: HEADER_BYTES, then the model's name, h, c and the reply.

    Raises ValueError for a number or a size that the header has no room for.
    """
    model, reply = record.model.encode(), record.reply
    header = _Header(
        magic=MAGIC,
        format=FORMAT,
        model_size=len(model),
        incarnation=record.incarnation,
        epoch=record.epoch,
        step=record.step,
        ttl_ns=record.ttl_ns,
        open_time_ns=record.open_time_ns,
        model_version=record.model_version,
        reply_length=record.reply_length,
        digest=record.digest,
        fingerprint=record.fingerprint,
        h_size=len(record.h),
        c_size=len(record.c),
        reply_size=NO_REPLY if reply is None else len(reply),
    )
    try:
        head = _HEAD.pack(*header)
    except struct.error as error:
        raise ValueError(f"no room in a record: {error}") from error
    body = b"".join((model, record.h, record.c, reply or b""))
    return b"".join((head, _CRC.pack(_checksum(head, body)), body))


def decode(content: bytes) -> Record:
    """The record that `encode` made these bytes of. Raises CorruptRecord."""
    _check_start(content)
    head, body = content[: _HEAD.size], content[HEADER_BYTES:]
    header = _Header(*_HEAD.unpack(head))
    if header.reply_size < NO_REPLY or sum(header.sizes) != len(body):
        raise CorruptRecord(f"{len(body)} bytes follow the header, which says {header.sizes}")
    if _CRC.unpack_from(content, _HEAD.size)[0] != _checksum(head, body):
        raise CorruptRecord("checksum differs")
    try:
        return _record(header, body)
    except ValueError as error:  # right checksum, wrong content: not written by us
        raise CorruptRecord(str(error)) from error


def _record(header: _Header, body: bytes) -> Record:
    ends = list(accumulate(header.sizes))
    model, h, c, reply = (body[end - n : end] for n, end in zip(header.sizes, ends, strict=True))
    return Record(
        incarnation=header.incarnation,
        epoch=header.epoch,
        step=header.step,
        model=model.decode(),
        model_version=header.model_version,
        fingerprint=header.fingerprint,
        ttl_ns=header.ttl_ns,
        open_time_ns=header.open_time_ns,
        h=h,
        c=c,
        digest=header.digest,
        reply=None if header.reply_size == NO_REPLY else reply,
        reply_length=header.reply_length,
    )


def version_of(content: bytes) -> Version:
    """The version in an encoded record, without decoding the rest. Raises CorruptRecord."""
    _check_start(content)
    return unpack_version(content[VERSION_SLICE])


def unpack_version(raw: bytes) -> Version:
    """What `pack_version` packed."""
    return Version(*_VERSION.unpack(raw))


def pack_version(version: Version) -> bytes:
    """The version as it lies in an encoded record at VERSION_SLICE."""
    return _VERSION.pack(*version)


def _check_start(content: bytes) -> None:
    """Raises CorruptRecord unless a header of this format can be read."""
    if len(content) < HEADER_BYTES:
        raise CorruptRecord(f"{len(content)} bytes, less than the header's {HEADER_BYTES}")
    if content[:4] != MAGIC:
        raise CorruptRecord("does not begin as a record")
    if (found := int.from_bytes(content[4:6], "little")) != FORMAT:
        raise CorruptRecord(f"format {found}, this release reads {FORMAT}")


def _checksum(head: bytes, body: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(head), body))
