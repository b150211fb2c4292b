"""Writes to a store until it is killed, and prints after each put which steps are stored.

It is a program: `python store_writer.py URL`. It continues from the steps that it finds.
"""

from __future__ import annotations

import asyncio
import sys

from lstmserve.store import Version, Written, open_store, version_of
from storing import write

KEYS = [f"/session-{i}" for i in range(8)]


async def main(url: str) -> None:
    """One line per put, "STEP ... STEP .": the steps now stored of KEYS."""
    store = open_store(url)
    assert store
    found = [version_of(raw) if raw else None for raw in await store.load(KEYS)]
    while True:
        new = [Version(1, 1, v.step + 1 if v else 1) for v in found]
        writes = [write(*item, size=4096) for item in zip(KEYS, found, new, strict=True)]
        assert await store.put(writes) == [Written.OK] * len(KEYS)
        print(*(v.step for v in new), ".", flush=True)
        found = list(new)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
