"""Off the road, history/backup_note: which backup of this log is the newest, as data/backup.json says.

Owns that file: `chatlog backup` and `chatlog restore` write it, whole or not at all; the intake's purge keeps what this
backup needs, `chatlog status` says whether it could be restored, `chatlog verify` looks for its head in the log. And
data/imported.json beside it: how far the log holds what never was in the intake. Must never be guessed at: a note that
cannot be read is an error, not the absence of a backup.
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
IMPORTED = "imported.json"


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
    _write(folder, NAME, asdict(note))


def note_import(folder: Path, position: int) -> None:
    """The log was given events up to here that no backup of before can catch up with. Durable when it returns."""
    _write(folder, IMPORTED, {"position": position})


def imported_after(folder: Path, position: int) -> str | None:
    """What a backup that ends at this position lacks for good; None: nothing, as far as this folder knows."""
    try:
        upto = json.loads((folder / IMPORTED).read_bytes())["position"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise NoteUnreadable(f"{folder / IMPORTED}: {error}") from error
    return f"sessions were imported up to position {upto}, which only the log has" if upto > position else None


def forget_imports(folder: Path) -> None:
    """The log that had them is gone."""
    (folder / IMPORTED).unlink(missing_ok=True)


def newest_backup(folder: Path, stream: Stream | None) -> BackupStatus | None:
    """For `chatlog status`: what is known of it, and whether it could be restored with what the intake holds."""
    try:
        note = read_note(folder)
        imported = imported_after(folder, note.position) if note else None
    except NoteUnreadable as error:
        return BackupStatus(file=NAME, made_at=None, position=None, gap=str(error))
    if note is None:
        return None
    gap = gap_between(stream, note.cursor) if stream else "the intake has not been asked yet"
    gap = "; ".join(filter(None, (gap, imported))) or None
    return BackupStatus(file=note.file, made_at=note.made_at, position=note.position, gap=gap)


def _write(folder: Path, name: str, values: dict[str, object]) -> None:
    descriptor, beside = tempfile.mkstemp(prefix=f"{name}.", dir=folder)  # its owner's alone
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(values, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, folder / name)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """What was renamed in it stays so, whatever happens to the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
