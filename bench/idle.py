"""Beside the road: what an idle stack costs in memory, and how soon after its start it accepts a message.

Owns `chatlog up` as a user starts it, on a new data folder, with the stand-in as the model server. Memory is PSS (a
page that several processes share counts once), summed over nats-server, history, worker, gateway, supervisor and the
command itself, 30 s after the start; the model server's is beside it, not in it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from bench import streams
from bench.figures import Result, run
from bench.stack import ROOT, START_S, STOP_S, NotMeasured, free_port, pss_kib

STARTS = 3
IDLE_S = 30.0
TRY_EVERY_S = 0.01
PARTS = {"services.gateway": "gateway", "services.history": "history", "services.inference": "inference",
         "services.standin": "model server (stand-in)", "services.operator": "chatlog up",
         "supervisord": "supervisor", "nats-server": "nats-server"}  # fmt: skip
BESIDE = "model server (stand-in)"


async def measure(starts: int = STARTS) -> Result:
    result = Result("idle", f"`chatlog up` on a new folder, {starts} starts; PSS {IDLE_S:g} s after the last")
    accepted: list[float] = []
    for number in range(starts):
        with tempfile.TemporaryDirectory(prefix="chatlog-bench-") as folder:
            up = Up(Path(folder))
            try:
                accepted.append(await up.first_accepted_s())
                if number == starts - 1:
                    await asyncio.sleep(IDLE_S)  # pace: idle
                    memory = up.memory_mb()
            finally:
                await asyncio.to_thread(up.stop)
    result.add("start to first accepted message", "s", accepted, at_most=3)
    result.add("memory: sum of PSS without the model server", "MB",
               [sum(mb for part, mb in memory.items() if part != BESIDE)], at_most=250)  # fmt: skip
    for part, mb in sorted(memory.items()):
        result.add(f"memory: {part}", "MB", [mb])
    return result


class Up:
    """One `chatlog up`."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._mark = f"CHATLOG_BENCH={secrets.token_hex(8)}"
        chosen = {
            "CHATLOG_DATA_DIR": str(folder / "data"),
            "CHATLOG_MODEL_SERVER": "standin",
            "CHATLOG_GATEWAY_PORT": str(self._port),
            "CHATLOG_NATS_PORT": str(free_port()),
            "CHATLOG_STANDIN_PORT": str(free_port()),
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith("CHATLOG_")}
        mark, _, value = self._mark.partition("=")
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.operator", "up"], cwd=ROOT, env={**plain, **chosen, mark: value},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    async def first_accepted_s(self) -> float:
        """From the start of the command until a message is in the log: a client that tries until it may."""
        while time.monotonic() - self._started < START_S:
            with suppress(OSError, RuntimeError, IndexError, ValueError):
                made = await streams.post(self._port, "/v1/sessions", {})
                path = f"/v1/sessions/{made['session_id']}/messages"
                await streams.post(self._port, path, {"text": "hello"})
                return time.monotonic() - self._started
            await asyncio.sleep(TRY_EVERY_S)  # pace: of a poll
        raise NotMeasured("no message was accepted")

    def memory_mb(self) -> dict[str, float]:
        """PSS of each process that has our mark in its environment."""
        found: dict[str, float] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    part = next(part for word, part in PARTS.items() if word in command)
                    found[part] = found.get(part, 0.0) + pss_kib(folder) / 1000 * 1.024
        return found

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(2 * STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise NotMeasured("`chatlog up` did not stop") from None


if __name__ == "__main__":
    run(measure).tell()
