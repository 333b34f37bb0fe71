"""Beside the road: a long log read again: its views rebuilt, verified, compared, folded; and what that takes in memory.

Owns a generated log of a million events (`--events`; `--folder` keeps it) and the commands as an operator types them.
Memory is PSS, of all processes of a command together, at its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from bench.beside import ask
from bench.figures import Result, run
from bench.generated import SEED, Use, write_log
from bench.stack import ROOT, NotMeasured, pss_kib
from services.history.log.reader import ROW_SQL, LogRow
from services.history.views.batch import Heads
from services.history.views.filling import HEADS_KEPT, fill, fold_rows
from services.history.views.tables import ViewTables

EVENTS = 1_000_000
FOLDED = 20_000
REPEATS = 3
LOOK_EVERY_S = 0.05
# Writing a million events, folding and reading them, three times: an hour on a machine that is busy with other things.
WITHIN_S = 3600.0


async def measure(events: int = EVENTS, folder: Path | None = None, repeats: int = REPEATS) -> Result:
    return await asyncio.to_thread(_measure, events, folder, repeats)


def _measure(events: int, folder: Path | None, repeats: int) -> Result:
    result = Result("replay", f"{events} generated events, each command {repeats} times; memory is PSS at its peak")
    with log_of(events, folder) as data:
        for path in data.glob("views-*"):
            path.unlink()  # a rebuild beside views would be measured with its comparison
        for words, at_least in (("replay --dry-run", 50_000), ("verify", 250_000), ("verify --views", 80_000)):
            if words != "replay --dry-run":
                views_of(data, events)
            rates, peaks = zip(
                *(_command(data, events, [*words.split(), "--json"]) for _ in range(repeats)), strict=True
            )
            result.add(words, "events/s", rates, at_least=at_least)
            result.add(f"{words}: memory", "MB", peaks, at_most=250)
    _compare_folds(result, repeats)
    return result


@contextmanager
def log_of(events: int, folder: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chatlog-bench-") as temporary:
        data = folder or Path(temporary)
        data.mkdir(exist_ok=True, parents=True)
        if not (data / "log.db").exists():
            write_log(data / "log.db", events)
        yield data


def views_of(data: Path, events: int) -> None:
    tables = ViewTables(data / "views-1.db")
    try:
        fill(data / "log.db", tables, events, lambda position: None)
    finally:
        tables.close()


def _command(data: Path, events: int, words: list[str]) -> tuple[float, float]:
    """Events a second, and the peak of memory in MB. From the first line of Python to the last word."""
    command = [sys.executable, "-m", "services.operator", *words, "--data-dir", str(data)]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _memory_mb(process.pid))
            time.sleep(LOOK_EVERY_S)  # pace: of looking at its memory
        took = time.perf_counter() - began
        assert process.stdout is not None
        said = json.loads(process.stdout.read())
    if not said.get("holds", True) or said["position"] != events:
        raise NotMeasured(f"{words}: {str(said)[:500]}")
    return events / took, peak


def _memory_mb(pid: int) -> float:
    pids, found = [pid], 0.0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    for each in pids:
        with suppress(OSError):  # it has ended
            found += pss_kib(Path(f"/proc/{each}")) / 1024
    return found


def _compare_folds(result: Result, repeats: int) -> None:
    """Every session's state from the stored events."""
    ours: list[float] = []
    theirs: list[float] = []
    bodies = [row.event.body for row in itertools.islice(Use(SEED).rows(), FOLDED)]
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="chatlog-bench-") as folder:
            write_log(Path(folder) / "log.db", FOLDED)
            ours.append(_fold(Path(folder) / "log.db"))
            theirs.append(ask("fold", bodies, Path(folder) / "beside")["per_s"])
    result.add("fold of all sessions", "events/s", ours)
    result.add("fold of all sessions, eventsourcing", "events/s", theirs)
    times = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    result.add("fold, times", "x", times, at_least=4)


def _fold(path: Path) -> float:
    """What a rebuild does with the log's rows, but for the writing."""
    began = time.perf_counter()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as log:
        rows = (LogRow(*row) for row in log.execute(f"{ROW_SQL} ORDER BY position"))
        batch = fold_rows(0, rows, Heads(lambda user_id, session_id: None, HEADS_KEPT))
    return batch.position / (time.perf_counter() - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Verify, compare and fold a long log.")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    run(lambda: measure(asked.events, asked.folder, asked.repeats), within_s=WITHIN_S).tell()
