"""What the operator asks of an import: the flags of `lstmserve import`, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from lstmserve.spec import WindowFill
from lstmserve_export.target import Target

EVERY: Final = ""  # the name that stands for every tensor
PATHS = ("file", "golden", "initial_state", "models")


@dataclass(frozen=True, slots=True)
class Request:
    """Every name is one of the file's own.

    `states` are pairs "IN:OUT"; `inputs` and `outputs` are to be served, in this order, and if they
    are empty all that there are; `constants` have the text of a value by input; `batch_axes` have
    the axis of the sessions by tensor or for EVERY one, None: it has none. `rows` is the number
    of rows that one step takes along the axis of time, 0: the graph decides.
    """

    file: Path
    name: str
    states: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    constants: Mapping[str, str] = field(default_factory=dict)
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    rows: int = 0
    window: int = 0
    window_fill: WindowFill | None = None
    golden: Path | None = None
    initial_state: Path | None = None
    models: Path = Path("models")
    version: int | None = None
    force: bool = False
    dry_run: bool = False

    @property
    def target(self) -> Target:
        """Where the model goes."""
        return Target(self.name, self.models, self.version, self.force, self.dry_run)

    def to_json(self) -> str:
        """JSON; from_json(to_json()) is equal to self."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Reads what to_json() wrote."""
        values: dict[str, Any] = json.loads(text)
        for each in fields(cls):
            value = values[each.name]
            if each.name in PATHS and value is not None:
                values[each.name] = Path(value)
            elif isinstance(value, list):
                values[each.name] = tuple(value)
        return cls(**values)
