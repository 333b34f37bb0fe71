"""Beside the road: what the stand-in saw: one record a request, and who is in flight.

It owns the records that the control plane shows. Times are this machine's monotonic clock in seconds, so that a test
beside it can compare them with its own. It must never change what is answered.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from services.standin.faults import Wire
from services.standin.wire import Departure, Request

RECORDS_KEPT: Final = 5_000
"""The newest requests; a benchmark reads its report more often than that."""

TEXT_KEPT_CHARS: Final = 64 * 1024
"""Messages of a larger prompt are not kept, or the report would grow with every long conversation."""


@dataclass
class Record:
    """One request for an answer, from its arrival to the moment its slot was free again. Its outcome: done, refused,
    error, client_gone, or the kind of the fault that ended it."""

    id: int
    wire: Wire
    arrived: float
    reused_connection: bool
    fields: dict[str, Any]
    departure: Departure
    messages: list[dict[str, Any]] = field(default_factory=list)
    authorization: str | None = None
    model: str = ""
    slot_start: float | None = None
    first_byte: float | None = None
    pieces_sent: int = 0
    tokens: int = 0
    tokens_after_disconnect: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    outcome: str = "in_flight"
    phase: str = "arrived"
    disconnected_at: float | None = None
    ended: float | None = None
    slot_freed: float | None = None

    def token_made(self) -> None:
        self.tokens += 1
        self.tokens_after_disconnect += self.departure.at is not None

    def view(self, *, with_messages: bool) -> dict[str, Any]:
        left_out = {"departure"} if with_messages else {"departure", "messages"}
        names = [named.name for named in dataclasses.fields(self) if named.name not in left_out]
        shown = {name: getattr(self, name) for name in names}
        shown["slot_held_after_disconnect_s"] = (
            self.slot_freed - self.disconnected_at if self.slot_freed and self.disconnected_at else None
        )
        return shown


class Report:
    """All records and the counts of those in flight."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=RECORDS_KEPT)
        self._ids = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.running = 0
        self.max_running = 0

    def begin(self, wire: Wire, fields: dict[str, Any], request: Request, departure: Departure) -> Record:
        """A request has arrived. Its messages are kept apart from its other fields, and only if they are short."""
        self._ids += 1
        messages = fields.get("messages")
        record = Record(
            id=self._ids,
            wire=wire,
            arrived=time.monotonic(),
            reused_connection=request.reused,
            fields={name: value for name, value in fields.items() if name != "messages"},
            messages=messages if isinstance(messages, list) and len(str(messages)) <= TEXT_KEPT_CHARS else [],
            departure=departure,
            authorization=request.headers.get("authorization"),
            model=str(fields.get("model", "")),
        )
        self._records.append(record)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        return record

    def slot_taken(self, record: Record) -> None:
        record.slot_start = time.monotonic()
        record.phase = "prefill"
        self.running += 1
        self.max_running = max(self.max_running, self.running)

    def slot_freed(self, record: Record) -> None:
        record.slot_freed = time.monotonic()
        self.running -= 1

    def slot_leaked(self) -> None:
        """Nobody runs there any more, and nobody else has it."""
        self.running -= 1

    @contextmanager
    def following(self, record: Record) -> Iterator[None]:
        """Ends the record as its handler ends: with the outcome it was given, or because the client has gone."""
        try:
            yield
        except (asyncio.CancelledError, ConnectionError):
            self._end(record, "client_gone")
            raise
        except BaseException:
            self._end(record, "bug")
            raise
        self._end(record, record.outcome)

    def _end(self, record: Record, outcome: str) -> None:
        record.outcome = outcome
        record.ended = time.monotonic()
        if outcome == "client_gone":
            record.disconnected_at = record.departure.at or record.ended
        self.in_flight -= 1

    def clear(self) -> None:
        """Forgets what has ended; what is in flight stays, or the counts would be wrong."""
        flying = [record for record in self._records if record.ended is None]
        self._records = deque(flying, maxlen=RECORDS_KEPT)
        self.max_in_flight = self.in_flight
        self.max_running = self.running

    def view(self, *, with_messages: bool) -> dict[str, Any]:
        return {
            "now": time.monotonic(),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "running": self.running,
            "max_running": self.max_running,
            "requests": [record.view(with_messages=with_messages) for record in self._records],
        }
