"""Schedules that broke earlier drafts of the design, step by step; and those that the machine has found to fail.

Each names the moment at which its trouble strikes. At the end of each, everything must come to rest (conftest's world).
"""

from __future__ import annotations

from services.history.session import Turn
from services.inference.run import Completed, Lost
from tests.simulation.world import WORKERS, World


def began(world: World) -> Turn:
    """A turn of the first client's that is running."""
    sent = world.clients[0].send(world.any_gateway(), "hello", "queue")
    world.until(lambda: world.ledger.turn(sent.event.turn_id) is not None)
    world.until(lambda: turn_now(world, str(sent.event.turn_id)).phase == "running")
    return turn_now(world, str(sent.event.turn_id))


def turn_now(world: World, turn_id: str) -> Turn:
    turn = world.ledger.turn(turn_id)
    assert turn is not None
    return turn


def holder(world: World, turn: Turn) -> str:
    """The worker whose run is the turn's latest."""
    return next(name for name in WORKERS if str(turn.run) in world.worker(name).runs)


def test_the_late_result_of_a_paused_worker_is_nobody_s_end(world: World) -> None:
    """A worker wakes up with an old delivery, and ends its answer before it hears that another run has the turn."""
    turn = began(world)
    first = holder(world, turn)
    world.pause(first, 19)
    world.until(lambda: turn_now(world, turn.turn_id).attempt == 2)
    world.wake(first)
    world.end_model(first, Completed("stop"))
    world.until(lambda: turn_now(world, turn.turn_id).phase == "ended")
    assert world.truth.runs[(turn.turn_id, 2)] == turn_now(world, turn.turn_id).run


def test_a_restarted_server_takes_no_turn_from_a_healthy_worker(world: World) -> None:
    """Every context is delivered again at once, and history has heard of nobody for longer than it believes them."""
    world.kill("worker-0", 1)  # the server serves who asked first: so the other is the one that comes back
    turn = began(world)
    world.tick()
    world.kill_server(8, lost=0, back=0)
    world.until(lambda: world.server.up)
    world.delay("worker-1", 2)  # its presence comes after the other's claim
    world.until(lambda: turn_now(world, turn.turn_id).phase == "ended")
    assert turn_now(world, turn.turn_id).attempt == 1


def test_a_finished_turn_whose_ack_is_lost_is_not_run_again(world: World) -> None:
    turn = began(world)
    first = holder(world, turn)
    world.until(lambda: turn_now(world, turn.turn_id).phase == "ended")
    world.kill(first, 30)
    world.live(15)
    assert turn_now(world, turn.turn_id).attempt == 1
    assert (turn.turn_id, 2) not in world.truth.runs


def test_a_stop_does_not_wait_for_a_dead_worker(world: World) -> None:
    turn = began(world)
    world.kill(holder(world, turn), 60)
    world.clients[0].cancel(world.any_gateway(), turn.turn_id)
    world.live(10)
    assert turn_now(world, turn.turn_id).ended_by == "answer_cancelled"


def test_the_last_frame_is_asked_for_when_nobody_was_there_to_hear_it(world: World) -> None:
    """History is back first and records the end; the gateway's own reconnect comes after it."""
    turn = began(world)
    world.until(lambda: turn_now(world, turn.turn_id).phase == "ended")
    world.drop("gateway-0")
    world.flow()
    assert world.clients[0].view.ended(turn.turn_id)


def test_a_lost_frame_shows_by_the_next(world: World) -> None:
    world.rename(world.clients[0], "lost")
    world.until(lambda: world.server.lose_frame(world.any_gateway().connection))
    world.rename(world.clients[0], "seen")
    world.flow()
    assert world.clients[0].view.version == world.ledger.version_of(world.clients[0])


def test_a_refusal_that_history_dies_with_is_told_to_who_asks(world: World) -> None:
    """Between the commit and the word to the sender."""
    began(world)
    refused = world.clients[1].send(world.any_gateway(), "too early", "reject")
    world.until(lambda: world.consumed == len(world.server.intake))
    world.kill("history", 1)
    world.settle()
    assert {outcome.code for outcome in refused.outcomes} == {"session_busy"}


def test_a_batch_that_fails_leaves_nothing_in_memory(world: World) -> None:
    world.fail_disk(1)
    sent = world.clients[0].send(world.any_gateway(), "hello", "queue")
    world.until(lambda: world.disk_has_failed)
    world.check_memory()
    world.live(10)
    assert turn_now(world, str(sent.event.turn_id)).phase == "ended"


def test_attempts_are_used_up_by_losses_not_by_deliveries(world: World) -> None:
    """Three workers' models are lost; a fourth attempt is not begun."""
    turn = began(world)
    for attempt in (1, 2, 3):
        world.until(lambda attempt=attempt: turn_now(world, turn.turn_id).attempt == attempt)  # type: ignore[misc]
        world.end_model(holder(world, turn_now(world, turn.turn_id)), Lost("model_lost"))
    world.until(lambda: turn_now(world, turn.turn_id).phase == "ended")
    assert turn_now(world, turn.turn_id).ended_by == "answer_failed"
