"""Step 9, history/places (core): how long the queues are, and what a turn that waits is told of its place in one.

Owns who is told when: a place that has moved by a tenth or more, and each one again now and then for who attaches late;
so a long queue that moves costs each of its turns a few frames, not one for every turn before it. Time is passed in
(monotonic seconds). Must never tell of a turn that a worker runs, nor guess a time from a queue that stands still.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from contracts.frames import TurnQueued, encode
from contracts.turns import QueueLoad
from services.history.effects import Show
from services.history.liveness import STALL_S
from services.history.scheduler import OpenTurn

# Told again though nothing moved: what an attach shows of a session is the log, and this is not in it.
REPEAT_S = 10.0
# Turns that are told at one look, those who wait for it longest first.
TOLD_AT_ONCE = 500
# The pace of a queue is that of its last minute, at a look a second.
LOOKS_KEPT = 60

# The model that a turn gets which wants this one; None: nobody knows yet.
ModelOf = Callable[[str | None], str | None]


def queues_of(turns: list[OpenTurn], model_of: ModelOf) -> list[QueueLoad]:
    """How many turns of each model wait, in history or in its queue, and how many run. No model yet: none of these."""
    waiting = Counter(model for turn, model in _with_models(turns, model_of) if model and turn.run is None)
    running = Counter(model for turn, model in _with_models(turns, model_of) if model and turn.run is not None)
    return [
        QueueLoad(model=model, waiting=waiting[model], running=running[model])
        for model in sorted(waiting.keys() | running.keys())
    ]


def unassigned(turns: list[OpenTurn], model_of: ModelOf) -> int:
    """How many turns wait for whichever model comes first."""
    return sum(model is None for _, model in _with_models(turns, model_of))


def _with_models(turns: list[OpenTurn], model_of: ModelOf) -> Iterator[tuple[OpenTurn, str | None]]:
    return ((turn, turn.model or model_of(turn.wanted)) for turn in turns)


@dataclass(slots=True)
class _Pace:
    """How many turns left a queue in how many seconds in which it was never empty."""

    looks: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=LOOKS_KEPT))

    def seconds_for(self, turns: int) -> float | None:
        gone = sum(count for count, _ in self.looks)
        return round(turns * sum(seconds for _, seconds in self.looks) / gone, 1) if gone else None


class Places:
    """Looks at the unfinished turns every now and then."""

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self._told: dict[str, tuple[int, float]] = {}  # by turn: what it was told, and when
        self._before: dict[str, str | None] = {}  # the unfinished turns at the last look, each with its model
        self._waited: set[str] = set()  # those of them that no worker ran
        self._paces: dict[str | None, _Pace] = {}

    def look(self, now_s: float, turns: list[OpenTurn], model_of: ModelOf) -> list[Show]:
        """The frames that are due. turns: all unfinished ones, in the order in which they are served."""
        present = {turn.turn_id: model for turn, model in _with_models(turns, model_of)}
        waiting = [turn for turn in turns if turn.run is None and not turn.cancelling]
        self._measure(now_s, present, {present[turn.turn_id] for turn in waiting})
        self._told = {turn.turn_id: self._told[turn.turn_id] for turn in waiting if turn.turn_id in self._told}
        ahead: Counter[str | None] = Counter()
        due: list[tuple[float, OpenTurn, int]] = []
        for turn in waiting:
            place = ahead[present[turn.turn_id]]
            ahead[present[turn.turn_id]] += 1
            told, told_s = self._told.get(turn.turn_id, (None, 0.0))
            # One that is there for the first time may have a worker by now; most have.
            if turn.turn_id in self._waited and (_moved(told, place) or now_s - told_s >= REPEAT_S):
                due.append((told_s, turn, place))
        self._waited = {turn.turn_id for turn in waiting}
        due.sort(key=lambda entry: entry[0])
        frames = [self._frame(turn, place, present[turn.turn_id]) for _, turn, place in due[:TOLD_AT_ONCE]]
        self._told |= {turn.turn_id: (place, now_s) for _, turn, place in due[:TOLD_AT_ONCE]}
        return frames

    def _measure(self, now_s: float, present: dict[str, str | None], waited_for: set[str | None]) -> None:
        """Only queues that stayed busy say how fast they are; and not over a time in which nobody looked."""
        seconds, self._looked_s = now_s - self._looked_s, now_s
        gone = Counter(model for turn_id, model in self._before.items() if turn_id not in present)
        busy = {self._before[turn_id] for turn_id in self._waited} & waited_for
        self._paces = {model: self._paces.get(model, _Pace()) for model in busy}
        for model, pace in self._paces.items():
            if 0 < seconds < STALL_S:
                pace.looks.append((gone[model], seconds))
        self._before = present

    def _frame(self, turn: OpenTurn, place: int, model: str | None) -> Show:
        told = TurnQueued(session_id=turn.session_id, turn_id=turn.turn_id, ahead=place)
        pace = self._paces.get(model)
        eta_s = pace.seconds_for(place + 1) if pace else None
        if eta_s is not None:
            told = TurnQueued(session_id=turn.session_id, turn_id=turn.turn_id, ahead=place, eta_s=eta_s)
        return Show(turn.user_id, turn.session_id, False, encode(told))


def _moved(told: int | None, place: int) -> bool:
    return told is None or abs(told - place) >= max(1, told // 10)
