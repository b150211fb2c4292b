"""Published models that others trained, served whole: what streams is their original runtime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.published.loop import calls
from bench.published.proof import Compared, count_lines, try_out
from bench.published.recipes import RECIPES, Recipe
from onnxfiles import looped

FIXTURES = Path(__file__).parent / "fixtures" / "published"
# Three are TorchScript programs, as published.
SHORT = [
    ("anydrive_actuator", "anydrive_v3_lstm.pt", "flags (3)"),
    ("nam_lstm", "lstm.nam", "dict"),
    ("nam_lstm", "lstm.nam", "module"),
    ("sugar_creek", "sugar_creek_trained.pt", "flags (4)"),
    ("unitree_g1_walk", "unitree_g1_motion.pt", "flags (1)"),
    ("unitree_g1_walk", "unitree_sd.pt", "module"),
]


def compared(model: str, recipe: Recipe, folder: Path) -> Compared:
    """The figures of a recipe, which must be served."""
    result = try_out(FIXTURES / model, recipe, folder)
    print(result)
    assert result.compared is not None
    return result.compared


def served_whole(model: str, file: str, way: str, folder: Path) -> None:
    """Exports, serves and compares."""
    (recipe,) = (each for each in RECIPES[model] if (each.file, each.way) == (file, way))
    found = compared(model, recipe, folder)
    assert found.share <= 1
    assert found.is_exact


@pytest.mark.parametrize(("model", "file", "way"), SHORT)
def test_a_published_model_is_served_whole(model: str, file: str, way: str, tmp_path: Path) -> None:
    """Steps, ragged batches and whole sequences give the original runtime's y, and the same
    bits."""
    served_whole(model, file, way, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "file"),
    [("anydrive_actuator", "anydrive_sd.pt"), ("sugar_creek", "sugar_sd.pt")],
)
def test_states_as_arguments_of_forward(model: str, file: str, tmp_path: Path) -> None:
    """The long form: modules whose forward() takes and returns states, as a pair and apart."""
    served_whole(model, file, "module", tmp_path)


def test_a_lost_start_is_seen(tmp_path: Path) -> None:
    """The amplifier's weights without its learned start are beyond the gate."""
    assert compared("nam_lstm", Recipe("nam.pt"), tmp_path).share > 1


def test_an_onnx_file_is_compared_with_a_loop(tmp_path: Path) -> None:
    """Every output and every state of an imported file is that of onnxruntime, step by step."""
    folder = tmp_path / "looped"
    folder.mkdir()
    (folder / "looped.onnx").write_bytes(looped())
    pairs = tuple(f"{each}:{each}_out" for each in ("memory", "ticks", "loud"))
    recipe = Recipe("looped.onnx", (f"--state={','.join(pairs)}",), states=pairs)
    x = np.random.default_rng(3).standard_normal((12, 4)).astype(np.float32)
    given = [call.outputs["score"] for call in calls(folder / recipe.file, recipe.pairs, x)]
    np.savez(folder / "io.npz", x=x, y=np.stack(given).reshape(12, 3))
    result = try_out(folder, recipe, tmp_path / "models")
    assert result.said == ""
    assert result.compared is not None
    assert result.compared.of_loop == 0
    assert result.compared.share == 0


def test_the_users_lines_are_counted() -> None:
    """Lines of code alone count."""
    assert count_lines("unitree_g1_walk") == 15
