"""A history process that kills itself at one exact point: python -m tests.dying_history, DIE_AT=<point>:<event type>.

Owns the points, each between two steps of the road that a kill from outside meets only by luck. It changes nothing of
what history does up to there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence

from contracts.envelope import read_event
from services.history.app import main
from services.history.effects import Effect, Show
from services.history.log.port import Stored
from services.history.log.reader import LogRow
from services.history.log.sqlite import SqliteTransaction
from services.history.publisher import Publisher
from services.history.settings import HistorySettings
from services.history.views.fold import Key, Row, Table
from services.history.views.store import ViewStore
from services.history.views.tables import ViewTables
from services.runtime.lifecycle import run


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_the_transaction(event_type: str) -> None:
    """The row is written and nothing is committed."""
    append = SqliteTransaction.append

    def append_and_die(self: SqliteTransaction, stored: Stored) -> None:
        append(self, stored)
        if stored.event.type == event_type:
            die()

    SqliteTransaction.append = append_and_die  # type: ignore[method-assign]


def before_the_publish(event_type: str) -> None:
    """The batch is committed and nobody was told: no outcome, no frame, no word, no context."""
    carry_out = Publisher.carry_out

    async def die_or_carry_out(self: Publisher, effects: Iterable[Effect]) -> None:
        shown = [json.loads(effect.frame)["event"]["type"] for effect in effects if isinstance(effect, Show)]
        if event_type in shown:
            die()
        await carry_out(self, effects)

    Publisher.carry_out = die_or_carry_out  # type: ignore[method-assign]


def in_the_views(event_type: str) -> None:
    """Some of a batch's rows are written to the views."""
    apply, put = ViewStore.apply, ViewTables._put
    dying = False

    async def note(self: ViewStore, rows: Sequence[LogRow]) -> None:
        nonlocal dying
        dying = event_type in [read_event(row.body).type for row in rows]
        await apply(self, rows)

    def put_and_die(self: ViewTables, table: Table, rows: dict[Key, Row]) -> None:
        put(self, table, rows)
        if dying:
            die()

    ViewStore.apply = note  # type: ignore[method-assign]
    ViewTables._put = put_and_die  # type: ignore[method-assign]


POINTS = {point.__name__: point for point in (in_the_transaction, before_the_publish, in_the_views)}


if __name__ == "__main__":
    point, _, event_type = os.environ["DIE_AT"].partition(":")
    POINTS[point](event_type)
    sys.exit(run("history", HistorySettings, main))
