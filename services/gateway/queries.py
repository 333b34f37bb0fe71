"""Step 13, gateway/queries: what a gateway asks of history, and of the worker that holds an answer.

Owns the requests, their time limits, and the highest position that each user was shown, so that a user reads what they
wrote. Must never answer for history: where it does not answer, HistoryAway says so.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TypeVar

from contracts import frames, queries, subjects, turns
from contracts.base import Contract, dump
from contracts.errors import ContractError
from contracts.receipts import Receipt
from services.gateway.intake import Refused
from services.runtime.bus import Bus, NoAnswer, NotSent

T = TypeVar("T", bound=Contract)

# History waits up to 1 s for its views before it answers; a second more is for a busy machine.
QUERY_TIMEOUT_S = 2.0
# For a receipt it folds the session from the log: some ten thousand events a second.
RECEIPT_TIMEOUT_S = 20.0
# The worker answers from memory. A worker that is gone must not hold an attach up.
SNAPSHOT_TIMEOUT_S = 1.0
# After a reconnect every watched session asks at once; more at a time would only queue in history.
QUERIES_AT_ONCE = 32
# Users whose highest position is remembered; a user who falls out may read views that are milliseconds old.
POSITIONS_KEPT = 10_000


class HistoryAway(Exception):
    """History does not answer (now)."""


class History:
    """History's queries as functions. Raises HistoryAway, or Refused with the code that history answered."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._at_once = asyncio.Semaphore(QUERIES_AT_ONCE)
        self._positions: OrderedDict[str, int] = OrderedDict()

    def saw(self, user_id: str, position: int | None) -> None:
        """The user was told of this position: what they ask next must include it."""
        if position is not None and position > self._positions.get(user_id, 0):
            self._positions[user_id] = position
            self._positions.move_to_end(user_id)
            if len(self._positions) > POSITIONS_KEPT:
                self._positions.popitem(last=False)

    def forget_positions(self) -> None:
        """History has started anew, and its views with it: behind the log they are no longer, and after a restore the
        log may never reach again what was shown."""
        self._positions.clear()

    def position_of(self, user_id: str) -> int:
        return self._positions.get(user_id, 0)

    async def sessions(self, user_id: str, limit: int, before: str | None) -> queries.SessionsReply:
        query = queries.SessionsQuery(
            user_id=user_id, min_position=self.position_of(user_id), limit=limit, before=before
        )
        return await self._asked("sessions", query, queries.SessionsReply)

    async def session(self, user_id: str, session_id: str, at: queries.At | None = None) -> queries.SessionRow:
        query = queries.SessionQuery(
            user_id=user_id, min_position=self.position_of(user_id), session_id=session_id, at=at
        )
        return await self._asked("session", query, queries.SessionRow)

    async def messages(
        self, user_id: str, session_id: str, after: int, limit: int, at: queries.At | None
    ) -> queries.MessagesReply:
        query = queries.MessagesQuery(
            user_id=user_id,
            min_position=self.position_of(user_id),
            session_id=session_id,
            after=after,
            limit=limit,
            at=at,
        )
        return await self._asked("messages", query, queries.MessagesReply)

    async def turn(self, user_id: str, turn_id: str) -> queries.TurnRow | None:
        query = queries.TurnQuery(user_id=user_id, min_position=self.position_of(user_id), turn_id=turn_id)
        return (await self._asked("turn", query, queries.TurnReply)).turn

    async def receipt(self, user_id: str, session_id: str, turn_id: str, after: int) -> Receipt:
        query = queries.ReceiptQuery(
            user_id=user_id,
            min_position=self.position_of(user_id),
            session_id=session_id,
            turn_id=turn_id,
            after=after,
        )
        return await self._asked("receipt", query, Receipt)

    async def outcome(self, user_id: str, event_id: str, data_hash: str) -> queries.OutcomeReply:
        query = queries.OutcomeQuery(user_id=user_id, event_id=event_id, data_hash=data_hash)
        return await self._asked("outcome", query, queries.OutcomeReply)

    async def events(
        self, user_id: str, session_id: str, after: int, limit: int = queries.PAGE_ROWS
    ) -> queries.EventsReply:
        """A page of a session's events after a version, from the log: the barrier of an attach."""
        query = queries.EventsQuery(user_id=user_id, session_id=session_id, after=after, limit=limit)
        reply = _read_events(await self._request("events", query))
        if isinstance(reply, queries.Failure):
            raise _failure(reply)
        return reply

    async def snapshot(self, user_id: str, turn_id: str, attempt: int) -> bytes | None:
        """The answer_so_far frame of the worker that holds this attempt. None: nobody does (any more)."""
        asked = turns.Snapshot(turn_id=turn_id, attempt=attempt)
        try:
            return await self._bus.request(subjects.turn(user_id, turn_id), dump(asked), SNAPSHOT_TIMEOUT_S)
        except (NotSent, NoAnswer):
            return None

    async def _asked(self, name: str, query: queries.Query, shape: type[T]) -> T:
        raw = await self._request(name, query)
        try:
            reply = queries.read_reply(shape, raw)
        except ContractError as error:
            raise HistoryAway(f"{name}: {error.reason}") from error
        if isinstance(reply, queries.Failure):
            raise _failure(reply)
        return reply

    async def _request(self, name: str, query: queries.Query) -> bytes:
        async with self._at_once:
            try:
                return await self._bus.request(
                    subjects.history_query(name, query.user_id),
                    dump(query),
                    RECEIPT_TIMEOUT_S if name == "receipt" else QUERY_TIMEOUT_S,
                )
            except (NotSent, NoAnswer) as error:
                raise HistoryAway(name) from error


def _failure(reply: queries.Failure) -> Exception:
    """not_ready and internal are history's own trouble; every other code is about what was asked for."""
    return HistoryAway(reply.error) if reply.error in ("not_ready", "internal") else Refused(reply.error)


def _read_events(raw: bytes) -> queries.EventsReply | queries.Failure:
    try:
        return queries.read_events_reply(raw)
    except (ContractError, KeyError, TypeError) as error:
        raise HistoryAway("events: not a page") from error


def cursor_of(text: str | None) -> frames.Cursor | None:
    """A client's cursor. Raises Refused(bad_request)."""
    if not text:
        return None
    try:
        return frames.read_cursor(text)
    except ContractError as error:
        raise Refused("bad_request", error.reason) from error


def at_of(text: str | None) -> queries.At | None:
    """The version or time that a client asks for. Raises Refused(bad_request)."""
    if text is None:
        return None
    try:
        return queries.read_at(text)
    except ContractError as error:
        hint = "; in an address a + is written %2B" if " " in text else ""
        raise Refused("bad_request", f"{error.reason}{hint}") from error
