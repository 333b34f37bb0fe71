"""Off the road, history/backup_note: which backup of this log is the newest, as data/backup.json says.

Owns that file: `chatlog backup` and `chatlog restore` write it, whole or not at all; the intake's purge keeps what this
backup needs, `chatlog status` says whether it could be restored, `chatlog verify` looks for its head in the log. Must
never be guessed at: one that cannot be read is an error, not the absence of a backup.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from contracts.queries import BackupStatus
from services.history.continuity import Stream, gap_between
from services.history.log.port import Cursor

NAME = "backup.json"


class NoteUnreadable(RuntimeError):
    """There is a backup.json that says nothing."""


@dataclass(frozen=True, slots=True)
class BackupNote:
    """file: where it was written to. stream, sequence: its cursor. position, hash (hex): its head."""

    file: str
    stream: str | None
    sequence: int
    position: int
    hash: str
    made_at: str

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.stream, self.sequence)


def read_note(folder: Path) -> BackupNote | None:
    """None: no backup was ever made. Raises NoteUnreadable."""
    try:
        return BackupNote(**json.loads((folder / NAME).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as error:
        raise NoteUnreadable(f"{folder / NAME}: {error}") from error


def write_note(folder: Path, note: BackupNote) -> None:
    """Durable when it returns."""
    descriptor, beside = tempfile.mkstemp(prefix=f"{NAME}.", dir=folder)  # its owner's alone
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(asdict(note), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, folder / NAME)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(folder)


def newest_backup(folder: Path, stream: Stream | None) -> BackupStatus | None:
    """For `chatlog status`: what is known of it, and whether it could be restored with what the intake holds."""
    try:
        note = read_note(folder)
    except NoteUnreadable as error:
        return BackupStatus(file=NAME, made_at=None, position=None, gap=str(error))
    if note is None:
        return None
    gap = gap_between(stream, note.cursor) if stream else "the intake has not been asked yet"
    return BackupStatus(file=note.file, made_at=note.made_at, position=note.position, gap=gap)


def sync_folder(folder: Path) -> None:
    """What was renamed in it stays so, whatever happens to the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
