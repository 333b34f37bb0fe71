"""Beside the road: what a measurement leaves behind: its figures with machine, versions and method, as JSON and table.

Owns the form of bench/results/*.json. Must never round away a miss: a target is printed beside its figure.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from services.operator.broker import find_nats_server

RESULTS = Path(__file__).with_name("results")
# The longest file takes three minutes on a busy machine; one that takes so long will not end by itself.
RUN_S = 600.0
# What one core did of Python's simplest work at the moment: virtual machines vary by three times within an hour
# (measured), and every millisecond of CPU in a table with them.
ADDITIONS = 2_000_000
PACKAGES = (
    "nats-py",
    "faststream",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httpx",
    "httptools",
    "pydantic",
    "supervisor",
    "websockets",
)


@dataclass(frozen=True)
class Figure:
    """One number: the median of its repeats, what they were, and what it should be at the most or the least."""

    what: str
    unit: str
    repeats: list[float]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.repeats)

    @property
    def verdict(self) -> str:
        if self.at_most is None and self.at_least is None:
            return ""
        held = self.value <= self.at_most if self.at_most is not None else self.value >= (self.at_least or 0)
        return "reached" if held else "missed"

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"


@dataclass
class Result:
    """One file's figures. settings: the bounds that it changed. Before and after: load_average of a minute; core_speed
    in million additions per second.
    """

    name: str
    method: str
    settings: dict[str, str] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    load_average: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])
    core_speed: list[float] = field(default_factory=lambda: [core_speed()])

    def add(
        self, what: str, unit: str, repeats: Iterable[float], *, at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:  # fmt: skip
        self.figures.append(Figure(what, unit, [round(each, 3) for each in repeats], at_most, at_least))

    def tell(self) -> None:
        """Write the JSON, print the table."""
        self.load_average.append(os.getloadavg()[0])
        self.core_speed.append(core_speed())
        RESULTS.mkdir(exist_ok=True)
        shown = [{**asdict(each), "value": each.value, "verdict": each.verdict} for each in self.figures]
        whole = {**asdict(self), "figures": shown, "at": datetime.now(UTC).isoformat(), **machine()}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(whole, indent=1) + "\n")
        sys.stdout.write(self._table())
        sys.stdout.flush()

    def _table(self) -> str:
        before, after = self.load_average[0], self.load_average[-1]
        slow, fast = min(self.core_speed), max(self.core_speed)
        lines = [
            f"\nbench/{self.name}: {self.method}",
            f"load average {before:.2f} before, {after:.2f} after; a core adds {slow:.1f} to {fast:.1f} million/s",
        ]
        if self.settings:
            lines.append("settings: " + " ".join(f"{name}={value}" for name, value in self.settings.items()))
        rows = [("figure", "median", "range", "target", "")]
        rows += [
            (f"{each.what}, {each.unit}", f"{each.value:.2f}", f"{min(each.repeats):.2f} to {max(each.repeats):.2f}",
             each.target, each.verdict)
            for each in self.figures
        ]  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([*lines, ""])


def run(measure: Callable[[], Coroutine[Any, Any, Result]], within_s: float = RUN_S) -> Result:
    """One file's measurement, bounded in time. What it started is ended however it ends."""
    return uvloop.run(asyncio.wait_for(measure(), within_s))


def core_speed() -> float:
    """Million additions that one core does per second of its own time now."""
    total, began = 0, time.process_time()
    for number in range(ADDITIONS):
        total += number
    return round(ADDITIONS / (time.process_time() - began) / 1e6, 1)


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    server = subprocess.run([find_nats_server(), "--version"], capture_output=True, text=True, check=True, timeout=10)
    return {
        "machine": {
            "cpu": cpu[0] if cpu else platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "nats-server": server.stdout.split()[-1],
            **{name: version(name) for name in PACKAGES},
        },
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
