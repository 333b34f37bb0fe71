"""Off the road, history/tools/compare: in what two files of views differ, both at one position.

Owns the comparison, row by row, in SQL: of texts it says that they differ, never what they are. Memory does not grow
with the views, nor the report with their differences. Must never write.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from services.history.log.reader import read_only
from services.history.views.tables import VIEWS_VERSION

# More of one kind say nothing new.
MOST_OF_A_KIND = 20


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of the serving views that is not what the log says."""

    view: str
    row: str
    what: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """At this position. not_compared: why not, if so."""

    position: int
    not_compared: str | None
    differences: list[Difference]

    @property
    def equal(self) -> bool:
        return self.not_compared is None and not self.differences


@dataclass(frozen=True, slots=True)
class _Rows:
    """A view's rows: where they are in both files, what one is found by, and what it is called."""

    view: str
    serving: str
    rebuilt: str
    key: tuple[str, ...]
    named: str
    columns: tuple[str, ...]


def compare(serving: Path, rebuilt: Path, fold_to: Callable[[int], None]) -> Comparison:
    """The serving views as they are now, and the rebuilt ones once they are folded to the same position."""
    with closing(read_only(serving)) as connection:
        connection.execute("ATTACH ? AS rebuilt", (f"file:{rebuilt}?mode=ro",))
        try:
            return _compare(connection, fold_to)
        except sqlite3.DatabaseError as error:
            return Comparison(0, f"the serving views cannot be read: {error}", [])


def _compare(connection: sqlite3.Connection, fold_to: Callable[[int], None]) -> Comparison:
    # In a transaction a file stays as it is at its first read: the serving one now, the rebuilt one once it is folded.
    connection.execute("BEGIN")
    if connection.execute("PRAGMA main.user_version").fetchone() != (VIEWS_VERSION,):
        return Comparison(0, "the serving views are another version's", [])
    position, hash_ = connection.execute("SELECT position, hash FROM main.checkpoint").fetchone()
    fold_to(position)
    if connection.execute("SELECT position, hash FROM rebuilt.checkpoint").fetchone() != (position, hash_):
        return Comparison(position, "the serving views are behind, or have folded another log", [])
    return Comparison(position, None, [each for rows in _rows(connection) for each in _differences(connection, rows)])


def _rows(connection: sqlite3.Connection) -> Iterator[_Rows]:
    yield _of(connection, "sessions", "sessions", ("place",), "session_id")
    yield _of(connection, "messages", "messages", ("place",), "message_id")
    yield _of(connection, "turns", "turns", ("user_id", "turn_id"), "turn_id")
    # The index keeps no texts. What it has: each row's number of words, and each word's number of rows and places.
    yield _of(connection, "words", "words_docsize", ("id",), "id")
    for name in ("main", "rebuilt"):
        connection.execute(f"CREATE VIRTUAL TABLE temp.{name}_terms USING fts5vocab ({name}, words, row)")
    yield _Rows("words", "temp.main_terms", "temp.rebuilt_terms", ("term",), "'a word'", ("term", "doc", "cnt"))


def _of(connection: sqlite3.Connection, view: str, table: str, key: tuple[str, ...], named: str) -> _Rows:
    columns = tuple(column[1] for column in connection.execute(f"PRAGMA rebuilt.table_info({table})"))
    return _Rows(view, f"main.{table}", f"rebuilt.{table}", key, named, columns)


def _differences(connection: sqlite3.Connection, rows: _Rows) -> Iterator[Difference]:
    same_row = " AND ".join(f"rebuilt.{column} = serving.{column}" for column in rows.key)
    differs = [f"rebuilt.{column} IS NOT serving.{column}" for column in rows.columns]
    named = rows.named if rows.named.startswith("'") else f"serving.{rows.named}"
    for name, alone, *others in connection.execute(
        f"SELECT {named}, rebuilt.{rows.key[0]} IS NULL, {', '.join(differs)} FROM {rows.serving} AS serving"
        f" LEFT JOIN {rows.rebuilt} AS rebuilt ON {same_row} WHERE {' OR '.join(differs)} LIMIT {MOST_OF_A_KIND}"
    ):
        columns = [column for column, other in zip(rows.columns, others, strict=True) if other]
        what = "is there, and the log does not say so" if alone else f"differs in {', '.join(columns)}"
        yield Difference(rows.view, str(name), what)
    for (name,) in connection.execute(
        f"SELECT {rows.named} FROM {rows.rebuilt} AS rebuilt WHERE NOT EXISTS"
        f" (SELECT 1 FROM {rows.serving} AS serving WHERE {same_row}) LIMIT {MOST_OF_A_KIND}"
    ):
        yield Difference(rows.view, str(name), "is missing")
