"""Step 6, history/liveness (core): which workers are there, what they offer, and which runs are alive.

Owns what was heard of workers' presence, each forgotten after some seconds of silence. Time is passed in (monotonic
seconds). Must never be the reason that a fact is lost: it only delays a second attempt or ends a turn that nobody
takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from contracts.events import MAX_DIGEST_CHARS
from contracts.turns import PRESENCE_FORGOTTEN_S, ModelPresence, Presence

# Nobody has looked for so long: this process stood still, and the beats of that time are still in its socket.
STALL_S = 5.0

Service = Literal["served", "sick", "absent"]


@dataclass(frozen=True, slots=True)
class Workers:
    """What is known of the workers at one moment. grace: history is back too recently to call any run dead."""

    present: tuple[Presence, ...]
    runs: frozenset[tuple[str, str]]
    grace: bool

    def alive(self, turn_id: str, run: str) -> bool:
        return self.grace or (turn_id, run) in self.runs

    def first_model(self) -> str | None:
        """The model that a turn gets if nobody named one: the first that a healthy worker has."""
        for worker in self.present:
            if worker.server == "ok" and not worker.stopping and worker.models:
                return worker.models[0].name
        return None

    def full_name(self, model: str) -> str:
        """The name under which workers offer this model. Ollama lists `m` as `m:latest`."""
        tagged = f"{model}:latest"
        return tagged if not self._offers(model) and self._offers(tagged) else model

    def window_of(self, model: str) -> int | None:
        """The smallest window in which a worker runs this model now: any of them may take the turn."""
        windows = [offered.window for _, offered in self._offers(model) if offered.window is not None]
        return min(windows, default=None)

    def digest_of(self, model: str) -> str | None:
        """The model's digest, where its workers tell one and the same: any of them may take the turn."""
        told = {offered.digest for _, offered in self._offers(model) if offered.digest}
        digest = told.pop() if len(told) == 1 else ""
        return digest if 0 < len(digest) <= MAX_DIGEST_CHARS else None

    def slots_of(self, model: str) -> int:
        """How many turns of this model can run at once, if its workers run nothing else."""
        offers = self._offers(model)
        return sum(
            worker.slots for worker, offered in offers if worker.state_of(offered) == "ok" and not worker.stopping
        )

    def service_of(self, model: str | None) -> Service:
        """Whether a worker could take a turn of this model (None: of any model)."""
        offers = self._offers(model)
        if any(worker.state_of(offered) == "ok" and not worker.stopping for worker, offered in offers):
            return "served"
        sick = any(worker.server != "ok" for worker in self.present) or any(offered.trouble for _, offered in offers)
        return "sick" if sick else "absent"

    def _offers(self, model: str | None) -> list[tuple[Presence, ModelPresence]]:
        return [
            (worker, offered)
            for worker in self.present
            for offered in worker.models
            if model is None or offered.name == model
        ]


class Liveness:
    """What history has heard, in the order in which the workers were first heard."""

    def __init__(self, now_s: float) -> None:
        self._heard: dict[str, tuple[Presence, float]] = {}
        self._grace_until_s = now_s + PRESENCE_FORGOTTEN_S
        self._looked_s = now_s

    def heard(self, presence: Presence, now_s: float) -> None:
        self._heard[presence.worker_id] = (presence, now_s)

    def back(self, now_s: float) -> None:
        """History has started, reconnected or stood still: it missed beats, so every latest run counts as alive."""
        self._grace_until_s = now_s + PRESENCE_FORGOTTEN_S

    def at(self, now_s: float) -> Workers:
        """The workers that were heard within the last seconds."""
        if now_s - self._looked_s > STALL_S:
            self.back(now_s)
        self._looked_s = now_s
        for worker_id in [w for w, (_, at_s) in self._heard.items() if now_s - at_s > PRESENCE_FORGOTTEN_S]:
            del self._heard[worker_id]
        present = tuple(presence for presence, _ in self._heard.values())
        runs = frozenset((run.turn_id, run.run) for presence in present for run in presence.runs)
        return Workers(present, runs, grace=now_s < self._grace_until_s)
