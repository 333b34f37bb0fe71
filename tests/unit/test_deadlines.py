"""Which turns have waited too long (D7): on the monotonic clock, from when this process learnt of the fact."""

from __future__ import annotations

from dataclasses import replace

from contracts.turns import ModelPresence, Presence
from services.history.deadlines import Deadlines, Due, Patience
from services.history.liveness import Workers
from services.history.scheduler import OpenTurn

PATIENCE = Patience(no_worker_s=120, requeue_s=60, cancel_s=5)
NOBODY = Workers((), frozenset(), grace=False)
WAITING = OpenTurn("u", "s", "t", 1, active=False)
QUEUED = replace(WAITING, active=True, model="m")
RUNNING = replace(QUEUED, run="r", attempt=1)
STOPPED = replace(RUNNING, cancelling=True)


def workers(server: str = "ok", runs: frozenset[tuple[str, str]] = frozenset()) -> Workers:
    presence = Presence(
        worker_id="w",
        models=[ModelPresence(name="m")],
        server=server,
        server_kind="openai",
        slots=1,
        free=1,
        runs=[],
    )
    return Workers((presence,), runs, grace=False)


def watch(
    turn: OpenTurn, seconds: int, known: Workers = NOBODY, model: str | None = None
) -> tuple[Deadlines, list[tuple[int, Due]]]:
    """A look every second; what was due, and when."""
    deadlines = Deadlines(PATIENCE, 0)
    found = []
    for second in range(seconds + 1):
        due = deadlines.look(second, [turn], known, model)
        if due.over or due.silent:
            found.append((second, due))
    return deadlines, found


def test_a_turn_that_nobody_could_take_fails_after_its_time() -> None:
    for known, code in ((NOBODY, "no_worker"), (workers("model_unreachable"), "model_unreachable")):
        _, found = watch(QUEUED, 120, known)
        assert [(at, due.over) for at, due in found if due.over] == [(120, [(QUEUED, code)])]
    _, found = watch(QUEUED, 500, workers())
    assert not any(due.over for _, due in found), "a worker serves it: it only waits its turn"


def test_a_silent_turn_is_queued_again_every_minute_of_silence() -> None:
    _, found = watch(QUEUED, 125, workers())
    assert [(at, due.silent) for at, due in found] == [(60, [QUEUED]), (120, [QUEUED])]
    _, found = watch(RUNNING, 300, workers(runs=frozenset({("t", "r")})))
    assert found == [], "its run is alive"
    _, found = watch(RUNNING, 60, workers())
    assert [at for at, _ in found] == [60], "its run is dead: the queue may have lost it"


def test_the_time_starts_again_after_reset_and_after_a_stall() -> None:
    deadlines, _ = watch(QUEUED, 100)
    deadlines.reset()
    assert next(s for s in range(101, 230) if deadlines.look(s, [QUEUED], NOBODY, None).over) == 221
    deadlines, _ = watch(QUEUED, 100)
    assert not deadlines.look(130, [QUEUED], NOBODY, None).over
    assert next(s for s in range(131, 300) if deadlines.look(s, [QUEUED], NOBODY, None).over) == 250


def test_a_worker_that_comes_and_goes_starts_the_time_again() -> None:
    deadlines, _ = watch(QUEUED, 100)
    deadlines.look(101, [QUEUED], workers(), None)
    failed = [second for second in range(102, 300) if deadlines.look(second, [QUEUED], NOBODY, None).over]
    assert failed[0] == 222


def test_a_turn_that_waits_in_history_fails_when_nobody_serves_its_model() -> None:
    """Whatever else it waits for: behind its session's turn, its user's bound, or for want of room."""
    elsewhere = replace(WAITING, wanted="other")
    for turn, known, model, code in (
        (WAITING, NOBODY, None, "no_worker"),
        (WAITING, NOBODY, "m", "no_worker"),
        (elsewhere, workers(), "m", "no_worker"),
        (elsewhere, workers("model_unreachable"), "m", "model_unreachable"),
    ):
        _, found = watch(turn, 120, known, model)
        assert [(at, due.over) for at, due in found] == [(120, [(turn, code)])]


def test_a_turn_that_waits_in_history_while_its_model_is_served_only_waits() -> None:
    for turn, model in ((WAITING, "m"), (WAITING, None), (replace(WAITING, wanted="m"), None)):
        assert watch(turn, 500, workers(), model)[1] == []


def test_a_worker_is_told_to_stop_at_every_look_and_after_its_time_the_turn_is_over() -> None:
    for known in (NOBODY, workers(runs=frozenset({("t", "r")}))):
        deadlines = Deadlines(PATIENCE, 0)
        found = [deadlines.look(second, [STOPPED], known, "m") for second in range(6)]
        assert found == [Due(cancelling=[STOPPED])] * 5 + [Due(over=[(STOPPED, "cancelled")])]


def test_the_time_to_stop_starts_again_after_reset_and_after_a_stall() -> None:
    """The worker could not be told: it still has what was said, and is given its time."""
    deadlines = Deadlines(PATIENCE, 0)
    for second in range(5):
        deadlines.look(second, [STOPPED], NOBODY, "m")
    deadlines.reset()
    assert [deadlines.look(second, [STOPPED], NOBODY, "m").over for second in (5, 9)] == [[], []]
    assert not deadlines.look(30, [STOPPED], NOBODY, "m").over
    assert deadlines.look(35, [STOPPED], NOBODY, "m").over == [(STOPPED, "cancelled")]


def test_what_has_ended_is_forgotten() -> None:
    deadlines, _ = watch(QUEUED, 100)
    deadlines.look(101, [], NOBODY, None)
    assert not deadlines.look(102, [QUEUED], NOBODY, None).over
