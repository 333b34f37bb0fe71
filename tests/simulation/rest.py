"""What must be so once all troubles are over: when the world is at rest, and what its state must be then.

Owns liveness (unrest names what still waits) and the promises that can only be asked of a world at rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from contracts.events import TERMINALS
from services.history.log.port import LogError, Stored
from tests.simulation.worker import Worker

if TYPE_CHECKING:
    from tests.simulation.world import World


def unrest(world: World) -> Iterator[str]:
    """What still waits for something."""
    for turn in world.ledger.open_turns():
        yield f"turn {turn.turn_id} is {turn.phase}"
    for client in world.clients:
        version = world.ledger.version_of(client)
        if client.view.version < version or client.watch is None or not client.watch.live:
            yield f"a client is at version {client.view.version} of {version}"
        for send in client.sends:
            if not send.accepted or not send.outcomes:
                yield f"{send.event.type} {send.event.event_id} has no outcome"
    for process in world.processes.values():
        if isinstance(process, Worker) and process.runs:
            yield f"{process.name} holds {list(process.runs)}"
    if world.server.contexts:
        yield f"queued: {[queued.subject for queued in world.server.contexts.values()]}"


def check_rest(world: World) -> None:
    """The promises, of a world at rest."""
    assert world.history is not None
    world.ledger.check_cache(world.history)
    for client in world.clients:
        replay = world.ledger.replay((client.user_id, client.session_id))
        assert not client.view.broken, client.view.broken
        assert client.view.event_frames == replay.event_frames
        shown = {turn_id: (a.ended_by, a.attempt, a.text, a.data) for turn_id, a in client.view.answers.items()}
        assert shown == {turn_id: (a.ended_by, a.attempt, a.text, a.data) for turn_id, a in replay.answers.items()}
    _check_outcomes(world)
    _check_belt(world)


def _check_outcomes(world: World) -> None:
    """Each send was decided, and its sender was told so: once it is recorded, by one version and nothing else."""
    assert world.history is not None
    with world.history.log.look() as tx:
        for client in world.clients:
            for send in client.sends:
                found = tx.outcome(client.user_id, send.event.event_id)
                assert found is not None, "accepted, and never decided"
                told = [(outcome.code, outcome.version) for outcome in send.outcomes]
                if found.data_hash != send.event.data_hash:
                    assert all(code is not None for code, _ in told), "two bodies recorded under one key"
                elif found.code is None:
                    recorded = told[told.index((None, found.version)) :]
                    assert set(recorded) == {(None, found.version)}, "recorded, then something else"
                else:
                    assert found.code in dict(told)


def _check_belt(world: World) -> None:
    """The log itself refuses a second end of a turn, whoever asks it."""
    assert world.history is not None
    for key in world.ledger.sessions:
        with world.history.log.look() as tx:
            rows = list(tx.session_rows(*key))
            ends = [row for row in rows if row.event.type in TERMINALS]
            if not ends:
                continue
            event = ends[-1].event
            again = replace(event, event_id=world.new_id())
            try:
                tx.append(Stored(tx.last_position() + 1, rows[-1].version + 1, ends[-1].recorded_at, again))
            except LogError:
                return
            raise AssertionError("the log took a second end")
