"""The gateway's wiring: settings -> bus, history, feeds, sends, doors, server; started and drained in one place.

Owns the construction of every part of the service and nothing of what they do. Must never hold logic.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.api import problems, routes
from services.gateway.api.guards import Bounds, Guards, Names, names_of
from services.gateway.api.ws import WebSocketDoor
from services.gateway.auth import Auth
from services.gateway.bus import Intake
from services.gateway.connections import Connections
from services.gateway.feeds import Feeds
from services.gateway.keyring import KeyRing
from services.gateway.load import Heard
from services.gateway.parts import Parts
from services.gateway.queries import History
from services.gateway.readiness import Readiness
from services.gateway.sends import Clock, Sends
from services.gateway.server import Server, listen
from services.gateway.settings import GatewaySettings
from services.runtime import streams
from services.runtime.bus import Bus, BusAddress
from services.runtime.health import BrokerHealth
from services.runtime.lifecycle import Lifecycle, cancel_all


async def main(settings: GatewaySettings, lifecycle: Lifecycle) -> None:
    """The whole life of the process, after its settings are read and before its exit code."""
    listening = listen(settings)
    bus = Bus(_address(settings, settings.nats_user, settings.nats_password.get_secret_value()), "gateway")
    system = Bus(
        _address(settings, settings.nats_system_user, settings.nats_system_password.get_secret_value()),
        "gateway-readiness",
    )
    await bus.start()
    await system.connect()
    history = History(bus)
    feeds = Feeds(bus, history, settings.gateway_quiet_s)
    heard = Heard(bus)
    intake = Intake(bus, history, feeds.expect)
    broker = BrokerHealth(bus, system, streams.declared(settings.intake_max_bytes, settings.context_max_bytes))
    keys = KeyRing(bus, lifecycle.fail)
    parts = Parts(
        settings=settings,
        auth=Auth(keys.find if settings.auth == "keys" else None),
        history=history,
        sends=Sends(history, intake, heard, Clock()),
        feeds=feeds,
        heard=heard,
        connections=Connections(),
        ready=Readiness(broker, history, keys if settings.auth == "keys" else None).reasons,
    )
    await feeds.start()
    await heard.start()
    await intake.start()
    silence = lifecycle.supervise(bus.watch_silence(), "silence")
    async with _keys_followed(parts, keys, lifecycle):
        await _serve(parts, listening, lifecycle)
    await cancel_all({silence})
    await feeds.stop()
    await intake.stop()
    await system.stop()
    await bus.stop()


@asynccontextmanager
async def _keys_followed(parts: Parts, keys: KeyRing, lifecycle: Lifecycle) -> AsyncIterator[None]:
    """Keys are followed, and what they opened ends with them; open mode has none."""
    if parts.auth.is_open:
        yield
        return
    await keys.start()
    sweeping = lifecycle.supervise(parts.connections.sweep(parts.auth.is_live), "sweep")
    yield
    await cancel_all({sweeping})
    await keys.stop()


def build_app(parts: Parts, port: int) -> ASGIApp:
    """All doors behind the guards."""
    settings = parts.settings
    names = names_of(port, settings.gateway_hosts, settings.gateway_origins)
    bounds = Bounds(settings.gateway_body_bytes, settings.gateway_header_bytes, settings.gateway_connections)
    return guarded(build_http(parts), WebSocketDoor(parts), names, bounds)


def build_http(parts: Parts | None) -> FastAPI:
    """The HTTP doors; without parts, for who only wants to read what they are."""
    app = FastAPI(
        title="Chatlog",
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.parts = parts
    problems.install(app)
    routes.install(app)
    return app


def guarded(http: ASGIApp, websocket: ASGIApp, names: Names, bounds: Bounds) -> ASGIApp:
    """The two kinds of door behind one guard."""

    async def doors(scope: Scope, receive: Receive, send: Send) -> None:
        await (websocket if scope["type"] == "websocket" else http)(scope, receive, send)

    return Guards(doors, names, bounds)


async def _serve(parts: Parts, listening: socket.socket, lifecycle: Lifecycle) -> None:
    """Until the lifecycle stops; a server that ends by itself ends the process."""
    port = listening.getsockname()[1]
    server = Server(build_app(parts, port), parts.settings, parts.connections)
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="server")
    stopping = asyncio.create_task(lifecycle.stopping.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not lifecycle.stopping.is_set():
        lifecycle.fail("the server ended")
    server.should_exit = True
    await serving
    stopping.cancel()


def _address(settings: GatewaySettings, user: str, password: str) -> BusAddress:
    return BusAddress(settings.nats_url, user, password)
