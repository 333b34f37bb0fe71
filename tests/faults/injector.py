"""The faults of a run, chosen by a seed: kills, pauses and troubles of the network, one after the other.

Owns which fault comes next and that each is undone. Must never touch a process that is not the stack's.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.proxy import FINE, Condition
from tests.faults.stack import Part, Stack

PAUSES = 100
LONG_PAUSE_S = 60.0
SHORT_PAUSE_S = (0.5, 10.0)
NETWORK_S = (0.5, 4.0)
RESTART_AFTER_S = (0.0, 2.0)
BETWEEN_S = (0.3, 2.0)
# Of ten faults: kills, pauses, and what is left is the network's.
KILLS_OF_TEN, PAUSES_OF_TEN = 6, 1


@dataclass
class Injector:
    """One run's faults. long_pauses: one pause in ten lasts a minute; a short run has none."""

    stack: Stack
    random: random.Random
    kills: int
    long_pauses: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    paused: int = 0

    async def run(self) -> None:
        """Until so many kills were made; every fault is undone then."""
        while self.killed < self.kills:
            draw = self.random.randrange(10)
            if draw < KILLS_OF_TEN:
                await self._kill(
                    self.random.sample(list(self.stack.parts.values()), self.random.choice((1, 1, 1, 2, 3)))
                )
            elif draw < KILLS_OF_TEN + PAUSES_OF_TEN and self.paused < PAUSES:
                await self._pause(self.random.choice(list(self.stack.parts.values())))
            else:
                await self._trouble()
            await asyncio.sleep(self.random.uniform(*BETWEEN_S))  # pace: of the faults

    async def _kill(self, parts: list[Part]) -> None:
        """Kill them at once; start them again in another order."""
        parts = parts[: self.kills - self.killed]
        try:
            for part in parts:
                part.held = True
                await part.kill()
                self.killed += 1
                self.counts[f"SIGKILL {part.name}"] += 1
            self.random.shuffle(parts)
            for part in parts:
                await asyncio.sleep(self.random.uniform(*RESTART_AFTER_S))  # pace: how long it is away
                part.spawn()
        finally:
            for part in parts:
                part.held = False

    async def _pause(self, part: Part) -> None:
        self.paused += 1
        is_long = self.long_pauses and self.paused % 10 == 0
        self.counts[f"SIGSTOP {part.name}{' for 60 s' if is_long else ''}"] += 1
        part.pause()
        try:
            seconds = LONG_PAUSE_S if is_long else self.random.uniform(*SHORT_PAUSE_S)
            await asyncio.sleep(seconds)  # pace: the pause is what is injected
        finally:
            part.resume()

    async def _trouble(self) -> None:
        proxy = self.stack.proxies[self.random.choice(sorted(self.stack.proxies))]
        kind = self.random.choice(("cut", "reset", "half-open", "delay", "slice", "closed"))
        self.counts[f"{kind} {proxy.name}"] += 1
        if kind == "cut":
            proxy.cut()
        elif kind == "reset":
            proxy.reset()
        elif kind == "half-open":
            proxy.half_open()
        else:
            conditions = {
                "delay": Condition(delay_s=0.2),
                "slice": Condition(slice_bytes=3),
                "closed": Condition(closed=True),
            }
            proxy.condition = conditions[kind]
            try:
                await asyncio.sleep(self.random.uniform(*NETWORK_S))  # pace: the trouble lasts so long
            finally:
                proxy.condition = FINE
