"""Step 9, history/effects (core): what follows outside once a batch is committed.

Owns the words between the recorder, which decides them inside the transaction, and the publisher, which carries them
out afterwards. Each can be lost and is then asked for or done again: none is the only place of a fact. Must never be
carried out before the commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.turns import OutcomeMessage, Word


@dataclass(frozen=True, slots=True)
class TellSender:
    """The outcome of an intake event, to its Chat-Reply."""

    reply: str
    outcome: OutcomeMessage


@dataclass(frozen=True, slots=True)
class Show:
    """A frame for who watches the session: a recorded event's, or a notice. To the user's own feed as well where lists
    of sessions need it.
    """

    user_id: str
    session_id: str
    lists: bool
    frame: bytes


@dataclass(frozen=True, slots=True)
class TellWorkers:
    """A word on a turn, to the workers that hold it."""

    user_id: str
    word: Word


@dataclass(frozen=True, slots=True)
class Queue:
    """A turn's context with its texts, to the queue of its model."""

    user_id: str
    turn_id: str
    model: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Unqueue:
    """The turn is over and no worker holds it: its context leaves the queue."""

    turn_id: str
    model: str


Effect = TellSender | Show | TellWorkers | Queue | Unqueue
