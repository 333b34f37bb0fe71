"""Step 6, history/scheduler (core): which waiting turn may start next.

Owns the unfinished turns of all users and one rule set: one active turn per session, a bound of active turns per user,
room for each model, and users in turn: whoever was served last waits behind the others, and a user's own turns go in
the order they came. All of it follows from the turns and from where in the log each user was last served, so that a
restart goes on as if there had been none. Must never do I/O, nor sort or scan the waiting turns to start one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """An unfinished turn. wanted: the model that its send or session names (None: whichever there is).

    active: its context was assembled (for `model`, at context_position); run: the latest, if any; cancelling: that run
    was asked to stop.
    """

    user_id: str
    session_id: str
    turn_id: str
    position: int  # of its message: the order in which it came
    active: bool
    wanted: str | None = None
    model: str | None = None
    context_position: int = 0
    run: str | None = None
    attempt: int = 0
    cancelling: bool = False


# Whether a turn that wants this model may start now.
HasRoom = Callable[[str | None], bool]


class Ranking:
    """Names in the order of their numbers, lowest first. A change costs the logarithm of how many there are."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []  # with entries that no longer hold, until they come first

    def put(self, name: str, number: int) -> None:
        """A name's number, new or changed."""
        if self._numbers.get(name) == number:
            return
        self._numbers[name] = number
        heapq.heappush(self._heap, (number, name))
        if len(self._heap) > 2 * len(self._numbers) + 8:
            self._heap = [(number, name) for name, number in self._numbers.items()]
            heapq.heapify(self._heap)

    def drop(self, name: str) -> None:
        self._numbers.pop(name, None)

    def first(self) -> tuple[int, str] | None:
        """The lowest number, and whose it is."""
        while self._heap:
            number, name = self._heap[0]
            if self._numbers.get(name) == number:
                return self._heap[0]
            heapq.heappop(self._heap)
        return None


@dataclass(slots=True)
class _Session:
    waiting: dict[str, OpenTurn] = field(default_factory=dict)  # in the order they came
    active: int = 0
    offered: OpenTurn | None = None  # the turn that is ranked among its user's: the first, unless one is active

    def next_turn(self) -> OpenTurn | None:
        return next(iter(self.waiting.values()), None) if not self.active else None


@dataclass(slots=True)
class _User:
    turns: dict[str, OpenTurn] = field(default_factory=dict)
    sessions: dict[str, _Session] = field(default_factory=dict)
    ready: dict[str | None, Ranking] = field(default_factory=dict)  # by model wanted: sessions, by their next turn
    active: int = 0
    served_at: int = 0  # where in the log the context of the latest turn is that was started for this user


class Scheduler:
    """Told of every unfinished turn as it comes, moves and ends; asked for the next one to start."""

    def __init__(self, active_per_user: int | None) -> None:
        self._active_per_user = active_per_user
        self._users: dict[str, _User] = {}
        self._rings: dict[str | None, Ranking] = {}  # by model wanted: users, by where in the log their turn came
        self._active_of: Counter[str] = Counter()

    def put(self, turn: OpenTurn) -> None:
        """A turn has come or moved on."""
        user = self._users.setdefault(turn.user_id, _User())
        session = user.sessions.setdefault(turn.session_id, _Session())
        before = user.turns.get(turn.turn_id)
        user.turns[turn.turn_id] = turn
        user.served_at = max(user.served_at, turn.context_position)
        if not turn.active:
            session.waiting[turn.turn_id] = turn
        elif before is None or not before.active:
            session.waiting.pop(turn.turn_id, None)
            self._count(user, session, turn, 1)
        self._rank(turn.user_id, turn.session_id)

    def end(self, turn: OpenTurn) -> None:
        """A turn has its terminal event: it may make room for others."""
        user = self._users.get(turn.user_id)
        before = user.turns.pop(turn.turn_id, None) if user else None
        if user is None or before is None:
            return
        user.served_at = max(user.served_at, turn.context_position)
        session = user.sessions[turn.session_id]
        if before.active:
            self._count(user, session, before, -1)
        session.waiting.pop(turn.turn_id, None)
        self._rank(turn.user_id, turn.session_id)
        if not session.waiting and not session.active:
            del user.sessions[turn.session_id]
        if not user.turns:
            del self._users[turn.user_id]  # its next turn comes after all that it was served

    def served(self, user_id: str, context_position: int) -> None:
        """At start: a turn of this user that has ended since was given its context there."""
        user = self._users.get(user_id)
        if user is not None and context_position > user.served_at:
            user.served_at = context_position
            self._enter_rings(user_id, user)

    def next(self, has_room: HasRoom) -> OpenTurn | None:
        """The turn that is to start now; it is named again until it is put as active, or has ended."""
        best: tuple[int, str, str | None] | None = None
        for wanted, ring in self._rings.items():
            first = ring.first()
            if first is not None and (best is None or first[0] < best[0]) and has_room(wanted):
                best = (*first, wanted)
        if best is None:
            return None
        _, user_id, wanted = best
        user = self._users[user_id]
        ready = user.ready[wanted].first()
        assert ready is not None, "a user is in no ring without a turn for it"
        return user.sessions[ready[1]].offered

    def active_of(self, model: str) -> int:
        """How many turns of this model are dispatched and unfinished."""
        return self._active_of[model]

    def turns(self) -> list[OpenTurn]:
        """All unfinished turns: those that were started first, then the waiting ones in the order they would start in
        if there were room for one after the other. This sorts: it is for looking at, now and then.
        """
        active = [turn for user in self._users.values() for turn in user.turns.values() if turn.active]
        active.sort(key=lambda turn: turn.context_position)
        waiting: list[tuple[int, int, int, OpenTurn]] = []
        for user in self._users.values():
            rounds: Counter[str | None] = Counter()
            places: dict[str | None, int] = {}
            mine = [turn for session in user.sessions.values() for turn in session.waiting.values()]
            for turn in sorted(mine, key=lambda turn: turn.position):
                # In the first round a user has its place in the ring; the later ones keep that order.
                place = places.setdefault(turn.wanted, max(user.served_at, turn.position))
                waiting.append((rounds[turn.wanted], place, turn.position, turn))
                rounds[turn.wanted] += 1
        return active + [turn for *_, turn in sorted(waiting, key=lambda entry: entry[:3])]

    def _count(self, user: _User, session: _Session, turn: OpenTurn, change: int) -> None:
        session.active += change
        user.active += change
        if turn.model is not None:
            self._active_of[turn.model] += change
            if not self._active_of[turn.model]:
                del self._active_of[turn.model]

    def _rank(self, user_id: str, session_id: str) -> None:
        """After any change: the session's place among its user's, and the user's in the rings."""
        user = self._users[user_id]
        session = user.sessions[session_id]
        offered = session.next_turn()
        if session.offered is not None and (offered is None or offered.wanted != session.offered.wanted):
            user.ready[session.offered.wanted].drop(session_id)
        session.offered = offered
        if offered is not None:
            user.ready.setdefault(offered.wanted, Ranking()).put(session_id, offered.position)
        self._enter_rings(user_id, user)

    def _enter_rings(self, user_id: str, user: _User) -> None:
        full = self._active_per_user is not None and user.active >= self._active_per_user
        for wanted, ready in list(user.ready.items()):
            first = ready.first()
            ring = self._rings.setdefault(wanted, Ranking())
            if first is None or full:
                ring.drop(user_id)
            else:
                ring.put(user_id, max(user.served_at, first[0]))
            if first is None:
                del user.ready[wanted]
            if ring.first() is None:
                del self._rings[wanted]
