"""Lifecycle of a real process: signals drain it within the bound, a dead task ends it, and the exit code says which."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import pytest

from services.runtime.lifecycle import Exit

PROGRAM = """
import asyncio, sys
from services.runtime.lifecycle import Lifecycle, run
from services.runtime.settings import SharedSettings

async def waits(settings, lifecycle):
    print("ready", flush=True)
    await lifecycle.stopping.wait()
    print("drained", flush=True)

async def never_drains(settings, lifecycle):
    await waits(settings, lifecycle)
    await asyncio.Event().wait()

async def dies():
    raise ValueError("canary")

async def ends():
    pass

async def lives():
    await asyncio.Event().wait()

async def task_dies(settings, lifecycle):
    lifecycle.supervise(dies(), "loop")
    await waits(settings, lifecycle)

async def task_ends(settings, lifecycle):
    lifecycle.supervise(ends(), "loop")
    await waits(settings, lifecycle)

async def task_cancelled(settings, lifecycle):
    lifecycle.supervise(lives(), "loop").cancel()
    await waits(settings, lifecycle)

async def task_lives(settings, lifecycle):
    lifecycle.supervise(lives(), "loop")
    await waits(settings, lifecycle)

async def main_dies(settings, lifecycle):
    raise LookupError("canary")

async def fails(settings, lifecycle):
    lifecycle.fail("log_unwritable")
    await waits(settings, lifecycle)

name = sys.argv.pop(1)
sys.exit(run("sample", SharedSettings, globals()[name]))
"""


class Outcome:
    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr.splitlines()]


async def _run(name: str, *flags: str, send: signal.Signals | None = None) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, name, *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert process.stdout is not None
    first = b""
    if send is not None:
        first = await asyncio.wait_for(process.stdout.readline(), 60)
        process.send_signal(send)
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Outcome(process.returncode, (first + stdout).decode(), stderr.decode())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_zero(number: signal.Signals) -> None:
    outcome = await _run("task_lives", send=number)
    assert (outcome.code, outcome.stdout) == (Exit.DRAINED, "ready\ndrained\n")
    assert [line["event"] for line in outcome.events()] == ["stopping", "stopped"]


async def test_a_drain_is_bounded() -> None:
    outcome = await _run("never_drains", "--drain-timeout-s", "0.2", send=signal.SIGTERM)
    assert (outcome.code, outcome.stdout) == (Exit.NOT_DRAINED, "ready\ndrained\n")
    assert "not_drained" in [line["event"] for line in outcome.events()]


@pytest.mark.parametrize("name", ["task_dies", "task_ends", "task_cancelled"])
async def test_a_dead_task_drains_and_fails_the_process(name: str) -> None:
    outcome = await _run(name)
    assert (outcome.code, outcome.stdout) == (Exit.FAILED, "ready\ndrained\n")
    assert (outcome.events()[0]["event"], outcome.events()[0]["task"]) == ("task_died", "loop")
    assert "canary" not in outcome.stderr


async def test_main_that_raises_fails_the_process() -> None:
    outcome = await _run("main_dies")
    assert outcome.code == Exit.FAILED
    assert outcome.events()[-1]["event"] == "main_died"
    assert "canary" not in outcome.stderr


async def test_a_service_may_fail_itself() -> None:
    outcome = await _run("fails")
    assert outcome.code == Exit.FAILED
    assert outcome.events()[0]["reason"] == "log_unwritable"


async def test_wrong_settings_are_a_line_and_a_code_of_their_own() -> None:
    outcome = await _run("waits", "--log-level", "loud")
    assert outcome.code == Exit.BAD_SETTINGS
    assert outcome.stderr.startswith("sample: CHATLOG_LOG_LEVEL (flag): Input should be 'debug'")
