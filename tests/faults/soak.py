"""One run under faults: a stack, a crowd, an injector; then quiet, and the checker's word (`make soak`).

Owns the order of a run and its report: progress, the table of faults, and as last line one sentence with the counts.
What a failing run left (journal, logs, databases) is kept in a folder that is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.checker import check
from tests.faults.clients import Crowd
from tests.faults.evidence import Evidence, Violation
from tests.faults.injector import Injector
from tests.faults.journal import Journal
from tests.faults.plan import Targets, plan
from tests.faults.remains import read_evidence, unfinished_turns, versions
from tests.faults.senders import Sender
from tests.faults.stack import stack
from tests.faults.watchers import SocketWatcher, StreamWatcher
from tests.polling import eventually

SESSIONS, SENDERS = 5, 5
# Once faults have stopped: the longest of a worker's timers (60 s), a lost claim (10 s), and a machine that is slow.
END_WITHIN_S = 240.0
LOOK_EVERY_S = 0.5
SAY_EVERY_S = 15.0


@dataclass
class Result:
    """What a run came to."""

    seed: int
    folder: Path
    violations: list[Violation]
    faults: Counter[str]
    counts: dict[str, int] = field(default_factory=dict)

    def sentence(self) -> str:
        told = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"Seed {self.seed}: {told}; {len(self.violations)} violations."


def silent(_progress: str) -> None:
    """For a run whose progress nobody reads."""


async def soak(folder: Path, seed: int, kills: int, say: Callable[[str], None] = silent) -> Result:
    """The run; its processes are gone afterwards, its files are in folder."""
    journal = Journal(folder / "journal.jsonl")
    dice = random.Random(seed)
    try:
        async with stack(folder) as running:
            targets = Targets(sorted(running.parts), sorted(running.proxies), sorted(running.controls))
            injector = Injector(running, plan(random.Random(dice.random()), kills, targets))
            crowd = Crowd(running, journal, random.Random(dice.random()))
            teller = asyncio.create_task(_tell(say, kills, injector, crowd))
            try:
                await _live(crowd, injector, say)
            finally:
                teller.cancel()
            for part in running.parts.values():
                await part.held.acquire()
            await running.parts["history"].stop()
            evidence = await read_evidence(running.data, journal)
    finally:
        journal.close()
    faults = injector.counts + Counter({f"ended by itself: {n}": c for n, c in running.ended_by_themselves.items()})
    return Result(seed, folder, check(evidence), faults, _counts(evidence, injector))


async def _live(crowd: Crowd, injector: Injector, say: Callable[[str], None]) -> None:
    """Clients work while faults come; then everything runs again, and what is unfinished finishes."""
    await crowd.begin(SESSIONS)
    watchers = [
        asyncio.create_task(door(crowd, f"{door.__name__}-{number}", session).watch_for_ever())
        for number, session in enumerate(crowd.sessions)
        for door in (SocketWatcher, StreamWatcher)
    ]
    senders = [asyncio.create_task(Sender(crowd, f"s{number}").send_for_ever()) for number in range(SENDERS)]
    try:
        await injector.run()
        say("faults have stopped: what is unfinished may finish")
        crowd.resting = True
        if await _settled(crowd, senders):
            await crowd.ask_outcomes()
    finally:
        for task in [*watchers, *senders]:
            task.cancel()
        for error in await asyncio.gather(*watchers, *senders, return_exceptions=True):
            if isinstance(error, Exception):
                raise error


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


async def _tell(say: Callable[[str], None], kills: int, injector: Injector, crowd: Crowd) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(SAY_EVERY_S)  # pace: of the progress
        minutes = (time.monotonic() - began) / 60
        entries = len(crowd.journal.entries)
        say(f"{minutes:5.1f} min: {injector.killed} of {kills} kills, {injector.paused} pauses, {entries} entries")


def _counts(found: Evidence, injector: Injector) -> dict[str, int]:
    types = Counter(row.type for row in found.rows)
    accepted = sum(any(entry["kind"] == "ok" for entry in answers) for answers in found.sends.values())
    return {
        "kills": injector.killed,
        "pauses": injector.paused,
        **injector.others(),
        "sends accepted": accepted,
        "turns completed": types["answer_completed"],
        "failed": types["answer_failed"],
        "cancelled": types["answer_cancelled"],
        "frames checked": sum(entry["kind"] == "frame" for entry in found.journal),
    }


def main() -> int:
    asked = argparse.ArgumentParser()
    asked.add_argument("--kills", type=int, default=1000)
    asked.add_argument("--seed", type=int, default=None)
    given = asked.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix=f"chatlog-soak-{seed}-"))
    _print(f"seed {seed}, files in {folder}")
    result = asyncio.run(soak(folder, seed, given.kills, _print))
    for name, count in sorted(result.faults.items()):
        _print(f"{count:6} {name}")
    for violation in result.violations:
        _print(str(violation))
    if result.violations:
        _print(f"The evidence is in {folder}: journal.jsonl, *.log, data/log.db.")
    else:
        shutil.rmtree(folder)
    _print(result.sentence())
    return 1 if result.violations else 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
