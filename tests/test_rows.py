"""Rows of several tensors in one array: what is packed is split, and what is unknown is marked."""

from __future__ import annotations

import numpy as np
import pytest

from lstmserve.rows import RowFormat, make_unknown
from lstmserve.spec import TensorSpec

VECTOR, MATRIX = TensorSpec("v", (3,)), TensorSpec("m", (2, 2))
NUMBER, COUNTS = TensorSpec("n", (), "int64"), TensorSpec("c", (2,), "int64")
FORMATS = {
    "a vector": (VECTOR,),
    "two of float32": (MATRIX, VECTOR),
    "an integer": (NUMBER,),
    "two of int64": (NUMBER, COUNTS),
    "both, mixed": (NUMBER, MATRIX, COUNTS, VECTOR),
}


def random_tensors(form: RowFormat, *lead: int) -> dict[str, np.ndarray]:
    """Values [*lead, *shape] of each tensor."""
    rng = np.random.default_rng(0)
    return {
        each.name: (rng.standard_normal((*lead, *each.shape)) * 1e6).astype(each.dtype)
        for each in form.tensors
    }


@pytest.mark.parametrize("lead", [(5,), (4, 3), (0,)])
@pytest.mark.parametrize("tensors", FORMATS.values(), ids=FORMATS)
def test_what_is_packed_is_split(tensors: tuple[TensorSpec, ...], lead: tuple[int, ...]) -> None:
    """For any mixture and any axes of time and batch, in the spec's order."""
    form = RowFormat(tensors)
    wanted = random_tensors(form, *lead)
    rows = form.pack(wanted)
    assert rows.shape == (*lead, *form.axes)
    assert rows.nbytes == form.bytes * int(np.prod(lead))
    found = form.split(rows)
    assert list(found) == [each.name for each in tensors]
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("tensors", FORMATS.values(), ids=FORMATS)
def test_a_row_has_its_floats_and_then_its_integers(tensors: tuple[TensorSpec, ...]) -> None:
    """In the spec's order each: that is what the wire has, and what a digest covers."""
    form = RowFormat(tensors)
    values = random_tensors(form, 2)
    parts = {"float32": form.floats_of, "int64": form.ints_of}
    rows, sides = form.pack(values), []
    for dtype, part in parts.items():
        own = [values[each.name].reshape(2, -1) for each in tensors if each.dtype == dtype]
        found = part(rows)
        sides.append(found)
        assert (found is None) == (not own)
        if own:
            np.testing.assert_array_equal(found, np.concatenate(own, axis=1))
    joined = form.join(*sides)
    assert joined.tobytes() == rows.tobytes()
    if any(side is None for side in sides):
        assert np.shares_memory(joined, rows), "rows of one dtype are copied"


@pytest.mark.parametrize("tensors", FORMATS.values(), ids=FORMATS)
def test_unknown_rows_are_nan_and_0(tensors: tuple[TensorSpec, ...]) -> None:
    """Also where something was."""
    form = RowFormat(tensors)
    for rows in (form.unknown(2, 3), form.pack(random_tensors(form, 2, 3))):
        make_unknown(rows)
        for name, array in form.split(rows).items():
            is_float = array.dtype == np.float32
            assert np.isnan(array).all() if is_float else not array.any(), name
