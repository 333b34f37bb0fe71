"""The relay's order: whatever a client's feed loses, repeats or brings early, what goes out is in order and whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.base import compact
from contracts.errors import ContractError
from services.gateway import relay as relay_module
from services.gateway.relay import Frame, Kind, Relay, Step, read_frame

SESSION = "11111111-1111-4111-8111-111111111111"


def event(version: int, event_type: str, turn: str | None = "t1", **fields: Any) -> Frame:
    inside = {"type": event_type, "data": fields} | ({"turn_id": turn} if turn else {})
    return read_frame(
        compact({"type": "event", "session_id": SESSION, "version": version, "position": version, "event": inside})
    )


def token(index: int, attempt: int = 1, turn: str = "t1") -> Frame:
    return read_frame(
        compact({"type": "token", "turn_id": turn, "attempt": attempt, "index": index, "text": f"<{index}>"})
    )


def so_far(index: int, attempt: int = 1, turn: str = "t1") -> Frame:
    return read_frame(
        compact(
            {"type": "answer_so_far", "turn_id": turn, "attempt": attempt, "index": index, "text": "", "thinking": ""}
        )
    )


def started(version: int, attempt: int = 1, turn: str = "t1") -> Frame:
    return event(version, "answer_started", turn, attempt=attempt)


def completed(version: int, turn: str = "t1") -> Frame:
    return event(version, "answer_completed", turn, attempt=1)


def shown(steps: list[Step]) -> list[str]:
    """Steps as words: v3 for an event, 1.2 for a token, =1.2 for an answer_so_far."""
    return [_word(step.frame) for step in steps]


def _word(frame: Frame) -> str:
    match frame.kind:
        case Kind.EVENT:
            return f"v{frame.version}"
        case Kind.TOKEN:
            return f"{frame.attempt}.{frame.index}"
        case Kind.SO_FAR:
            return f"={frame.attempt}.{frame.index}"
        case Kind.NOTICE:
            return "notice"


def feed(relay: Relay, *frames: Frame) -> list[str]:
    return [word for frame in frames for word in shown(relay.offer(frame))]


def running() -> Relay:
    """A client that watches attempt 1 of t1, at version 2, without a token yet."""
    relay = Relay()
    relay.start_at(0)
    assert feed(relay, event(1, "user_message_submitted"), started(2)) == ["v1", "v2"]
    return relay


def test_what_comes_in_order_goes_out_at_once() -> None:
    relay = running()
    assert feed(relay, token(1), token(2), completed(3)) == ["1.1", "1.2", "v3"]
    assert not relay.gap
    assert relay.open_turns == set()


def test_everything_is_held_until_the_cursor_is_served() -> None:
    assert feed(Relay(), event(1, "session_started", None)) == [], "of which log is not known yet"
    relay = Relay()
    assert feed(relay, event(4, "user_message_submitted"), started(5), token(1)) == []
    assert feed(relay, token(2), completed(6)) == []
    assert shown(relay.start_at(3)) == ["v4", "v5", "1.1", "1.2", "v6"]


def test_an_early_event_waits_for_the_one_before() -> None:
    relay = running()
    assert feed(relay, completed(4)) == []
    assert relay.gap
    assert feed(relay, event(3, "session_renamed", None, title="x")) == ["v3", "v4"]
    assert not relay.gap


def test_a_repeated_event_is_dropped() -> None:
    assert feed(running(), event(1, "user_message_submitted"), started(2)) == []


def test_a_missing_token_is_a_gap_that_the_text_so_far_closes() -> None:
    relay = running()
    assert feed(relay, token(1), token(4), token(3)) == ["1.1"]
    assert relay.gap
    assert feed(relay, so_far(3)) == ["=1.3", "1.4"]
    assert not relay.gap


def test_a_text_so_far_behind_the_client_or_of_another_attempt_is_dropped() -> None:
    relay = running()
    feed(relay, token(1), token(2))
    assert feed(relay, so_far(1), so_far(2), so_far(9, attempt=2), so_far(9, turn="t0")) == []


def test_a_new_attempt_starts_at_its_first_token_and_the_old_one_is_silent() -> None:
    relay = running()
    late = (token(1), token(2))
    assert feed(relay, token(1), started(3, attempt=2), *late, token(1, attempt=2)) == ["1.1", "v3", "2.1"]
    assert not relay.gap


def test_a_token_before_its_attempt_waits_for_it() -> None:
    relay = running()
    assert feed(relay, token(1, attempt=2)) == []
    assert relay.gap
    assert feed(relay, started(3, attempt=2)) == ["v3", "2.1"]


def test_no_token_after_the_end() -> None:
    relay = running()
    assert feed(relay, token(1), completed(3), token(2)) == ["1.1", "v3"]
    assert not relay.gap


def test_held_tokens_go_before_the_end() -> None:
    relay = running()
    assert feed(relay, token(2), completed(3), token(1)) == ["v3"]
    relay = running()
    relay.offer(completed(4))
    relay.offer(token(2))
    assert feed(relay, token(1)) == ["1.1", "1.2"]
    assert feed(relay, event(3, "cancel_requested")) == ["v3", "v4"]


def test_a_cursor_inside_an_answer_gets_the_next_token() -> None:
    relay = Relay()
    assert shown(relay.start_at(2, attempt=1, index=37)) == []
    assert feed(relay, token(38)) == []
    assert shown(relay.settle("t1", 1)) == ["1.38"]


def test_a_cursor_of_a_lost_attempt_begins_the_running_one() -> None:
    relay = Relay()
    relay.start_at(2, attempt=1, index=37)
    relay.offer(started(3, attempt=2))
    assert feed(relay, token(1, attempt=2)) == ["2.1"]
    other = Relay()
    other.start_at(9, attempt=1, index=37)
    other.settle("t1", 2)
    assert (other.attempt, other.index) == (2, 0)


def test_settling_never_brings_an_ended_answer_back() -> None:
    relay = running()
    feed(relay, completed(3))
    assert shown(relay.settle("t1", 1)) == []
    assert relay.turn_id is None
    assert feed(relay, token(1)) == []


def test_tokens_of_an_answer_that_history_does_not_know_are_given_up() -> None:
    relay = running()
    feed(relay, completed(3), token(1, turn="t0"))
    assert relay.gap
    relay.give_up_waiting()
    assert not relay.gap


def test_notices_pass_while_their_turn_is_open() -> None:
    notice = read_frame(compact({"type": "loading", "session_id": SESSION, "turn_id": "t1", "model": "m"}))
    relay = running()
    assert feed(relay, notice) == ["notice"]
    assert feed(relay, completed(3), notice) == ["v3"]


def test_a_step_says_where_the_client_is_after_it() -> None:
    relay = running()
    (step,) = relay.offer(token(1))
    assert (step.version, step.attempt, step.last_index) == (2, 1, 1)
    (step,) = relay.offer(event(3, "session_renamed", None, title="x"))
    assert (step.version, step.attempt, step.last_index) == (3, 1, 1)
    (step,) = relay.offer(completed(4))
    assert (step.version, step.attempt, step.last_index) == (4, 0, 0)


def test_what_is_held_is_bounded_and_the_gap_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "HELD_FRAMES", 5)
    relay = running()
    for index in range(3, 50):
        assert relay.offer(token(index)) == []
    assert len(relay._tokens) <= 5
    assert relay.gap
    assert feed(relay, so_far(49)) == ["=1.49"]
    assert not relay.gap


def test_a_large_frame_is_held_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "HELD_BYTES", 10)
    relay = running()
    relay.offer(completed(4))
    assert feed(relay, event(3, "cancel_requested")) == ["v3", "v4"]
    assert relay._held_bytes == 0


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"type":"x"}', b'{"type":"token"}', b'{"type":"event"}', b"\xff"])
def test_what_no_service_sends_is_not_a_frame(raw: bytes) -> None:
    with pytest.raises(ContractError):
        read_frame(raw)


# A random life of a session, seen by a client whose feed drops, repeats and delays.


@dataclass
class World:
    """What history recorded and what the worker holds, as far as it has gone."""

    events: list[Frame] = field(default_factory=list)
    running: tuple[str, int] | None = None
    index: int = 0

    def emit(self, action: int, turn: int) -> Frame:
        """The next thing that happens, chosen by action."""
        name = f"t{turn}"
        if self.running is None:
            return self._record(started(len(self.events) + 1, 1, name), (name, 1))
        if action < 7:
            self.index += 1
            return token(self.index, self.running[1], name)
        if action == 7:
            attempt = self.running[1] + 1
            return self._record(started(len(self.events) + 1, attempt, name), (name, attempt))
        if action == 8:
            return self._record(event(len(self.events) + 1, "session_renamed", None, title="x"), self.running)
        return self._record(completed(len(self.events) + 1, name), None)

    def _record(self, frame: Frame, now_running: tuple[str, int] | None) -> Frame:
        self.events.append(frame)
        if now_running != self.running:
            self.index = 0
        self.running = now_running
        return frame


@dataclass
class Reader:
    """A client that holds what P4 promises against what it is sent."""

    version: int = 0
    running: tuple[str, int] | None = None
    index: int = 0

    def take(self, steps: list[Step]) -> None:
        for step in steps:
            frame = step.frame
            if frame.kind is Kind.EVENT:
                assert frame.version == self.version + 1
                self.version = frame.version
                if frame.event_type == "answer_started":
                    self.running, self.index = (str(frame.turn_id), frame.attempt), 0
                elif frame.is_terminal:
                    self.running, self.index = None, 0
            else:
                assert (frame.turn_id, frame.attempt) == self.running
                assert frame.index > self.index
                assert frame.kind is Kind.SO_FAR or frame.index == self.index + 1
                self.index = frame.index
            assert step.version == self.version
            assert step.last_index == self.index


def ask(relay: Relay, world: World, reader: Reader, *, worker_answers: bool) -> None:
    """What catch_up does: events after the version, what runs, and the worker's text so far."""
    for frame in world.events[relay.version :]:
        reader.take(relay.offer(frame))
    reader.take(relay.settle(*(world.running or (None, 0))))
    if relay.turn_id is not None and worker_answers and world.running == (relay.turn_id, relay.attempt):
        reader.take(relay.offer(so_far(world.index, relay.attempt, relay.turn_id)))
    relay.give_up_waiting()


