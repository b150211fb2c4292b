"""Records of sessions: what is written comes back, and what was damaged never does."""

from __future__ import annotations

import dataclasses
import struct

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmserve.store.record import (
    HEADER_BYTES,
    NUMBER_MAX,
    VERSION_SLICE,
    CorruptRecord,
    Record,
    Version,
    decode,
    encode,
    pack_version,
    version_of,
)

EXAMPLE = Record(
    incarnation=7,
    epoch=3,
    step=41,
    model="weather",
    model_version=2,
    fingerprint=bytes(range(32)),
    ttl_ns=86_400 * 10**9,
    open_time_ns=1_700_000_000 * 10**9,
    h=struct.pack("<3f", 0.5, -1.0, 2.0),
    c=struct.pack("<3f", 1.5, 0.0, -2.0),
    digest=2**64 - 1,
    reply=b"reply",
    reply_length=4,
)
NUMBERS = st.integers(0, NUMBER_MAX)
FLOATS = st.integers(1, 40).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n))
RECORDS = st.builds(
    Record,
    incarnation=NUMBERS,
    epoch=NUMBERS,
    step=NUMBERS,
    model=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    model_version=NUMBERS,
    fingerprint=st.binary(min_size=32, max_size=32),
    ttl_ns=st.integers(1, 2**63 - 1),
    open_time_ns=st.integers(0, 2**63 - 1),
    h=FLOATS,
    c=FLOATS | st.just(b""),
    digest=st.integers(0, 2**64 - 1),
    reply=st.none() | st.binary(max_size=200),
    reply_length=NUMBERS,
)


@given(RECORDS)
def test_round_trip(record: Record) -> None:
    """Any record is decoded as it was encoded, and its version is read without decoding."""
    content = encode(record)
    assert decode(content) == record
    assert version_of(content) == record.version
    assert content[VERSION_SLICE] == pack_version(record.version)


def test_empty_reply_is_a_reply() -> None:
    """A saved reply of no bytes is told from no saved reply."""
    for reply in (b"", None):
        assert decode(encode(dataclasses.replace(EXAMPLE, reply=reply))).reply == reply


def test_layout_is_fixed() -> None:
    """Format 1 keeps its offsets, which scripts in running stores rely on."""
    content = encode(EXAMPLE)
    assert content[:8] == b"LSTr" + struct.pack("<HH", 1, len("weather"))
    assert content[VERSION_SLICE] == struct.pack("<3q", 7, 3, 41)
    assert content[HEADER_BYTES:] == b"weather" + EXAMPLE.h + EXAMPLE.c + b"reply"
    assert HEADER_BYTES == 120
    assert google_crc32c.value(content).to_bytes(4, "little").hex() == "d03e7d30"


def test_every_flipped_bit_is_found() -> None:
    """No single flipped bit, in the header, its checksum or the body, goes unnoticed."""
    content = encode(EXAMPLE)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            decode(bytes(damaged))


def test_every_truncation_is_found() -> None:
    """No beginning of a record is a record, nor one with more behind it."""
    content = encode(EXAMPLE)
    for size in range(len(content)):
        with pytest.raises(CorruptRecord, match="bytes"):
            decode(content[:size])
    with pytest.raises(CorruptRecord, match="follow the header"):
        decode(content + b"\0")


@given(st.binary(max_size=300), st.booleans())
def test_noise_is_refused(noise: bytes, begins_well: bool) -> None:
    """Whatever the bytes, the only error is CorruptRecord."""
    content = encode(EXAMPLE)[:120] + noise if begins_well else noise
    if content != encode(EXAMPLE):
        with pytest.raises(CorruptRecord):
            decode(content)


@given(st.integers(8, 115), st.binary(min_size=1, max_size=8))
@settings(max_examples=300)
def test_forged_header_is_refused_or_valid(at: int, patch: bytes) -> None:
    """A header changed under a right checksum gives a valid record or CorruptRecord alone."""
    content = bytearray(encode(EXAMPLE))
    content[at : at + len(patch)] = patch
    del content[len(encode(EXAMPLE)) :]
    content[116:120] = struct.pack(
        "<I", google_crc32c.value(bytes(content[:116]) + bytes(content[120:]))
    )
    try:
        record = decode(bytes(content))
    except CorruptRecord:
        return
    assert encode(record) == bytes(content)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"epoch": 2**53}, "epoch"),
        ({"step": -1}, "step"),
        ({"ttl_ns": 0}, "ttl_ns"),
        ({"fingerprint": b"short"}, "fingerprint"),
        ({"h": b"123"}, "float32"),
        ({"c": b"12345"}, "float32"),
        ({"h": b""}, "empty"),
        ({"model": ""}, "empty"),
    ],
)
def test_impossible_records_are_not_made(change: dict[str, object], what: str) -> None:
    """A record that no session can have is refused with the field's name."""
    with pytest.raises(ValueError, match=what):
        dataclasses.replace(EXAMPLE, **change)


@pytest.mark.parametrize("change", [{"digest": 2**64}, {"digest": -1}, {"model": "m" * 70_000}])
def test_too_large_for_the_header(change: dict[str, object]) -> None:
    """A number or name that the header has no room for is a ValueError, not a cut."""
    with pytest.raises(ValueError, match="no room"):
        encode(dataclasses.replace(EXAMPLE, **change))


def test_unknown_format_says_so() -> None:
    """A later release's record is refused by its format, and wrong bytes by their beginning."""
    content = bytearray(encode(EXAMPLE))
    content[4] = 2
    with pytest.raises(CorruptRecord, match="format 2"):
        version_of(bytes(content))
    with pytest.raises(CorruptRecord, match="begin"):
        version_of(b"x" * 200)
    with pytest.raises(CorruptRecord, match="less than the header"):
        version_of(b"LSTr")
    assert version_of(encode(EXAMPLE)) == Version(7, 3, 41)
