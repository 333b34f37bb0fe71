"""Step 13, gateway/relay (core): events and tokens -> ordered frames for one client.

Owns the order that a client sees: events by version without a gap, tokens by (attempt, index) without a gap or a
duplicate, answer_started before its tokens, nothing of an answer after its terminal. What comes early is held, what
comes late is dropped, what is missing shows as `gap`. Must never do I/O, re-encode a frame or guess what was missed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from pydantic_core import from_json

from contracts import events
from contracts.errors import ContractError

# What one client may hold back while a gap is repaired. Beyond it the held frames go: history and the worker still
# have them, and `gap` stays until they were asked for.
HELD_FRAMES = 2000
HELD_BYTES = 1024 * 1024
# Turns whose end was seen lately: their late tokens are dropped without a question to history.
ENDED_TURNS = 32

# Events after which a terminal is to come.
_OPENING = frozenset({"user_message_submitted", "answer_started"})
_NOTICES = frozenset({"turn_queued", "loading"})


class Kind(Enum):
    EVENT = "event"
    TOKEN = "token"
    SO_FAR = "answer_so_far"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came, with what the relay orders it by. attempt and index: of tokens, and of answer_started."""

    kind: Kind
    raw: bytes
    turn_id: str | None
    version: int = 0
    position: int = 0
    event_type: str = ""
    attempt: int = 0
    index: int = 0

    @property
    def is_terminal(self) -> bool:
        return self.event_type in events.TERMINALS


class Step(NamedTuple):
    """A frame that may go out, and where the client is after it."""

    frame: Frame
    version: int
    attempt: int
    last_index: int


