"""Off the road, history/tools/look: a session as it was, and what changed in it, from the log's file.

Owns finding it. It reads what is committed, beside a history that runs or without one; deleted sessions too, for who
has the data folder has them. One session is held in memory. Must never write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from contracts.envelope import read_event
from contracts.errors import ContractError
from contracts.queries import At
from services.history.log.port import LogError
from services.history.log.reader import LogReader
from services.history.tools.changes import Changed, Changes
from services.history.views.fold import Recorded, Row
from services.history.views.rows import Rows

ROWS_AT_ONCE = 256
# Beyond every version: the present.
PRESENT = 2**62

Key = tuple[str, str]  # (user_id, session_id)


class NotThere(Exception):
    """There is no such session, or there was none then. The text is one clear line."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A session and its messages, as the views would have had them then."""

    session: Row
    messages: list[Row]


async def session_at(folder: Path, key: Key, at: At) -> Seen:
    """Right after that version, or at that time. Raises NotThere."""
    rows = Rows()
    async with _opened(folder) as log:
        async for recorded in _events(log, key, await _version(log, key, at)):
            rows.fold(recorded)
    found = rows.of("sessions", *key)
    if not found:
        raise NotThere(f"{key[0]} had no session {key[1]} then")
    return Seen(found[0], rows.of("messages", *key))


async def changes_between(folder: Path, key: Key, first: At, last: At) -> list[Changed]:
    """What happened after the one and up to the other, in order. Raises NotThere."""
    changes = Changes(*key)
    async with _opened(folder) as log:
        after, until = [await _version(log, key, at) for at in (first, last)]
        taken = [(recorded.version, changes.take(recorded)) async for recorded in _events(log, key, until)]
    return [change for version, change in taken if change is not None and version > after]


async def _version(log: LogReader, key: Key, at: At) -> int:
    if not await log.version_at(*key, PRESENT):
        raise NotThere(f"{key[0]} has no session {key[1]}; --user says whose it is")
    return await log.version_at(*key, at)


async def _events(log: LogReader, key: Key, until: int) -> AsyncIterator[Recorded]:
    after = 0
    while rows := await log.session_rows(*key, (after, until), ROWS_AT_ONCE):
        for row in rows:
            yield Recorded(row.position, row.version, row.recorded_at, read_event(row.body))
        after = rows[-1].version


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[LogReader]:
    if not (folder / "log.db").exists():
        raise NotThere(f"there is no log in {folder}")
    try:
        log = await LogReader.open(folder / "log.db")
    except sqlite3.Error as error:
        raise NotThere(f"no log can be read in {folder}: {error}") from error
    try:
        yield log
    except (LogError, ContractError) as error:
        raise NotThere(str(error)) from error
    finally:
        await log.close()
