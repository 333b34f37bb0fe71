"""Off the road, history/tools/verify: the trails of the sessions that are spoken of in a stretch of the log.

Owns a bounded number of them: a trail that was dropped, or began before the stretch, is read from the log again. So
memory does not grow with sessions (but with the largest one: its ids are held together). Must never write.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from contracts.envelope import read_event
from contracts.errors import ContractError
from contracts.quick import Fields
from services.history.log.bodies import Columns, read_data, take_apart
from services.history.tools.trail import Ids, Trail

# Ids take some 200 bytes each, and two generations of them are held: 20 MB.
_HELD_IDS = 50_000
# How often the ids are counted.
_COUNT_EVERY = 4096
_EARLIER = (
    "SELECT event_id, user_id, session_id, turn_id, type, schema_version, version, body FROM events"
    " WHERE user_id = ? AND session_id = ? AND position < ? ORDER BY version"
)
_KNOWN = "SELECT 1 FROM events WHERE event_id = ? AND user_id = ? AND session_id = ? AND position < ?"

Key = tuple[bytes, bytes]  # user_id, session_id


def read_body(body: bytes, columns: Columns) -> tuple[bytes | None, Fields]:
    """The causation_id and the data in the newest shape. Raises ContractError for what today's models do not read."""
    parts = take_apart(body, columns)
    data = read_data(columns[4], columns[5], parts[1]) if parts else None
    if parts and data is not None:
        return parts[0], data
    event = read_event(body)
    cause = event.envelope.causation_id
    return cause.encode() if cause else None, event.data.model_dump(mode="json")


class Trails:
    """Two generations: when the young one is full it becomes the old one, and what is not used from it is dropped."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._young: dict[Key, Trail] = {}
        self._old: dict[Key, Trail] = {}
        self._asked = 0

    def before(self, key: Key, position: int, version: int) -> Trail:
        """The session's trail up to this position, where this version comes. Raises sqlite3.DatabaseError."""
        self._asked += 1
        if self._asked % _COUNT_EVERY == 0 and sum(each.weight for each in self._young.values()) > _HELD_IDS:
            self._old, self._young = self._young, {}
        trail = self._young.get(key)
        if trail is None:
            trail = self._old.pop(key, None) or (Trail() if version == 1 else self._read(key, position))
            self._young[key] = trail
        return trail

    def caused(self, trail: Trail, ids: Ids, key: Key, position: int) -> bool:
        """Whether the event's cause is an earlier event of its session, or it has none. Raises as above."""
        if trail.may_cause(ids):
            return True
        named = [(each or b"").decode(errors="replace") for each in (ids[2], *key)]
        return self._connection.execute(_KNOWN, (*named, position)).fetchone() is not None

    def _read(self, key: Key, position: int) -> Trail:
        trail = Trail()
        user_id, session_id = (each.decode(errors="replace") for each in key)
        for row in self._connection.execute(_EARLIER, (user_id, session_id, position)):
            with suppress(ContractError):  # told at its own position
                cause, data = read_body(row[7], row[:6])
                trail.follow(row[6], row[4], (row[0], row[3], cause), data)
        return trail
