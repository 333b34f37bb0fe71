"""The views of a scene's log: a store on real files, and every row that it holds, words among them.

Owns the reading of what has no door. It folds nothing by itself: a test says how far.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.history.log.reader import LogReader
from services.history.views.store import ViewStore
from tests.recording import Scene

# Each word with its row, column and place in it; each row's number of words.
WORDS = ("words_instances", "words_docsize")


@asynccontextmanager
async def opened(on: Scene) -> AsyncIterator[tuple[ViewStore, LogReader]]:
    reader = await LogReader.open(on.path)
    store = await ViewStore.open(on.folder, reader)
    try:
        yield store, reader
    finally:
        await store.close()
        await reader.close()


async def stored(store: ViewStore, *tables: str) -> dict[str, list[Any]]:
    """All rows of these tables."""
    await store.reading.execute(
        "CREATE VIRTUAL TABLE IF NOT EXISTS temp.words_instances USING fts5vocab (main, words, instance)"
    )
    return {
        table: [tuple(row) for row in await store.reading.execute_fetchall(f"SELECT * FROM {table} ORDER BY 1, 2")]
        for table in tables
    }
