"""A run of the stack under whatever trouble it is given: clients work meanwhile; then quiet, and what is left is read.

Owns the order of a run: clients begin, trouble comes and goes, what is unfinished may finish, doors are asked for each
outcome, processes end. Must never judge: it gives the evidence.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.faults.clients import Crowd
from tests.faults.evidence import Evidence
from tests.faults.journal import Journal
from tests.faults.remains import read_evidence, unfinished_turns, versions
from tests.faults.senders import Sender
from tests.faults.stack import Stack, stack
from tests.faults.watchers import SocketWatcher, StreamWatcher
from tests.polling import eventually

Trouble = Callable[[Crowd], Awaitable[None]]

SESSIONS, SENDERS = 5, 5
# Once faults have stopped: the longest of a worker's timers (60 s), a lost claim (10 s), and a machine that is slow.
END_WITHIN_S = 240.0
LOOK_EVERY_S = 0.5


async def run(folder: Path, dice: random.Random, trouble: Trouble, *, with_box: bool = False) -> Evidence:
    """The processes are gone afterwards, their files are in folder. trouble: undoes itself."""
    journal = Journal(folder / "journal.jsonl")
    try:
        async with stack(folder, with_box=with_box) as running:
            crowd = Crowd(running, journal, random.Random(dice.random()))
            await crowd.begin(SESSIONS)
            async with _at_work(crowd) as senders:
                await trouble(crowd)
                crowd.resting = True
                if await _settled(crowd, senders):
                    await crowd.ask_outcomes()
            await _history_ended(running)
            return await read_evidence(running.data, journal)
    finally:
        journal.close()


@asynccontextmanager
async def _at_work(crowd: Crowd) -> AsyncIterator[list[asyncio.Task[None]]]:
    """The senders; for each session there is a watcher at each door."""
    watchers = [
        asyncio.create_task(door(crowd, f"{door.__name__}-{number}", session).watch_for_ever())
        for number, session in enumerate(crowd.sessions)
        for door in (SocketWatcher, StreamWatcher)
    ]
    senders = [asyncio.create_task(Sender(crowd, f"s{number}").send_for_ever()) for number in range(SENDERS)]
    try:
        yield senders
    finally:
        for task in [*watchers, *senders]:
            task.cancel()
        for error in await asyncio.gather(*watchers, *senders, return_exceptions=True):
            if isinstance(error, Exception):
                crowd.journal.write("died", error=repr(error))


async def _settled(crowd: Crowd, senders: list[asyncio.Task[None]]) -> bool:
    """Every send has its outcome, every turn its end, and every watcher has seen it; or the time is up: the checker
    says of what."""
    log = crowd.stack.data / "log.db"

    async def settled() -> bool:
        await asyncio.sleep(LOOK_EVERY_S)  # pace: each look reads the whole log
        recorded = versions(log)
        seen = all(view.version == recorded[view.session_id] for view in crowd.views)
        return seen and not unfinished_turns(log) and all(sender.done() for sender in senders)

    try:
        return await eventually(settled, reason="every turn ends", timeout_s=END_WITHIN_S)
    except AssertionError:
        crowd.journal.write("note", text=f"not settled within {END_WITHIN_S} s")
        return False


async def _history_ended(running: Stack) -> None:
    """Nobody starts it again; what it wrote is whole."""
    for part in running.parts.values():
        await part.held.acquire()
    await running.parts["history"].stop()
