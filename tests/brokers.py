"""A real nats-server for a test: its own store, its own port, its own passwords, and the ways in which it may die.

Owns the process that it starts. It runs the very configuration that `make up` runs, on a port that the system chooses
once and that stays the same over restarts.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import nats
from nats.aio.client import Client

from services.operator import broker as bundled
from services.operator.provisioning import provision
from tests.polling import eventually

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


@dataclass
class Broker:
    """A running nats-server. `async with broker(tmp_path) as b` makes one and ends it."""

    folder: Path
    config: bundled.BrokerConfig
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.config.port}"

    @property
    def user(self) -> str:
        return self.config.user

    @property
    def password(self) -> str:
        return self.config.password

    @property
    def system_user(self) -> str:
        return self.config.system_user

    @property
    def system_password(self) -> str:
        return self.config.system_password

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log(self) -> str:
        return (self.folder / "nats.log").read_text()

    def environment(self) -> dict[str, str]:
        """The settings with which a service of ours finds this broker."""
        return {
            "CHATLOG_NATS_URL": self.url,
            "CHATLOG_NATS_USER": self.user,
            "CHATLOG_NATS_PASSWORD": self.password,
            "CHATLOG_NATS_SYSTEM_USER": self.system_user,
            "CHATLOG_NATS_SYSTEM_PASSWORD": self.system_password,
        }

    async def connect(self) -> Client:
        """A plain connection for the test itself: no reconnects, so that a lost broker is an error at once."""
        return await nats.connect(self.url, user=self.user, password=self.password, allow_reconnect=False)

    async def connect_system(self) -> Client:
        return await nats.connect(self.url, user=self.system_user, password=self.system_password, allow_reconnect=False)

    async def start(self) -> None:
        """Start it, on the port and store of last time, and wait until it takes connections."""
        assert self.process is None, "already running"
        self.process = self._spawn()
        port = await eventually(self._port, reason="nats-server listens", timeout_s=START_TIMEOUT_S)
        self.config = replace(self.config, port=port)

    def command(self) -> tuple[str, ...]:
        """How it is run; its configuration is written."""
        conf = self.folder / "nats.conf"
        conf.write_text(bundled.render(self.config))
        conf.chmod(0o600)
        return str(bundled.find_nats_server()), "-c", str(conf)

    async def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed, closed or said."""
        await self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it answers nothing, and every connection stays open."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "not running"
        return self.process

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.folder / "nats.log").open("ab") as log:
            return subprocess.Popen(self.command(), stdout=log, stderr=log)

    def _port(self) -> int:
        process = self._running()
        if process.poll() is not None:
            raise RuntimeError(f"nats-server ended with {process.returncode}:\n{self.log}")
        ports = json.loads((self.folder / f"{bundled.PROGRAM}_{process.pid}.ports").read_text())
        return int(ports["nats"][0].rsplit(":", 1)[1])

    async def _end(self, by: signal.Signals) -> None:
        process = self._running()
        process.send_signal(by)
        process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        self.process = None


def prepared(folder: Path, port: int = bundled.ANY_PORT) -> Broker:
    """A nats-server in folder that does not run yet: `make up`'s configuration, with passwords of its own."""
    home = folder / "broker"
    home.mkdir()
    config = bundled.BrokerConfig(
        store_dir=home / "jetstream",
        user="chatlog",
        password=secrets.token_urlsafe(),
        system_user="system",
        system_password=secrets.token_urlsafe(),
        port=port,
        ports_file_dir=home,
    )
    return Broker(folder=home, config=config)


@asynccontextmanager
async def broker(folder: Path, *, provisioned: bool = True) -> AsyncIterator[Broker]:
    """A nats-server in folder, its streams declared unless provisioned is False."""
    running = prepared(folder)
    try:
        await running.start()
        if provisioned:
            client = await running.connect()
            await provision(client.jetstream())
            await client.close()
        yield running
    finally:
        if running.process is not None:
            await running.kill()
