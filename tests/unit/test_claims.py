"""A worker's line to history: which words are about the claim that it made (D7)."""

from __future__ import annotations

from contracts.turns import Go, Stop, Word, read_context
from services.inference.claims import Claim
from services.runtime.bus import Bus, BusAddress
from tests.scripted_history import Turn, new_id, queued_context

TURN = Turn(turn_id=new_id(), session_id=new_id())
OURS = new_id()
GO = Go(turn_id=TURN.turn_id, run=OURS, attempt=2, last=False)
GO_OTHER = Go(turn_id=TURN.turn_id, run=new_id(), attempt=1, last=False)
STOP = Stop(turn_id=TURN.turn_id, code="turn_finished")


def test_a_go_for_the_run_before_is_no_answer_to_a_claim_that_is_not_stored() -> None:
    """Else a worker that is asked to take over would leave the turn to the one that is gone."""
    heard: list[Word] = []
    bus = Bus(BusAddress("nats://127.0.0.1:1", "", ""), "never connected")
    claim = Claim(bus, read_context(queued_context(TURN)), OURS, heard.append, lambda attempt: None)
    for word in (GO_OTHER, STOP, GO):
        claim._take(word)
    assert heard == [STOP, GO]
    claim._claimed_at = 7
    claim._take(GO_OTHER)
    assert heard[-1] == GO_OTHER
