"""Off the road, history/tools/restore: a backup takes the log's place, whole or not at all, under a new epoch.

Owns the swap. The log that was there is kept under a dated name; views that have folded what the new one does not say
are dropped, as history would at its start. Must never touch the log before the new one is whole, checked and synced.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.history.backup_note import (
    BackupNote,
    NoteUnreadable,
    forget_imports,
    imported_after,
    sync_folder,
    write_note,
)
from services.history.continuity import Stream, check_stream, gap_between, read_stream
from services.history.log.port import Cursor
from services.history.log.reader import read_only
from services.history.log.sqlite import LogLocked, put_cursor, put_epoch, take_lock
from services.history.tools.backup import (
    BESIDE,
    Backup,
    BackupRefused,
    Progress,
    copy_log,
    head_of,
    new_file_beside,
    sync_file,
)
from services.history.views.store import remove_views

LOG = "log.db"
# An error code of SQLite without what is added to it.
_PRIMARY = 0xFF
# The server's words where there is no stream of a name.
_NO_STREAM = "stream not found"


class RestoreRefused(Exception):
    """Nothing was replaced. The text is one clear line."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a backup goes on in the intake. gap: what would be missing between them, with the numbers."""

    backup: Backup
    cursor: Cursor
    gap: str | None


def continuation(backup: Backup, intake: bytes, folder: Path) -> Continuation:
    """intake: what the server says of the stream. Raises RestoreRefused where that says nothing, or a note does not."""
    stream = read_stream(intake)
    if stream == _NO_STREAM:
        cursor = Cursor(None, 0)  # whichever stream is made is followed from its start
        followed = backup.cursor.stream_created is not None
        gap = "there is no intake stream: what was accepted after it and not recorded is gone" if followed else None
    elif isinstance(stream, Stream):
        cursor = check_stream(stream, backup.cursor, accept_gap=True)
        gap = gap_between(stream, backup.cursor)
    else:
        raise RestoreRefused(f"the intake cannot be asked: {stream}")
    try:
        gaps = [gap, imported_after(folder, backup.position)]
    except NoteUnreadable as error:
        raise RestoreRefused(str(error)) from error
    told = "; ".join(filter(None, gaps))
    return Continuation(backup, cursor, f"the backup ends at event {backup.cursor.sequence}; {told}" if told else None)


@contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """No history writes to this log, nor starts to. Raises RestoreRefused."""
    try:
        lock = take_lock(folder / f"{Path(LOG).stem}.lock")
    except LogLocked as error:
        raise RestoreRefused(f"{error}: stop history first") from error
    with lock:
        yield


@contextmanager
def prepared(folder: Path, going_on: Continuation, progress: Progress) -> Iterator[Path]:
    """The new log beside the old one, whole and synced. Raises BackupRefused or OSError."""
    file = going_on.backup.file
    with new_file_beside(folder / LOG) as part:
        try:
            copy_log(file, part, progress)
            _renew(part, going_on)
        except sqlite3.Error as error:
            raise BackupRefused(f"{file} cannot be copied into {folder}: {error}") from error
        sync_file(part)
        yield part


def put_in_place(new: Path, folder: Path, note: BackupNote) -> Path | None:
    """Replace the log; where the one before is kept, if there was one. Raises RestoreRefused or OSError."""
    # Before the log: whoever is killed between has a log that may hold more than the newest backup, never less.
    write_note(folder, note)
    kept = _set_aside(folder / LOG, f"log-{datetime.now(UTC):%Y-%m-%dT%H%M%S}Z.db")
    os.replace(new, folder / LOG)
    sync_folder(folder)
    forget_imports(folder)
    _drop_views(folder)
    return kept


def _renew(part: Path, going_on: Continuation) -> None:
    """Clients that were shown more than this log says must begin again, also where nothing tells history so."""
    backup, cursor = going_on.backup, going_on.cursor
    with closing(sqlite3.connect(part, isolation_level=None)) as connection:
        if head_of(connection) != (backup.position, backup.hash):
            raise sqlite3.DatabaseError("it has changed meanwhile")
        connection.execute("BEGIN")
        connection.execute("DROP TABLE backup")
        put_epoch(connection, uuid.uuid4().hex)
        put_cursor(connection, cursor)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # as history has its log


def _set_aside(log: Path, name: str) -> Path | None:
    """Give the log a second name, and leave nothing beside the first: its -wal would be played into the next log."""
    kept = log.with_name(name) if log.exists() else None
    if kept:
        _close_for_good(log)
    for suffix in BESIDE:
        left = Path(f"{log}{suffix}")
        if left.exists():
            left.rename(log.with_name(f"{name}{suffix}"))
    if kept:
        os.link(log, kept)
    sync_folder(log.parent)
    return kept


def _close_for_good(log: Path) -> None:
    """What is in its -wal goes into the log; one that is damaged is kept as it is."""
    try:
        with closing(sqlite3.connect(log, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & _PRIMARY not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise RestoreRefused(f"{log} cannot be closed, another process may read it: {error}") from error


def _drop_views(folder: Path) -> None:
    with closing(read_only(folder / LOG)) as log:
        for views in folder.glob("views-*.db"):
            if not _follow(views, log):
                remove_views(views)


def _follow(views: Path, log: sqlite3.Connection) -> bool:
    """Whether the log has what they have folded last."""
    try:
        with closing(read_only(views)) as connection:
            position, known = connection.execute("SELECT position, hash FROM checkpoint").fetchone()
    except (sqlite3.DatabaseError, TypeError):
        return False
    found = log.execute("SELECT hash FROM events WHERE position = ?", (position,)).fetchone()
    return bool(found == (known,))
