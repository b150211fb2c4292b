"""Published models that others trained, served whole: what streams is their original runtime's."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.published.proof import Compared, count_lines, try_out
from bench.published.recipes import RECIPES, Recipe

FIXTURES = Path(__file__).parent / "fixtures" / "published"
SHORT = {
    "anydrive_actuator": "flags (4)",
    "nam_lstm": "module",
    "sugar_creek": "flags (4)",
    "unitree_g1_walk": "module",
}


def compared(model: str, recipe: Recipe, folder: Path) -> Compared:
    """The figures of a recipe, which must be served."""
    result = try_out(FIXTURES / model, recipe, folder)
    print(result)
    assert result.compared is not None
    return result.compared


def served_whole(model: str, way: str, folder: Path) -> None:
    """Exports, serves and compares."""
    (recipe,) = (each for each in RECIPES[model] if each.way == way)
    found = compared(model, recipe, folder)
    assert found.share <= 1
    assert found.is_exact


@pytest.mark.parametrize("model", SHORT)
def test_a_published_model_is_served_whole(model: str, tmp_path: Path) -> None:
    """Steps, ragged batches and whole sequences give the original runtime's y, and the same
    bits."""
    served_whole(model, SHORT[model], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model", ["anydrive_actuator", "sugar_creek"])
def test_states_as_arguments_of_forward(model: str, tmp_path: Path) -> None:
    """The long form: modules whose forward() takes and returns states, as a pair and apart."""
    served_whole(model, "module", tmp_path)


def test_a_lost_start_is_seen(tmp_path: Path) -> None:
    """The amplifier's weights without its learned start are beyond the gate."""
    assert compared("nam_lstm", Recipe("nam.pt"), tmp_path).share > 1


def test_the_users_lines_are_counted() -> None:
    """Lines of code alone count."""
    assert count_lines("unitree_g1_walk") == 15
