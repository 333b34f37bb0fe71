"""What waiting turns are told of their place: as it moves, not too often, and how long it will take (issue 9)."""

from __future__ import annotations

import json
from dataclasses import replace

from services.history.places import Places, queues_of, unassigned
from services.history.scheduler import OpenTurn
from tests.conversing import new_id

LOOK_S = 1.0


def turns_of(count: int, *, model: str | None = "m") -> list[OpenTurn]:
    return [OpenTurn("u", new_id(), new_id(), n, active=False, wanted=model) for n in range(count)]


def model_of(wanted: str | None) -> str | None:
    return wanted


class Told:
    """Looks a second apart, and what each turn was told."""

    def __init__(self) -> None:
        self.places = Places(0.0)
        self.now_s = 0.0
        self.frames: list[dict[str, object]] = []

    def look(self, turns: list[OpenTurn]) -> list[tuple[object, object]]:
        self.now_s += LOOK_S
        self.frames = [json.loads(shown.frame) for shown in self.places.look(self.now_s, turns, model_of)]
        assert all(frame["type"] == "turn_queued" for frame in self.frames)
        return [(frame["turn_id"], frame["ahead"]) for frame in self.frames]


def test_a_turn_is_told_how_many_of_its_model_come_before_it_and_again_when_that_moves() -> None:
    told = Told()
    one, two, three = turns_of(3)
    [other] = turns_of(1, model="other")
    turns = [one, two, other, three]
    assert told.look(turns) == [], "they may have a worker by now"
    assert sorted(told.look(turns), key=str) == sorted(
        [(one.turn_id, 0), (two.turn_id, 1), (other.turn_id, 0), (three.turn_id, 2)], key=str
    )
    assert told.look(turns) == [], "nothing moved"
    running = replace(one, active=True, model="m", run=new_id(), attempt=1)
    assert told.look([running, two, other, three]) == [(two.turn_id, 0), (three.turn_id, 1)]


def test_who_attaches_late_is_told_too() -> None:
    told = Told()
    [turn] = turns_of(1)
    looks = [len(told.look([turn])) for _ in range(23)]
    assert looks == [0, 1, *[0] * 9, 1, *[0] * 9, 1, 0]


def test_a_long_queue_that_moves_costs_each_turn_a_few_frames() -> None:
    told = Told()
    turns = turns_of(300)
    count = sum(len(told.look(turns[n:])) for n in range(300))
    repeats = sum(300 - n for n in range(0, 300, 10))
    assert count < 300 * 30 + repeats, "not one for every turn before it"


def test_the_time_is_told_from_the_pace_of_a_queue_that_stayed_busy() -> None:
    told = Told()
    turns = turns_of(20)
    told.look(turns)
    told.look(turns)
    assert all("eta_s" not in frame for frame in told.frames), "nothing is known yet"
    for n in range(1, 5):
        told.look(turns[2 * n :])
    eta = {frame["turn_id"]: frame.get("eta_s") for frame in told.frames}
    assert eta[turns[9].turn_id] == 1.2, "second in line: eight turns went in five looks"
    for _ in range(12):
        told.look(turns[-1:])
    told.look([])
    [late] = turns_of(1)
    told.look([late])
    told.look([late])
    assert "eta_s" not in told.frames[0], "the queue was empty: its pace says nothing"


def test_waiting_turns_count_for_their_model_wherever_they_wait() -> None:
    queued, running, other = turns_of(3)
    turns = [
        replace(queued, active=True, model="m"),
        replace(running, active=True, model="m", run=new_id(), attempt=1),
        other,
        *turns_of(2, model="n"),
        *turns_of(4, model=None),
    ]
    found = {queue.model: (queue.waiting, queue.running) for queue in queues_of(turns, model_of)}
    assert found == {"m": (2, 1), "n": (2, 0)}
    assert unassigned(turns, model_of) == 4
    assert unassigned(turns, lambda wanted: wanted or "m") == 0
