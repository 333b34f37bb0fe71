"""How long a watcher sees nothing while a process is killed and started again under it (`make pauses`).

Owns the measurement and its bounds: for each kind of process so many kills, one after the other, while answers stream
to watchers that come back by themselves. A kill's pause is the longest gap between two frames that show progress, of
whichever watcher waited longest. The exit status is 0 only where each p95 is within its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from tests.faults.clients import Crowd
from tests.faults.journal import Entry, Journal
from tests.faults.senders import Sender
from tests.faults.stack import Part, PartKind, stack
from tests.faults.watchers import SocketWatcher
from tests.polling import eventually

# What is asked of each kind's p95. A worker's silence is noticed by the queue after 10 s.
BOUNDS_S: dict[PartKind, float] = {"worker": 15.0, "gateway": 5.0, "history": 5.0, "nats": 5.0}
SESSIONS = 4
# Answers of three seconds, one after the other: what follows a kill holds ends and beginnings too.
SPEED = {"token_gap_ms": 50.0, "answer_tokens": 60}
# All that a kill may break shows within this; a pause that is longer is watched to its end.
WATCHED_S = 5.0
# A watcher that was shown a token so recently goes on.
FRESH_S = 1.0
RECOVERED_WITHIN_S = 120.0
PROGRESS = ("event", "token", "answer_so_far")


class Gaps:
    """When each watcher was shown progress, and last a token, from the journal's new entries."""

    def __init__(self, watchers: Iterable[str]) -> None:
        self._shown: dict[str, list[float]] = {name: [] for name in watchers}
        self._token = dict.fromkeys(self._shown, 0.0)

    def take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            kind = json.loads(entry["raw"])["type"] if entry["kind"] == "frame" else None
            if kind in PROGRESS:
                self._shown[entry["watch"]].append(entry["at"])
            if kind == "token":
                self._token[entry["watch"]] = entry["at"]

    def streams_since(self) -> float:
        """The moment since which every watcher has been shown a token."""
        return min(self._token.values())

    def longest(self, since: float) -> float:
        """The longest gap of any watcher that ended after since; one that goes on is not over."""
        return max(
            later - earlier for times in self._shown.values() for earlier, later in pairwise(times) if later > since
        )


def percentile(values: Sequence[float], share: float) -> float:
    """By the nearest rank: a value that was measured."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Measurement:
    """A crowd whose sessions answer all the time, and the journal of what their watchers see."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._gaps = Gaps(f"w{number}" for number in range(SESSIONS))
        self._read = 0

    async def pause(self, part: Part) -> float:
        """Kill it while all are shown tokens; the longest gap until they are again. Its supervisor starts it."""
        await self._all_stream()
        began = self._now()
        await part.kill()
        await asyncio.sleep(WATCHED_S)  # pace: what the kill breaks shows meanwhile
        await self._all_stream()
        return self._gaps.longest(began)

    async def _all_stream(self) -> None:
        """Until each watcher was shown a token within the last second."""

        def streams() -> bool:
            entries = self._crowd.journal.entries
            self._gaps.take(entries[self._read :])
            self._read = len(entries)
            return self._gaps.streams_since() > self._now() - FRESH_S

        await eventually(streams, reason="all watchers see answers", timeout_s=RECOVERED_WITHIN_S)

    def _now(self) -> float:
        return self._crowd.journal.now()


async def measure(folder: Path, kinds: Sequence[PartKind], kills: int) -> dict[PartKind, list[float]]:
    """The pause of each kill, by kind."""
    journal = Journal(folder / "journal.jsonl")
    found: dict[PartKind, list[float]] = {}
    async with stack(folder, gateways=1, workers=("ollama", "ollama")) as running, asyncio.TaskGroup() as group:
        for control in running.controls.values():
            await control.speed(**SPEED)
        crowd = Crowd(running, journal, random.Random(0), resting=True)
        await crowd.begin(SESSIONS)
        tasks = []
        for number, session in enumerate(crowd.sessions):
            watcher = SocketWatcher(crowd, f"w{number}", session)
            tasks.append(group.create_task(watcher.watch_for_ever()))
            tasks.append(group.create_task(_talk_for_ever(crowd, watcher, f"s{number}")))
        measurement = Measurement(crowd)
        for kind in kinds:
            parts = running.of(kind)
            found[kind] = [await measurement.pause(parts[number % len(parts)]) for number in range(kills)]
            _print(_row(kind, found[kind]))
        for task in tasks:
            task.cancel()
    journal.close()
    return found


async def _talk_for_ever(crowd: Crowd, watcher: SocketWatcher, name: str) -> None:
    """One message after the other: the next one as soon as its answer has ended."""
    sender, number = Sender(crowd, name, {"plain": 1}), 0
    while True:
        number += 1
        told = await sender.resolve(f"{name}-{number}", watcher.view.session_id)
        if told is not None:
            ended = functools.partial(watcher.view.ended, told["turn_id"])
            await eventually(ended, reason="the watcher sees the answer's end", timeout_s=RECOVERED_WITHIN_S)


def _row(kind: PartKind, pauses: Sequence[float]) -> str:
    p50, p95 = percentile(pauses, 0.5), percentile(pauses, 0.95)
    bound = BOUNDS_S[kind]
    verdict = "within" if p95 <= bound else "BEYOND"
    return f"{kind:10} {len(pauses):4} {p50:8.2f} {p95:8.2f} {max(pauses):8.2f}   {verdict} {bound:.0f} s"


def main() -> int:
    asked = argparse.ArgumentParser()
    asked.add_argument("--kills", type=int, default=50, help="of each kind")
    asked.add_argument("--only", choices=list(BOUNDS_S), action="append")
    given = asked.parse_args()
    _print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before: pauses hold the start of a process")
    _print(f"{'killed':10} {'n':>4} {'p50 s':>8} {'p95 s':>8} {'max s':>8}")
    with tempfile.TemporaryDirectory(prefix="chatlog-pauses-") as folder:
        found = asyncio.run(measure(Path(folder), given.only or list(BOUNDS_S), given.kills))
    return 1 if any(percentile(pauses, 0.95) > BOUNDS_S[kind] for kind, pauses in found.items()) else 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
