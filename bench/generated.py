"""Beside the road: a log as long use leaves it, made quickly, and the same from the same seed: for the log's figures.

Owns the shape of that use: users, sessions that run side by side, turns that succeed, fail, are stopped or tried again.
Each event goes through the contracts, each context through history's own core, each row through the log's own append.
Must never write a log that history could not have written. `python -m bench.generated FOLDER --events 1000000`
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from bench.texts import Texts
from contracts import ids
from contracts.base import time_text
from contracts.envelope import Envelope, Event, write_event
from contracts.events import AnswerCancelled, AnswerCompleted, UserMessageSubmitted, schema_version_of
from services.history.context import ContextLimits, choose, context_data, render
from services.history.log.port import Cursor, Stored, Transaction
from services.history.log.sqlite import SqliteLog
from services.history.session import Session, evolve

SEED = 10
USERS = 500
# So many conversations go on at once: an index's neighbours are far apart in the log, as in real use.
SIDE_BY_SIDE = 64
TURNS_MEAN = 6.0
MOST_TURNS = 60
WINDOW_TOKENS = 4096
LIMITS = ContextLimits(messages=200, reserve=0.25)
MODELS = ("smollm2:135m", "llama3.2:3b", "qwen2.5:7b")
DIGESTS = {model: hashlib.sha256(model.encode()).hexdigest() for model in MODELS}
SYSTEM = "You answer briefly, and say so where you do not know."
# Shares of turns that do not simply succeed.
STOPPED, FAILED, TRIED_AGAIN = 0.04, 0.03, 0.02
RENAMED = 0.3
BEGAN = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
BETWEEN_EVENTS_MS = 400
BATCH_EVENTS = 10_000
STREAM = "2026-01-05T08:00:00Z"


@dataclass
class Conversation:
    """A session under way: its state as history holds it, and the texts that its contexts take, by
    message_id.
    """

    session: Session
    texts: dict[str, str] = field(default_factory=dict)
    position: int = 0


class Use:
    """What users and workers do, one event after the other."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._texts = Texts(self._random)
        self._milliseconds = 0
        self._position = 0

    def rows(self) -> Iterator[Stored]:
        """The log's rows, for ever."""
        going: list[tuple[Conversation, Iterator[Event]]] = []
        while True:
            if len(going) < SIDE_BY_SIDE:
                begun = self._begun()
                going.append((begun, self._events(begun)))
            number = self._random.randrange(len(going))
            conversation, events = going[number]
            event = next(events, None)
            if event is None:
                going[number] = going[-1]
                going.pop()
            else:
                yield self._recorded(conversation, event)

    def _begun(self) -> Conversation:
        # Few users talk much, many a little.
        number = min(int(self._random.paretovariate(0.6)), USERS)
        return Conversation(Session(user_id=f"user-{number}", session_id=self._new_id()))

    def _recorded(self, conversation: Conversation, event: Event) -> Stored:
        self._position += 1
        conversation.position = self._position
        evolve(conversation.session, event, self._position)
        if isinstance(event.data, UserMessageSubmitted):
            conversation.texts[event.data.message_id] = event.data.text
        elif isinstance(event.data, AnswerCompleted | AnswerCancelled):
            conversation.texts[ids.answer_id_of(str(event.turn_id))] = event.data.text or ""
        return Stored(self._position, conversation.session.version, self._now(), event)

    def _events(self, of: Conversation) -> Iterator[Event]:
        system = {"system": SYSTEM} if self._random.random() < 0.5 else {}
        yield self._event(of, "session_started", {"title": self._texts.title(), **system})
        turns = min(1 + int(self._random.expovariate(1 / TURNS_MEAN)), MOST_TURNS)
        for number in range(turns):
            yield from self._turn(of)
            if number == 0 and self._random.random() < RENAMED:
                yield self._event(of, "session_renamed", {"title": self._texts.title()})

    def _turn(self, of: Conversation) -> Iterator[Event]:
        said = self._message(of)
        yield said
        context = self._context(of, str(said.turn_id))
        yield context
        chance = self._random.random()
        attempts = 2 if chance > 1 - TRIED_AGAIN else 1
        for attempt in range(1, attempts + 1):
            yield self._event(of, "answer_started", {"run": self._new_id(), "attempt": attempt}, context)
        if chance < STOPPED:
            stop = self._event(of, "cancel_requested", {}, said)
            yield stop
            yield self._ended(of, "answer_cancelled", "cancelled", stop)
        elif chance < STOPPED + FAILED:
            yield self._ended(of, "answer_failed", "model_error", context)
        else:
            yield self._completed(of, attempts, context)

    def _message(self, of: Conversation) -> Event:
        session = of.session
        key = self._new_id()
        event_id = ids.event_id_of_key(session.user_id, session.session_id, "user_message_submitted", key)
        turn_id = ids.turn_id_of(event_id)
        data: dict[str, Any] = {
            "message_id": ids.message_id_of(event_id),
            "answer_id": ids.answer_id_of(turn_id),
            "text": self._texts.message(),
        }
        if self._random.random() < 0.2:
            data["options"] = {"temperature": 0.7, "max_tokens": 512}
        return self._event(of, "user_message_submitted", data, event_id=event_id, turn_id=turn_id)

    def _context(self, of: Conversation, turn_id: str) -> Event:
        turn = of.session.turns[turn_id]
        plan = choose(of.session, turn, WINDOW_TOKENS, LIMITS)
        model = self._random.choice(MODELS)
        data = context_data(of.session, turn, plan, model, DIGESTS[model], render(plan, of.texts))
        event_id = ids.context_event_id_of(turn_id)
        return self._event(
            of, "context_assembled", data, event_id=event_id, turn_id=turn_id, causation_id=turn.event_id
        )

    def _completed(self, of: Conversation, attempt: int, context: Event) -> Event:
        text = self._texts.answer()
        tokens = 1 + len(text) // 4
        return self._event(
            of,
            "answer_completed",
            {
                "attempt": attempt,
                "end": "stop",
                "last_index": tokens,
                "text": text,
                "usage": {"prompt_tokens": 4 * tokens, "completion_tokens": tokens},
                "model": of.session.turns[str(context.turn_id)].model,
            },
            context,
        )

    def _ended(self, of: Conversation, event_type: str, code: str, cause: Event) -> Event:
        data = {"attempt": 1, "code": code, "last_index": 9, "text": self._texts.message()}
        return self._event(of, event_type, data, cause)

    def _event(
        self, of: Conversation, event_type: str, data: dict[str, Any], cause: Event | None = None, **named: Any
    ) -> Event:
        """named: the envelope's fields where they are not a new id, and the cause's turn and id."""
        fields: dict[str, Any] = {
            "event_id": named.pop("event_id", None) or self._new_id(),
            "turn_id": cause.turn_id if cause else None,
            "causation_id": cause.event_id if cause else None,
            **named,
        }
        return write_event(
            Envelope(
                type=event_type,
                schema_version=schema_version_of(event_type),
                user_id=of.session.user_id,
                session_id=of.session.session_id,
                occurred_at=self._now(),
                data=data,
                **fields,
            )
        )

    def _new_id(self) -> str:
        """A UUIDv7 of the generated moment."""
        moment = int(BEGAN.timestamp() * 1000) + self._milliseconds
        noise = self._random.getrandbits(74)
        value = moment << 80 | 7 << 76 | (noise >> 62) << 64 | 2 << 62 | noise & (1 << 62) - 1
        return str(uuid.UUID(int=value))

    def _now(self) -> str:
        self._milliseconds += self._random.randrange(BETWEEN_EVENTS_MS)
        return time_text(BEGAN + timedelta(milliseconds=self._milliseconds))


def write_log(path: Path, events: int, seed: int = SEED) -> None:
    """A new log.db of so many events."""
    log = SqliteLog(path, f"{seed:032x}", time_text(BEGAN))
    rows = Use(seed).rows()
    try:
        for first in range(0, events, BATCH_EVENTS):
            last = min(first + BATCH_EVENTS, events)
            with log.transaction(log.cursor(), Cursor(STREAM, last)) as tx:
                _append(tx, islice(rows, last - first))
    finally:
        log.close()


def _append(tx: Transaction, rows: Iterator[Stored]) -> None:
    for row in rows:
        tx.append(row)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a log of realistic sessions.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    write_log(asked.folder / "log.db", asked.events, asked.seed)
    sys.stdout.write(f"{asked.events} events in {time.perf_counter() - began:.1f} s\n")


if __name__ == "__main__":
    main()
