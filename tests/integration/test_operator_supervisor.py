"""The supervisor and its leash, as real processes: what dies is started again, and a killed parent leaves no orphan."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from services.operator.choice import Choice
from services.operator.folder import DataFolder
from services.operator.plan import Plan
from services.operator.programs import Program, leashed
from services.operator.settings import load_all
from services.operator.stack import Stack
from services.operator.supervisor import Supervisor, SupervisorGone, render
from services.runtime.lifecycle import cancel_all
from tests.polling import eventually

# Says who it is and what it was given, then lives until it is told to end.
CHILD = (
    "import os, signal, sys; "
    "print(os.getpid(), os.environ.get('CHATLOG_SAMPLE'), os.environ.get('CHATLOG_SECRET'), flush=True); "
    "signal.pause()"
)


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def said_by(folder: DataFolder, name: str) -> str:
    """What a program has printed so far."""
    log = folder.logs / f"{name}.log"
    return log.read_text().strip() if log.exists() else ""


def end(*pids: int) -> None:
    """A test that fails leaves nothing running either."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def command_lines() -> list[bytes]:
    """Of every process of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes())
    return found


@contextmanager
def supervised(folder: DataFolder, *programs: Program) -> Iterator[subprocess.Popen[bytes]]:
    folder.create()
    folder.write_private(folder.supervisor_config, render(folder, programs))
    command = leashed(
        sys.executable, "-m", "supervisor.supervisord", "-c", str(folder.supervisor_config), supervisor=True
    )
    environment = {**os.environ, "CHATLOG_SECRET": "canary 100%", "CHATLOG_SUPERVISOR_PID": str(os.getpid())}
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def sample(name: str, **environment: str) -> Program:
    return Program(name, leashed(sys.executable, "-c", CHILD), at_once=True, environment=environment)


async def _pids(supervisor: Supervisor, *names: str) -> dict[str, int]:
    def running() -> dict[str, int]:
        try:
            found = {each.name: each.pid for each in supervisor.processes() if each.running and each.pid}
        except SupervisorGone:
            return {}
        return found if set(found) == set(names) else {}

    return await eventually(running, reason=f"{names} run")


async def test_a_killed_child_is_started_again_and_a_stop_ends_all(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    with supervised(folder, sample("first"), sample("second")) as process:
        supervisor = Supervisor(folder)
        before = await _pids(supervisor, "first", "second")
        os.kill(before["first"], signal.SIGKILL)

        def again() -> int:
            found = {each.name: each.pid for each in supervisor.processes() if each.running}
            return found.get("first", 0) if found.get("first") != before["first"] else 0

        assert await eventually(again, reason="the killed child runs again")
        last = await _pids(supervisor, "first", "second")
        assert last["second"] == before["second"]
        supervisor.shutdown()
        await eventually(lambda: process.poll() is not None, reason="the supervisor ends")
        assert not any(alive(pid) for pid in last.values())


async def test_what_ends_again_and_again_says_why(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    record = json.dumps({"level": "critical", "reason": "no [red] luck"})
    dying = Program("dying", leashed(sys.executable, "-c", f"print({record!r})"), at_once=True)
    told: list[str] = []
    stack = Stack(Plan(load_all({}), Choice("box", "", ""), folder, folder.secrets(), [dying], {}), told.append)
    with supervised(folder, dying):
        await eventually(lambda: said_by(folder, "dying"), reason="it ran once")
        watching = asyncio.create_task(stack.watch(await stack.processes()))
        try:
            await eventually(lambda: told, reason="its end is told")
        finally:
            await cancel_all({watching})
        why = re.escape(f"no [red] luck; see {folder.logs}/dying.log")
        assert re.fullmatch(rf"dying ended and was started again \(process \d+\): {why}", told[0])
        await eventually(lambda: counted(folder.run / "dying.starts") >= 1, reason="the leash counts its starts")


def counted(file: Path) -> int:
    return int(file.read_text().split()[1]) if file.exists() else 0


def test_a_start_that_comes_too_soon_waits(tmp_path: Path) -> None:
    """Four came soon after another; the last one by the clock yet to come, so that no slow machine is late for it."""
    file = tmp_path / "starts"
    file.write_text(f"{os.getpid()} 4 {time.monotonic() + 3600}")
    began = time.monotonic()
    code = "import os; print(os.environ.get('CHATLOG_STARTS_FILE'))"
    done = subprocess.run(
        leashed(sys.executable, "-c", code),
        env={**os.environ, "CHATLOG_STARTS_FILE": str(file)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("None\n", "")
    assert time.monotonic() - began >= 1.6
    assert counted(file) == 5


async def test_secrets_reach_a_child_by_its_environment_only(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    with supervised(folder, sample("only", CHATLOG_SAMPLE="unix:/a b/100%.sock")):
        pid = (await _pids(Supervisor(folder), "only"))["only"]
        line = await eventually(partial(said_by, folder, "only"), reason="the child spoke")
        assert line == f"{pid} unix:/a b/100%.sock canary 100%"
        assert "canary" not in folder.supervisor_config.read_text()
        assert not any(b"canary 100%" in each for each in command_lines())
        assert folder.supervisor_socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_dead_supervisor_leaves_no_orphan(tmp_path: Path, number: signal.Signals) -> None:
    folder = DataFolder(tmp_path / "data")
    with supervised(folder, sample("first"), sample("second")) as process:
        pids = await _pids(Supervisor(folder), "first", "second")
        for name in pids:
            # Before it speaks it is still the leash, which finds by itself that its parent is gone.
            await eventually(partial(said_by, folder, name), reason=f"{name} runs")
        process.send_signal(number)
        try:
            await eventually(lambda: not any(alive(pid) for pid in pids.values()), reason="the children end")
        finally:
            end(*pids.values())


@contextmanager
def spawned(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_killed_parent_of_the_supervisor_leaves_no_orphan() -> None:
    starter = (
        "import os, subprocess, sys; os.environ['CHATLOG_SUPERVISOR_PID'] = str(os.getpid()); "
        "subprocess.Popen(sys.argv[1:]).wait()"
    )
    command = leashed(sys.executable, "-c", CHILD, supervisor=True)
    with spawned(sys.executable, "-c", starter, *command) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline().split()[0])
        assert alive(child)
        parent.kill()
        try:
            await eventually(lambda: not alive(child), reason="the child ends with its parent")
        finally:
            end(child)


def test_an_orphan_does_not_start() -> None:
    environment = {**os.environ, "CHATLOG_SUPERVISOR_PID": "1"}
    command = leashed("/bin/echo", "started")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the supervisor is gone\n")
