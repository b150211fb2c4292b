"""The models that are served, each from its loading to its end.

A model is loading, then ready, then retiring, then gone. add() makes a loaded model ready; retire()
ends the opening of sessions, and once the last one has ended sweep() removes the model. Other
modules ask the registry or hold a Model, because positions in a list change when a model is gone.
The table names a session's model by its handle, which no other model gets as long as rows have it.
It must not know how models are read from files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lstmserve.config import Config
from lstmserve.engine.budget import PoolBudget, is_shared
from lstmserve.engine.errors import ModelNotFound, ModelNotHereYet, ModelRetired, ServeError
from lstmserve.engine.model import Life, Model, ModelCounters
from lstmserve.engine.table import SessionTable

NAME_SHOWN_MAX = 128
SERVED_SHOWN_MAX = 8  # models that a refusal names
RETRY_S = 1.0  # a server that loads the new version takes seconds

Counters = Callable[[str, int], ModelCounters]


class ModelRegistry:
    """`counters(name, version)` is where a model counts; `on_idle` and `on_moved` are for its
    scheduler.

    To iterate is to see the models sorted by name and version, as they are at that moment: one may
    be added or removed meanwhile.
    """

    def __init__(
        self,
        config: Config,
        table: SessionTable,
        counters: Counters,
        on_idle: Callable[[int], None],
        on_moved: Callable[[int], None],
    ) -> None:
        self._config = config
        self._table = table
        self._counters = counters
        self._callbacks = on_idle, on_moved
        self._models: dict[tuple[str, int], Model] = {}
        self._by_handle: dict[int, Model] = {}
        self._sorted: tuple[Model, ...] = ()
        self.changes = 0  # counts models that came and went, for whoever keeps what follows
        self.budget = PoolBudget(config, table, self)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._sorted)

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def models(self) -> tuple[Model, ...]:
        """All models in order, as they are now."""
        return self._sorted

    # Finding ------------------------------------------------------------------------------------

    def find(self, name: str, version: int) -> Model:
        """The model; version 0 is the newest that is ready. A retiring version is found too.

        Raises ModelNotFound, ModelRetired, ModelNotHereYet.
        """
        if version > 0 and (found := self._models.get((name, version))) is not None:
            return found
        if version < 0 or not any(model.name == name for model in self._sorted):
            raise ModelNotFound(
                f"no model {_shown(name, version)!r} is served here, but {self._served()}",
                field="model",
            )
        newest = self._newest(name)
        if version or newest is None:
            raise self.missing(name, version)
        return self._models[name, newest]

    def exact(self, name: str, version: int) -> Model | None:
        """The model with this version, ready or retiring."""
        return self._models.get((name, version))

    def of(self, handle: int) -> Model:
        """The model with this handle, which a row of the table has."""
        return self._by_handle[handle]

    def missing(self, name: str, version: int) -> ServeError:
        """The error for a stored session whose version is not served here."""
        newest = max((m.version for m in self._sorted if m.name == name), default=None)
        shown = _shown(name, version)
        if newest is None or version > newest:
            here = "no version of it" if newest is None else f"version {newest} at most"
            return ModelNotHereYet(
                f"model {shown!r} is not served here yet, this server has {here}: repeat the call, "
                "or give the server that version",
                metadata={"model": shown},
                retry_s=RETRY_S,
            )
        return ModelRetired(
            f"model {shown!r} is not served any more; the newest version here is {newest}",
            metadata={"model": shown, "newest": str(newest)},
        )

    def check_opens(self, model: Model) -> None:
        """Raises ModelRetired for a model that opens no session any more."""
        self.check_served(model)
        if model.life is Life.READY:
            return
        shown, newest = _shown(model.name, model.version), self._newest(model.name)
        here = f"the newest version here is {newest}" if newest else "no other version is here"
        raise ModelRetired(
            f"model {shown!r} is being retired and opens no session; {here}",
            metadata={"model": shown, "newest": str(newest or "")},
        )

    def check_served(self, model: Model) -> None:
        """Raises ModelRetired, or ModelNotHereYet, for a model that is gone."""
        if model.life is Life.GONE:
            raise self.missing(model.name, model.version)

    # Life ---------------------------------------------------------------------------------------

    def add(self, model: Model) -> None:
        """Serves a loaded model from now on. Raises PoolTooSmall."""
        key = model.name, model.version
        assert key not in self._models
        assert model.life is Life.LOADING
        self._set({**self._models, key: model})
        try:
            self.budget.join(model)
        except BaseException:
            self._set({each: m for each, m in self._models.items() if m is not model})
            raise
        handle = next(i for i in range(len(self._by_handle) + 1) if i not in self._by_handle)
        self._by_handle[handle] = model
        self._table.extend(self._rows())
        model.attach(handle, self._config, self._table, self._counters(*key), *self._callbacks)
        model.life = Life.READY

    def retire(self, model: Model) -> None:
        """Opens no session of the model from now on; open ones go on."""
        assert model.life is Life.READY
        model.life = Life.RETIRING
        self.changes += 1

    def remove(self, model: Model) -> None:
        """Removes a model at once; it must have neither sessions nor pending steps."""
        assert model.is_idle, f"{model.name}:{model.version} has sessions or pending steps"
        model.life = Life.GONE
        del self._by_handle[model.handle]
        self._set({each: m for each, m in self._models.items() if m is not model})
        if model.pool is not None:
            model.pool.end()
        self.budget.leave(model)
        self._table.extend(self._rows())  # the others can have more sessions now

    def sweep(self) -> bool:
        """Removes idle retiring models, and gives memory back that no session needs.

        It does a little of that at once; returns whether nothing is left.
        """
        for model in self._sorted:
            if model.life is Life.RETIRING and model.is_idle:
                self.remove(model)
        return self.budget.trim()

    def check_integrity(self) -> None:
        """Handles and models are one to one, and the budget is right."""
        assert set(self._by_handle.values()) == set(self._sorted)
        assert all(model.handle == handle for handle, model in self._by_handle.items())
        self.budget.check_integrity()

    def _set(self, models: dict[tuple[str, int], Model]) -> None:
        self._models = models
        self._sorted = tuple(models[key] for key in sorted(models))
        self.changes += 1

    def _rows(self) -> int:
        """The most sessions that can be here at once."""
        pools = [model for model in self._sorted if model.pool]
        shared = [model.slot_bytes for model in pools if is_shared(model)]
        most = sum(model.sessions_max for model in pools)
        if len(shared) == len(pools) and shared:
            most = min(most, self.budget.bytes_max // min(shared))
        return max(1, most)

    def _newest(self, name: str) -> int | None:
        """The newest version that is ready."""
        ready = (m.version for m in self._sorted if m.name == name and m.life is not Life.RETIRING)
        return max(ready, default=None)

    def _served(self) -> str:
        """The names a caller may have meant, for the message."""
        known = sorted({each.name for each in self._sorted})
        more = f" and {len(known) - SERVED_SHOWN_MAX} more" * (len(known) > SERVED_SHOWN_MAX)
        return ", ".join(each[:NAME_SHOWN_MAX] for each in known[:SERVED_SHOWN_MAX]) + more


def _shown(name: str, version: int) -> str:
    """The name, cut so that the message fits into gRPC's trailers."""
    name = name if len(name) <= NAME_SHOWN_MAX else f"{name[:NAME_SHOWN_MAX]}..."
    return f"{name}:{version}" if version else name