ACTIONS = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["pass", "pass", "pass", "drop", "twice", "late"])))


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.integers(0, 20), st.randoms(use_true_random=False))
def test_any_feed_ends_in_order_and_whole(life: list[tuple[int, str]], joins_at: int, chance: Any) -> None:
    world, relay, reader = World(), Relay(), Reader()
    late: list[Frame] = []
    joined = False
    turn = 1
    for number, (action, fate) in enumerate(life):
        frame = world.emit(action, turn)
        turn += frame.is_terminal
        sent = {"pass": [frame], "drop": [], "twice": [frame, frame], "late": []}[fate]
        if fate == "late":
            late.append(frame)
        if late and chance.random() < 0.3:
            sent = [*sent, late.pop(0)]
        for each in sent:
            reader.take(relay.offer(each))
        if not joined and number >= joins_at:
            reader.take(relay.start_at(0))
            joined = True
        if joined and relay.gap and chance.random() < 0.5:
            ask(relay, world, reader, worker_answers=chance.random() < 0.8)
    if not joined:
        reader.take(relay.start_at(0))
    for frame in late:
        reader.take(relay.offer(frame))
    ask(relay, world, reader, worker_answers=True)
    assert reader.version == len(world.events)
    assert reader.running == world.running
    assert reader.index == world.index
    assert not relay.gap