def read_frame(raw: bytes) -> Frame:
    """A frame of a feed, a page or a snapshot. Raises ContractError(bad_frame) for what none of our services sends."""
    try:
        value: dict[str, Any] = from_json(raw)
        match value["type"]:
            case "token":
                return Frame(Kind.TOKEN, raw, value["turn_id"], attempt=value["attempt"], index=value["index"])
            case "event":
                return _event_frame(raw, value)
            case "answer_so_far":
                return Frame(Kind.SO_FAR, raw, value["turn_id"], attempt=value["attempt"], index=value["index"])
            case kind if kind in _NOTICES:
                return Frame(Kind.NOTICE, raw, value["turn_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError("bad_frame", "not a frame of ours") from error
    raise ContractError("bad_frame", "an unknown type of frame")


def _event_frame(raw: bytes, value: dict[str, Any]) -> Frame:
    event = value["event"]
    return Frame(
        Kind.EVENT,
        raw,
        event.get("turn_id"),
        version=value["version"],
        position=value["position"],
        event_type=event["type"],
        attempt=event["data"]["attempt"] if event["type"] == "answer_started" else 0,
    )


@dataclass(slots=True)
class Relay:
    """One client's place in one session: version, and inside the answer in flight (turn_id, attempt, index)."""

    version: int = 0
    turn_id: str | None = None
    attempt: int = 0
    index: int = 0
    # Turns that are known here to have begun and not to have ended.
    open_turns: set[str] = field(default_factory=set)
    _started: bool = False
    _seen_version: int = 0
    # The furthest token that came and may still matter: (turn, attempt, index).
    _seen_token: tuple[str, int, int] | None = None
    _events: dict[int, Frame] = field(default_factory=dict)
    _tokens: dict[tuple[str, int, int], Frame] = field(default_factory=dict)
    _held_bytes: int = 0
    _ended: tuple[str, ...] = ()

    @property
    def gap(self) -> bool:
        """Whether something that was sent is not here: history and the worker must be asked."""
        return self.version < self._seen_version or self._seen_token is not None

    def start_at(self, version: int, attempt: int = 0, index: int = 0) -> list[Step]:
        """Begin after a client's cursor. Until then everything that comes is held."""
        self.version, self.attempt, self.index = version, attempt, index
        self._started = True
        for early in [held for held in self._events if held <= version]:
            self._held_bytes -= len(self._events.pop(early).raw)
        return self._release()

    def offer(self, frame: Frame) -> list[Step]:
        """Take a frame; what may go out now, in order."""
        match frame.kind:
            case Kind.TOKEN:
                place = str(frame.turn_id), frame.attempt, frame.index
                if place == (self.turn_id, self.attempt, self.index + 1):
                    return self._pass(frame)
                if not self._is_stale(*place):
                    self._hold_token(frame, place)
            case Kind.EVENT:
                if self._started and frame.version == self.version + 1:
                    return self._pass(frame)
                if not self._started or frame.version > self.version:
                    self._hold_event(frame)
            case Kind.SO_FAR:
                return self._replace(frame)
            case Kind.NOTICE:
                return [self._step(frame)] if self._started and frame.turn_id not in self._ended else []
        return []

    def settle(self, running_turn_id: str | None, running_attempt: int) -> list[Step]:
        """Which answer history says is in flight, once every event that it has was offered.

        A client's cursor does not name the turn: where the events since do not either, this does.
        """
        if self.turn_id is None and running_turn_id is not None and running_turn_id not in self._ended:
            if running_attempt != self.attempt:
                self.attempt, self.index = running_attempt, 0
            self.turn_id = running_turn_id
            self.open_turns.add(running_turn_id)
            self._forget_tokens()
        return self._release()

    def give_up_waiting(self) -> None:
        """Forget tokens of answers that history, asked, does not know to be in flight: nobody will start them."""
        if self.version >= self._seen_version:
            self._forget_tokens(keep_unknown=False)

    def _step(self, frame: Frame) -> Step:
        inside = (self.attempt, self.index) if self.turn_id is not None else (0, 0)
        return Step(frame, self.version, *inside)

    def _pass(self, frame: Frame) -> list[Step]:
        """A frame that is next, and what was held for it."""
        step = self._advance(frame)
        return [step, *self._release()] if self._tokens or self._events else [step]

    def _release(self) -> list[Step]:
        """All that is held and next: tokens first, so that an answer's last token goes before its end."""
        out: list[Step] = []
        while self._started and (self._tokens or self._events):
            if (frame := self._next_token()) is None and (frame := self._events.pop(self.version + 1, None)) is None:
                break
            self._held_bytes -= len(frame.raw)
            out.append(self._advance(frame))
        return out

    def _advance(self, frame: Frame) -> Step:
        if frame.kind is Kind.EVENT:
            self._fold(frame)
        else:
            self.index = frame.index
            if self._seen_token is not None and self._is_stale(*self._seen_token):
                self._seen_token = None
        return self._step(frame)

    def _next_token(self) -> Frame | None:
        if self.turn_id is None or not self._tokens:
            return None
        return self._tokens.pop((self.turn_id, self.attempt, self.index + 1), None)

    def _fold(self, frame: Frame) -> None:
        self.version = frame.version
        if frame.event_type in _OPENING:
            self.open_turns.add(str(frame.turn_id))
        if frame.event_type == "answer_started":
            self.turn_id, self.attempt, self.index = frame.turn_id, frame.attempt, 0
            self._forget_tokens()
        elif frame.is_terminal:
            self._ended = (*self._ended, str(frame.turn_id))[-ENDED_TURNS:]
            self.open_turns.discard(str(frame.turn_id))
            if frame.turn_id == self.turn_id:
                self.turn_id, self.attempt, self.index = None, 0, 0
            self._forget_tokens()

    def _replace(self, frame: Frame) -> list[Step]:
        if (frame.turn_id, frame.attempt) != (self.turn_id, self.attempt) or frame.index <= self.index:
            return []
        self.index = frame.index
        self._forget_tokens()
        return [self._step(frame), *self._release()]

    def _is_stale(self, turn_id: str, attempt: int, index: int) -> bool:
        if turn_id in self._ended:
            return True
        return turn_id == self.turn_id and (attempt, index) <= (self.attempt, self.index)

    def _hold_event(self, frame: Frame) -> None:
        self._seen_version = max(self._seen_version, frame.version)
        if frame.version not in self._events:
            self._make_room(frame)
            self._events[frame.version] = frame

    def _hold_token(self, frame: Frame, key: tuple[str, int, int]) -> None:
        if self._seen_token is None or key[0] != self._seen_token[0] or key[1:] > self._seen_token[1:]:
            self._seen_token = key
        if key not in self._tokens:
            self._make_room(frame)
            self._tokens[key] = frame

    def _make_room(self, frame: Frame) -> None:
        held = len(self._events) + len(self._tokens)
        if held >= HELD_FRAMES or (held and self._held_bytes + len(frame.raw) > HELD_BYTES):
            self._events.clear()
            self._tokens.clear()
            self._held_bytes = 0
        self._held_bytes += len(frame.raw)

    def _forget_tokens(self, *, keep_unknown: bool = True) -> None:
        """Drop held tokens that can no longer go out; with keep_unknown False also those of answers not in flight."""

        def is_of_no_use(key: tuple[str, int, int]) -> bool:
            unknown = key[:2] != (self.turn_id, self.attempt)
            return self._is_stale(*key) or (unknown and not keep_unknown)

        for key in [held for held in self._tokens if is_of_no_use(held)]:
            self._held_bytes -= len(self._tokens.pop(key).raw)
        if self._seen_token is not None and is_of_no_use(self._seen_token):
            self._seen_token = None
