"""Step 10, history/queries: what others ask of history by name, answered from the views or the log.

Owns the handlers of chat.history.<query>.<user> and chat.operator.<query>. A query whose user is not the one in its
subject is not answered from anyone's data. Must never write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from faststream.nats import NatsMessage

from contracts import subjects
from contracts.base import dump
from contracts.errors import Code, ContractError
from contracts.queries import (
    EventsQuery,
    EventsReply,
    Failure,
    MessagesQuery,
    MessagesReply,
    OutcomeQuery,
    OutcomeReply,
    Query,
    ReceiptQuery,
    SessionQuery,
    SessionRow,
    SessionsQuery,
    SessionsReply,
    StatusReply,
    TurnQuery,
    TurnReply,
    encode_events_reply,
    read_query,
)
from services.history.batch import outcome_message
from services.history.evidence import evidence_of
from services.history.log.port import LogError, StoredOutcome
from services.history.log.reader import LogReader
from services.history.receipt import receipt_of
from services.history.views.folder import ViewFolder
from services.history.views.pages import NoSession
from services.history.views.past import Past
from services.history.views.reader import ViewReader
from services.history.views.travel import Travel
from services.history.writer import Writer
from services.runtime.bus import Bus

log = structlog.get_logger(__name__)

T = TypeVar("T", Past, SessionRow)

# Queries that wait for a position must not hold up the others.
CONCURRENT_QUERIES = 64
# Each folds a session of the log, and reads what its model was shown.
CONCURRENT_RECEIPTS = 4

Answer = Callable[[Any], Awaitable[bytes]]
Status = Callable[[], Awaitable[StatusReply]]
OnBroken = Callable[[LogError], None]


class QueryFailed(Exception):
    """The query is answered with this code instead."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code: Code = code


@dataclass(frozen=True, slots=True)
class Question:
    """A query as the bus has it. answered: from the whole message; at most `concurrent` of them at a time."""

    name: str
    subject: str
    concurrent: int
    answered: Callable[[NatsMessage], Awaitable[bytes]]


def serve(bus: Bus, question: Question, on_broken: OnBroken) -> None:
    """Answer it whenever it is asked, with its failures as codes."""

    @bus.broker.subscriber(
        question.subject,
        queue=subjects.HISTORY_GROUP,
        title=question.name,
        max_workers=question.concurrent,
        decoder=_as_it_came,
    )
    async def handle(message: NatsMessage) -> bytes:
        try:
            return await question.answered(message)
        except QueryFailed as failed:
            return dump(Failure(error=failed.code))
        except ContractError as error:
            log.warning("query_refused", query=question.name, reason=error.reason)
            return dump(Failure(error="bad_request"))
        except LogError as error:
            on_broken(error)  # FastStream would log it and go on
            return dump(Failure(error="not_ready"))


