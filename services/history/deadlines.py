"""Step 9, history/deadlines (core): which turns have waited too long, and for what.

Owns the clocks of unfinished turns: nobody could take it (it fails), it went silent (its context is queued again), its
worker was asked to stop and does not (it is cancelled). They run on monotonic seconds from when this process learnt of
the fact, so that a jump of the wall clock ends nothing. Must never act: it names what is due.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.history.liveness import STALL_S, Workers
from services.history.scheduler import OpenTurn


@dataclass(frozen=True, slots=True)
class Patience:
    """no_worker_s: a turn that nobody could take so long fails. requeue_s: silence after which its context is queued
    again. cancel_s: what a worker that is asked to stop has for its own end of the turn.

    After a pause of this process (or its connection) longer than STALL_S nothing is known of what happened meanwhile.
    """

    no_worker_s: float
    requeue_s: float
    cancel_s: float


@dataclass(slots=True)
class Due:
    """What is to be done now. over: turns that history ends, each with its code. cancelling: their workers are told."""

    over: list[tuple[OpenTurn, str]] = field(default_factory=list)
    cancelling: list[OpenTurn] = field(default_factory=list)
    silent: list[OpenTurn] = field(default_factory=list)


class Deadlines:
    """Looks at the unfinished turns every now and then."""

    def __init__(self, patience: Patience, now_s: float) -> None:
        self._patience = patience
        self._looked_s = now_s
        self._untaken_since: dict[str, float] = {}
        self._silent_since: dict[str, float] = {}
        self._cancelling_since: dict[str, float] = {}

    def reset(self) -> None:
        """After history's start, reconnect, catch-up or own stall: the clocks start again."""
        self._untaken_since.clear()
        self._cancelling_since.clear()

    def look(self, now_s: float, turns: list[OpenTurn], workers: Workers, default_model: str | None) -> Due:
        """What is due at now_s. default_model: what a turn without a model would get."""
        if now_s - self._looked_s > STALL_S:
            self.reset()
        self._looked_s = now_s
        self._forget_ended({turn.turn_id for turn in turns})
        due = Due()
        for turn in turns:
            if turn.cancelling:
                self._cancelling(turn, now_s, due)
            elif turn.active:
                self._look_at(turn, workers, now_s, due)
            else:
                # Whatever else it waits for: while nobody serves its model, it waits for a worker.
                wanted = turn.wanted or default_model
                self._untaken(turn, wanted and workers.full_name(wanted), workers, now_s, due)
        return due

    def _cancelling(self, turn: OpenTurn, now_s: float, due: Due) -> None:
        """Its worker may have missed the word, or may be gone: its user waits for neither."""
        if now_s - self._cancelling_since.setdefault(turn.turn_id, now_s) >= self._patience.cancel_s:
            due.over.append((turn, "cancelled"))
        else:
            due.cancelling.append(turn)

    def _look_at(self, turn: OpenTurn, workers: Workers, now_s: float, due: Due) -> None:
        if turn.run is not None and workers.alive(turn.turn_id, turn.run):
            self._untaken_since.pop(turn.turn_id, None)
            self._silent_since[turn.turn_id] = now_s
            return
        if now_s - self._silent_since.setdefault(turn.turn_id, now_s) >= self._patience.requeue_s:
            self._silent_since[turn.turn_id] = now_s
            due.silent.append(turn)
        self._untaken(turn, turn.model, workers, now_s, due)

    def _untaken(self, turn: OpenTurn, model: str | None, workers: Workers, now_s: float, due: Due) -> None:
        service = workers.service_of(model)
        if service == "served":
            self._untaken_since.pop(turn.turn_id, None)
        elif now_s - self._untaken_since.setdefault(turn.turn_id, now_s) >= self._patience.no_worker_s:
            due.over.append((turn, "model_unreachable" if service == "sick" else "no_worker"))

    def _forget_ended(self, open_turn_ids: set[str]) -> None:
        for clocks in (self._untaken_since, self._silent_since, self._cancelling_since):
            for turn_id in clocks.keys() - open_turn_ids:
                del clocks[turn_id]
