"""Step 2, gateway/server: uvicorn with every option said, and a drain before its shutdown.

Owns the listening socket and the order of the end: no new connections, each stream and socket ends with a word, then
the server goes. Must never handle a signal: the lifecycle does.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator

import structlog
import uvicorn
from starlette.types import ASGIApp

from services.gateway.connections import Connections
from services.gateway.direct import DirectProtocol
from services.gateway.settings import GatewaySettings

log = structlog.get_logger(__name__)

BACKLOG = 2048
# A peer that acknowledges nothing for so long is gone, whatever TCP still hopes for.
USER_TIMEOUT_MS = 30_000
# Left to itself the kernel keeps 2.8 MB for a client that does not read (measured), before our own bound would count.
SEND_BUFFER_BYTES = 128 * 1024
KEEP_ALIVE_S = 5
WS_PING_S = 20.0
# Of the drain's bound: what streams and sockets get to end in, then what uvicorn gets for plain requests.
DRAIN_SHARE = 0.5


def listen(settings: GatewaySettings) -> socket.socket:
    """The listening socket; with port 0 the system has chosen one. Raises OSError where the port is taken."""
    family = socket.AF_INET6 if ":" in settings.gateway_host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listening.bind((settings.gateway_host, settings.gateway_port))
    except OSError:
        listening.close()
        raise
    return listening


class Server(uvicorn.Server):
    """uvicorn, told by us when to stop."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, connections: Connections) -> None:
        super().__init__(_config(app, settings))
        self._connections = connections
        self._drain_s = settings.drain_timeout_s * DRAIN_SHARE

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The lifecycle owns the signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            log.info("listening", host=host, port=port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._connections.drain(self._drain_s)
        await super().shutdown(sockets)


def _config(app: ASGIApp, settings: GatewaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws=DirectProtocol,
        ws_max_size=settings.gateway_body_bytes,
        ws_ping_interval=WS_PING_S,
        ws_ping_timeout=WS_PING_S,
        # 30 KiB more per socket, and a bomb's way in.
        ws_per_message_deflate=False,
        lifespan="off",
        interface="asgi3",
        # Logging is ours; a request's path names sessions, so there is no access log.
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        # Guards answer with a problem where uvicorn would with plain text.
        limit_concurrency=None,
        limit_max_requests=None,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.drain_timeout_s * DRAIN_SHARE) - 1),
    )