class Queries:
    """One method per query."""

    def __init__(
        self, epoch: str, log_: LogReader, views: ViewReader, travel: Travel, folder: ViewFolder, writer: Writer
    ) -> None:
        self._epoch = epoch
        self._log = log_
        self._views = views
        self._travel = travel
        self._folder = folder
        self._writer = writer

    def register(self, bus: Bus, status: Status, on_broken: OnBroken) -> None:
        """FastStream owns the handlers: they start with the broker, and are on the AsyncAPI page."""
        answers: dict[str, Answer] = {
            "sessions": self.sessions,
            "session": self.session,
            "messages": self.messages,
            "turn": self.turn,
            "events": self.events,
            "outcome": self.outcome,
        }
        for name, answer in answers.items():
            self._subscribe(bus, name, answer, on_broken)
        self._subscribe(bus, "receipt", self.receipt, on_broken, CONCURRENT_RECEIPTS)

        @bus.broker.subscriber(
            subjects.operator_query("status"),
            queue=subjects.HISTORY_GROUP,
            title="status",
            max_workers=2,
            decoder=_as_it_came,
        )
        async def answer_status(_: NatsMessage) -> bytes:
            return dump(await status())

    def _subscribe(
        self, bus: Bus, name: str, answer: Answer, on_broken: OnBroken, concurrent: int = CONCURRENT_QUERIES
    ) -> None:
        async def asked(message: NatsMessage) -> bytes:
            return await answer(self._read(name, message))

        serve(bus, Question(name, f"chat.history.{name}.*", concurrent, asked), on_broken)

    def _read(self, name: str, message: NatsMessage) -> Query:
        query = read_query(name, message.body)
        if message.raw_message.subject != subjects.history_query(name, query.user_id):
            raise ContractError("bad_request", "the subject names another user")
        return query

    async def sessions(self, query: SessionsQuery) -> bytes:
        await self._reach(query)
        page, following = await self._views.sessions(query)
        return dump(SessionsReply(sessions=page, next=following, position=self._folder.position))

    async def session(self, query: SessionQuery) -> bytes:
        if query.at is not None:
            return dump(_there(_there(await self._travel.past(query, query.at)).session()))
        await self._reach(query)
        return dump(_there(await self._views.session(query.user_id, query.session_id)))

    async def messages(self, query: MessagesQuery) -> bytes:
        if query.at is not None:
            past = _there(await self._travel.past(query, query.at))
            session = _there(past.session())
            (page, following), position = past.messages(), session.position
        else:
            await self._reach(query)
            session = _there(await self._views.session(query.user_id, query.session_id))
            (page, following), position = await self._views.messages(query), self._folder.position
        return dump(MessagesReply(session=session, messages=page, next=following, position=position))

    async def turn(self, query: TurnQuery) -> bytes:
        """For a worker, that names its run, the word comes from the log; for others the row from the views."""
        if query.run is not None:
            word = await self._writer.word(query.user_id, query.turn_id, query.claimed_at)
            return dump(TurnReply(turn=None, word=word, position=self._writer.position))
        await self._reach(query)
        row = await self._views.turn(query.user_id, query.turn_id)
        return dump(TurnReply(turn=row, word=None, position=self._folder.position))

    async def receipt(self, query: ReceiptQuery) -> bytes:
        """Whether there is such a turn, the views say, as to every door; what is behind it, the log."""
        await self._reach(query)
        turn = await self._views.turn(query.user_id, query.turn_id)
        if turn is None or turn.session_id != query.session_id:
            raise QueryFailed("turn_unknown")
        _there(await self._views.session(query.user_id, query.session_id))
        found = await evidence_of(self._log, query.user_id, query.session_id, query.turn_id)
        if found is None:
            raise QueryFailed("not_assembled")
        return dump(receipt_of(found, query.after))

    async def events(self, query: EventsQuery) -> bytes:
        """From the log, not the views: they may be behind or under way of a rebuild. Who has watched a deleted
        session is told of its end and of what follows; nobody is shown it from its start."""
        if query.after == 0 and await self._log.session_is_deleted(query.user_id, query.session_id):
            raise QueryFailed("session_deleted")
        page = await self._log.session_page(query.user_id, query.session_id, query.after, query.limit)
        if page.version == 0:
            raise QueryFailed("session_unknown")
        return encode_events_reply(
            EventsReply(
                epoch=self._epoch,
                version=page.version,
                more=page.more,
                running_turn_id=page.running_turn_id,
                running_attempt=page.running_attempt,
                frames=page.frames,
            )
        )

    async def outcome(self, query: OutcomeQuery) -> bytes:
        """pending is not refused: the event may be on its way."""
        found = await self._log.outcome(query.user_id, query.event_id)
        if found is None:
            return dump(OutcomeReply(status="pending", outcome=None))
        if found.code is None and found.data_hash != query.data_hash:
            found = _with_code(found, "idempotency_conflict")
        outcome = outcome_message(found, query.user_id)
        return dump(OutcomeReply(status="recorded" if outcome.recorded else "refused", outcome=outcome))

    async def _reach(self, query: Query) -> None:
        if query.min_position > self._folder.position and not await self._folder.reach(query.min_position):
            raise QueryFailed("not_ready")


def _there(found: T | NoSession) -> T:
    """Or the query is answered with why there is none."""
    if isinstance(found, Past | SessionRow):
        return found
    raise QueryFailed(found)


async def _as_it_came(message: NatsMessage) -> NatsMessage:
    """A handler is given the whole message: its subject says whose query it is."""
    return message


def _with_code(found: StoredOutcome, code: str) -> StoredOutcome:
    return StoredOutcome(found.event_id, found.session_id, found.turn_id, found.data_hash, found.type, code, None, None)
