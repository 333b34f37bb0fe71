"""One simulated worker: the real run (core), numbering and contexts; around them what inference's tasks do.

Owns the slots, the claim, the answer to a delivery and the presence, as services/inference does with sockets. Its model
says a few pieces that name the run, so that a mixture of two runs shows, and ends when it is told to break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from contracts import subjects
from contracts.base import dump
from contracts.envelope import Envelope, write_event
from contracts.events import schema_version_of
from contracts.frames import encode
from contracts.queries import TurnQuery, TurnReply, read_reply
from contracts.turns import (
    Go,
    ModelPresence,
    Presence,
    QueuedContext,
    RunPresence,
    Snapshot,
    Word,
    read_context,
    read_turn_message,
)
from services.inference.contexts import PULL_EXPIRES_S
from services.inference.run import (
    Completed,
    Outcome,
    Run,
    Step,
    conclude,
    hear,
    may_nak,
    next_step,
    terminal_of,
    waits_for_history,
)
from services.inference.tokens import Answer
from services.runtime.streams import ACK_WAIT_S
from tests.conversing import MODEL
from tests.recording import delivered
from tests.simulation.server import Connection, Pull, Server, Work
from tests.simulation.truth import Truth

SLOTS = 2
PIECES = 8
TOKEN_CHARS = 100
PRESENCE_EVERY_S = 2
HEARTBEAT_EVERY_S = 3
ASK_TIMEOUT_S = 1.0


class Worker:
    """From its start to its death."""

    def __init__(self, name: str, server: Server, new_id: Callable[[], str], truth: Truth) -> None:
        self.name = name
        self.connection = Connection(server, name, self._reconnected)
        self.server = server
        self.new_id = new_id
        self.truth = truth
        self.runs: dict[str, TurnRun] = {}
        self.well_since = server.now()  # neither paused nor cut since
        self._pulls_until: list[float] = []
        self._sick_until = 0.0
        self.connection.subscribe(subjects.HELLO, lambda _payload, _reply: self.say())
        self.say()

    def steps(self) -> Iterator[Work]:
        well = self.connection.connected and self.server.now() >= self._sick_until
        if well and len(self.runs) + len(self._pulls_until) < SLOTS:
            yield self._pull
        for run in self.runs.values():
            yield from run.steps()

    def tick(self) -> None:
        self.connection.expire()
        self._pulls_until = [until_s for until_s in self._pulls_until if until_s > self.server.now()]
        if self.server.now() % PRESENCE_EVERY_S == 0:
            self.say()
        for run in list(self.runs.values()):
            run.tick()

    def close(self) -> None:
        self.server.close(self.connection)

    def say(self) -> None:
        """Its presence. A worker whose server has failed it is sick until a probe is answered."""
        sick = self.server.now() < self._sick_until
        presence = Presence(
            worker_id=self.name,
            models=[ModelPresence(name=MODEL, window=4096)],
            server="model_lost" if sick else "ok",
            server_kind="openai",
            slots=SLOTS,
            free=SLOTS - len(self.runs),
            runs=[RunPresence(turn_id=run.turn_id, run=run.run.run_id) for run in self.runs.values()],
        )
        self.connection.publish(subjects.presence(self.name), dump(presence))

    def server_lost(self) -> None:
        self._sick_until = self.server.now() + 1.0

    def _pull(self) -> None:
        until_s = self.server.now() + PULL_EXPIRES_S
        self._pulls_until.append(until_s)
        self.connection.tell(lambda: self.server.pull(Pull(self.connection, until_s, self._take)))

    def _take(self, number: int, payload: bytes) -> None:
        del self._pulls_until[:1]
        if len(self.runs) >= SLOTS:
            self.connection.tell(lambda: self.server.give_back(number))
            return
        run = TurnRun(self, number, read_context(payload))
        self.runs[run.run.run_id] = run
        self.say()
        run.claim()

    def after_drop(self) -> None:
        """Words may be lost."""
        self.say()
        for run in list(self.runs.values()):
            run.ask()

    def _reconnected(self) -> None:
        self._pulls_until.clear()
        self.after_drop()


class TurnRun:
    """One run of one turn: what services/inference/slots and claims do in tasks."""

    def __init__(self, worker: Worker, number: int, context: QueuedContext) -> None:
        self.run = Run(run_id=worker.new_id())
        self.turn_id = context.turn_id
        self._worker = worker
        self._connection = worker.connection
        self._number = number  # of its message in the queue
        self._cause = context.event
        self._confirmed_at = worker.server.now()
        self._claimed_at: int | None = None
        self._told = False
        self._pieces = 0
        self._model_is_due = False
        self._answer = Answer(self._cause.session_id, self.turn_id, TOKEN_CHARS)
        subject = subjects.turn(self._cause.user_id, self.turn_id)
        self._subscription = self._connection.subscribe(subject, self._on_message)

    def steps(self) -> Iterator[Work]:
        """What its model does next: a piece a second, then the end."""
        if self._model_is_due and self.run.outcome is None:
            yield self._say_a_piece if self._pieces < PIECES else lambda: self.end(Completed("stop"))

    def tick(self) -> None:
        self._model_is_due = True
        now_s = self._worker.server.now()
        if now_s % HEARTBEAT_EVERY_S == 0:
            self._receipt(self._worker.server.keep, lambda: self._confirm(now_s))
        if waits_for_history(self.run):
            self.ask()

    def claim(self) -> None:
        self._publish("turn_claimed", {"run": self.run.run_id}, self._claimed)

    def ask(self) -> None:
        """For history's word, which may have been lost."""
        user_id = self._cause.user_id
        query = TurnQuery(user_id=user_id, turn_id=self.turn_id, run=self.run.run_id, claimed_at=self._claimed_at or 0)

        def answered(raw: bytes | None) -> None:
            reply = None if raw is None else read_reply(TurnReply, raw)
            if isinstance(reply, TurnReply) and reply.word is not None:
                self._hear(reply.word)

        self._connection.ask(subjects.history_query("turn", user_id), dump(query), answered, ASK_TIMEOUT_S)

    def end(self, outcome: Outcome) -> None:
        """Its model has ended, or failed."""
        self._become(conclude(self.run, outcome))

    def _say_a_piece(self) -> None:
        self._model_is_due = False
        self._pieces += 1
        self._answer.add("", f"<{self.run.run_id[:8]}.{self._pieces}>")
        self._let_out()

    def _let_out(self) -> None:
        if next_step(self.run) in (Step.LET_OUT, Step.TELL):
            for token in self._answer.give_out(self.run.attempt):
                self._worker.truth.said(token, self.run.run_id)
                feed = subjects.session_feed(self._cause.user_id, self._cause.session_id)
                self._connection.publish(feed, encode(token))

    def _claimed(self, sequence: int) -> None:
        self._claimed_at = sequence

    def _on_message(self, payload: bytes, reply: str) -> None:
        message = read_turn_message(payload)
        if not isinstance(message, Snapshot):
            self._hear(message)
        elif message.attempt == self.run.attempt:
            self._connection.publish(reply, encode(self._answer.so_far(message.attempt)))

    def _hear(self, word: Word) -> None:
        """A go for the run before ours is no answer to a claim that the queue does not have yet."""
        if not (isinstance(word, Go) and word.run != self.run.run_id and self._claimed_at is None):
            self._become(hear(self.run, word))

    def _become(self, run: Run) -> None:
        if self.run.run_id not in self._worker.runs:
            return  # it is over
        self.run = run
        self._let_out()
        match next_step(run):
            case Step.TELL if not self._told:
                self._told = True
                self._publish(*terminal_of(run, self._answer, MODEL), lambda _sequence: None)
            case Step.ACK:
                self._leave()
                self._receipt(self._worker.server.acknowledge, lambda: None)
            case Step.LEAVE:
                self._leave()
            case Step.GIVE_BACK:
                self._give_back()

    def _leave(self) -> None:
        del self._worker.runs[self.run.run_id]
        self._connection.unsubscribe(self._subscription)
        self._worker.say()

    def _give_back(self) -> None:
        """History hears that the run is over before it hears another claim."""
        self._worker.server_lost()
        self._leave()
        age_s = self._worker.server.now() - self._confirmed_at
        if may_nak(connected=self._connection.connected, heartbeat_age_s=age_s, ack_wait_s=ACK_WAIT_S):
            self._receipt(self._worker.server.give_back, lambda: None)

    def _receipt(self, receipt: Callable[[int], None], confirmed: Work) -> None:
        """An ack, a nak or a heartbeat, and the server's answer to it."""

        def put() -> int:
            receipt(self._number)
            return 0

        self._connection.store(put, lambda answer: None if answer is None else confirmed())

    def _confirm(self, sent_at: float) -> None:
        self._confirmed_at = sent_at

    def _publish(self, event_type: str, data: dict[str, Any], then: Callable[[int], None]) -> None:
        """Until the queue has it: minted once, so that a repeat is the same event."""
        body = write_event(
            Envelope(
                event_id=self._worker.new_id(),
                type=event_type,
                schema_version=schema_version_of(event_type),
                user_id=self._cause.user_id,
                session_id=self._cause.session_id,
                turn_id=self.turn_id,
                causation_id=self._cause.event_id,
                occurred_at=self._cause.envelope.occurred_at,
                data=data,
            )
        )
        sent = delivered(body, reply=None)

        def answered(sequence: int | None) -> None:
            if sequence is not None:
                then(sequence)
            elif self.run.run_id in self._worker.runs:
                publish()

        def publish() -> None:
            self._connection.store(lambda: self._worker.server.put_event(sent), answered)

        publish()
