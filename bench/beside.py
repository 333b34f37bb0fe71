"""Beside the road: eventsourcing's figures, taken by its own environment within the same run.

Owns how that environment is found and asked. Must never compare what was not written as durably as ours.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.stack import ROOT, NotMeasured

PYTHON = ROOT / ".venv/eventsourcing/bin/python"
SCRIPT = ROOT / "bench/eventsourcing_beside.py"
FULL = 2
ASKED_S = 300.0


def ask(what: str, bodies: Iterable[bytes], folder: Path, writers: int = 1, seconds: float = 0.0) -> dict[str, Any]:
    """What it says of these events in an empty folder."""
    if not PYTHON.exists():
        raise NotMeasured("eventsourcing is not installed: `make bench-log` does that")
    folder.mkdir()
    file = folder.with_suffix(".bodies")
    file.write_bytes(b"\n".join(bodies))
    command = [str(PYTHON), str(SCRIPT), what, str(file), str(folder), str(writers), str(seconds)]
    ran = subprocess.run(command, capture_output=True, timeout=ASKED_S, check=False)
    if ran.returncode:
        raise NotMeasured(f"eventsourcing: {ran.stderr.decode()[-300:]}")
    said: dict[str, Any] = json.loads(ran.stdout)
    if what == "append" and (said["synchronous"], said["journal_mode"]) != (FULL, "wal"):
        raise NotMeasured(f"eventsourcing is not as durable: {said}")
    return said
