"""Beside the road: which model is loaded, who gets a slot, who waits, who is sent away: Ollama's scheduler in small.

It owns the loaded models (runners), their slots with first-come-first-served waiting, loads one at a time, eviction
of idle models, keep_alive, and the bounded queue of those who wait for a load. It must never see a socket or a text.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from services.standin.model import ModelSpec
from services.standin.prompt import PromptCache

DEFAULT_KEEP_ALIVE_S: Final = 300.0
"""Ollama's five minutes."""

LONGEST_TIMER_S: Final = 86_400.0
"""A model kept longer than a day has no timer: the event loop's clock does not take 292 years."""


LOADS_KEPT: Final = 1_000
"""The newest loads, for the report."""

NOTICED_S: Final = 0.05
"""A death is noticed after a pause that is no longer than this; longer ones are cut short by it (which costs more)."""


class QueueFull(Exception):
    """More requests wait for a load than may."""


class RunnerLost(Exception):
    """The process that ran the model has gone; `waiting`: before this request had its slot."""

    def __init__(self, *, waiting: bool) -> None:
        super().__init__("waiting" if waiting else "running")
        self.waiting = waiting


@dataclass(frozen=True)
class LoadOptions:
    """What a model is loaded with; another value means another load."""

    window: int
    shift: bool


@dataclass
class Load:
    """One load of a model, as the report shows it; outcome: loading, loaded, or given_up with the one who asked."""

    model: str
    began: float
    ended: float | None = None
    outcome: str = "loading"


class Runner:
    """A loaded model with its slots. It may die, or hang, like the process that it stands for."""

    def __init__(self, spec: ModelSpec, options: LoadOptions, slots: int) -> None:
        self.spec = spec
        self.options = options
        self.cache = PromptCache()
        self.references = 0
        self.keep_alive_s = DEFAULT_KEEP_ALIVE_S
        self.expires_epoch_s = 0.0
        self.expiry: asyncio.TimerHandle | None = None
        self.idle = asyncio.Event()
        self.died = asyncio.Event()
        self.running = asyncio.Event()
        self.running.set()
        self._free = slots
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def dead(self) -> bool:
        return self.died.is_set()

    async def take_slot(self) -> None:
        """Waits for a slot, first come first served; one who leaves is skipped."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.free_slot()
            raise

    def free_slot(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def kill(self) -> None:
        self.died.set()
        self.running.set()
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(RunnerLost(waiting=True))
        self._waiting.clear()

    async def pause(self, seconds: float) -> None:
        """Lets time pass as the runner would spend it: longer while it hangs, cut short by its death."""
        if seconds <= NOTICED_S:
            await asyncio.sleep(seconds)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.died.wait(), seconds)
        await self.alive()

    async def alive(self) -> None:
        if not self.running.is_set():
            await self.running.wait()
        if self.dead:
            raise RunnerLost(waiting=False)


class Scheduler:
    """Hands out runners. `load_s` is asked anew at each load, so that the control plane can change it."""

    def __init__(self, *, slots: int, max_queue: int, max_loaded: int, load_s: Callable[[], float]) -> None:
        self._slots = slots
        self._max_queue = max_queue
        self._max_loaded = max_loaded
        self._load_s = load_s
        self._loaded: dict[str, Runner] = {}
        self._pending = 0
        self._loading = asyncio.Lock()
        self.loads: deque[Load] = deque(maxlen=LOADS_KEPT)

    def loaded(self) -> list[Runner]:
        return list(self._loaded.values())

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """One is being loaded; max_queue more may wait. Only those who need a load are counted, as in Ollama."""
        if self._pending > self._max_queue:
            raise QueueFull
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    async def acquire(self, spec: ModelSpec, options: LoadOptions, keep_alive_s: float | None) -> Runner:
        """The runner of this model with these options, loaded if need be; pair it with `release`."""
        if not self._usable(spec, options):
            with self._queued():
                async with self._loading:
                    if not self._usable(spec, options):
                        await self._make_room(spec)
                        await self._load(spec)
                        self._loaded[spec.full_name] = Runner(spec, options, self._slots)
                    return self._referenced(spec, keep_alive_s)
        return self._referenced(spec, keep_alive_s)

    async def _load(self, spec: ModelSpec) -> None:
        load = Load(spec.full_name, began=time.monotonic())
        self.loads.append(load)
        try:
            await asyncio.sleep(self._load_s())
            load.outcome = "loaded"
        except asyncio.CancelledError:
            load.outcome = "given_up"
            raise
        finally:
            load.ended = time.monotonic()

    def release(self, runner: Runner) -> None:
        runner.references -= 1
        if runner.references == 0:
            runner.idle.set()
            self._set_expiry(runner)

    def find(self, spec: ModelSpec) -> Runner | None:
        return self._loaded.get(spec.full_name)

    def unload(self, spec: ModelSpec) -> None:
        """Out of memory as soon as nobody uses it."""
        if runner := self._loaded.get(spec.full_name):
            runner.keep_alive_s = 0.0
            if runner.references == 0:
                self._set_expiry(runner)

    def _usable(self, spec: ModelSpec, options: LoadOptions) -> bool:
        runner = self._loaded.get(spec.full_name)
        return runner is not None and not runner.dead and runner.options == options

    def _referenced(self, spec: ModelSpec, keep_alive_s: float | None) -> Runner:
        runner = self._loaded[spec.full_name]
        runner.references += 1
        runner.idle.clear()
        if runner.expiry:
            runner.expiry.cancel()
            runner.expiry = None
        if keep_alive_s is not None:
            runner.keep_alive_s = keep_alive_s
        runner.expires_epoch_s = time.time() + runner.keep_alive_s
        return runner

    def _set_expiry(self, runner: Runner) -> None:
        runner.expires_epoch_s = time.time() + runner.keep_alive_s
        if runner.keep_alive_s <= LONGEST_TIMER_S:
            runner.expiry = asyncio.get_running_loop().call_later(runner.keep_alive_s, self._expire, runner)

    def _expire(self, runner: Runner) -> None:
        if runner.references == 0 and self._loaded.get(runner.spec.full_name) is runner:
            del self._loaded[runner.spec.full_name]

    async def _make_room(self, spec: ModelSpec) -> None:
        """Takes out the same model with other options, the dead, and as many others as are too many, once idle.
        An answer that runs is never killed for another."""
        while (victim := self._victim(spec)) is not None:
            if victim.references and not victim.dead:
                await victim.idle.wait()
                continue
            if self._loaded.get(victim.spec.full_name) is victim:
                del self._loaded[victim.spec.full_name]

    def _victim(self, spec: ModelSpec) -> Runner | None:
        if spec.full_name in self._loaded:
            return self._loaded[spec.full_name]
        if len(self._loaded) < self._max_loaded:
            return None
        return min(self._loaded.values(), key=lambda runner: (runner.references > 0, runner.expires_epoch_s))
