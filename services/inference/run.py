"""Step 11, inference/run (core): what a worker knows of its run of one turn -> what it does next.

Owns every decision of a run: what history's word, the model's end or failure, a cancel or a stop of the process mean
for the turn and for the context's message. Level-triggered: the next step is a function of what is known, so that a
word heard twice, late or in another order changes nothing. Must never do I/O, read a clock or make an id.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Literal

from contracts.errors import FailureCode
from contracts.turns import Cancel, Go, Recorded, Stop, Word
from services.inference.tokens import Answer

# The model server's own trouble in mid-answer: another attempt may do better. Every other failure after the first
# piece would come again (recorded: Ollama ends without a word of its own when a token repeats).
LOSSES: frozenset[FailureCode] = frozenset(
    {"model_unreachable", "model_busy", "model_error", "model_lost", "model_stalled"}
)
# Before the first piece the same request is sent again after these, unless the server names a time of its own.
RETRY_AFTER_S = (0.5, 2.0, 8.0)


@dataclass(frozen=True, slots=True)
class Completed:
    """The model's own word that the answer is whole."""

    end: Literal["stop", "length"]
    usage: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn fails; a further attempt would fail alike."""

    code: FailureCode


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt is lost; unless it was the last, another one follows."""

    code: FailureCode


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A user stopped the turn."""


Outcome = Completed | Failed | Lost | Cancelled


class Step(Enum):
    """What a run does next."""

    HOLD = auto()  # the model may work, but nothing is let out: history has not said go
    LET_OUT = auto()  # tokens flow
    TELL = auto()  # the end goes to the log; the answer is held until it is recorded
    GIVE_BACK = auto()  # another attempt is to follow: the context goes back to the queue
    LEAVE = auto()  # another run has the turn: no ack, its delivery is that run's
    ACK = auto()  # nothing is left to do for this turn, by anyone


@dataclass(frozen=True, slots=True)
class Run:
    """All that is known. attempt 0: no go yet. settled: the turn is not to be run (any more). taken: by another run."""

    run_id: str
    attempt: int = 0
    last: bool = False
    outcome: Outcome | None = None
    settled: bool = False
    taken: bool = False


def hear(run: Run, word: Word) -> Run:
    """The run after a word of history's."""
    match word:
        case Go() if word.run == run.run_id:
            return replace(run, attempt=word.attempt, last=word.last)
        case Go():
            return replace(run, taken=True)
        case Stop() | Recorded():
            return replace(run, settled=True)
        case Cancel():
            return conclude(run, Cancelled())


def conclude(run: Run, outcome: Outcome) -> Run:
    """The run after its answer ended, one way or the other. The first end is the end."""
    return run if run.outcome else replace(run, outcome=outcome)


def abandon(run: Run) -> Run:
    """The run after history has not answered it for too long: the message comes again, to whoever is there then."""
    return replace(run, taken=True)


def next_step(run: Run) -> Step:
    """What to do now, given all that is known."""
    if run.settled:
        return Step.ACK
    if run.taken:
        return Step.LEAVE
    if run.outcome == Lost("worker_lost") and not run.last:
        # This process ends: it cannot wait for a go that would only tell it whether to give back.
        return Step.GIVE_BACK
    if run.attempt == 0:
        return Step.HOLD
    if run.outcome is None:
        return Step.LET_OUT
    if isinstance(run.outcome, Lost) and not run.last:
        return Step.GIVE_BACK
    return Step.TELL


def waits_for_history(run: Run) -> bool:
    """Whether history's word is what the run needs next, so that it asks for it if none comes."""
    return next_step(run) in (Step.HOLD, Step.TELL)


@dataclass(frozen=True, slots=True)
class Again:
    """Send the same request again, in the same attempt."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """A failed request: what the port's ModelFailure says, and how many requests have failed so, this one included."""

    code: FailureCode
    again: bool
    tries: int
    retry_after_s: float | None = None


def after_failure(trouble: Trouble, *, begun: bool, left_s: float) -> Again | Lost | Failed:
    """What a failed request means. begun: a piece had come. left_s: what remains of the first-token time."""
    if begun:
        return Lost(trouble.code) if trouble.code in LOSSES else Failed(trouble.code)
    if trouble.code == "model_stalled":
        # The first-token time is used up, which counts as a loss although the request cannot be sent again.
        return Lost(trouble.code)
    if not trouble.again:
        return Failed(trouble.code)
    if trouble.tries > len(RETRY_AFTER_S):
        return Lost(trouble.code)
    scheduled_s = RETRY_AFTER_S[trouble.tries - 1]
    after_s = scheduled_s if trouble.retry_after_s is None else trouble.retry_after_s
    return Again(after_s) if after_s < left_s else Lost(trouble.code)


def may_nak(*, connected: bool, heartbeat_age_s: float, ack_wait_s: float) -> bool:
    """Whether the message is still surely ours. A late nak would start another attempt beside a live one (measured)."""
    return connected and heartbeat_age_s < ack_wait_s / 2


def terminal_of(run: Run, answer: Answer, model: str) -> tuple[str, dict[str, Any]]:
    """(type, data) of the event that ends the turn: only for a run whose step is TELL."""
    kept: dict[str, Any] = {"attempt": run.attempt, "last_index": answer.index, "model": model}
    kept |= {name: said for name, said in (("text", answer.text), ("thinking", answer.thinking)) if said}
    match run.outcome:
        case Completed(end, usage):
            return "answer_completed", {"text": "", **kept, "end": end, "usage": dict(usage)}
        case Failed(code) | Lost(code):
            return "answer_failed", {**kept, "code": code}
        case Cancelled():
            return "answer_cancelled", {**kept, "code": "cancelled"}
        case None:
            raise AssertionError("a run without an outcome has no end to tell")
