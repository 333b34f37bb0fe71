"""Backup and restore on files alone: one moment of a log that is written to, and either the old or the new, never half.

The broker's part, and clients, are tests/e2e/test_restore.py's.
"""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from contracts.envelope import read_event
from services.history.backup_note import BackupNote, NoteUnreadable, newest_backup, note_import, read_note
from services.history.continuity import Stream
from services.history.log.port import FIRST_HASH, Cursor, Stored, chain_hash
from services.history.log.sqlite import SqliteLog
from services.history.tools.backup import Backup, BackupRefused, back_up, read_backup
from services.history.tools.restore import Continuation, RestoreRefused, continuation, prepared, put_in_place
from services.history.tools.verify import verify
from tests.conversing import new_id, session_started
from tests.dying_tools import TOLD
from tests.operated import ROOT
from tests.recording import NOW, STREAM

EPOCH = "e" * 32
EARLY, LATE = 40, 90


def quietly(done: int, total: int) -> None:
    """Nobody looks at the bar."""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    (tmp_path / "data").mkdir()
    made = SqliteLog(tmp_path / "data/log.db", EPOCH, NOW)
    append(made, EARLY)
    yield made
    made.close()


def append(log: SqliteLog, until: int) -> None:
    """Events up to this position, and a cursor that has moved as far."""
    while (last := log.cursor().sequence) < until:
        with log.transaction(log.cursor(), Cursor(STREAM, last + 1)) as tx:
            tx.append(Stored(last + 1, 1, NOW, session_started(new_id(), system="x" * 400)))


