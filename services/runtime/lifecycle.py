"""Lifecycle: how a service starts, is told to stop, drains within a bound, and ends with a code.

Owns the process: its loop, its signals, its exit code and its background tasks. A task that dies takes the process with
it, since a service with a dead loop looks alive and does nothing. Must never hold anything of a service's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine
from enum import IntEnum
from typing import Any, TypeVar

import structlog
import uvloop

from services.runtime import logs
from services.runtime.settings import SettingsError, SharedSettings, load, parse_flags

log = structlog.get_logger(__name__)

S = TypeVar("S", bound=SharedSettings)

# Python's own 700 has a busy service look for cycles hundreds of times a second, and it makes hardly any.
COLLECT_EVERY_OBJECTS = 10_000
CANCEL_S = 5.0
CANCEL_AGAIN_S = 0.2


class Exit(IntEnum):
    """What the supervisor and an operator can tell from a code."""

    DRAINED = 0
    FAILED = 1
    BAD_SETTINGS = 2
    NOT_DRAINED = 3


class Lifecycle:
    """Given to a service's main: when to stop, and where its background tasks live."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.exit_code = Exit.DRAINED
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Ask for a drain, as SIGTERM does."""
        self.stopping.set()

    def fail(self, reason: str) -> None:
        """Ask for a drain and a non-zero exit: the supervisor starts the process again."""
        log.critical("failing", reason=reason)
        self.exit_code = Exit.FAILED
        self.stopping.set()

    def supervise(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run work for as long as the process lives. If it raises, or just ends before the stop, the process ends."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_tasks(self) -> None:
        """End what is supervised; main's last step, and done for it if it forgot."""
        self.stopping.set()
        left = await cancel_all(set(self._tasks))
        for task in left:
            log.error("task_not_cancelled", task=task.get_name())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None and self.stopping.is_set():
            return
        # A cancelled or finished loop is as dead as one that raised, if nobody asked for a stop.
        log.critical("task_died", task=task.get_name(), exc_info=error)
        self.exit_code = Exit.FAILED
        self.stopping.set()


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Cancel tasks and wait for their end; those that do not end within CANCEL_S.

    One cancel is not enough: nats-py swallows one that meets it in the middle of a connect (measured).
    """
    left = set(tasks)
    rounds = int(CANCEL_S / CANCEL_AGAIN_S)
    for _ in range(rounds if left else 0):
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        for task in done - {each for each in done if each.cancelled()}:
            task.exception()  # whoever supervises the task has told of it; asyncio need not
        if not left:
            break
    return left


def run(service: str, settings_class: type[S], main: Callable[[S, Lifecycle], Awaitable[None]]) -> int:
    """Load the settings, run main until it ends, and say how that went: what a service's __main__ exits with.

    main waits for lifecycle.stopping, drains and returns. It has settings.drain_timeout_s for that.
    """
    try:
        settings = load(settings_class, parse_flags([settings_class], sys.argv[1:], f"python -m services.{service}"))
    except SettingsError as error:
        sys.stderr.write(f"{service}: {error}\n")
        return Exit.BAD_SETTINGS
    logs.configure(service, settings.log_level)
    _settle_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_drained(main, settings))


def _settle_memory() -> None:
    """What the imports have made is there for good: looking through it for garbage again and again took 26 % of a busy
    gateway's time and 11 % of a worker's (measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY_OBJECTS)


async def _until_drained(main: Callable[[S, Lifecycle], Awaitable[None]], settings: S) -> int:
    lifecycle = Lifecycle()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_unhandled)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.stop)
    body = asyncio.ensure_future(main(settings, lifecycle))
    stopping = asyncio.create_task(lifecycle.stopping.wait())
    await asyncio.wait({body, stopping}, return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping", drain_timeout_s=settings.drain_timeout_s)
    done, _ = await asyncio.wait({body}, timeout=settings.drain_timeout_s)
    stopping.cancel()
    if not done:
        log.error("not_drained", drain_timeout_s=settings.drain_timeout_s)
        body.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({body}, timeout=1)
    await lifecycle.cancel_tasks()
    return _verdict(body, lifecycle)


def _verdict(body: asyncio.Future[None], lifecycle: Lifecycle) -> int:
    if not body.done() or body.cancelled():
        return Exit.NOT_DRAINED
    error = body.exception()
    if error is not None:
        log.critical("main_died", exc_info=error)
        return Exit.FAILED
    log.info("stopped", exit_code=int(lifecycle.exit_code))
    return lifecycle.exit_code


def _log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own handler prints the task with the words of its exception, which may quote a message."""
    log.error("unhandled", what=context["message"], exc_info=context.get("exception"))
