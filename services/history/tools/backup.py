"""Off the road, history/tools/backup: a copy of the log, made while history writes to it, that says what it holds.

Owns the backup file: a log of one moment with one table more, which names its head, when and by which version it was
made. It gets its name once it is whole, synced and checked; until then there is what was there before. Must never write
to the log.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from contracts.base import time_text
from services.history.backup_note import BackupNote, sync_folder, write_note
from services.history.log.earlier import UNSEALED, take_up
from services.history.log.port import FIRST_HASH, Cursor
from services.history.log.reader import read_only
from services.history.log.sqlite import SCHEMA_VERSION
from services.history.tools.findings import Findings
from services.history.tools.verify_rows import Walk
from services.history.tools.verify_tables import check_tables, made_before_seals
from services.runtime.version import VERSION

# Of each step of a copy, after which its progress is told.
_STEP_PAGES = 4096
# What SQLite keeps beside a database.
BESIDE = ("-wal", "-shm", "-journal")
_STAMP = """
CREATE TABLE backup (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    made_at  TEXT NOT NULL,
    version  TEXT NOT NULL,     -- of the Chatlog that made it
    position INTEGER NOT NULL,  -- the log's last one, and the chain's hash there
    hash     BLOB NOT NULL
) STRICT
"""

# Told again and again how many of how many pages are copied.
Progress = Callable[[int, int], None]


class BackupRefused(Exception):
    """No backup was made, or this file is not one. The text is one clear line."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is whole. cursor: how far its log has consumed the intake; position, hash: its head."""

    file: Path
    made_at: str
    version: str
    cursor: Cursor
    position: int
    hash: bytes

    def note(self) -> BackupNote:
        cursor = self.cursor
        file = str(self.file.absolute())
        return BackupNote(file, cursor.stream_created, cursor.sequence, self.position, self.hash.hex(), self.made_at)


def back_up(log: Path, file: Path, progress: Progress, *, force: bool = False) -> Backup:
    """Copy the log of this moment into file, and note that it is the newest backup. Raises BackupRefused or OSError."""
    _check_place(log, file)
    _check_room(log, file.parent)
    _check_free(file, force)
    with new_file_beside(file) as part:
        try:
            copy_log(log, part, progress)
            _stamp(part)
        except sqlite3.Error as error:
            raise BackupRefused(f"no backup was made: {error}") from error
        if (damage := _damage_of(part)) is not None:
            raise BackupRefused(f"no backup was made: the log is damaged: {damage}; `chatlog verify` says more")
        made = _read(part)
        sync_file(part)
        _check_free(file, force)
        os.replace(part, file)
    sync_folder(file.parent)
    made = replace(made, file=file)
    write_note(log.parent, made.note())
    return made


def read_backup(file: Path) -> Backup:
    """What it says of itself, once each of its rows is found to be what was written. Raises BackupRefused."""
    if not file.exists():
        raise BackupRefused(f"there is no {file}")
    made = _read(file)
    if (damage := _damage_of(file)) is not None:
        raise BackupRefused(f"{file} is damaged: {damage}")
    return made


def _read(file: Path) -> Backup:
    try:
        with closing(read_only(file)) as connection:
            [(made_at, version, position, head)] = connection.execute(
                "SELECT made_at, version, position, hash FROM backup"
            ).fetchall()
            if head_of(connection) != (position, head):
                raise BackupRefused(f"{file} is damaged: its last event is not the one at {position} that it names")
            return Backup(file, made_at, version, _cursor_of(connection), position, head)
    except (sqlite3.Error, ValueError) as error:
        raise BackupRefused(f"{file} is not a backup that can be read: {error}") from error


def _damage_of(file: Path) -> str | None:
    """What is wrong with it first: SQLite's word of its pages, or a row that is not what was written. A copy that went
    over the last good one would be worse than none.
    """
    findings = Findings()
    try:
        with closing(read_only(file)) as connection:
            [(found,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                return str(found)
            if not made_before_seals(file):
                check_tables(connection, findings)
            position, _ = head_of(connection)
            connection.text_factory = bytes
            Walk(connection, findings, lambda events: None).walk(1, position)
    except sqlite3.Error as error:
        return str(error)
    for each in findings.told():
        return f"position {each.position}: {each.what}" if each.position else each.what
    return None


def copy_log(source: Path, target: Path, progress: Progress) -> None:
    """One moment of source, whatever is written to it meanwhile, in today's schema. target is there, and empty. Raises
    sqlite3.Error.
    """
    with closing(read_only(source)) as log, closing(_writing(target)) as copy:
        found = log.execute("PRAGMA user_version").fetchone()[0]
        if found not in (UNSEALED, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"{source} has schema {found}; this version reads {SCHEMA_VERSION}")
        # An open transaction is the moment: without it every write of history's would make the copy begin again.
        log.execute("BEGIN")
        log.execute("SELECT epoch FROM log").fetchall()
        copy.execute("PRAGMA synchronous = OFF")  # it is synced whole, before it gets its name
        log.backup(copy, pages=_STEP_PAGES, progress=lambda _, left, total: progress(total - left, total))
        if found == UNSEALED:
            take_up(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, that is read without writing beside it


@contextmanager
def new_file_beside(file: Path) -> Iterator[Path]:
    """A new file in the same folder, its owner's alone, gone at the end unless it was renamed. Those that killed ones
    have left go too.
    """
    for left in file.parent.glob(f".{glob.escape(file.name)}.*.part"):
        _remove_unless_held(left)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield Path(name)
    finally:
        _remove(Path(name))
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def head_of(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """The log's last position, and the chain's hash there."""
    found = connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
    return found or (0, FIRST_HASH)


def _writing(path: Path) -> sqlite3.Connection:
    """To a file that is there: none is made."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)


def _cursor_of(connection: sqlite3.Connection) -> Cursor:
    return Cursor(*connection.execute("SELECT stream_created, sequence FROM cursor").fetchone())


def _stamp(copy: Path) -> None:
    with closing(_writing(copy)) as connection:
        connection.execute("BEGIN")
        connection.execute(_STAMP)
        made_at = time_text(datetime.now(UTC))
        connection.execute("INSERT INTO backup VALUES (1, ?, ?, ?, ?)", (made_at, VERSION, *head_of(connection)))
        connection.execute("COMMIT")


def _check_place(log: Path, file: Path) -> None:
    if not log.exists():
        raise BackupRefused(f"there is no log at {log}; CHATLOG_DATA_DIR or --data-dir names another folder")
    if file.is_dir() or not file.parent.is_dir():
        raise BackupRefused(f"{file} is not a file in a folder that is there")
    if file.resolve().parent == log.resolve().parent:
        raise BackupRefused(f"{file.parent} is Chatlog's own folder: a backup belongs elsewhere, best on another disk")


def _check_room(log: Path, folder: Path) -> None:
    needed = sum(part.stat().st_size for part in (log, Path(f"{log}-wal")) if part.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BackupRefused(f"{folder} has {free} bytes free, and the backup needs {needed}")


def _check_free(file: Path, force: bool) -> None:
    if file.exists() and not force:
        raise BackupRefused(f"{file} is there already; --force replaces it")


def _remove_unless_held(left: Path) -> None:
    with left.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody is at work on it
        _remove(left)


def _remove(path: Path) -> None:
    for suffix in ("", *BESIDE):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
