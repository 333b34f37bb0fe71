"""Step 10, history/views/words: what a user's own messages and titles say: found by their words.

Owns the question that is put to the index: each one holds its user's token. Must never pass on a searcher's text as the
index's own language.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.history.views.store import ViewStore

# A word in a title says more of a session than one in a text; who owns it says nothing.
_RANK = "bm25(words, 0.0, 4.0, 1.0)"
_FOUND = f"""
    SELECT sessions.session_id, messages.message_id, {_RANK} AS rank
    FROM words
    LEFT JOIN messages ON messages.place = words.rowid
    LEFT JOIN sessions AS titled ON titled.place = words.rowid
    JOIN sessions ON sessions.user_id = :user AND sessions.session_id = coalesce(messages.session_id, titled.session_id)
    WHERE sessions.deleted_at IS NULL AND words MATCH :asked ORDER BY rank LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A message, or, where message_id is None, a session by its title."""

    session_id: str
    message_id: str | None


def asked_of(user_id: str, text: str) -> str | None:
    """The index's question for the user's own rows that hold each word of text; None: there is no word in it."""
    words = [f'"{word}"' for word in text.replace('"', " ").split() if any(map(str.isalnum, word))]
    if not words:
        return None
    return f"owner : {owner(user_id)} AND {{title text}} : ({' AND '.join(words)})"


def owner(user_id: str) -> str:
    """As SQLite's hex() has it: no two users share it, and it is one token."""
    return user_id.encode().hex().upper()


async def search(store: ViewStore, user_id: str, text: str, limit: int) -> list[Found]:
    """The best matches first. Words that are written with a sign between them (e-mail) are found side by side."""
    asked = asked_of(user_id, text)
    if asked is None:
        return []
    parameters = {"user": user_id, "asked": asked, "limit": limit}
    with store.condemned_if_broken():
        rows = await store.reading.execute_fetchall(_FOUND, parameters)
    return [Found(row["session_id"], row["message_id"]) for row in rows]
