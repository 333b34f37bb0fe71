"""Which waiting turn starts next (D8): one per session, a bound per user, room per model, and users in turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.history.scheduler import OpenTurn, Ranking, Scheduler


@dataclass
class Line:
    """A scheduler and the log that it follows from: every message and every start has the next position."""

    active_per_user: int | None = None
    room: int = 1000
    position: int = 0
    open: dict[str, OpenTurn] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.active_per_user)

    def say(self, user: str, session: str, wanted: str | None = None) -> str:
        self.position += 1
        turn = OpenTurn(user, f"{user}-{session}", f"t{self.position}", self.position, active=False, wanted=wanted)
        self.open[turn.turn_id] = turn
        self.scheduler.put(turn)
        return turn.turn_id

    def has_room(self, wanted: str | None) -> bool:
        return self.scheduler.active_of(wanted or "m") < self.room

    def start(self) -> list[str]:
        """All that may start now, in order."""
        started = []
        while (turn := self.scheduler.next(self.has_room)) is not None:
            self.position += 1
            model = turn.wanted or "m"
            self.open[turn.turn_id] = turn = replace(turn, active=True, model=model, context_position=self.position)
            self.served[turn.user_id] = self.position
            self.scheduler.put(turn)
            started.append(turn.turn_id)
        return started

    def end(self, turn_id: str) -> None:
        self.position += 1
        self.scheduler.end(self.open.pop(turn_id))

    def restart(self) -> Line:
        """What a new process makes of the same log."""
        twin = Line(self.active_per_user, self.room, self.position, dict(self.open), dict(self.served))
        for turn in sorted(self.open.values(), key=lambda turn: turn.position):
            twin.scheduler.put(turn)
        for user, position in self.served.items():
            twin.scheduler.served(user, position)
        return twin


def test_one_active_turn_per_session_the_first_that_came() -> None:
    line = Line()
    first, second, other = line.say("u", "a"), line.say("u", "a"), line.say("u", "b")
    assert line.start() == [first, other]
    assert line.start() == []
    line.end(first)
    assert line.start() == [second]


def test_a_turn_does_not_overtake_one_of_its_session_that_waits_for_another_model() -> None:
    line = Line()
    first, second = line.say("u", "a", "gone"), line.say("u", "a")
    assert line.scheduler.next(lambda wanted: wanted is None) is None
    line.end(first)
    assert line.start() == [second]


def test_users_are_served_in_turn_however_many_turns_one_has() -> None:
    line = Line(room=1)
    many = [line.say("greedy", str(number)) for number in range(100)]
    one = line.say("modest", "a")
    late: str | None = None
    served = []
    while started := line.start():
        [turn] = started
        served.append(turn)
        if turn == one:
            late = line.say("late", "a")
        line.end(turn)
    assert served == [many[0], one, many[1], late, *many[2:]]


def test_a_user_has_at_most_so_many_active_turns_and_holds_up_nobody() -> None:
    line = Line(active_per_user=2)
    mine = [line.say("u", str(number)) for number in range(4)]
    other = line.say("v", "a")
    assert line.start() == [mine[0], other, mine[1]]
    line.end(mine[1])
    assert line.start() == [mine[2]]


def test_each_model_has_its_own_room() -> None:
    line = Line(room=2)
    for number in range(3):
        line.say("u", f"big{number}", "big")
    small = line.say("u", "s", "small")
    assert line.start()[-1] == small
    assert (line.scheduler.active_of("big"), line.scheduler.active_of("small")) == (2, 1)


def test_the_order_that_is_shown_is_the_order_of_the_starts() -> None:
    line = Line(room=1)
    for number in range(5):
        line.say("a", str(number))
    for number in range(2):
        line.say("b", str(number))
    line.say("c", "0")
    line.start()
    shown = [turn.turn_id for turn in line.scheduler.turns()]
    served = []
    while running := [turn.turn_id for turn in line.open.values() if turn.active]:
        served += running
        line.end(running[0])
        line.start()
    assert shown == served


doings = st.lists(
    st.tuples(st.sampled_from(["say", "start", "end"]), st.sampled_from("uvw"), st.integers(0, 5)), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(doings=doings, bound=st.none() | st.integers(1, 3), room=st.integers(1, 4))
def test_no_bound_is_broken_nobody_waits_without_a_reason_and_a_restart_changes_nothing(
    doings: list[tuple[str, str, int]], bound: int | None, room: int
) -> None:
    line = Line(bound, room)
    for what, user, number in doings:
        if what == "say":
            line.say(user, str(number % 3), "other" if number == 5 else None)
        elif what == "end" and line.open:
            line.end(list(line.open)[number % len(line.open)])
        else:
            twin = line.restart()
            assert twin.start() == line.start(), "as if there had been no restart"
            check_bounds(line)
        assert line.restart().scheduler.turns() == line.scheduler.turns()


def check_bounds(line: Line) -> None:
    active = [turn for turn in line.open.values() if turn.active]
    of_session = Counter(turn.session_id for turn in active)
    of_user = Counter(turn.user_id for turn in active)
    of_model = Counter(turn.model for turn in active)
    assert all(count == 1 for count in of_session.values())
    assert line.active_per_user is None or all(count <= line.active_per_user for count in of_user.values())
    assert all(count <= line.room for count in of_model.values())
    for turn in line.open.values():
        before = [each for each in line.open.values() if each.session_id == turn.session_id]
        if not turn.active and min(before, key=lambda each: each.position) == turn:
            user_full = line.active_per_user is not None and of_user[turn.user_id] >= line.active_per_user
            assert user_full or of_model[turn.wanted or "m"] >= line.room, "nobody waits without a reason"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 50)), max_size=100))
def test_a_ranking_knows_its_first_and_keeps_no_more_than_it_must(changes: list[tuple[str, int | None]]) -> None:
    ranking, plain = Ranking(), dict[str, int]()
    for name, number in changes:
        if number is None:
            ranking.drop(name)
            plain.pop(name, None)
        else:
            ranking.put(name, number)
            plain[name] = number
        assert len(ranking._heap) <= 2 * 6 + 8, "what no longer holds does not pile up"
        assert ranking.first() == min(((number, name) for name, number in plain.items()), default=None)
