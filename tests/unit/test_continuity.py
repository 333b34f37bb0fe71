"""Step 5, history/continuity: what the intake keeps of what was consumed: for a while, and for the newest backup."""

from __future__ import annotations

import pytest

from services.history.continuity import Stream, first_kept, kept_from
from services.history.log.port import Cursor
from tests.recording import STREAM

OURS = Stream(STREAM, first_sequence=30, last_sequence=95, bytes=500)


@pytest.mark.parametrize(
    ("stream", "backup", "kept"),
    [
        (OURS, Cursor(STREAM, 40), 41),
        (OURS, Cursor(STREAM, 29), 30),
        (OURS, Cursor(STREAM, 20), None),  # gone already: nothing more is kept for it
        (OURS, Cursor("another", 40), None),
        (Stream(STREAM, 30, 95, bytes=1001), Cursor(STREAM, 40), None),  # the half is for what is new
    ],
)
def test_the_intake_keeps_what_the_newest_backup_needs(stream: Stream, backup: Cursor, kept: int | None) -> None:
    assert kept_from(stream, backup, hold_bytes=1000) == kept


@pytest.mark.parametrize(
    ("consumed", "young_from", "needed_from", "kept"),
    [(94, 96, None, 95), (95, 60, None, 60), (95, 96, 41, 41), (95, 60, 70, 60), (10, 96, 41, 11)],
)
def test_a_purge_leaves_what_is_not_consumed_young_or_needed(
    consumed: int, young_from: int, needed_from: int | None, kept: int
) -> None:
    assert first_kept(consumed, young_from, needed_from) == kept
