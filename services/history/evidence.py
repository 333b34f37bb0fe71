"""Step 10, history/evidence: what the log has of one turn, read for its receipt.

Owns the reads: the turn's own events, its session as it was when the context was assembled (by the evolve that the
write side decides with), and the events that hold the texts. Must never write, nor ask the views.
"""

from __future__ import annotations

from contracts.events import ContextAssembled
from services.history.context import recorded_plan
from services.history.log.reader import LogReader, LogRow
from services.history.log.sqlite import stored_row
from services.history.receipt import Evidence
from services.history.session import Session, evolve
from services.history.views.fold import Recorded

# A session is folded in pages, between which others are served; its events hold whole answers.
ROWS_AT_ONCE = 64


async def evidence_of(log: LogReader, user_id: str, session_id: str, turn_id: str) -> Evidence | None:
    """None: the turn has no context (yet). Raises LogError."""
    own = [_recorded(row) for row in await log.turn_rows(user_id, session_id, turn_id)]
    for recorded in own:
        if isinstance(recorded.event.data, ContextAssembled):
            session = await _session_at(log, user_id, session_id, recorded.version)
            turn = session.turns[turn_id]
            plan = recorded_plan(session, turn, recorded.event.data)
            texts = await log.rows_at(sorted({message.position for message in plan.messages}))
            return Evidence(turn.answer_id, plan, tuple(own), {row.position: _recorded(row) for row in texts})
    return None


async def _session_at(log: LogReader, user_id: str, session_id: str, version: int) -> Session:
    session = Session(user_id, session_id)
    after = 0
    while rows := await log.session_rows(user_id, session_id, (after, version), ROWS_AT_ONCE):
        for row in rows:
            evolve(session, _recorded(row).event, row.position)
        after = rows[-1].version
    return session


def _recorded(row: LogRow) -> Recorded:
    stored = stored_row(row.position, row.version, row.recorded_at, row.body)
    return Recorded(stored.position, stored.version, stored.recorded_at, stored.event)
