"""Records of sessions: what is written comes back, and what was damaged never does."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmserve.store.record import (
    CRC_SLICE,
    FORMATS,
    HEADER2_BYTES,
    HEADER_BYTES,
    ITEM_BYTES,
    NUMBER_MAX,
    OPTIONAL,
    STATE,
    VERSION_SLICE,
    CorruptRecord,
    Record,
    StoredState,
    UnknownRecord,
    Version,
    decode,
    encode,
    lstm_states,
    pack_version,
    version_of,
)
from storing import signed

EDITION1_STORE = Path(__file__).parent / "fixtures" / "edition1" / "file" / "sessions.sqlite3"
H, C = struct.pack("<3f", 0.5, -1.0, 2.0), struct.pack("<3f", 1.5, 0.0, -2.0)
EXAMPLE = Record(
    incarnation=7,
    epoch=3,
    step=41,
    model="weather",
    model_version=2,
    fingerprint=bytes(range(32)),
    ttl_ns=86_400 * 10**9,
    open_time_ns=1_700_000_000 * 10**9,
    states=lstm_states(H, C),
    digest=2**64 - 1,
    reply=b"reply",
    reply_length=4,
)
WINDOW = (
    StoredState("x", "float32", (2, 1), bytes(8)),
    StoredState("tokens", "int64", (2,), struct.pack("<2q", -1, 2**62)),
    StoredState("is_full", "bool", (), b"\1"),
    StoredState("none", "float32", (0, 3), b""),
)
SECOND = dataclasses.replace(
    EXAMPLE, states=WINDOW, reply_ints=bytes(16), request_id="r-1", released=False
)
EXAMPLES = (EXAMPLE, SECOND)  # of format 1 and 2
NUMBERS = st.integers(0, NUMBER_MAX)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FLOATS = st.integers(1, 40).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n))
LSTM = st.builds(lstm_states, FLOATS, FLOATS | st.just(b""))


@st.composite
def tensors(draw: st.DrawFn) -> StoredState:
    """A state of any name, type and shape."""
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = math.prod(shape) * ITEM_BYTES[dtype]
    return StoredState(draw(TEXT), dtype, shape, draw(st.binary(min_size=size, max_size=size)))


STATES = st.lists(tensors(), min_size=1, max_size=5, unique_by=lambda each: each.name).map(tuple)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "incarnation": NUMBERS,
    "epoch": NUMBERS,
    "step": NUMBERS,
    "model": TEXT,
    "model_version": NUMBERS,
    "fingerprint": st.binary(min_size=32, max_size=32),
    "ttl_ns": st.integers(1, 2**63 - 1),
    "open_time_ns": st.integers(0, 2**63 - 1),
    "digest": st.integers(0, 2**64 - 1),
    "reply": st.none() | st.binary(max_size=200),
    "reply_length": NUMBERS,
}
FIRSTS = st.builds(Record, states=LSTM, **COMMON)
RECORDS = FIRSTS | st.builds(
    Record,
    states=STATES | LSTM,
    request_id=st.text(st.characters(max_codepoint=127), max_size=128),
    released=st.none() | st.booleans(),
    **COMMON,
).flatmap(
    lambda record: (
        st.just(record)
        if record.reply is None
        else st.builds(
            lambda n, each: dataclasses.replace(record, reply_ints=each * n),
            st.integers(0, 5),
            st.binary(min_size=8, max_size=8),
        )
    )
)


def field(tag: int, value: bytes) -> bytes:
    """A field of format 2."""
    return struct.pack("<HI", tag, len(value)) + value


@given(RECORDS)
def test_round_trip(record: Record) -> None:
    """Any record is decoded to what was encoded, and its version is read without decoding."""
    content = encode(record)
    assert decode(content) == record
    assert version_of(content) == record.version
    assert content[VERSION_SLICE] == pack_version(record.version)


@given(FIRSTS, st.text(st.characters(max_codepoint=127), max_size=128), st.booleans())
def test_format_1_is_written_for_what_it_holds(
    record: Record, request_id: str, released: bool
) -> None:
    """Format 2 is used only if needed, and with format_max 1 a record loses only what needs it."""
    content = encode(record)
    assert content[4] == 1
    assert encode(record, 1) == content
    more = dataclasses.replace(record, request_id=request_id, released=released)
    assert encode(more)[4] == 2
    assert encode(more, 1) == content


@pytest.mark.parametrize("change", [{"states": WINDOW}, {"reply_ints": bytes(8)}])
def test_format_1_cannot_hold_all_states(change: dict[str, Any]) -> None:
    """With format_max 1 a record of other states or int64 replies is refused, not cut."""
    with pytest.raises(ValueError, match="format 1 holds no"):
        encode(dataclasses.replace(EXAMPLE, **change), 1)


def test_empty_reply_is_a_reply() -> None:
    """A saved reply without bytes differs from no saved reply."""
    for example in EXAMPLES:
        for reply in (b"", None):
            record = dataclasses.replace(example, reply=reply, reply_ints=b"")
            assert decode(encode(record)).reply == reply


def test_layout_is_fixed() -> None:
    """Format 1 keeps its offsets, because scripts in running stores rely on them."""
    content = encode(EXAMPLE)
    assert content[:8] == b"LSTr" + struct.pack("<HH", 1, len("weather"))
    assert content[VERSION_SLICE] == struct.pack("<3q", 7, 3, 41)
    assert content[HEADER_BYTES:] == b"weather" + H + C + b"reply"
    assert HEADER_BYTES == 120
    assert google_crc32c.value(content).to_bytes(4, "little").hex() == "d03e7d30"


def test_layout_of_format_2_is_fixed() -> None:
    """Format 2 keeps its bytes, and every later format the places of version and checksum."""
    content = encode(SECOND)
    assert content[:8] == b"LSTr" + struct.pack("<HH", 2, 0)
    assert (VERSION_SLICE.start, VERSION_SLICE.stop) == (8, 32)
    assert (CRC_SLICE.start, CRC_SLICE.stop) == (32, 36)
    assert content[VERSION_SLICE] == struct.pack("<3q", 7, 3, 41)
    x = struct.pack("<BBB2I", 1, 1, 2, 2, 1) + b"x" + bytes(8)
    tokens = struct.pack("<BBB1I", 2, 6, 1, 2) + b"tokens" + WINDOW[1].data
    is_full = struct.pack("<BBB", 3, 7, 0) + b"is_full" + b"\1"
    none = struct.pack("<BBB2I", 1, 4, 2, 0, 3) + b"none"
    fields = [field(1, b"weather"), *(field(STATE, each) for each in (x, tokens, is_full, none))]
    fields += [field(3, b"reply"), field(4, bytes(16)), field(5, b"r-1"), field(6, b"\0")]
    assert content[HEADER2_BYTES:] == b"".join(fields)
    assert google_crc32c.value(content).to_bytes(4, "little").hex() == "7a4819e4"


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_flipped_bit_is_found(example: Record) -> None:
    """Every flipped bit is found, in the header, its checksum or the body, and one in the format's
    number is damage, not a later release's record."""
    content = encode(example)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            decode(bytes(damaged))


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_truncation_is_found(example: Record) -> None:
    """A truncated record is refused, and so is a record with bytes behind it."""
    content = encode(example)
    for size in range(len(content)):
        with pytest.raises(CorruptRecord, match=r"bytes|checksum"):
            decode(content[:size])
    with pytest.raises(CorruptRecord, match=r"follow the header|checksum"):
        decode(content + b"\0")