def at(path: Path) -> tuple[int, str]:
    """A log's last position and its epoch, as history finds them; whole, and its chain from the first event on."""
    found = SqliteLog(path, EPOCH, NOW)
    found.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT position, version, recorded_at, body, hash FROM events ORDER BY 1").fetchall()
    previous = FIRST_HASH
    for place, (position, version, recorded_at, body, found_hash) in enumerate(rows, start=1):
        assert position == place
        stored = Stored(position, version, recorded_at, read_event(body))
        previous = chain_hash(previous, stored, stored.event.data_hash, hashlib.sha256(body).digest())
        assert previous == found_hash
    return len(rows), found.epoch


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_backup_is_one_moment_of_a_log_that_is_written_to(log: SqliteLog, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    told: list[tuple[int, int]] = []

    def write_on(done: int, total: int) -> None:
        told.append((done, total))
        append(log, EARLY + len(told))

    made = back_up(tmp_path / "data/log.db", file, write_on)
    assert log.cursor().sequence > EARLY, "written to meanwhile"
    assert told[-1][0] == told[-1][1]
    with log.look() as tx:
        assert tx.last_position() > made.position == EARLY
    assert made == read_backup(file)
    assert made.cursor == Cursor(STREAM, EARLY)
    assert at(file) == (EARLY, EPOCH)
    assert file.stat().st_mode & 0o777 == 0o600
    note = read_note(tmp_path / "data")
    assert note == BackupNote(str(file), STREAM, EARLY, EARLY, made.hash.hex(), made.made_at)
    assert note.cursor == made.cursor


def test_a_log_that_was_killed_and_one_that_was_closed_are_backed_up(log: SqliteLog, tmp_path: Path) -> None:
    """The first has a -wal that nobody has read, the second none."""
    killed = shutil.copytree(tmp_path / "data", tmp_path / "killed")
    assert (killed / "log.db-wal").stat().st_size > 0
    assert back_up(killed / "log.db", tmp_path / "killed.db", quietly).position == EARLY
    log.close()
    assert not (tmp_path / "data/log.db-wal").exists()
    assert back_up(tmp_path / "data/log.db", tmp_path / "closed.db", quietly).position == EARLY


def test_a_file_that_is_there_is_replaced_only_where_that_is_said(log: SqliteLog, tmp_path: Path) -> None:
    source, file = tmp_path / "data/log.db", tmp_path / "backup.db"
    first = back_up(source, file, quietly)
    append(log, LATE)
    with pytest.raises(BackupRefused, match="is there already"):
        back_up(source, file, quietly)
    assert read_backup(file) == first
    assert back_up(source, file, quietly, force=True).position == LATE
    for place, said in ((tmp_path / "data/b.db", "own folder"), (tmp_path, "not a file"), (tmp_path / "a/b", "not a")):
        with pytest.raises(BackupRefused, match=said):
            back_up(source, place, quietly, force=True)
    with pytest.raises(BackupRefused, match="no log"):
        back_up(tmp_path / "elsewhere/log.db", tmp_path / "other.db", quietly)
    assert names(tmp_path) == ["backup.db", "data"]


def spoil_a_page(file: Path) -> None:
    """Of an index, which nobody needs to find the head."""
    with closing(sqlite3.connect(file)) as connection:
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_events_1'")
        [(size,)] = connection.execute("PRAGMA page_size")
    with file.open("r+b") as handle:
        handle.seek((page - 1) * size)
        handle.write(b"\x07" * size)


def spoil_a_row(file: Path) -> None:
    """In a way that SQLite has nothing against."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE events SET recorded_at = '2020-01-01T00:00:00.000Z' WHERE position = 2")
        connection.commit()


def spoil_the_cursor(file: Path) -> None:
    """It is no event: the chain does not hold it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE cursor SET sequence = sequence - 1")
        connection.commit()


def cut(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def shorten(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DELETE FROM events WHERE position = (SELECT max(position) FROM events)")
        connection.commit()


def a_plain_copy(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE backup")


def write_words(file: Path) -> None:
    file.write_text("not a database, but as long as one" * 1000)


SPOILED = [spoil_a_page, spoil_a_row, spoil_the_cursor, cut, shorten, a_plain_copy, write_words, Path.unlink]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_file_that_is_no_whole_backup_is_refused(log: SqliteLog, tmp_path: Path, spoil: object) -> None:
    file = tmp_path / "backup.db"
    back_up(tmp_path / "data/log.db", file, quietly)
    assert callable(spoil)
    spoil(file)
    with pytest.raises(BackupRefused, match=r"is damaged|is not a backup|there is no"):
        read_backup(file)


def test_a_damaged_log_does_not_go_over_the_last_good_backup(log: SqliteLog, tmp_path: Path) -> None:
    source, file = tmp_path / "data/log.db", tmp_path / "backup.db"
    good = back_up(source, file, quietly)
    spoil_a_row(source)
    with pytest.raises(BackupRefused, match="no backup was made: the log is damaged: position 2: "):
        back_up(source, file, quietly, force=True)
    assert read_backup(file) == good
    assert names(tmp_path) == ["backup.db", "data"]


def test_a_full_disk_leaves_what_was_there(log: SqliteLog, tmp_path: Path) -> None:
    source, file = tmp_path / "data/log.db", tmp_path / "backup.db"
    first = back_up(source, file, quietly)
    append(log, LATE)
    script = (
        "import sys; from pathlib import Path; from services.history.tools.backup import back_up;"
        " back_up(Path(sys.argv[1]), Path(sys.argv[2]), print, force=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, source, file],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )  # fmt: skip
    assert "BackupRefused: no backup was made: d" in done.stderr  # database or disk is full, or disk I/O error
    assert read_backup(file) == first
    assert names(tmp_path) == ["backup.db", "data"]


def test_a_note_that_says_nothing_is_not_the_absence_of_a_backup(tmp_path: Path) -> None:
    assert read_note(tmp_path) is None
    (tmp_path / "backup.json").write_text("{}")
    with pytest.raises(NoteUnreadable, match=r"backup\.json"):
        read_note(tmp_path)


def told(first: int, last: int, created: str = STREAM) -> bytes:
    return f'{{"created": "{created}", "state": {{"first_seq": {first}, "last_seq": {last}, "bytes": 1}}}}'.encode()


NONE = b'{"error": {"description": "stream not found", "code": 404}}'


@pytest.mark.parametrize(
    ("intake", "cursor", "gap"),
    [
        (told(1, 95), Cursor(STREAM, EARLY), None),
        (told(41, 95), Cursor(STREAM, EARLY), None),
        (
            told(61, 95),
            Cursor(STREAM, 60),
            "backup ends at event 40; events 41 to 60 are gone .* begins at 61 and ends at 95",
        ),
        (told(1, 39), Cursor(STREAM, 0), "ends at event 40; .* another stream"),
        (told(1, 95, "another"), Cursor("another", 0), "ends at event 40; .* another stream"),
        (NONE, Cursor(None, 0), "ends at event 40; there is no intake stream"),
    ],
)
def test_a_gap_is_found_and_said_with_its_numbers(
    log: SqliteLog, tmp_path: Path, intake: bytes, cursor: Cursor, gap: str | None
) -> None:
    going_on = continuation(back_up(tmp_path / "data/log.db", tmp_path / "b.db", quietly), intake, tmp_path / "data")
    assert going_on.cursor == cursor
    assert (going_on.gap is None) == (gap is None)
    assert re.search(gap or "^$", going_on.gap or "")


def test_what_was_imported_after_a_backup_is_a_gap_that_no_intake_closes(log: SqliteLog, tmp_path: Path) -> None:
    data, stream = tmp_path / "data", Stream(STREAM, 1, 95, 1)
    backup = back_up(data / "log.db", tmp_path / "first.db", quietly)
    append(log, EARLY + 5)
    note_import(data, EARLY + 3)
    standing = newest_backup(data, stream)
    assert standing is not None
    for gap in (standing.gap, continuation(backup, told(1, 95), data).gap):
        assert gap is not None
        assert "imported up to position 43" in gap
    later = back_up(data / "log.db", tmp_path / "later.db", quietly)
    standing = newest_backup(data, stream)
    assert standing is not None
    assert (standing.gap, continuation(later, told(1, 95), data).gap) == (None, None), "it has them"
    log.close()
    restored(data, backup, backup.cursor)
    assert continuation(backup, told(1, 95), data).gap is None, "the log that had them is gone"


def restored(data: Path, backup: Backup, cursor: Cursor) -> Path | None:
    with prepared(data, Continuation(backup, cursor, None), quietly) as new:
        return put_in_place(new, data, backup.note())


def test_a_restored_log_begins_a_new_epoch_and_nothing_of_the_old_one_is_played_into_it(
    log: SqliteLog, tmp_path: Path
) -> None:
    """The old one was killed: its last events are in a -wal, which belongs to no other log."""
    backup = back_up(tmp_path / "data/log.db", tmp_path / "backup.db", quietly)
    append(log, LATE)
    data = shutil.copytree(tmp_path / "data", tmp_path / "killed")
    assert (data / "log.db-wal").stat().st_size > 0
    kept = restored(data, backup, Cursor(STREAM, 7))
    assert set(names(data)) == {"backup.json", "log.db", "log.lock", str(kept and kept.name)}
    position, epoch = at(data / "log.db")
    assert position == EARLY
    assert epoch != EPOCH
    new = SqliteLog(data / "log.db", EPOCH, NOW)
    assert new.cursor() == Cursor(STREAM, 7)
    with new.transaction(new.cursor(), new.cursor()) as tx:
        tx.append(Stored(EARLY + 1, 1, NOW, session_started(new_id())))
    new.close()
    assert at(data / "log.db") == (EARLY + 1, epoch)
    assert kept is not None
    assert at(kept) == (LATE, EPOCH), "what was there is whole, under another name"
    note = read_note(data)
    assert note is not None
    assert note.position == EARLY, "the newest backup is the one that the log was restored from"


def test_a_log_that_is_gone_or_damaged_is_replaced_all_the_same(log: SqliteLog, tmp_path: Path) -> None:
    backup = back_up(tmp_path / "data/log.db", tmp_path / "backup.db", quietly)
    append(log, LATE)
    for way in ("gone", "damaged"):
        data = shutil.copytree(tmp_path / "data", tmp_path / way)
        (data / "log.db").unlink() if way == "gone" else write_words(data / "log.db")
        kept = restored(data, backup, backup.cursor)
        assert (kept is None) == (way == "gone")
        assert at(data / "log.db")[0] == EARLY, "a -wal without its log is set aside"


def test_a_log_that_somebody_reads_is_not_replaced(log: SqliteLog, tmp_path: Path) -> None:
    backup = back_up(tmp_path / "data/log.db", tmp_path / "backup.db", quietly)
    append(log, LATE)
    log.close()
    with closing(sqlite3.connect(tmp_path / "data/log.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchall()
        with pytest.raises(RestoreRefused, match="another process"):
            restored(tmp_path / "data", backup, backup.cursor)
    assert at(tmp_path / "data/log.db") == (LATE, EPOCH)


def views_at(data: Path, number: int, position: int) -> None:
    """Views that have folded the log up to here."""
    with closing(sqlite3.connect(data / "log.db")) as log:
        [(found,)] = log.execute("SELECT hash FROM events WHERE position = ?", (position,))
    with closing(sqlite3.connect(data / f"views-{number}.db")) as views:
        views.execute("CREATE TABLE checkpoint (position, hash)")
        views.execute("INSERT INTO checkpoint VALUES (?, ?)", (position, found))
        views.commit()


def test_views_that_have_folded_more_are_dropped(log: SqliteLog, tmp_path: Path) -> None:
    data = tmp_path / "data"
    backup = back_up(data / "log.db", tmp_path / "backup.db", quietly)
    append(log, LATE)
    log.close()
    for number, position in ((1, EARLY - 1), (2, LATE)):
        views_at(data, number, position)
    (data / "views-3.db").write_text("not views")
    restored(data, backup, backup.cursor)
    assert [path.name for path in data.glob("views-*")] == ["views-1.db"]
    assert verify(data, quietly, processes=1).holds, "nobody has seen more than the log has"


@pytest.fixture
def template(log: SqliteLog, tmp_path: Path) -> Path:
    """A data folder whose history was killed, and an old backup of it."""
    folder = tmp_path / "template"
    back_up(tmp_path / "data/log.db", tmp_path / "old.db", quietly)
    append(log, LATE)
    shutil.copytree(tmp_path / "data", folder / "data")
    shutil.copy(tmp_path / "old.db", folder / "old.db")
    shutil.copy(tmp_path / "old.db", folder / "new.db")
    return folder


def runs(template: Path, work: str, how: str) -> list[Path]:
    """A folder for each step at which the work ended, and last the one in which it was done."""
    command = [sys.executable, "-m", "tests.dying_tools", str(template), work, how]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    folders = list(template.parent.glob(f"{work}-{how}-*"))
    assert len(folders) > 5
    return sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))


@pytest.mark.parametrize("how", ["killed", "failing"])
def test_a_backup_that_ends_at_any_step_leaves_the_old_or_the_new(template: Path, how: str) -> None:
    *ended, done = runs(template, "back_up", how)
    for folder in (*ended, done):
        position = read_backup(folder / "new.db").position
        assert position in (EARLY, LATE)
        note = read_note(folder / "data")
        assert note is not None
        assert note.position in (EARLY, position)
        if how == "failing":
            assert not list(folder.rglob("*.part"))
        back_up(folder / "data/log.db", folder / "new.db", quietly, force=True)
        assert names(folder) == ["data", "new.db", "old.db"], "what a killed one left is gone"
    assert read_backup(done / "new.db").position == LATE


@pytest.mark.parametrize("how", ["killed", "failing"])
def test_a_restore_that_ends_at_any_step_leaves_the_old_or_the_new(template: Path, how: str) -> None:
    *ended, done = runs(template, "put_back", how)
    assert at(done / "data/log.db")[0] == EARLY
    for folder in ended:
        data = folder / "data"
        position, epoch = at(data / "log.db")
        assert (position == LATE, epoch == EPOCH) in ((True, True), (False, False))
        assert position in (EARLY, LATE)
        note = read_note(data)
        assert note is not None
        with closing(sqlite3.connect(data / "log.db")) as connection:
            head = connection.execute("SELECT hash FROM events WHERE position = ?", (note.position,)).fetchone()
        assert head[0].hex() == note.hash, "the log holds the newest backup, whichever log it is"
        backup = read_backup(folder / "old.db")
        restored(data, backup, continuation(backup, TOLD, data).cursor)
        assert at(data / "log.db")[0] == EARLY, "and once more, to its end"
        assert not list(folder.rglob("*.part"))
