"""One simulated client, as docs/clients.md asks of it: folds its frames, keeps its keys, reconnects with its cursor.

Owns what its user sees (tests/folding checks each frame against the rules) and what it was told of each of its sends.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

from contracts import ids
from contracts.base import time_text
from contracts.envelope import Event
from contracts.frames import Attached, encode, read_cursor
from contracts.turns import OutcomeMessage
from services.gateway import intake
from services.gateway.attach import ResyncReason, Watch
from services.gateway.relay import Step
from tests.folding import SessionView
from tests.simulation.gateway import Gateway
from tests.simulation.history import BEGAN
from tests.simulation.truth import Truth


@dataclass
class Send:
    """One thing that its user did. outcomes: what was told of it, however often."""

    event: Event
    accepted: bool = False
    outcomes: list[OutcomeMessage] = field(default_factory=list)


@dataclass(frozen=True)
class Bookmark:
    """What a client had shown at some time, and its cursor then."""

    cursor: str | None
    view: SessionView


class Client:
    """One user's window on one session."""

    def __init__(self, name: str, user_id: str, session_id: str, truth: Truth) -> None:
        self.name = name
        self.user_id = user_id
        self.session_id = session_id
        self.sends: list[Send] = []
        self.view = SessionView(session_id)
        self.watch: Watch | None = None
        self.gateway: Gateway | None = None
        self._truth = truth
        self._cursor: str | None = None
        self._bookmark = Bookmark(None, SessionView(session_id))

    # What its user does.

    def send(self, gateway: Gateway, text: str, on_busy: str, number: int | None = None) -> Send:
        """number: of its key, where it is not a new one: another text under it is a client's mistake."""
        request = self._request("user_message_submitted", len(self.sends) if number is None else number)
        return self._do(gateway, intake.message(request, {"text": text, "on_busy": on_busy}))

    def cancel(self, gateway: Gateway, turn_id: str) -> Send:
        return self._do(gateway, intake.cancel(self._request("cancel_requested", len(self.sends)), turn_id))

    def delete(self, gateway: Gateway) -> Send:
        return self._do(gateway, intake.delete(self._request("session_deleted", len(self.sends))))

    def restore(self, gateway: Gateway) -> Send:
        return self._do(gateway, self.undo())

    def undo(self) -> Event:
        return intake.restore(self._request("session_restored", len(self.sends)))

    def repeat(self, gateway: Gateway, send: Send) -> None:
        """The same again, under the same key: its outcome is not known, or was not believed."""

        def accepted() -> None:
            send.accepted = True

        gateway.send(send.event, accepted, send.outcomes.append)

    def _do(self, gateway: Gateway, event: Event) -> Send:
        self.sends.append(Send(event))
        self.repeat(gateway, self.sends[-1])
        return self.sends[-1]

    def _request(self, event_type: str, number: int) -> intake.Request:
        event_id = ids.event_id_of_key(self.user_id, self.session_id, event_type, f"{self.name}-{number}")
        return intake.Request(self.user_id, self.session_id, event_id, time_text(BEGAN))

    # What it sees.

    def attach(self, gateway: Gateway, *, at_bookmark: bool = False) -> None:
        """Connect, to go on from where it is, or from where it once was."""
        self.leave()
        if at_bookmark:
            self.view, self._cursor = deepcopy(self._bookmark.view), self._bookmark.cursor
        self.view.attached = False
        self.gateway = gateway
        self.watch = Watch(self.user_id, self.session_id, self)
        gateway.attach(self.watch, read_cursor(self._cursor) if self._cursor else None)

    def leave(self) -> None:
        if self.gateway is not None and self.watch is not None:
            self.gateway.leave(self.watch)
        self.gateway = self.watch = None

    def remember(self) -> None:
        self._bookmark = Bookmark(self._cursor, deepcopy(self.view))

    def deliver(self, watch: Watch, step: Step, *, counted: bool) -> None:
        self.view.take(step.frame.raw.decode())
        self._cursor = watch.cursor_at(step)
        self._truth.check(self.view)

    def attached(self, watch: Watch, version: int) -> None:
        assert watch.epoch is not None
        self.view.take(encode(Attached(session_id=self.session_id, epoch=watch.epoch, version=version)).decode())
        assert not self.view.broken, self.view.broken

    def resync(self, watch: Watch, reason: ResyncReason) -> None:
        raise AssertionError(f"the log was not restored, but a cursor of it is not served: {reason}")

    async def drained(self) -> bool:
        return True
