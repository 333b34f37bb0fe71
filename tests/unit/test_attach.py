"""A client's place in a session: which cursors this log can serve, and which it must not pretend to (P4)."""

from __future__ import annotations

import pytest

from contracts.frames import Cursor
from contracts.queries import EventsReply
from services.gateway.attach import ResyncReason, Watch
from services.gateway.auth import LOCAL
from services.gateway.watching import AnswerViewer


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (None, None),
        (Cursor("e1", 0), None),
        (Cursor("e1", 5, 1, 37), None),
        (Cursor("e1", 6), "version"),  # a log that was restored holds less than this client has seen
        (Cursor("e2", 5), "epoch"),  # the same version of another log is another event
        (Cursor("e2", 9), "epoch"),
    ],
)
async def test_a_cursor_of_another_or_of_a_shorter_log_is_not_served(
    after: Cursor | None, reason: ResyncReason | None
) -> None:
    watch = Watch("local", "session", AnswerViewer(LOCAL))
    watch.start(after)
    reply = EventsReply("e1", 5, more=False, running_turn_id=None, running_attempt=0, frames=())
    assert watch.misses(reply, watch.version) == reason
