"""Frames straight to a WebSocket: whole, in order, before the close, and never to a client that does not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from services.gateway.connections import Connections
from services.gateway.direct import UNWRITTEN_BYTES, DirectProtocol, direct_of, text_message
from services.gateway.server import Server, listen
from services.gateway.settings import GatewaySettings
from tests.polling import eventually

SOON_S = 60.0
# One of each form that a message's length has. The longest is written at once, the others at the end of the turn.
TEXTS = ["l" * 70_000, "m" * 200, "short"]
# Ten times what the kernel keeps for a client that does not read.
FLOOD = 5000


class Door:
    """An application that gives its socket away."""

    def __init__(self) -> None:
        self.direct: DirectProtocol | None = None
        self.send: Send | None = None
        self.heard: list[object] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.direct, self.send = direct_of(scope), send
        self.direct.forget_handshake()
        while (message := await receive())["type"] != "websocket.disconnect":
            self.heard.append(message["text"])


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[Door, DirectProtocol, ClientConnection]]:
    door = Door()
    settings = GatewaySettings.model_validate({"gateway_port": 0, "nats_password": "x", "nats_system_password": "x"})
    listening = listen(settings)
    server = Server(door, settings, Connections())
    serving = asyncio.create_task(server.serve([listening]))
    await eventually(lambda: server.started, reason="the server listens", timeout_s=SOON_S)
    address = f"ws://127.0.0.1:{listening.getsockname()[1]}/"
    try:
        async with connect(address, max_size=None, max_queue=1) as client:
            direct = await eventually(lambda: door.direct, reason="the socket is accepted", timeout_s=SOON_S)
            yield door, direct, client
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, SOON_S)


async def test_messages_arrive_whole_in_order_and_before_the_close() -> None:
    async with opened() as (door, direct, client):
        written = [direct.write_now(text_message(text.encode())) for text in TEXTS]
        assert written == [True] * len(TEXTS)
        assert door.send is not None
        await door.send({"type": "websocket.close", "code": 4000, "reason": "over"})
        assert not direct.write_now(text_message(b"late")), "nothing goes after the close"
        assert [await client.recv() for _ in TEXTS] == TEXTS
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (4000, "over")


async def test_pings_and_fragments_pass_between_messages() -> None:
    async with opened() as (door, direct, client):
        direct.write_now(text_message(b"before"))
        pong = await client.ping()
        await client.send(["in ", "two ", "parts"])
        await asyncio.wait_for(pong, SOON_S)
        await eventually(lambda: door.heard == ["in two parts"], reason="a message is one", timeout_s=SOON_S)
        direct.write_now(text_message(b"after"))
        assert [await client.recv() for _ in range(2)] == ["before", "after"]


async def test_a_client_that_does_not_read_holds_little_and_loses_nothing() -> None:
    async with opened() as (_, direct, client):
        message, written = text_message(b"x" * 1000), 0
        while written < FLOOD and direct.write_now(message):
            written += 1
            if written % 10 == 0:
                await asyncio.sleep(0)
        assert written < FLOOD
        assert direct.transport.get_write_buffer_size() <= 2 * UNWRITTEN_BYTES + len(message)
        waiting = asyncio.create_task(direct.write(text_message(b"last")))
        received = [await client.recv() for _ in range(written + 1)]
        assert received == ["x" * 1000] * written + ["last"]
        await asyncio.wait_for(waiting, SOON_S)


async def test_a_client_that_has_gone_is_told_to_who_writes() -> None:
    async with opened() as (_, direct, client):
        client.transport.abort()
        await eventually(lambda: direct.disconnected, reason="the server hears of it", timeout_s=SOON_S)
        assert not direct.write_now(b"x")
        with pytest.raises(ClientDisconnected):
            await direct.write(b"x")