@given(st.binary(max_size=300), st.booleans(), st.sampled_from(EXAMPLES))
def test_noise_is_refused(noise: bytes, begins_well: bool, example: Record) -> None:
    """Whatever the bytes are, the only error is CorruptRecord."""
    content = encode(example)[:120] + noise if begins_well else noise
    if content != encode(example):
        with pytest.raises(CorruptRecord):
            decode(content)


@given(st.integers(6, 400), st.binary(min_size=1, max_size=8), st.sampled_from(EXAMPLES))
@settings(max_examples=500)
def test_forged_record_is_refused_or_valid(at: int, patch: bytes, example: Record) -> None:
    """Changed bytes under a right checksum give a valid record, or are refused as damage or, in
    format 2, as a later release's."""
    content = bytearray(encode(example))
    size = len(content)
    content[at : at + len(patch)] = patch
    forged = signed(content[:size])
    try:
        record = decode(forged)
    except CorruptRecord:
        return
    except UnknownRecord:
        assert forged[4] == 2
        return
    again = encode(record)
    assert decode(again) == record
    assert again == forged or len(again) < size, "without its optional or empty fields"


@given(st.integers(0, 2**16 - 1).filter(lambda n: n not in FORMATS), st.binary(max_size=300))
def test_a_later_format_is_left_alone(number: int, rest: bytes) -> None:
    """A whole record of any other format is a later release's: only its version is read."""
    start = b"LSTr" + struct.pack("<HH3q4x", number, 0, 7, 3, 41)
    content = signed(start + rest + bytes(HEADER2_BYTES))
    with pytest.raises(UnknownRecord, match=f"format {number}, this release reads 1 to 2"):
        decode(content)
    assert version_of(content) == Version(7, 3, 41)
    for damaged in (content[:-1], content + b"\0", content[:40] + b"?" + content[41:]):
        if damaged != content:
            with pytest.raises(CorruptRecord):
                decode(damaged)
            with pytest.raises(CorruptRecord):
                version_of(damaged)


