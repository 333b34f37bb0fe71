"""Off the road, history/tools/replay: rebuild the views from the log beside those that serve, and compare the two.

Owns rebuild.db, which history never takes for views: it has no number until it is finished and asked for. One that was
cancelled or killed is gone on with at its checkpoint. Side effects are impossible: all that it is given is the log, to
read, and a file of its own. Must never write to views that serve.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from services.history.log.port import LogError
from services.history.log.reader import read_only
from services.history.log.sqlite import LogLocked, take_lock
from services.history.tools.compare import Comparison, compare
from services.history.views.filling import FAR_EVENTS, Told, fill
from services.history.views.store import REBUILD, adopt, newest_views, remove_views
from services.history.views.tables import VIEWS, View, ViewTables

_COPIED_PAGES = 4096
# Where the kernel has no idle class.
NICENESS = 19

# What a view's rows are made from: they are rebuilt with it.
_WITH: dict[View, frozenset[View]] = {
    "sessions": frozenset({"sessions"}),
    "messages": frozenset({"sessions", "messages"}),
    "turns": frozenset({"turns"}),
    "words": frozenset({"sessions", "messages", "words"}),
}


class ReplayFailed(Exception):
    """The views could not be rebuilt. The text is one clear line."""


class Rebuild:
    """The rebuild of one data folder, as far as it is."""

    def __init__(self, folder: Path, only: View | None) -> None:
        self._log = folder / "log.db"
        self._folder = folder
        self._only = only
        self.path = folder / REBUILD
        if not self._can_go_on():
            remove_views(self.path)
            self._begin()
        self._tables = ViewTables(self.path)
        # Up to here the views that are not rebuilt are what they were copied as.
        self._goal = _rebuilding(self.path)[1]

    @property
    def position(self) -> int:
        found = self._tables.checkpoint()
        assert found is not None
        return found[0]

    def run(self, told: Told) -> Comparison:
        """Fold the log, and compare with the views that serve, both at one position.

        told: each position from which the rebuild can be gone on with. Raises LogError or sqlite3.Error.
        """
        if self.last - self.position >= FAR_EVENTS:
            _step_back()
        fill(self._log, self._tables, self._goal, told, _WITH[self._only] if self._only else VIEWS)
        serving = newest_views(self._folder)
        # They may fold on: what is left between is short, and is folded while they are held at one position.
        fill(self._log, self._tables, min(_position_of(serving) if serving else self.last, self.last), told)
        if serving is None:
            return Comparison(self.position, "no views serve yet", [])
        return compare(serving, self.path, lambda position: fill(self._log, self._tables, position, told))

    def finish(self, told: Told) -> int:
        """Fold what has come since, and close the file whole. Its position."""
        fill(self._log, self._tables, self.last, told)
        position = self.position
        self._tables.close()
        return position

    @property
    def last(self) -> int:
        """The log's last position."""
        with closing(read_only(self._log)) as log:
            [(last,)] = log.execute("SELECT coalesce(max(position), 0) FROM events")
        return int(last)

    def close(self) -> None:
        """It can be gone on with."""
        self._tables.close()

    def remove(self) -> None:
        self.close()
        remove_views(self.path)

    def _can_go_on(self) -> bool:
        """Whether what is there is a part of this rebuild: of the same views, from this very log."""
        if not self.path.exists():
            return False
        try:
            with closing(ViewTables(self.path)) as tables:
                found = tables.checkpoint()
            if found is None or _rebuilding(self.path)[0] != self._only:
                return False
        except (sqlite3.DatabaseError, ValueError):
            return False
        with closing(read_only(self._log)) as log:
            there = log.execute("SELECT position, hash FROM events WHERE position = ?", (found[0],)).fetchone()
        return found[0] == 0 or there == found

    def _begin(self) -> None:
        goal = self._copy() if self._only else 0
        ViewTables(self.path).close()
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for view in sorted(_WITH[self._only]) if self._only else ():
                emptied = "INSERT INTO words (words) VALUES ('delete-all')"
                connection.execute(emptied if view == "words" else f"DELETE FROM {view}")
            connection.execute("UPDATE checkpoint SET position = 0, hash = NULL")
            connection.execute("CREATE TABLE rebuild (only_view TEXT, goal INTEGER NOT NULL) STRICT")
            connection.execute("INSERT INTO rebuild VALUES (?, ?)", (self._only, goal))
            connection.execute("COMMIT")

    def _copy(self) -> int:
        """The serving views, whose other parts are kept. Their position."""
        serving = newest_views(self._folder)
        if serving is None:
            raise ReplayFailed("no views serve yet: rebuild all of them")
        with closing(read_only(serving)) as source, closing(sqlite3.connect(self.path)) as copy:
            source.backup(copy, pages=_COPIED_PAGES)
        self.path.chmod(0o600)
        with closing(ViewTables(self.path)) as tables:
            found = tables.checkpoint()
        if found is None:
            raise ReplayFailed("the serving views are an older version's: rebuild all of them")
        return found[0]


@contextmanager
def rebuilding(folder: Path, only: View | None) -> Iterator[Rebuild]:
    """Alone in this folder. What it leaves can be gone on with.

    Raises ReplayFailed.
    """
    if not (folder / "log.db").exists():
        raise ReplayFailed(f"there is no log in {folder}")
    with _alone(folder):
        try:
            with closing(Rebuild(folder, only)) as rebuild:
                yield rebuild
        except (LogError, sqlite3.Error) as error:
            raise ReplayFailed(str(error)) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The lock is the folder's own, which leaves no file behind and ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReplayFailed("another `chatlog replay` rebuilds these views") from None
        yield
    finally:
        os.close(descriptor)


def install(folder: Path) -> Path | None:
    """Let a finished rebuild serve from history's next start on. None: history runs, and is to be asked."""
    try:
        lock = take_lock(folder / "log.lock")
    except LogLocked:
        return None
    with lock:
        before = newest_views(folder)
        path = adopt(folder)
        if before is not None:
            remove_views(before)
        return path


def _step_back() -> None:
    """Take only the processor's time that nobody else wants, this process and the one that folds for it: who waits for
    an answer must not feel a rebuild. Beside two processes that were merely nice (10), six that hand a request on took
    8 to 11 ms for it; beside two of the idle class 1 ms, as with nobody beside them (measured).
    """
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(NICENESS)


def _rebuilding(path: Path) -> tuple[Any, int]:
    """Which view it is about, and its goal. Raises ValueError where it is not a rebuild."""
    with closing(read_only(path)) as connection:
        [(only, goal)] = connection.execute("SELECT only_view, goal FROM rebuild").fetchall()
    return only, goal


def _position_of(views: Path) -> int:
    with closing(read_only(views)) as connection:
        try:
            [(position,)] = connection.execute("SELECT position FROM checkpoint")
        except sqlite3.DatabaseError:
            return 0
    return int(position)
