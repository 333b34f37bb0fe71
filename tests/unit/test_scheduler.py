"""Which waiting turns may start (D8): one active turn per session, a bound per user, the longest waiting first."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.history.scheduler import OpenTurn, startable


def turn(number: int, session: str, *, active: bool = False) -> OpenTurn:
    return OpenTurn("u", session, f"t{number}", number, active)


def named(turns: list[OpenTurn]) -> list[str]:
    return [each.turn_id for each in turns]


def test_one_active_turn_per_session_the_first_that_came() -> None:
    turns = [turn(3, "a"), turn(1, "a"), turn(2, "b", active=True), turn(4, "b"), turn(5, "c")]
    assert named(startable(turns, None)) == ["t1", "t5"]


def test_the_bound_counts_what_is_active_and_the_longest_waiting_goes_first() -> None:
    turns = [turn(1, "a", active=True), turn(4, "d"), turn(2, "b"), turn(3, "c")]
    assert named(startable(turns, 3)) == ["t2", "t3"]
    assert named(startable(turns, 1)) == []
    assert named(startable([turn(1, "a", active=True), turn(2, "b", active=True), turn(3, "c")], 1)) == []


many = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=12)


@given(made=many, bound=st.none() | st.integers(1, 4))
def test_starting_never_breaks_a_bound_and_never_idles(made: list[tuple[str, bool]], bound: int | None) -> None:
    seen: set[str] = set()
    turns = []
    for number, (session, active) in enumerate(made):
        turns.append(turn(number, session, active=active and session not in seen))
        seen.add(session)
    chosen = startable(turns, bound)
    running = [each for each in turns if each.active] + chosen
    if chosen:
        assert len({each.session_id for each in running}) == len(running)
        assert bound is None or len(running) <= bound
    assert chosen == sorted(chosen, key=lambda each: each.position)
    started = [replace(each, active=True) if each in chosen else each for each in turns]
    assert startable(started, bound) == []
    idle = {each.session_id for each in turns} - {each.session_id for each in started if each.active}
    assert not idle or (bound is not None and len(running) >= bound), "nobody waits without a reason"
