"""Off the road, history/tools/verify: the heads of the log that are kept elsewhere, and whether the log still has them.

A log that lost its newest events cleanly is whole by itself: its chain holds, its positions are dense. What had been
there is known by the views' checkpoints and by the note of the newest backup. Must never write.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from services.history.log.reader import read_only
from services.history.tools.findings import Findings

BACKUP_NOTE = "backup.json"


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log was, as `kept` has it."""

    kept: str
    position: int
    hash: bytes


def heads_in(folder: Path, findings: Findings) -> list[Head]:
    """All that are kept. Read before the log: nobody keeps a head that the log has not yet."""
    return [*_of_views(folder, findings), *_of_backup(folder, findings)]


def check_heads(connection: sqlite3.Connection, heads: list[Head], last: int, findings: Findings) -> None:
    """Whether the log has each of them."""
    for head in heads:
        if head.position > last:
            upto = "" if head.position == last + 1 else f" to {head.position}"
            findings.add(last + 1, f"is missing{upto}: {head.kept} has seen it, the log ends at {last}")
            continue
        try:
            row = connection.execute("SELECT hash FROM events WHERE position = ?", (head.position,)).fetchone()
        except sqlite3.DatabaseError:
            continue  # told where that position is checked
        if row is not None and row[0] != head.hash:
            findings.add(head.position, f"is not the one that {head.kept} has seen")


def _of_views(folder: Path, findings: Findings) -> Iterator[Head]:
    for path in sorted(folder.glob("views-*.db")):
        try:
            with closing(read_only(path)) as connection:
                position, known = connection.execute("SELECT position, hash FROM checkpoint").fetchone()
        except (sqlite3.DatabaseError, TypeError) as error:
            findings.add(0, f"the checkpoint of {path.name} cannot be read ({error}); `chatlog replay` rebuilds views")
            continue
        if position:
            yield Head(path.name, position, known)


def _of_backup(folder: Path, findings: Findings) -> Iterator[Head]:
    try:
        note = json.loads((folder / BACKUP_NOTE).read_bytes())
        yield Head(f"the backup of {note['made_at']}", int(note["position"]), bytes.fromhex(note["hash"]))
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError) as error:
        findings.add(0, f"{BACKUP_NOTE} cannot be read: {error}")
