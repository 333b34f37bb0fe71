"""Step 5, before anything is followed: is this the stream that the log has followed, and is nothing between missing?"""

from __future__ import annotations

import pytest

from services.history.continuity import IntakeRefused, Stream, check_stream
from services.history.log.port import Cursor

CREATED = "2026-11-20T00:00:00Z"
OURS = Stream(CREATED, first_sequence=3, last_sequence=7, bytes=0)
EMPTY = Stream(CREATED, first_sequence=0, last_sequence=0, bytes=0)


@pytest.mark.parametrize(
    ("stream", "cursor", "follows"),
    [
        (OURS, Cursor(CREATED, 5), 5),
        (OURS, Cursor(CREATED, 7), 7),
        (OURS, Cursor(CREATED, 2), 2),  # what is purged was consumed
        (EMPTY, Cursor(None, 0), 0),
    ],
)
def test_a_stream_that_goes_on_is_followed(stream: Stream, cursor: Cursor, follows: int) -> None:
    assert check_stream(stream, cursor, accept_gap=False) == Cursor(CREATED, follows)


@pytest.mark.parametrize(
    ("stream", "cursor", "said", "accepted"),
    [
        (OURS, Cursor(CREATED, 1), "events 2 to 2 are gone", 2),
        (OURS, Cursor(None, 0), "events 1 to 2 are gone", 2),
        (OURS, Cursor("another", 5), "another stream", 2),
        (OURS, Cursor(CREATED, 8), "another stream", 2),  # wiped, and made again at the same time
        (EMPTY, Cursor("another", 5), "another stream", 0),
    ],
)
def test_a_gap_or_another_stream_is_refused_unless_an_operator_says_so(
    stream: Stream, cursor: Cursor, said: str, accepted: int
) -> None:
    with pytest.raises(IntakeRefused, match=said):
        check_stream(stream, cursor, accept_gap=False)
    assert check_stream(stream, cursor, accept_gap=True) == Cursor(CREATED, accepted)
