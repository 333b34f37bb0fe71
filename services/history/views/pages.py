"""Step 10, history/views (core): what is told of the views' rows: in the shapes of the contracts, messages in pages.

Owns the bounds of a page. The rows are given: those that are stored, or those of a session as it was. Must never read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from contracts.queries import PAGE_BYTES, MessageRow, SessionRow

# Why there is no session to tell of.
NoSession = Literal["session_unknown", "session_deleted", "retention_over"]


def session_row(row: Mapping[str, Any]) -> SessionRow:
    """row: a session's, with its active_turn_id."""
    return SessionRow(**{name: row[name] for name in SessionRow.model_fields})


def message_page(rows: Sequence[Mapping[str, Any]], limit: int) -> tuple[list[MessageRow], int | None]:
    """A page of these messages, at most PAGE_BYTES of text unless its first is larger, and where the next one begins.

    rows: in order; one more than limit where there are more.
    """
    page: list[MessageRow] = []
    size = 0
    for row in rows[:limit]:
        size += len(row["text"].encode()) + len((row["thinking"] or "").encode())
        if page and size > PAGE_BYTES:
            break
        page.append(_message_row(row))
    return page, rows[len(page) - 1]["place"] if len(page) < len(rows) else None


def _message_row(row: Mapping[str, Any]) -> MessageRow:
    told = {name: row[name] for name in MessageRow.model_fields}
    return MessageRow(**{**told, "usage": json.loads(row["usage"]) if row["usage"] else None})
