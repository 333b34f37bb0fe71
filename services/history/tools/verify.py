"""Off the road, history/tools/verify: is the log what was written, whole, readable by today's models, and in the views?

Owns the order of the checks, how two processes share them, and the report. It reads only what is committed, in short
reads, so that it may run beside history, which goes on writing: what is appended meanwhile is not looked at. Memory
does not grow with the log. Must never write to any file.
"""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from services.history.log.port import FIRST_HASH
from services.history.log.reader import read_only
from services.history.tools.findings import Finding, Findings
from services.history.tools.verify_file import check_file
from services.history.tools.verify_heads import check_heads, heads_in
from services.history.tools.verify_rows import Walk
from services.history.tools.verify_tables import check_tables, made_before_seals
from services.history.tools.verify_views import ViewsCheck
from services.history.views.store import newest_views

# Stretches are handed out one after the other, large ones first: both processes end at about the same time, and few
# sessions are cut in two.
_MOST_STRETCH = 100_000
_LEAST_STRETCH = 5_000
_SHARE = 8
# A page cache of SQLite's, for each connection: rows are read in order, index entries are not.
_CACHE_KIB = 16_384

Told = Callable[[int, int], None]  # events done, of how many
Did = Callable[[int], None]  # so many more events
Stretch = tuple[int, int]


class VerifyFailed(Exception):
    """The log could not be looked at, or not to the end: whether it is whole is not known."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. position, hash: the log's head, up to which it was looked at; kept: who else knows a head."""

    position: int
    hash: str
    kept: tuple[str, ...]
    seconds: float
    count: int
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        return self.count == 0


def verify(folder: Path, told: Told, *, views: bool = False, processes: int = 2) -> Report:
    """Check the log of this data folder, and whether the views are its fold. With two processes it forks, so it must be
    called before there are threads. Raises VerifyFailed.
    """
    began = time.monotonic()
    findings = Findings()
    path = folder / "log.db"
    if not path.exists():
        raise VerifyFailed(f"there is no log in {folder}")
    if made_before_seals(path):
        raise VerifyFailed(f"{path} is of an earlier version: start Chatlog once, which takes it up, then verify")
    heads = heads_in(folder, findings)
    last, head = _head_of(path, findings)
    work = _Work(path, last, newest_views(folder) if views else None)
    if processes > 1:
        with _second_process(work, findings):
            work.walk(findings, told)
    else:
        work.check_files(findings)
        work.walk(findings, told)
    with _open(path) as connection:
        check_heads(connection, heads, last, findings)
    kept = tuple(head.kept for head in heads)
    return Report(last, head.hex(), kept, time.monotonic() - began, findings.count, tuple(findings.told()))


class _Work:
    """What two processes share: the stretch that is next, and how many events are done. views: to be compared, too."""

    def __init__(self, path: Path, last: int, views: Path | None) -> None:
        self.context = multiprocessing.get_context("fork")
        self._path = path
        self._views = views
        rows = [(self._walk_rows, *stretch) for stretch in _stretches(last)]
        folds = [(self._compare_views, *stretch) for stretch in _stretches(last)] if views else []
        self._tasks = [*rows, *folds]
        self._events = last * (2 if views else 1)
        self._next: Synchronized[int] = self.context.Value("q", 0)
        self._done: Synchronized[int] = self.context.Value("q", 0)

    def check_files(self, findings: Findings) -> None:
        with _open(self._path) as connection:
            check_file(self._path, connection, findings)
            check_tables(connection, findings)
            if self._views:
                ViewsCheck(connection, self._views, findings).check_file(self._path)

    def walk(self, findings: Findings, told: Told) -> None:
        """Take stretch after stretch until none is left."""

        def did(events: int) -> None:
            with self._done.get_lock():
                self._done.value += events
            told(self._done.value, self._events)

        while (number := self._taken()) < len(self._tasks):
            task, first, last = self._tasks[number]
            with _open(self._path) as connection:
                task(connection, findings, (first, last), did)

    def _walk_rows(self, connection: sqlite3.Connection, findings: Findings, stretch: Stretch, did: Did) -> None:
        connection.text_factory = bytes
        Walk(connection, findings, did).walk(*stretch)

    def _compare_views(self, connection: sqlite3.Connection, findings: Findings, stretch: Stretch, did: Did) -> None:
        assert self._views is not None
        ViewsCheck(connection, self._views, findings).compare(*stretch, did)

    def _taken(self) -> int:
        with self._next.get_lock():
            number = self._next.value
            self._next.value = number + 1
        return number


@contextmanager
def _second_process(work: _Work, findings: Findings) -> Iterator[None]:
    """Beside what is done inside: the file's check, then stretches; its findings join ours."""
    ours, theirs = work.context.Pipe(duplex=False)
    process = work.context.Process(target=_help, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield
        findings.take(*ours.recv())
    except EOFError:
        raise VerifyFailed("the second process ended without a word; is there enough memory?") from None
    finally:
        process.kill()
        process.join()
        ours.close()


def _help(work: _Work, theirs: Connection) -> None:
    findings = Findings()
    work.check_files(findings)
    work.walk(findings, lambda done, last: None)
    theirs.send((findings.count, findings.told()))


def _head_of(path: Path, findings: Findings) -> tuple[int, bytes]:
    """The last position and its hash."""
    try:
        with _open(path) as connection:
            row = connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        why = f"cannot be read: {error}" if path.stat().st_size else "is an empty file"
        raise VerifyFailed(f"{path} {why}") from error
    return row or (0, FIRST_HASH)


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(read_only(path)) as connection:
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        yield connection


def _stretches(last: int) -> Iterator[tuple[int, int]]:
    first = 1
    while first <= last:
        size = min(max((last - first + 1) // _SHARE, _LEAST_STRETCH), _MOST_STRETCH, last - first + 1)
        yield first, first + size - 1
        first += size
