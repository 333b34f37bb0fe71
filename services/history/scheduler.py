"""Step 6, history/scheduler (core): which waiting turns may start now.

Owns one rule set: one active turn per session, a bound of active turns per user, the longest waiting first. Must
never do I/O: it is given a user's unfinished turns and names those whose context is to be assembled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """An unfinished turn of one user. active: its context was assembled, for this model; run: the latest, if any;
    cancelling: that run was asked to stop.
    """

    user_id: str
    session_id: str
    turn_id: str
    position: int  # of its message: the order in which it came
    active: bool
    model: str | None = None
    run: str | None = None
    attempt: int = 0
    cancelling: bool = False


def startable(turns: Iterable[OpenTurn], active_per_user: int | None) -> list[OpenTurn]:
    """The turns of one user that may start, in the order they came. active_per_user: None for no bound."""
    in_order = sorted(turns, key=lambda turn: turn.position)
    busy = {turn.session_id for turn in in_order if turn.active}
    room = None if active_per_user is None else active_per_user - sum(turn.active for turn in in_order)
    chosen: list[OpenTurn] = []
    for turn in in_order:
        if room is not None and len(chosen) >= room:
            break
        if turn.session_id not in busy:
            busy.add(turn.session_id)
            chosen.append(turn)
    return chosen
