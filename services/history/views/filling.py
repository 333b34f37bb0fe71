"""Step 10, history/views/filling: stretches of the log become batches of the views, a few events or a million.

Owns both ways: in this process, or, where the views are far behind, in one beside it that folds while this one writes
(`python -m services.history.views.filling`). Must never change anything but the views that it is given.
"""

from __future__ import annotations

import gc
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from contracts.envelope import read_event
from contracts.errors import ContractError
from services.history.log.port import LogError, LogUnreadable
from services.history.log.reader import ROW_SQL, LogRow, read_only
from services.history.views.batch import Batch, Heads
from services.history.views.fold import Recorded, fold
from services.history.views.tables import VIEWS, View, ViewTables

# One transaction, and one message between the two processes: most turns lie within one, and it takes 30 MB (measured).
BATCH_EVENTS = 16_384
# Less than this is folded sooner than a process starts.
FAR_EVENTS = 4 * BATCH_EVENTS
# One batch is being written and one is on its way while the next is folded: what they change is not stored yet.
HEADS_KEPT = 4 * BATCH_EVENTS

Told = Callable[[int], None]


def fold_rows(after: int, rows: Iterable[LogRow], heads: Heads) -> Batch:
    """What these rows, which follow `after`, change in the views. Raises LogUnreadable."""
    batch = Batch(after)
    for row in rows:
        for change in fold(_recorded(row), heads.of):
            heads.keep(change)
            batch.add(change)
        batch.position, batch.hash = row.position, row.hash
    heads.shrink()
    return batch


def fill(log: Path, tables: ViewTables, last: int, told: Told, only: frozenset[View] = VIEWS) -> None:
    """Fold the log into these tables, up to this position. told: each position that is stored, and can be gone on from.

    Raises LogError, or sqlite3.Error from the tables.
    """
    position, _ = tables.checkpoint() or (0, None)
    if position >= last:
        return
    folded = _folded_beside if last - position >= FAR_EVENTS else _folded_here
    with tables.in_bulk(), folded(log, tables, position, last) as batches:
        for batch in batches:
            tables.write(batch, only)
            told(batch.position)
            position = batch.position
    if position < last:
        raise LogError(f"the fold ended at {position}, before {last}")


@contextmanager
def _folded_here(log: Path, tables: ViewTables, after: int, last: int) -> Iterator[Iterator[Batch]]:
    with closing(read_only(log)) as connection:
        yield _batches(connection, Heads(tables.head_of, HEADS_KEPT), after, last)


@contextmanager
def _folded_beside(log: Path, tables: ViewTables, after: int, last: int) -> Iterator[Iterator[Batch]]:
    """The other process ends with this one: what it writes to is gone."""
    command = [sys.executable, "-m", __name__, str(log), str(tables.path), str(after), str(last)]
    # A session of its own: Ctrl-C is for this process, which ends the other one.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield _received(process.stdout)
        finally:
            process.kill()


def _received(pipe: IO[bytes]) -> Iterator[Batch]:
    while True:
        try:
            received = pickle.load(pipe)
        except EOFError:
            return
        if isinstance(received, LogError):
            raise received
        yield received


def _batches(connection: sqlite3.Connection, heads: Heads, after: int, last: int) -> Iterator[Batch]:
    while after < last:
        # A read of its own for each batch: a long one would keep the log's writer from taking up its write-ahead log.
        of_batch = (after, min(BATCH_EVENTS, last - after))
        rows = connection.execute(f"{ROW_SQL} WHERE position > ? ORDER BY position LIMIT ?", of_batch)
        batch = fold_rows(after, (LogRow(*row) for row in rows), heads)
        if batch.position == after:
            return
        yield batch
        after = batch.position


def _recorded(row: LogRow) -> Recorded:
    try:
        return Recorded(row.position, row.version, row.recorded_at, read_event(row.body))
    except ContractError as error:
        raise LogUnreadable(f"position {row.position} of the log: {error.reason}") from error


def _fold_for_another(log: Path, views: Path, after: int, last: int, pipe: IO[bytes]) -> None:
    # Nothing here makes cycles; looking for them took a quarter of a busy service's time (runtime/lifecycle).
    gc.disable()
    with closing(read_only(log)) as connection, closing(read_only(views)) as stored:

        def head_of(user_id: str, session_id: str) -> str | None:
            sql = "SELECT head FROM sessions WHERE user_id = ? AND session_id = ?"
            found = stored.execute(sql, (user_id, session_id)).fetchone()
            return found[0] if found else None

        try:
            for batch in _batches(connection, Heads(head_of, HEADS_KEPT), after, last):
                pickle.dump(batch, pipe, pickle.HIGHEST_PROTOCOL)
                pipe.flush()
        except LogError as error:
            pickle.dump(error, pipe)
        except sqlite3.Error as error:
            pickle.dump(LogError(f"the log cannot be read: {error}"), pipe)


if __name__ == "__main__":
    log_path, views_path, first, end = sys.argv[1:]
    _fold_for_another(Path(log_path), Path(views_path), int(first), int(end), sys.stdout.buffer)
