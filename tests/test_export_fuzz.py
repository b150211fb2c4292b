"""Random damage to every kind of file gives a network or a refusal, never anything else."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from exporting import Net, patch_zip, save, save_script
from lstmserve_export.lstm.assemble import assemble
from lstmserve_export.lstm.checkpoint import read_checkpoint
from lstmserve_export.lstm.choose import Choices
from lstmserve_export.lstm.pickles import read_pickle
from lstmserve_export.refusal import Refused

SEED = 7
DAMAGED_COUNT = 150
HEADER_BYTES = 1500  # where names, sizes and the pickle are; the rest is weights


def damage(rng: random.Random, content: bytes) -> bytes:
    """One to four bytes changed, mostly in the structure; sometimes the file is cut short."""
    data = bytearray(content)
    end = len(data) if rng.random() < 0.3 else min(len(data), HEADER_BYTES)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(end)] ^= rng.randint(1, 255)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def zipped(path: Path) -> None:
    """Writes what torch.save writes."""
    save(Net().state_dict(), path)


def legacy(path: Path) -> None:
    """Writes what torch.save wrote before 1.6, which has no checksums."""
    save(Net().state_dict(), path, _use_new_zipfile_serialization=False)


def tensors(path: Path) -> None:
    """Writes safetensors."""
    safetensors.torch.save_file(Net().state_dict(), path)


def script(path: Path) -> None:
    """Writes a TorchScript program."""
    save_script(Net(), path)


def arrays(path: Path) -> None:
    """Writes np.savez_compressed."""
    with path.open("wb") as file:
        np.savez_compressed(file, **{k: v.numpy() for k, v in Net().state_dict().items()})


def pickled(path: Path) -> None:
    """Writes a pickled dict of arrays, which has no checksum."""
    path.write_bytes(pickle.dumps({k: v.numpy() for k, v in Net().state_dict().items()}))


def outcome(path: Path) -> bool:
    """Whether it was refused; any other error fails the test."""
    try:
        assemble(read_checkpoint(path), Choices())
    except Refused:
        return True
    return False


@pytest.mark.parametrize("write", [zipped, legacy, tensors, script, arrays, pickled])
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Some damage leaves a valid file (a renamed key, a weight), which then gives a network."""
    print(f"seed {SEED}")
    rng, path = random.Random(SEED), tmp_path / "net.pt"
    write(path)
    content, refusals = path.read_bytes(), 0
    for _ in range(DAMAGED_COUNT):
        path.write_bytes(damage(rng, content))
        refusals += outcome(path)
    assert refusals > DAMAGED_COUNT // 4


@pytest.mark.parametrize("write", [zipped, script])
def test_a_damaged_pickle_with_a_right_checksum_is_read_or_refused(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    """An attacker's file, with a whole archive around a damaged pickle, is read or refused."""
    print(f"seed {SEED}")
    rng, path = random.Random(SEED), tmp_path / "net.pt"
    write(path)
    content, refusals = path.read_bytes(), 0
    for _ in range(DAMAGED_COUNT):
        path.write_bytes(content)
        patch_zip(path, {"data.pkl": lambda data: damage(rng, data)})
        refusals += outcome(path)
    assert refusals > DAMAGED_COUNT // 4


def laughs() -> object:
    """Lists of lists that share all of their parts: 2^60 in all."""
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    return {"w": value}


DEEP = b"\x80\x02}X\x01\0\0\0w)" + 100_000 * b"\x85"  # a tuple in a tuple in a tuple, ...
BOMBS = {
    "a buffer of a terabyte": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"w.",
    "text of a terabyte": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"w.",
    "a memo of 4 billion": b"\x80\x04}r\xff\xff\xff\xff.",
    "an integer of a million digits": b"\x80\x02}X\x01\0\0\0wL" + 1_000_000 * b"9" + b"L\ns.",
    "lists that share their parts": pickle.dumps(laughs()),
    "a deep value": DEEP + b"s.",
    "a deep key": DEEP + b"Ns.",
    "an array larger than its bytes": pickle.dumps({"w": np.zeros(3)}).replace(b"K\x03", b"K\xff"),
    "a stack that is too short": b"\x80\x02}(R.",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_asks_for_too_much_is_refused(tmp_path: Path, content: bytes) -> None:
    """It ends in a refusal, and neither in a crash nor in memory that runs out."""
    (tmp_path / "net.pkl").write_bytes(content)
    with pytest.raises(Refused):
        read_checkpoint(tmp_path / "net.pkl")


def test_keys_of_a_pickle_are_scalars() -> None:
    """Other keys are left out, since a deep tuple has no hash that ends well."""
    content = {("a", 1): 1, "b": 2, 3: 4, (): 5}
    assert read_pickle(io.BytesIO(pickle.dumps(content))) == {"b": 2, 3: 4}


@pytest.mark.parametrize("change", [lambda content: content + b"1234", lambda content: content[4:]])
def test_a_storage_of_a_program_has_the_size_that_its_pickle_says(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    """A storage that is too short or too long is damage, even where the tensor fits in it."""
    path = tmp_path / "net.pt"
    script(path)
    patch_zip(path, {"data/0": change})
    with pytest.raises(Refused, match="storage 0 has"):
        read_checkpoint(path)
