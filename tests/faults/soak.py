"""One run under faults: a stack, a crowd, an injector; then quiet, and the checker's word (`make soak`).

Owns the order of a run and its report: the table of faults, and as last line one sentence with the counts. What a
failing run left (journal, logs, databases) is kept in a folder that is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.history.log.reader import LogReader
from services.history.views.store import ViewStore
from tests.faults.checker import Evidence, Row, Violation, check
from tests.faults.clients import Crowd
from tests.faults.injector import Injector
from tests.faults.journal import Journal
from tests.faults.stack import Stack, stack
from tests.polling import eventually

SESSIONS, SENDERS = 4, 4
# Once faults have stopped: the longest of a worker's timers (60 s), a lost claim (10 s), and a machine that is slow.
END_WITHIN_S = 180.0
TABLES = ("sessions", "messages", "turns")


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
        return f"Seed {self.seed}: {len(self.violations)} violations after {told}."


async def soak(folder: Path, seed: int, kills: int, *, long_pauses: bool = True) -> Result:
    """The run; its processes are gone afterwards, its files are in folder."""
    journal = Journal(folder / "journal.jsonl")
    dice = random.Random(seed)
    try:
        async with stack(folder) as running:
            injector = Injector(running, dice, kills, long_pauses)
            await _live(running, journal, injector)
            for part in running.parts.values():
                part.held = True
            await running.parts["history"].stop()
            evidence = await _evidence(running.data, journal)
            own = sum(running.ended_by_themselves.values())
    finally:
        journal.close()
    for name, count in running.ended_by_themselves.items():
        injector.counts[f"ended by itself: {name}"] += count
    counts = _counts(evidence) | {"kills": injector.killed, "pauses": injector.paused, "restarts unasked": own}
    return Result(seed, folder, check(evidence), injector.counts, counts)


async def _live(running: Stack, journal: Journal, injector: Injector) -> None:
    """Clients work while faults come; then everything runs again, and what is unfinished finishes."""
    crowd = Crowd(running, journal, random.Random(injector.random.random()))
    await crowd.begin(SESSIONS)
    watchers = [
        asyncio.create_task(crowd.watch_for_ever(f"w{number}", session))
        for number, session in enumerate(crowd.sessions * 2)
    ]
    senders = [asyncio.create_task(crowd.send_for_ever(f"s{number}")) for number in range(SENDERS)]
    try:
        await injector.run()
        crowd.resting = True
        await running.ready()
        _, unsure = await asyncio.wait(senders, timeout=END_WITHIN_S)
        if not unsure:
            await _settled(running, crowd)
    finally:
        for task in [*watchers, *senders]:
            task.cancel()
        ended = await asyncio.gather(*watchers, *senders, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error


async def _settled(running: Stack, crowd: Crowd) -> None:
    """Every turn has ended and every watcher has seen it, or the time is up: the checker says which."""

    def settled() -> bool:
        rows = read_rows(running.data / "log.db")
        opened = {row.turn_id for row in rows if row.type == "user_message_submitted"}
        ended = {row.turn_id for row in rows if row.type.startswith("answer_") and row.type != "answer_started"}
        versions = Counter(str(row.event["session_id"]) for row in rows)
        return opened == ended and all(view.version == versions[view.session_id] for view in crowd.views)

    try:
        await eventually(settled, reason="every turn ends", timeout_s=END_WITHIN_S)
    except AssertionError:
        crowd.journal.write("note", text=f"not settled within {END_WITHIN_S} s")


def read_rows(path: Path) -> list[Row]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT position, version, body FROM events ORDER BY position").fetchall()
    return [Row(position, version, json.loads(body)) for position, version, body in rows]


async def _evidence(data: Path, journal: Journal) -> Evidence:
    """Read once history has ended: its views may be behind its log, never beside it, so they are folded to its end."""
    fresh = data / "replayed"
    fresh.mkdir()
    tables = [await _folded(data, data), await _folded(fresh, data)]
    return Evidence(journal.entries, read_rows(data / "log.db"), *tables)


async def _folded(folder: Path, data: Path) -> dict[str, list[Any]]:
    """The tables of the views in folder, after every row of the log."""
    reader = await LogReader.open(data / "log.db")
    try:
        store = await ViewStore.open(folder, reader)
        try:
            while rows := await reader.rows_after(store.position, 256):
                await store.apply(rows)
            return {table: await _table(store, table) for table in TABLES}
        finally:
            await store.close()
    finally:
        await reader.close()


async def _table(store: ViewStore, table: str) -> list[Any]:
    rows = await store.reading.execute_fetchall(f"SELECT * FROM {table}")
    return sorted((list(row) for row in rows), key=repr)


def _counts(found: Evidence) -> dict[str, int]:
    types = Counter(row.type for row in found.rows)
    return {
        "turns": types["user_message_submitted"],
        "completed": types["answer_completed"],
        "failed": types["answer_failed"],
        "cancelled": types["answer_cancelled"],
        "frames": sum(entry["kind"] == "frame" for entry in found.journal),
    }


def main() -> int:
    asked = argparse.ArgumentParser()
    asked.add_argument("--kills", type=int, default=1000)
    asked.add_argument("--seed", type=int, default=None)
    given = asked.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix=f"chatlog-soak-{seed}-"))
    sys.stdout.write(f"seed {seed}, files in {folder}\n")
    sys.stdout.flush()
    result = asyncio.run(soak(folder, seed, given.kills))
    for name, count in sorted(result.faults.items()):
        sys.stdout.write(f"{count:6} {name}\n")
    for violation in result.violations:
        sys.stdout.write(f"{violation}\n")
    if not result.violations:
        shutil.rmtree(folder)
    sys.stdout.write(result.sentence() + "\n")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
