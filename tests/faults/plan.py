"""Which fault comes when, by a seed (pure): kills, pauses, troubles of the network and of the model servers.

Owns the mix of a run and its pace. The same seed and parts give the same faults in the same order. Must never act: the
injector does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# At most one pause for ten kills, and never more than so many; one pause in ten lasts a minute.
KILLS_PER_PAUSE, MAX_PAUSES, PAUSES_PER_LONG_ONE = 10, 100, 10
LONG_PAUSE_S = 60.0
SHORT_PAUSE_S = (0.5, 10.0)
TROUBLE_S = (0.5, 4.0)
BACK_AFTER_S = (0.0, 2.0)
# The pace: a thousand kills in half an hour. After so many faults comes a lull, in which clients get on.
BETWEEN_S = (0.3, 2.2)
LULL_EVERY = 20
AT_ONCE = (1, 1, 1, 2, 3)
WEIGHTS = {"kill": 50, "pause": 7, "network": 24, "model": 19}
NETWORK = ("cut", "reset", "half-open", "delay", "slice", "closed")
MODEL = (
    *("stall", "cut", "reset", "empty end", "silent end", "error line", "503", "429", "hang", "slow load"),
    *("runner killed", "runner stopped", "drip", "split", "zombie"),
)
# An answer has 30 pieces: a fault after so many strikes in its middle.
LAST_PIECE = 25


@dataclass(frozen=True)
class Kill:
    """SIGKILL to all at once; back: in which order each is started again, and how long after the one before."""

    parts: tuple[str, ...]
    back: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Pause:
    """SIGSTOP, and after so long SIGCONT."""

    part: str
    seconds: float


@dataclass(frozen=True)
class Network:
    """What happens on the way between two parts; seconds: how long it lasts, where it lasts."""

    road: str
    kind: str
    seconds: float


@dataclass(frozen=True)
class Model:
    """What a stand-in does to its next answer, after so many pieces."""

    standin: str
    kind: str
    after: int
    seconds: float


Fault = Kill | Pause | Network | Model


@dataclass(frozen=True)
class Planned:
    """A fault, so long after the one before began; lull: first clients get on."""

    after_s: float
    fault: Fault
    lull: bool = False


@dataclass(frozen=True)
class Targets:
    """What may be hit."""

    parts: Sequence[str]
    roads: Sequence[str]
    standins: Sequence[str]


def plan(dice: random.Random, kills: int, targets: Targets) -> Iterator[Planned]:
    """Faults until there were so many kills."""
    killed = paused = count = 0
    pauses = min(MAX_PAUSES, kills // KILLS_PER_PAUSE)
    while killed < kills:
        count += 1
        kind = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        fault: Fault
        if kind == "pause" and paused < pauses:
            paused += 1
            is_long = paused % PAUSES_PER_LONG_ONE == 0
            fault = Pause(dice.choice(targets.parts), LONG_PAUSE_S if is_long else dice.uniform(*SHORT_PAUSE_S))
        elif kind == "network":
            fault = Network(dice.choice(targets.roads), dice.choice(NETWORK), dice.uniform(*TROUBLE_S))
        elif kind == "model":
            after, seconds = dice.randrange(LAST_PIECE), dice.uniform(*TROUBLE_S)
            fault = Model(dice.choice(targets.standins), dice.choice(MODEL), after, seconds)
        else:
            fault = _kill(dice, kills - killed, targets.parts)
            killed += len(fault.parts)
        yield Planned(dice.uniform(*BETWEEN_S), fault, lull=count % LULL_EVERY == 0)


def _kill(dice: random.Random, most: int, parts: Sequence[str]) -> Kill:
    names = dice.sample(parts, min(most, dice.choice(AT_ONCE)))
    order = dice.sample(names, len(names))
    return Kill(tuple(names), tuple((name, dice.uniform(*BACK_AFTER_S)) for name in order))
