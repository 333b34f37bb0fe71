"""A broker, a history process and a talker, joined for a test: what most tests of history on real parts begin with.

Owns the settings that a test shortens. data_dir is where its log lies, so that a test can look at it and take it away.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts import subjects
from contracts.envelope import Event
from contracts.queries import MessagesQuery, OutcomeQuery, OutcomeReply, SessionsQuery, StatusReply, TurnQuery
from tests.brokers import Broker, broker
from tests.conversing import MODEL, USER, Talker, claim, completed, message, new_id, session_started, talker
from tests.polling import eventually
from tests.services import Service, service

SEEN_TIMEOUT_S = 60.0


@dataclass
class Road:
    nats: Broker
    history: Service
    talk: Talker
    data_dir: Path

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The log as it is on disk."""
        with closing(sqlite3.connect(f"file:{self.data_dir / 'log.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(statement, parameters).fetchall()

    def write(self, statement: str, *parameters: object) -> None:
        """Change the log behind history's back."""
        with closing(sqlite3.connect(self.data_dir / "log.db")) as connection, connection:
            connection.execute(statement, parameters)

    async def begin(self, **data: Any) -> str:
        """A new session's id."""
        session_id = new_id()
        outcome = await self.talk.say(session_started(session_id, **data))
        assert outcome.code is None
        return session_id

    async def run_turn(self, session_id: str, text: str = "hello", answer: str = "hi") -> Event:
        """A whole turn, as gateway and worker play it: its message."""
        said = message(session_id, text, model=MODEL)
        await self.talk.say(said)
        context, delivery = await self.talk.context()
        await self.talk.hold(context.turn_id)
        await self.talk.publish(claim(session_id, context.turn_id, new_id()))
        word = await self.talk.word(context.turn_id)
        assert word["type"] == "go", word
        outcome = await self.talk.say(completed(session_id, context.turn_id, word["attempt"], answer))
        assert outcome.code is None
        await delivery.ack_sync()
        return said

    async def recorded(self, session_id: str, event_type: str, count: int = 1) -> None:
        """Wait until the session has so many events of a type."""

        async def there() -> bool:
            return (await self.talk.types(session_id)).count(event_type) >= count

        await eventually(there, reason=f"{count} {event_type} in {session_id}", timeout_s=SEEN_TIMEOUT_S)

    async def status(self) -> StatusReply:
        raw = await self.talk.bus.request(subjects.operator_query("status"), b"", 5.0)
        return StatusReply.model_validate_json(raw)

    async def outcome_of(self, event: Event, data_hash: str | None = None) -> OutcomeReply:
        query = OutcomeQuery(user_id=event.user_id, event_id=event.event_id, data_hash=data_hash or event.data_hash)
        return OutcomeReply.model_validate(await self.talk.ask("outcome", query))

    async def views(self, *session_ids: str) -> list[dict[str, Any]]:
        """All that the views answer, once they have folded the whole log."""
        [(position,)] = self.sql("SELECT max(position) FROM events")
        asked: list[dict[str, Any]] = [
            await self.talk.ask("sessions", SessionsQuery(user_id=USER, limit=200, min_position=position))
        ]
        for session_id in session_ids:
            reply = await self.talk.ask("messages", MessagesQuery(user_id=USER, session_id=session_id))
            asked.append(reply)
            for turn_id in {row["turn_id"] for row in reply["messages"]}:
                asked.append(await self.talk.ask("turn", TurnQuery(user_id=USER, turn_id=turn_id)))
        return asked

    async def queued(self) -> int:
        """How many contexts lie in the queue."""
        raw = await self.talk.bus.request(f"$JS.API.STREAM.INFO.{subjects.CONTEXT_STREAM}", b"", 5.0)
        return int(json.loads(raw)["state"]["messages"])

    def said(self, event: str) -> list[dict[str, Any]]:
        """History's log lines of one name."""
        return [line for line in self.history.logged() if line.get("event") == event]

    async def refuses(self) -> str:
        """Start history, which ends by itself: why, in its own words."""
        self.history.spawn()
        assert await self.history.ended() == 1
        self.history.process = None
        [line] = self.said("main_died")[-1:]
        return str(line["exception"][0]["words"])


@asynccontextmanager
async def road(folder: Path, *, started: bool = True, **settings: object) -> AsyncIterator[Road]:
    """settings: of history, by their names."""
    data_dir = folder / "data"
    environment = {f"CHATLOG_{name.upper()}": str(value) for name, value in settings.items()}
    async with broker(folder) as nats:
        environment = {**nats.environment(), "CHATLOG_DATA_DIR": str(data_dir), **environment}
        async with service("history", folder, environment, started=started) as history, talker(nats) as talk:
            yield Road(nats, history, talk, data_dir)
