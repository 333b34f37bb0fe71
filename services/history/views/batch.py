"""Step 10, history/views (core): what a stretch of the log changes in the views, each row once.

Owns the merging: most turns begin and end within one stretch, and their rows are then written once, whole. Must never
do I/O; what the rows before the stretch hold is passed in.
"""

from __future__ import annotations

from collections import OrderedDict

from services.history.views.fold import KEY_OF, KEYS, Change, Drop, HeadOf, Key, Put, Row, Table


class Batch:
    """The changes of the events after one position, up to another; hash: the log's there.

    Drops come first, then new values of rows that are stored, then new rows.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self.position = after
        self.hash = b""
        self.drops: list[Drop] = []
        self.sets: dict[Table, dict[Key, Row]] = {table: {} for table in KEYS}
        self.puts: dict[Table, dict[Key, Row]] = {table: {} for table in KEYS}

    def add(self, change: Change) -> None:
        """The next change; it is the batch's own from now on."""
        if isinstance(change, Put):
            self.puts[change.table][KEY_OF[change.table](change.row)] = change.row
        elif isinstance(change, Drop):
            self._drop(change)
        else:
            row = self.puts[change.table].get(change.key)
            if row is None:
                row = self.sets[change.table].setdefault(change.key, {})
            row.update(change.values)

    def _drop(self, drop: Drop) -> None:
        """What this batch has said of the session's rows is gone with those that are stored."""
        self.drops.append(drop)
        kept = self.puts[drop.table]
        for key, row in list(kept.items()):
            if (row["user_id"], row["session_id"]) == (drop.user_id, drop.session_id):
                del kept[key]


class Heads:
    """The heads of the sessions touched last; of others, what is stored."""

    def __init__(self, stored: HeadOf, most: int) -> None:
        """most: at least as many as sessions may have changed since what `stored` sees."""
        self._stored = stored
        self._most = most
        self._known: OrderedDict[Key, str | None] = OrderedDict()

    def of(self, user_id: str, session_id: str) -> str | None:
        key = (user_id, session_id)
        if key not in self._known:
            self._known[key] = self._stored(user_id, session_id)
        return self._known[key]

    def keep(self, change: Change) -> None:
        """A later event follows the head that this change leaves."""
        if change.table != "sessions" or isinstance(change, Drop):
            return
        values = change.row if isinstance(change, Put) else change.values
        if "head" in values:
            key = KEY_OF["sessions"](change.row) if isinstance(change, Put) else change.key
            self._known[key] = None if values["head"] is None else str(values["head"])
            self._known.move_to_end(key)

    def shrink(self) -> None:
        """Forget those that were touched longest ago."""
        while len(self._known) > self._most:
            self._known.popitem(last=False)
