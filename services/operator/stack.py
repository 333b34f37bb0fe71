"""`chatlog up`: the whole stack on this machine, from a plan to an address that answers, and down again.

Owns the order of the start, the supervisor's process and the end of everything. Must never leave an orphan: the
children hang on the supervisor by a leash, and the supervisor on us.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

from services.operator.asking import why_not_ready
from services.operator.errors import ErrorLog
from services.operator.plan import CannotStart, Plan, check_port
from services.operator.programs import GATEWAY, NATS, leashed
from services.operator.provisioning import provision
from services.operator.supervisor import STOP_WAIT_S, ProcessState, Supervisor, SupervisorGone
from services.runtime.lifecycle import cancel_all

Say = Callable[[str], None]

POLL_S = 0.03
_NATS_TIMEOUT_S = 5
WATCH_EVERY_S = 1.0
START_S = 15.0
# A history that has far to catch up is not ready for longer than this; then we say so and go on.
READY_S = 30.0
# Programs stop one after the other, each within STOP_WAIT_S; with several slow ones we wait this long.
DOWN_S = 3 * STOP_WAIT_S
# Exit codes after which starting again does not help: wrong settings, and a machine that lacks something.
_HOPELESS_CODES = (2, 4)


class Stack:
    """The running stack: start() and watch(), and stop() whatever happened in between."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan = plan
        self._say = say
        self._supervisor = Supervisor(plan.folder)
        self._process: asyncio.subprocess.Process | None = None
        self._errors = {each.name: ErrorLog(plan.folder.logs / f"{each.name}.log") for each in plan.programs}

    async def start(self) -> None:
        """Start everything in order. Returns once the services run, ready or not. Raises CannotStart."""
        await self._end_what_is_left()
        for program in self.plan.programs:
            check_port(program)
        await self._start_supervisor()
        client = await self._connect()
        await provision(client.jetstream(), self.plan.streams)
        await client.close()
        for program in self.plan.programs:
            if not program.at_once:
                await asyncio.to_thread(self._supervisor.start, program.name)
        self._write_stack_file()

    async def until_ready(self) -> dict[str, list[str]]:
        """Wait until every service is ready; the reasons of those that are not after READY_S. Raises CannotStart."""
        unready: dict[str, list[str]] = {}

        async def all_ready() -> bool:
            names = self.health_addresses()
            answers = await asyncio.gather(*(why_not_ready(address) for address in names.values()))
            unready.clear()
            unready.update({name: reasons for name, reasons in zip(names, answers, strict=True) if reasons})
            return not unready

        with contextlib.suppress(TimeoutError):
            await self._until(all_ready, READY_S)
        return unready

    async def watch(self, shown: list[ProcessState]) -> None:
        """Tell of each child that is not the one shown, for ever. Raises CannotStart if the supervisor dies."""
        known = {each.name: each for each in shown}
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            for each in await self.processes():
                before = known[each.name]
                if each.running and each.pid != before.pid:
                    words = self._errors[each.name].last_words()
                    why = f": {words}" if words else ""
                    log = self.plan.folder.logs / f"{each.name}.log"
                    self._say(f"{each.name} ended and was started again (process {each.pid}){why}; see {log}")
                known[each.name] = each if each.running else before

    async def stop(self) -> None:
        """Stop every child in order, then the supervisor; what does not stop in time is killed."""
        if self._process is None:
            return
        with contextlib.suppress(SupervisorGone):
            await asyncio.to_thread(self._supervisor.shutdown)
        try:
            async with asyncio.timeout(DOWN_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()  # the leash ends its children
            await self._process.wait()
        self.plan.folder.stack_file.unlink(missing_ok=True)

    async def processes(self) -> list[ProcessState]:
        """Every child's state. Raises CannotStart if the supervisor is gone."""
        try:
            return await asyncio.to_thread(self._supervisor.processes)
        except SupervisorGone as error:
            raise CannotStart(f"the supervisor died ({error}); see {self.plan.folder.logs}/supervisord.log") from error

    def restart_broker(self) -> None:
        self._say("nats-server was latched by a full disk and there is room again: starting it again")
        self._supervisor.restart(NATS)

    def health_addresses(self) -> dict[str, str]:
        found = {
            program.name: program.environment["CHATLOG_HEALTH_ADDRESS"]
            for program in self.plan.programs
            if "CHATLOG_HEALTH_ADDRESS" in program.environment
        }
        return found | {GATEWAY: self.plan.gateway_address}

    async def _end_what_is_left(self) -> None:
        """A supervisor whose `chatlog up` was killed is still stopping: wait for it instead of meeting its ports."""
        if not self._supervisor.answers():
            return
        with contextlib.suppress(SupervisorGone):  # it is stopping already
            await asyncio.to_thread(self._supervisor.shutdown)
        self._say("waiting for the stack that ran here before to stop")
        try:
            await self._until(lambda: not self._supervisor.answers(), DOWN_S)
        except TimeoutError:
            raise CannotStart("the stack that ran here before does not stop") from None

    async def _start_supervisor(self) -> None:
        command = leashed(
            sys.executable,
            "-m",
            "supervisor.supervisord",
            "-c",
            str(self.plan.folder.supervisor_config),
            supervisor=True,
        )
        environment = {**os.environ, **self.plan.environment, "CHATLOG_SUPERVISOR_PID": str(os.getpid())}
        with (self.plan.folder.logs / "supervisord.out").open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is for us alone: we tell the supervisor to stop, and it stops its children in order.
                start_new_session=True,
            )
        try:
            await self._until(self._supervisor.answers, START_S)
        except TimeoutError:
            raise CannotStart(f"the supervisor does not start: {self._last_line('supervisord.out')}") from None

    async def _connect(self) -> Client:
        """A connection to the broker, once it listens: nats-py itself would wait 2 s after the first refusal."""
        operator = self.plan.settings.operator
        try:
            await self._until(partial(listens, operator.nats_port), START_S)
            return await nats.connect(
                self.plan.nats_url,
                user=operator.nats_user,
                password=self.plan.secrets.nats_password,
                allow_reconnect=False,
                connect_timeout=_NATS_TIMEOUT_S,
                error_cb=ignore,
            )
        except (TimeoutError, OSError, nats.errors.Error):
            raise CannotStart(f"nats-server does not start: {self._why_ended(NATS)}") from None

    async def _until(self, check: Callable[[], bool | Awaitable[bool]], timeout_s: float) -> None:
        """Poll until check holds. Raises TimeoutError; raises CannotStart when a child will never start."""
        async with asyncio.timeout(timeout_s):
            while True:
                held = check()
                if await held if inspect.isawaitable(held) else held:
                    return
                await self._check_children()
                await asyncio.sleep(POLL_S)

    async def _check_children(self) -> None:
        if self._process is None or not await asyncio.to_thread(self._supervisor.answers):
            if self._process is not None and self._process.returncode is not None:
                raise CannotStart(f"the supervisor ended: {self._last_line('supervisord.out')}")
            return
        for each in await self.processes():
            if each.exit_code in _HOPELESS_CODES and not each.running:
                raise CannotStart(f"{each.name} cannot run: {self._why_ended(each.name)}")

    def _write_stack_file(self) -> None:
        running = {
            "gateway": f"http://{self.plan.gateway_address}",
            "nats_url": self.plan.nats_url,
            "model_server": self.plan.choice.kind,
            "model_server_url": self.plan.choice.url,
        }
        self.plan.folder.write_private(self.plan.folder.stack_file, json.dumps(running, indent=1) + "\n")

    def _why_ended(self, name: str) -> str:
        return self._errors[name].last_words() or self._last_line(f"{name}.log")

    def _last_line(self, file: str) -> str:
        path = self.plan.folder.logs / file
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return lines[-1] if lines else f"see {path}"


async def run_until_signal(stack: Stack, work: Coroutine[Any, Any, None]) -> None:
    """Do work until it ends or somebody sends SIGINT, SIGTERM or SIGHUP; then stop the stack, whatever happened."""
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    doing = asyncio.create_task(work)
    told = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
    finally:
        await cancel_all({doing, told})
        await stack.stop()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def ignore(_error: Exception) -> None:
    """nats-py prints what it meets; we raise, and say it in a sentence."""
