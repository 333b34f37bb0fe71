"""Step 5, history/continuity: whether an intake stream goes on where a log has stopped, and what it must keep.

Owns the one answer for everybody: history at its start, who restores a backup, and the purge that keeps what the newest
backup needs. Must never let events that are missing, or another stream, pass unsaid.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from services.history.log.port import Cursor


class IntakeRefused(RuntimeError):
    """The stream is not the one that the log has followed, or events between them are missing. Says the numbers."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The intake stream's own words. created tells one stream from another of the same name."""

    created: str
    first_sequence: int
    last_sequence: int
    bytes: int


def read_stream(reply: bytes) -> Stream | str:
    """What the server says of a stream; its description where it says an error."""
    said = json.loads(reply)
    if "error" in said:
        return str(said["error"].get("description"))
    state = said["state"]
    return Stream(said["created"], state["first_seq"], state["last_seq"], state["bytes"])


def check_stream(stream: Stream, cursor: Cursor, accept_gap: bool) -> Cursor:
    """The cursor to follow from. Raises IntakeRefused where following would lose or mix up events.

    accept_gap: an operator's word that what is missing is to be left out.
    """
    if cursor.stream_created is None:
        cursor = Cursor(stream.created, cursor.sequence)
    other = cursor.stream_created != stream.created or cursor.sequence > stream.last_sequence
    if other and not accept_gap:
        raise IntakeRefused(
            f"a stream created {cursor.stream_created} was followed up to {cursor.sequence}; this one was"
            f" created {stream.created} and ends at {stream.last_sequence}: it is another stream"
        )
    if other:
        cursor = Cursor(stream.created, _before(stream))
    if cursor.sequence + 1 < stream.first_sequence:
        if not accept_gap:
            raise IntakeRefused(
                f"events {cursor.sequence + 1} to {stream.first_sequence - 1} are gone from the intake stream, which"
                f" begins at {stream.first_sequence} and ends at {stream.last_sequence}"
            )
        cursor = Cursor(stream.created, _before(stream))
    return cursor


def gap_between(stream: Stream, cursor: Cursor) -> str | None:
    """Why a log that has stopped there could not go on without a gap; None: it could."""
    try:
        check_stream(stream, cursor, accept_gap=False)
    except IntakeRefused as error:
        return str(error)
    return None


def kept_from(stream: Stream, backup: Cursor, hold_bytes: int) -> int | None:
    """The first sequence that stays for this backup's sake; None: nothing does. A stream of more than hold_bytes keeps
    nothing for it, nor does one from which it could not be restored without a gap anyway.
    """
    if stream.bytes > hold_bytes or gap_between(stream, backup):
        return None
    return backup.sequence + 1


def first_kept(consumed: int, young_from: int, needed_from: int | None) -> int:
    """The first sequence that a purge leaves: nothing goes that is not consumed, or young, or that a backup needs."""
    kept = min(consumed + 1, young_from)
    return kept if needed_from is None else min(kept, needed_from)


def _before(stream: Stream) -> int:
    """The cursor from which all that the stream holds is followed. A stream that never held any says 0."""
    return max(stream.first_sequence - 1, 0)
