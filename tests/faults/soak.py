"""A run under the faults of a seed, and the checker's word (`make soak`).

Owns the report: progress, the table of faults, and as last line one sentence with the counts. What a failing run left
(journal, logs, databases) is kept in a folder that is printed.
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
from tests.faults.plan import Targets, plan
from tests.faults.run import run

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


def new_folder(seed: int) -> Path:
    """For a run's files; kept where it finds something, also in a test, whose own folder goes soon."""
    return Path(tempfile.mkdtemp(prefix=f"chatlog-soak-{seed}-"))


def silent(_progress: str) -> None:
    """For a run whose progress nobody reads."""


async def soak(
    folder: Path, seed: int, kills: int, say: Callable[[str], None] = silent, *, with_box: bool = False
) -> Result:
    """The run; its processes are gone afterwards, its files are in folder."""
    dice = random.Random(seed)
    counts: Counter[str] = Counter()

    async def trouble(crowd: Crowd) -> None:
        parts = crowd.stack
        targets = Targets(sorted(parts.parts), sorted(parts.proxies), sorted(parts.controls))
        injector = Injector(parts, plan(random.Random(dice.random()), kills, targets), crowd.seen, counts)
        teller = asyncio.create_task(_tell(say, kills, injector, crowd))
        try:
            await injector.run()
        finally:
            teller.cancel()
        say("faults have stopped: what is unfinished may finish")

    evidence = await run(folder, dice, trouble, with_box=with_box)
    return Result(seed, folder, check(evidence), counts, _counts(evidence, counts))


async def _tell(say: Callable[[str], None], kills: int, injector: Injector, crowd: Crowd) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(SAY_EVERY_S)  # pace: of the progress
        minutes = (time.monotonic() - began) / 60
        say(f"{minutes:5.1f} min: {injector.killed} of {kills} kills, {len(crowd.journal.entries)} journal entries")


def _counts(found: Evidence, faults: Counter[str]) -> dict[str, int]:
    def injected(kind: str) -> int:
        return sum(count for name, count in faults.items() if name.startswith(kind))

    types = Counter(row.type for row in found.rows)
    return {
        "kills": injected("SIGKILL"),
        "pauses": injected("SIGSTOP"),
        "network faults": injected("network"),
        "model server faults": injected("model"),
        "sends accepted": sum(any(entry["kind"] == "ok" for entry in answers) for answers in found.sends.values()),
        "turns completed": types["answer_completed"],
        "failed": types["answer_failed"],
        "cancelled": types["answer_cancelled"],
        "frames checked": sum(entry["kind"] == "frame" for entry in found.journal),
    }


def main() -> int:
    asked = argparse.ArgumentParser()
    asked.add_argument("--kills", type=int, default=1000)
    asked.add_argument("--seed", type=int, default=None)
    asked.add_argument("--box", action="store_true", help="a third worker, with the small real model")
    given = asked.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    folder = new_folder(seed)
    _print(f"seed {seed}, files in {folder}")
    result = asyncio.run(soak(folder, seed, given.kills, _print, with_box=given.box))
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
