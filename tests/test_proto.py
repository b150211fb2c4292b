"""The stubs are what proto/ says, and the bytes twin is the public form on the wire."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto
from google.protobuf.message import Message

from lstmserve.v1 import lstm_pb2 as public
from lstmserve.wire.v1 import lstm_pb2 as wire

ROOT = Path(__file__).parent.parent
MESSAGES = list(public.DESCRIPTOR.message_types_by_name)
WIRE_PACKAGE = "lstmserve.wire.v1."


def floats_of(public_field: FieldDescriptor) -> bool:
    """Whether the field is one that the twin has as bytes."""
    return public_field.type == FieldDescriptor.TYPE_FLOAT and public_field.is_repeated


def shape(field: FieldDescriptor) -> tuple[object, ...]:
    """The parts of a field that the wire format depends on, and its name."""
    target = field.message_type or field.enum_type
    target_name = target.full_name.replace(WIRE_PACKAGE, "lstmserve.v1.") if target else None
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.name, field.number, field.type, field.is_repeated, target_name, oneof


def reserved(message: Descriptor) -> list[int]:
    """The numbers that no field may have again."""
    proto = DescriptorProto()
    message.CopyToProto(proto)
    return [n for each in proto.reserved_range for n in range(each.start, each.end)]


def fill(message: Message, rng: random.Random) -> None:
    """Sets every field, and one field of each oneof, to values that fit its type."""
    for field in message.DESCRIPTOR.fields:
        target = getattr(message, field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            fill(target.add() if field.is_repeated else target, rng)
            continue
        values = [value(field, rng) for _ in range(rng.randint(1, 4))]
        if field.is_repeated:
            target.extend(values)
        else:
            setattr(message, field.name, values[0])


def value(field: FieldDescriptor, rng: random.Random) -> object:
    """One random value of the field's type."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"text {rng.random()}"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(8)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return rng.choice([rng.gauss(0, 1), 0.0, -0.0, float("inf"), 1e-45])
    return rng.randint(1, 2)


def stubs(folder: Path) -> dict[Path, str]:
    """Every generated file below the folder, with its text."""
    return {
        path.relative_to(folder): path.read_text()
        for path in folder.rglob("*_pb2*")
        if path.suffix in (".py", ".pyi")
    }


def test_stubs_are_up_to_date(tmp_path: Path) -> None:
    """Generating the stubs again gives the committed files, no more and no fewer."""
    subprocess.run(
        [sys.executable, ROOT / "proto" / "generate.py", "--out", tmp_path], check=True, timeout=60
    )
    made, committed = stubs(tmp_path), stubs(ROOT / "service")
    assert made.keys() == committed.keys()
    assert [path for path in made if made[path] != committed[path]] == []


@pytest.mark.parametrize("name", MESSAGES)
def test_twin_has_the_public_fields(name: str) -> None:
    """Each message has the same fields in both forms, arrays of floats as bytes; the twin also has
    the bits of floats for the reserved numbers."""
    ours: Descriptor = wire.DESCRIPTOR.message_types_by_name[name]
    theirs: Descriptor = public.DESCRIPTOR.message_types_by_name[name]
    more = {field.number: field.name for field in ours.fields if field.name.startswith("was_")}
    assert more == {number: f"was_{number}" for number in reserved(theirs)}
    kinds = {ours.fields_by_number[n].type for n in more}
    assert kinds <= {FieldDescriptor.TYPE_FIXED32}
    assert all(ours.fields_by_number[n].is_repeated for n in more)
    assert len(ours.fields) == len(theirs.fields) + len(more)
    for field in theirs.fields:
        twin = ours.fields_by_number[field.number]
        if floats_of(field):
            assert (twin.name, twin.type) == (field.name, FieldDescriptor.TYPE_BYTES)
            assert not twin.is_repeated
        else:
            assert shape(twin) == shape(field)


def test_twin_has_every_message_and_enum() -> None:
    """The twin leaves no message out and adds none, and enums have the same values."""
    assert list(wire.DESCRIPTOR.message_types_by_name) == MESSAGES
    assert list(wire.DESCRIPTOR.enum_types_by_name) == list(public.DESCRIPTOR.enum_types_by_name)
    for name, enum in public.DESCRIPTOR.enum_types_by_name.items():
        twin = wire.DESCRIPTOR.enum_types_by_name[name]
        assert [(v.name, v.number) for v in twin.values] == [
            (v.name, v.number) for v in enum.values
        ]


@pytest.mark.parametrize("name", MESSAGES)
def test_wire_bytes_are_equal_both_ways(name: str) -> None:
    """A full message has the same bytes in both forms, whichever of the two wrote it."""
    seed = 5
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(20):
        message = getattr(public, name)()
        fill(message, rng)
        content = message.SerializeToString()
        twin = getattr(wire, name).FromString(content)
        assert twin.SerializeToString() == content
        assert getattr(public, name).FromString(twin.SerializeToString()) == message


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("", "", ""),
        ("int64 tag = 9; // echoed", "int64 tag = 9;\n  int64 added = 99;", ""),
        ("int32 length = 4; // T;", "int32 length = 44; // T;", 'field "4" with name "length"'),
        ("int32 length = 4; // T;", "reserved 4; //", 'field "4" with name "length"'),
        ("int32 length = 4; // T;", "int32 rows = 4; //", 'from "length" to "rows"'),
        ("int32 length = 4; // T;", "string length = 4; //", 'from "int32" to "string"'),
        ("reserved 1, 2;", "reserved 1;", "reserved"),
        ("IF_EXISTS_RESTART = 2;", "IF_EXISTS_RESTART = 3;", 'value "2" on enum "IfExists"'),
        ("rpc GetState(GetStateRequest) returns (GetStateResponse);", "", '"GetState"'),
    ],
)
def test_the_contract_may_only_grow(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    """The check refuses a change after which a client of the last release is not understood."""
    shutil.copytree(ROOT / "proto" / "lstmserve", tmp_path / "lstmserve")
    changed = tmp_path / "lstmserve" / "v1" / "lstm.proto"
    text = changed.read_text()
    assert old in text
    changed.write_text(text.replace(old, new, 1))
    command = [sys.executable, ROOT / "proto" / "generate.py", "--lint", "--proto", tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert complaint in found.stdout + found.stderr
    assert bool(found.returncode) is bool(complaint), found.stdout + found.stderr
