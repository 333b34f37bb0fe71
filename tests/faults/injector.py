"""Does to the stack what the plan says, several faults at once, and undoes each.

Owns that no two faults kill a part at the same time, and the counts of what was done. Must never touch a process that
is not the stack's, nor choose: the plan does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from tests.faults.plan import LONG_PAUSE_S, Fault, Kill, Model, Network, Pause, Planned
from tests.faults.proxy import FINE, Condition
from tests.faults.stack import MODEL, SPEED, Stack
from tests.polling import eventually
from tests.standins import Control

# More at once, and clients would see nothing but a dead stack.
AT_ONCE = 4
# Longer than a worker waits between tokens (5 s here), so that it finds the silence.
STALL_S = 8.0
SLOW_LOAD_S = 4.0
UP_WITHIN_S = 10.0
# Some four turns, as all watchers together see them. A part that is paused for a minute is not waited for.
LULL_EVENTS, LULL_WITHIN_S = 40, 25.0
CONDITIONS = {
    "delay": Condition(delay_s=0.2),
    "slice": Condition(slice_bytes=3),
    "closed": Condition(closed=True),
}


@dataclass
class Injector:
    """One run's faults. seen: how many events clients have seen; counts: how often each fault was injected."""

    stack: Stack
    plan: Iterable[Planned]
    seen: Callable[[], int]
    counts: Counter[str]

    @property
    def killed(self) -> int:
        return sum(count for name, count in self.counts.items() if name.startswith("SIGKILL"))

    async def run(self) -> None:
        """Until the plan is done; every fault is undone then."""
        room = asyncio.Semaphore(AT_ONCE)

        async def inject(fault: Fault) -> None:
            try:
                await self._inject(fault)
            finally:
                room.release()

        async with asyncio.TaskGroup() as going:
            for planned in self.plan:
                if planned.lull:
                    await self._lull()
                await asyncio.sleep(planned.after_s)  # pace: of the faults
                await room.acquire()
                going.create_task(inject(planned.fault))
        await self._calm()
        for name, count in self.stack.ended_by_themselves.items():
            self.counts[f"ended by itself: {name}"] = count

    async def _lull(self) -> None:
        """A slow machine's processes need longer to come up than faults leave them: now and then clients get on."""
        before = self.seen()
        with contextlib.suppress(AssertionError):
            await eventually(
                lambda: self.seen() - before >= LULL_EVENTS, reason="clients get on", timeout_s=LULL_WITHIN_S
            )

    async def _inject(self, fault: Fault) -> None:
        match fault:
            case Kill():
                await self._kill(fault)
            case Pause():
                await self._pause(fault)
            case Network():
                await self._network(fault)
            case Model():
                await self._model(fault)

    async def _kill(self, fault: Kill) -> None:
        parts = self.stack.parts
        async with AsyncExitStack() as held:
            for name in sorted(fault.parts):  # in one order everywhere: no two faults wait for each other
                await held.enter_async_context(parts[name].held)
            for name in fault.parts:
                if not parts[name].alive:  # it ended by itself just now: then it dies at its start
                    parts[name].spawn()
                await parts[name].kill()
                self.counts[f"SIGKILL {name}"] += 1
            for name, after_s in fault.back:
                await asyncio.sleep(after_s)  # pace: how long it is away
                parts[name].spawn()

    async def _pause(self, fault: Pause) -> None:
        part = self.stack.parts[fault.part]
        self.counts[f"SIGSTOP {part.name}{' for 60 s' if fault.seconds == LONG_PAUSE_S else ''}"] += 1
        async with part.held:
            part.pause()
        try:
            await asyncio.sleep(fault.seconds)  # pace: the pause is what is injected
        finally:
            part.resume()

    async def _network(self, fault: Network) -> None:
        proxy = self.stack.proxies[fault.road]
        self.counts[f"network {fault.kind}"] += 1
        if fault.kind in CONDITIONS:
            proxy.condition = CONDITIONS[fault.kind]
            try:
                await asyncio.sleep(fault.seconds)  # pace: the trouble lasts so long
            finally:
                proxy.condition = FINE
        else:
            {"cut": proxy.cut, "reset": proxy.reset, "half-open": proxy.half_open}[fault.kind]()

    async def _model(self, fault: Model) -> None:
        """A stand-in that stays away or is paused cannot be told: that is counted beside."""
        control = self.stack.controls[fault.standin]
        told = MODEL_FAULTS[fault.kind](fault) if fault.kind in MODEL_FAULTS else []
        if not await _answers(control):
            self.counts["untold: the model server was away"] += 1
            return
        for kind, fields in told:
            await _quietly(control.fault(kind, **fields))
        if fault.kind == "slow load":
            await _quietly(control.speed(load_s=SLOW_LOAD_S))
        self.counts[f"model {fault.kind}"] += 1
        if fault.kind == "slow load":
            await _quietly(control.runner(MODEL, "unload"))
        await asyncio.sleep(fault.seconds)  # pace: the trouble lasts so long, where it lasts
        await _soothed(control)

    async def _calm(self) -> None:
        """What was told to the stand-ins and did not come about yet."""
        for control in self.stack.controls.values():
            await _quietly(control.reset())
            await _soothed(control)


async def _answers(control: Control) -> bool:
    """Whether it is there, or comes up soon: it may have been killed just now."""

    async def asked() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            await control.speed()
            return True
        return False

    try:
        return await eventually(asked, reason="the stand-in answers", timeout_s=UP_WITHIN_S)
    except AssertionError:
        return False


async def _soothed(control: Control) -> None:
    """It loads as fast as ever, and its runner goes on."""
    await _quietly(control.speed(load_s=SPEED["load_s"]))
    await _quietly(control.runner(MODEL, "continue"))


async def _quietly(telling: Coroutine[Any, Any, object]) -> None:
    """A stand-in that is away, or has loaded nothing, has nothing to be told."""
    with contextlib.suppress(httpx.HTTPError, AssertionError):
        await telling


Told = list[tuple[str, dict[str, Any]]]
MODEL_FAULTS: dict[str, Callable[[Model], Told]] = {
    "stall": lambda fault: [("stall", {"after": fault.after, "seconds": STALL_S})],
    "cut": lambda fault: [("cut", {"after": fault.after or None})],
    "reset": lambda fault: [("reset", {"after": fault.after or None})],
    "empty end": lambda _: [("clean_end", {"after": 0})],
    "silent end": lambda fault: [("clean_end", {"after": fault.after + 1})],
    "error line": lambda fault: [("error_line", {"after": fault.after})],
    "503": lambda _: [("status", {"row": "busy", "times": 3})],
    "429": lambda _: [("status", {"row": "too_many", "times": 2, "headers": {"Retry-After": "1"}})],
    "hang": lambda fault: [("hang", {"seconds": fault.seconds})],
    "runner killed": lambda fault: [("kill_runner", {"after": fault.after})],
    "runner stopped": lambda fault: [("stop_runner", {"after": fault.after})],
    "drip": lambda _: [("drip", {"seconds": 0.1})],
    "split": lambda _: [("split", {"size": 3, "seconds": 0.0})],
    # It answers that it is there, and no question.
    "zombie": lambda _: [("hang", {"seconds": STALL_S, "times": 4})],
}
