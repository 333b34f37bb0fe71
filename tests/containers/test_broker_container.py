"""The broker's image on the configuration that containers get: its promises, its passwords, and its death."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import nats
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client

from contracts import subjects
from services.operator.credentials import Handout, hand_out
from services.operator.folder import DataFolder, Secrets
from services.operator.provisioning import provision
from services.operator.settings import OperatorSettings
from services.runtime import streams
from services.runtime.bus import Bus, BusAddress
from services.runtime.health import BrokerHealth, server_reasons
from tests.containers.engine import needs_engine
from tests.containers.stacks import ROOT
from tests.operated import free_port
from tests.polling import eventually

from testcontainers.core.container import DockerContainer  # isort: skip  # after engine, which sets its environment

pytestmark = [needs_engine, pytest.mark.asyncio(loop_scope="module")]

[IMAGE] = re.findall(r"image: (nats:\S+)", (ROOT / "compose.yaml").read_text())


@dataclass(frozen=True)
class Contained:
    """A nats-server in a container, and the secrets it was given."""

    container: DockerContainer
    url: str
    secrets: Secrets

    async def connect(self) -> Client:
        return await nats.connect(self.url, user="chatlog", password=self.secrets.nats_password, allow_reconnect=False)

    async def greeted(self) -> Client | None:
        """A connection once it takes one: the engine's proxy accepts before anybody is behind it."""
        try:
            return await self.connect()
        except nats.errors.Error:
            return None

    def bus(self, user: str, password: str) -> Bus:
        return Bus(BusAddress(self.url, user, password), "test")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def contained(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Contained]:
    folder = tmp_path_factory.mktemp("broker")
    (folder / "store").mkdir()
    settings = OperatorSettings(data_dir=folder / "secrets")
    settings.data_dir.mkdir()
    inside = Path("/run/chatlog")
    hand_out(settings, Handout(folder / "nats.conf", folder / "services.toml", folder / "key", inside / "store"))
    port = free_port()
    container = (
        DockerContainer(IMAGE)
        .with_command(f"-c {inside / 'nats.conf'}")
        .with_volume_mapping(str(folder), str(inside), "rw")
        .with_bind_ports(4222, port)
        # As compose runs it, under whoever owns the files.
        .with_kwargs(user=f"{os.getuid()}:{os.getgid()}", read_only=True, cap_drop=["ALL"])
    )
    with container:
        up = Contained(container, f"nats://127.0.0.1:{port}", DataFolder(settings.data_dir).secrets())
        client = await eventually(up.greeted, reason="the broker takes connections")
        await provision(client.jetstream())
        await client.close()
        yield up


async def test_it_keeps_the_promises_that_readiness_asks_for(contained: Contained) -> None:
    bus = contained.bus("chatlog", contained.secrets.nats_password)
    system = contained.bus("system", contained.secrets.nats_system_password)
    await bus.connect()
    await system.connect()
    assert await BrokerHealth(bus, system, streams.declared()).reasons() == []
    assert await server_reasons(system) == []
    await bus.stop()
    await system.stop()


@pytest.mark.parametrize("password", ["", "wrong"])
async def test_without_its_password_nobody_gets_in(contained: Contained, password: str) -> None:
    with pytest.raises(nats.errors.Error, match="Authorization"):
        await nats.connect(contained.url, user="chatlog", password=password, allow_reconnect=False)


async def test_what_it_acknowledged_survives_its_death(contained: Contained) -> None:
    client = await contained.connect()
    ack = await client.jetstream().publish(subjects.intake("local", "s", "t"), b"accepted")
    await client.close()
    wrapped = contained.container.get_wrapped_container()
    await asyncio.to_thread(wrapped.kill)
    await asyncio.to_thread(wrapped.start)
    client = await eventually(contained.greeted, reason="the broker takes connections again")
    js = client.jetstream()
    assert (await js.get_msg(subjects.INTAKE_STREAM, ack.seq)).data == b"accepted"
    assert await streams.check_streams(js) == []
    await client.close()
