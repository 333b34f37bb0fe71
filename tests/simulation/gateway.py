"""One simulated gateway: the real intake, attach, watches, relay and questions; its channels without their tasks.

Owns when a session's watchers are brought up to date (the one "ask again" rule of services/gateway/feeds), and the
inbox that outcomes come to. Its clients see nothing but what their watches deliver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from contracts import subjects
from contracts.base import dump
from contracts.envelope import Event
from contracts.frames import Cursor
from contracts.queries import OutcomeQuery, OutcomeReply, read_reply
from contracts.turns import OutcomeMessage, read_outcome
from services.gateway.attach import Watch, catch_up
from services.gateway.feeds import QUIET_S
from services.gateway.queries import History
from services.gateway.relay import Kind, read_frame
from tests.recording import delivered
from tests.simulation.server import Connection, Server, Subscription
from tests.simulation.stepping import SteppedBus, talk

Told = Callable[[OutcomeMessage], None]
ASK_TIMEOUT_S = 2.0


class Gateway:
    """From its start to its death."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.server = server
        self.connection = Connection(server, name, self.ask_all)
        self.history = History(cast(Any, SteppedBus(self.connection)))
        self.channels: dict[tuple[str, str], Channel] = {}
        self.connection.subscribe(subjects.HELLO, lambda _payload, _reply: self.ask_all())

    def tick(self) -> None:
        self.connection.expire()
        for channel in self.channels.values():
            channel.tick()

    def close(self) -> None:
        for channel in self.channels.values():
            for watch in channel.watches:
                watch.end()
        self.channels.clear()
        self.server.close(self.connection)

    def after_drop(self) -> None:
        self.ask_all()

    def ask_all(self) -> None:
        """Something may have been missed anywhere."""
        for channel in self.channels.values():
            channel.ask_again()

    def send(self, event: Event, accepted: Callable[[], None], told: Told) -> None:
        """Publish what a user does: accepted once it is stored, then told what became of it."""
        inbox = self.server.new_inbox()
        self.connection.subscribe(inbox, lambda payload, _reply: told(read_outcome(payload)))
        sent = delivered(event, reply=inbox)
        self.connection.store(
            lambda: self.server.put_event(sent), lambda sequence: None if sequence is None else accepted()
        )

    def ask_outcome(self, event: Event, told: Told) -> None:
        """For who missed it."""
        query = OutcomeQuery(user_id=event.user_id, event_id=event.event_id, data_hash=event.data_hash)

        def answered(raw: bytes | None) -> None:
            reply = None if raw is None else read_reply(OutcomeReply, raw)
            if isinstance(reply, OutcomeReply) and reply.outcome is not None:
                told(reply.outcome)

        subject = subjects.history_query("outcome", event.user_id)
        self.connection.ask(subject, dump(query), answered, ASK_TIMEOUT_S)

    def attach(self, watch: Watch, after: Cursor | None) -> None:
        """Subscribe first, then ask for what was before."""
        key = watch.user_id, watch.session_id
        if key not in self.channels:
            self.channels[key] = Channel(self, *key)
        watch.start(after)
        self.channels[key].join(watch)

    def leave(self, watch: Watch) -> None:
        watch.end()
        channel = self.channels.get((watch.user_id, watch.session_id))
        if channel is not None and watch in channel.watches:
            channel.watches.remove(watch)
            if not channel.watches:
                self.connection.unsubscribe(channel.subscription)
                del self.channels[(watch.user_id, watch.session_id)]


class Channel:
    """One session's watchers, and what is asked for them: one ask at a time."""

    def __init__(self, gateway: Gateway, user_id: str, session_id: str) -> None:
        self._gateway = gateway
        self._user_id = user_id
        self.watches: list[Watch] = []
        self._joining: list[Watch] = []
        self._asking = False
        self._wanted = False
        self._heard_at = 0.0
        subject = subjects.session_feed(user_id, session_id)
        self.subscription: Subscription = gateway.connection.subscribe(subject, self._on_frame)

    def join(self, watch: Watch) -> None:
        self.watches.append(watch)
        self._attach(watch)

    def ask_again(self) -> None:
        self._wanted = True
        if not self._asking:
            self._ask()

    def tick(self) -> None:
        """What failed is tried again; and a silence while a turn is unfinished may be a lost last frame."""
        joining, self._joining = self._joining, []
        for watch in joining:
            self._attach(watch)
        now_s = self._gateway.server.now()
        if any(watch.relay.open_turns for watch in self.watches) and now_s - self._heard_at >= QUIET_S:
            self._heard_at = now_s
            self._wanted = True
        if self._wanted and not self._asking:
            self._ask()

    def _on_frame(self, payload: bytes, _reply: str) -> None:
        frame = read_frame(payload)
        self._heard_at = self._gateway.server.now()
        if frame.kind is Kind.EVENT:
            self._gateway.history.saw(self._user_id, frame.position)
        for watch in tuple(self.watches):
            watch.offer(frame)
        if any(watch.live and watch.relay.gap for watch in self.watches):
            self.ask_again()

    def _attach(self, watch: Watch) -> None:
        def ended(error: Exception | None) -> None:
            if error is not None and not watch.ended:
                self._joining.append(watch)
            elif watch.relay.gap and not watch.ended:
                self.ask_again()

        if not watch.ended:
            talk(catch_up(self._gateway.history, [watch]), ended)

    def _ask(self) -> None:
        live = [watch for watch in self.watches if watch.live and not watch.ended]
        self._asking, self._wanted = bool(live), False

        def ended(error: Exception | None) -> None:
            self._asking = False
            if error is not None or any(watch.relay.gap for watch in live):
                self._wanted = True  # at the next tick
            elif self._wanted:
                self._ask()

        if live:
            talk(catch_up(self._gateway.history, live), ended)