def test_what_format_2_may_say_later() -> None:
    """An unknown field, type or flag refuses the record, and an optional field is ignored."""
    content = encode(SECOND)
    for tag in (7, OPTIONAL - 1):
        with pytest.raises(UnknownRecord, match=f"field {tag}"):
            decode(signed(content + field(tag, b"new")))
    assert decode(signed(content + field(OPTIONAL, b"new") + field(OPTIONAL + 9, b""))) == SECOND
    flagged = bytearray(content)
    flagged[6] = 1
    with pytest.raises(UnknownRecord, match="format 2 with 0x1"):
        decode(signed(flagged))
    other_type = content.replace(struct.pack("<BBB", 2, 6, 1), struct.pack("<BBB", 9, 6, 1))
    with pytest.raises(UnknownRecord, match="type 9"):
        decode(signed(other_type))


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (field(6, b"\0"), "field 6 follows a field 6"),
        (field(3, b"reply"), "field 3 follows a field 6"),
        (field(OPTIONAL, b"")[:-1], "unpack_from"),
        (struct.pack("<HI", OPTIONAL, 1), "beyond the end"),
    ],
)
def test_fields_out_of_order_are_damage(more: bytes, what: str) -> None:
    """Under a right checksum, fields that come twice, out of order or cut are refused."""
    with pytest.raises(CorruptRecord, match=what):
        decode(signed(encode(SECOND) + more))


FLAT = StoredState("h", "float32", (3,), H)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"epoch": 2**53}, "epoch"),
        ({"step": -1}, "step"),
        ({"ttl_ns": 0}, "ttl_ns"),
        ({"fingerprint": b"short"}, "fingerprint"),
        ({"states": lstm_states(b"123", C)}, "float32"),
        ({"states": lstm_states(H, b"12345")}, "float32"),
        ({"states": ()}, "empty"),
        ({"states": (FLAT._replace(dtype="float16"),)}, "float16"),
        ({"states": (FLAT._replace(name=""),)}, "no name"),
        ({"states": (FLAT, FLAT)}, "one name"),
        ({"states": (FLAT._replace(shape=(2, 2)),)}, "12 bytes for float32"),
        ({"model": ""}, "empty"),
        ({"reply_ints": b"123"}, "int64"),
        ({"reply_ints": bytes(8), "reply": None}, "without reply"),
        ({"request_id": "r" * 129}, "128"),
        ({"request_id": "é"}, "ASCII"),
    ],
)
def test_impossible_records_are_not_made(change: dict[str, Any], what: str) -> None:
    """A record that no session can have is refused with the field's name."""
    with pytest.raises(ValueError, match=what):
        dataclasses.replace(EXAMPLE, **change)


@pytest.mark.parametrize("change", [{"digest": 2**64}, {"digest": -1}, {"model": "m" * 70_000}])
def test_too_large_for_the_header(change: dict[str, Any]) -> None:
    """A number or name that has no room in the header is a ValueError, and is not cut."""
    with pytest.raises(ValueError, match="no room"):
        encode(dataclasses.replace(EXAMPLE, **change))


def test_other_bytes_say_so() -> None:
    """Other bytes are refused by their beginning and their size."""
    with pytest.raises(CorruptRecord, match="begin"):
        version_of(b"x" * 200)
    with pytest.raises(CorruptRecord, match="less than the header"):
        version_of(b"LSTr")
    assert version_of(encode(EXAMPLE)) == Version(7, 3, 41)
    assert version_of(encode(SECOND)) == Version(7, 3, 41)


def test_records_of_the_first_edition() -> None:
    """Records of the first edition's store are decoded, and encoded again byte for byte."""
    uri = f"file:{EDITION1_STORE}?immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        contents = [row[0] for row in database.execute("SELECT content FROM record")]
    assert len(contents) == 10
    for content in contents:
        record = decode(content)
        assert (record.model, record.released, record.request_id) == ("net", None, "")
        assert [each.shape for each in record.states] == [(16,), (16,)]
        assert encode(record) == content
