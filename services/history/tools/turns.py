"""Off the road, history/tools/turns: what the log's file has of one turn, for the terminal and for a rerun.

Owns finding it, and why it is not there. It reads what is committed, beside a history that runs or without one. Must
never write.
"""

from __future__ import annotations

import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

from contracts.events import AnswerCancelled, AnswerCompleted, AnswerFailed
from contracts.receipts import Receipt
from contracts.turns import QueuedContext, read_context
from services.history.evidence import evidence_of
from services.history.log.port import LogError
from services.history.log.reader import LogReader
from services.history.receipt import receipt_of


class TurnNotFound(Exception):
    """The turn is not there, or no model was shown anything for it. The text is one clear line."""


@dataclass(frozen=True, slots=True)
class FoundTurn:
    """receipt: with all its messages. context: what the queue was given. end: None while it is unfinished."""

    receipt: Receipt
    context: QueuedContext
    end: AnswerCompleted | AnswerFailed | AnswerCancelled | None


async def find_turn(folder: Path, user_id: str, turn_id: str) -> FoundTurn:
    """A turn of this user, from the log of this data folder. Raises TurnNotFound."""
    path = folder / "log.db"
    if not path.is_file():
        raise TurnNotFound(f"there is no log in {folder}")
    try:
        reader = await LogReader.open(path)
    except sqlite3.Error as error:
        raise TurnNotFound(f"{path} cannot be read: {error}") from error
    try:
        session_id = await reader.session_of_turn(user_id, turn_id)
        if session_id is None:
            raise TurnNotFound(f"{user_id} has no turn {turn_id}; --user says whose it is")
        found = await evidence_of(reader, user_id, session_id, turn_id)
    except LogError as error:
        raise TurnNotFound(str(error)) from error
    finally:
        await reader.close()
    if found is None:
        raise TurnNotFound("no context was assembled for this turn: it waits, or it ended before")
    return FoundTurn(receipt_of(found, page_bytes=sys.maxsize), read_context(found.queued()), found.end)
