"""Files that are made to crash the export, to fill the memory, or to run for hours."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from exporting import HIDDEN, Net, exported, refused, save
from lstmserve_export.lstm.decode import NAME_LEN_MAX

PROTOCOL = b"\x80\x04"
# Tuples in tuples, of which each has the next twice: 2 ** 60 in all, in 300 bytes.
DOUBLED = b")" + b"".join(b"\x94h" + bytes([at]) + b"\x86" for at in range(60))
FRAME = b"}(\x8c\x01acnumpy._core.numeric\n_frombuffer\n("
DTYPE = b"cnumpy\ndtype\n\x8c\x02f4\x85R"
ONE = b"K\x01\x85"
PICKLES = {
    "a dtype": PROTOCOL + FRAME + b"C\x04aaaacnumpy\ndtype\n" + DOUBLED + b"\x85R" + ONE,
    "the bytes": PROTOCOL + FRAME + b"c_codecs\nencode\n" + DOUBLED + b"\x85R" + DTYPE + ONE,
    "a shape": PROTOCOL + FRAME + b"C\x04aaaa" + DTYPE + DOUBLED + b"\x85",
}


@pytest.mark.parametrize("label", PICKLES)
def test_tuples_that_double_are_not_written_out(tmp_path: Path, label: str) -> None:
    """A refusal does not print such a value, which would have no end."""
    (tmp_path / "net.pkl").write_bytes(PICKLES[label] + b"\x8c\x01CtRu.")
    assert "is no pickle, or the file is damaged" in refused(tmp_path / "net.pkl")


def test_one_list_by_many_names_is_read_once(tmp_path: Path) -> None:
    """A million names of a list of a million numbers are no million million numbers."""
    many = [0] * 50_000
    content = {f"{at}": many for at in range(50_000)}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(content))
    assert "holds no named tensors" in refused(tmp_path / "net.pkl")


def test_modules_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    """The names of a TorchScript program grow with each module."""
    name = b"X" + struct.pack("<I", 100) + b"a" * 100
    depth = NAME_LEN_MAX
    content = PROTOCOL + name + b"\x940c__torch__\nM\n\x940"
    content += b"h\x01)\x81}h\x00" * depth + b"N" + b"sb" * depth + b"."
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", content)
        archive.writestr("net/constants.pkl", PROTOCOL + b").")
    assert f"a name of more than {NAME_LEN_MAX} characters" in refused(tmp_path / "net.pt")


HEADERS = {
    "too large": "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}",
    "without an end": "{'descr': (",
    "of no tokens": "'''",
    "with wrong indents": "  x\n y",
    "of times": "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}",
}


@pytest.mark.parametrize("label", HEADERS)
def test_a_false_header_of_an_array_is_refused(tmp_path: Path, label: str) -> None:
    """numpy raises other errors than ValueError for some."""
    header = f"{HEADERS[label]}\n".encode()
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    (tmp_path / "a.npy").write_bytes(array)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("mean", "scale", "h0", "c0", "x", "y", "weight_ih_l0"):
            archive.writestr(f"{name}.npy", array)
    path = save(Net().state_dict(), tmp_path / "net.pt")
    for flag in ("--input-scaler", "--initial-state", "--golden"):
        refused(path, flag, str(tmp_path / "a.npz"))
    line = refused(path, "--input-mean", str(tmp_path / "a.npy"))
    assert "--input-mean" in line
    assert "give .npy or one number a line" in line
    refused(tmp_path / "a.npz")


def nested(levels: int) -> str:
    """A scaler in YAML whose mean is ten lists of ten lists of ..., by aliases."""
    lists = ["&a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lists += [f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return f"columns: [{', '.join(lists)}]\nmean: [*a{levels - 1}, *a{levels - 1}]\nscale: [1]\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (nested(30), "must be numbers, one for each column"),
        ('{"mean": [1' + "0" * 400 + '], "scale": [1]}', "must be numbers, one for each column"),
        ('{"mean": {"a": 1}, "scale": {"a": 1}, "columns": 5}', "must be the names of the columns"),
        ('{"mean": {"a": 1}, "scale": [1], "columns": [[1]]}', "must be the names of the columns"),
    ],
    ids=["aliases", "digits", "a number of columns", "columns in lists"],
)
def test_a_hostile_scaler_is_refused(tmp_path: Path, content: str, says: str) -> None:
    """One line says so, in little memory."""
    (tmp_path / "s.yml").write_text(content)
    path = save(Net().state_dict(), tmp_path / "net.pt")
    assert says in refused(path, "--input-scaler", str(tmp_path / "s.yml"))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (torch.zeros(1, HIDDEN, device="meta"), "h0 has no data"),
        (torch.ones(1, HIDDEN).to_sparse(), "h0 is sparse"),
        (torch.ones(1, HIDDEN, dtype=torch.complex64), "h0 is complex64"),
        (torch.ones(1, 1).expand(1, HIDDEN), "h0 is larger than its storage"),
    ],
    ids=["without data", "sparse", "complex", "expanded"],
)
def test_an_odd_initial_state_is_refused(tmp_path: Path, state: torch.Tensor, says: str) -> None:
    """Whether it lies beside the LSTM or in a file of its own."""
    start = {"h0": state, "c0": torch.zeros(1, HIDDEN)}
    weights = Net().state_dict()
    path = save(weights, tmp_path / "net.pt")
    assert says in refused(path, "--initial-state", str(save(start, tmp_path / "start.pt")))
    both = save(weights | start, tmp_path / "both.pt")
    assert says in refused(both, "--initial-state", "h0,c0")
    if state.layout != torch.strided or state.is_meta:
        assert says in refused(both)


def test_h_and_c_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    """Their names say which is which, and their shapes are the same."""
    start = {"h0": torch.ones(1, HIDDEN), "c0": torch.ones(1, HIDDEN)}
    path = save(Net().state_dict() | start, tmp_path / "net.pt")
    assert "give h0,c0" in refused(path, "--initial-state", "c0,h0")
    exported(path, "--initial-state", "h0,c0")


def test_text_in_an_npz_is_named(tmp_path: Path) -> None:
    """The names of columns beside the weights are no damage."""
    weights = {name: tensor.numpy() for name, tensor in Net().state_dict().items()}
    np.savez(tmp_path / "net.npz", **weights, columns=np.array(["a", "b"]))
    line = refused(tmp_path / "net.npz")
    assert "columns is an array of <U1" in line
    assert "damaged" not in line


def test_numpy_in_an_old_file_is_named(tmp_path: Path) -> None:
    """A file from before torch 1.6 with a number of numpy is not damaged."""
    content = {"net": Net().state_dict(), "loss": np.float64(3)}
    path = save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert "holds Python objects" in refused(path)
