"""Step 2, gateway/parts: what the doors are given to work with.

Owns nothing: app.py makes the parts, the doors use them. Must never construct one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.gateway.auth import Auth
from services.gateway.connections import Connections
from services.gateway.feeds import Feeds
from services.gateway.load import Heard
from services.gateway.queries import History
from services.gateway.sends import Sends
from services.gateway.settings import GatewaySettings
from services.runtime.health import Reason


@dataclass(frozen=True, slots=True)
class Parts:
    """The gateway behind its doors."""

    settings: GatewaySettings
    auth: Auth
    history: History
    sends: Sends
    feeds: Feeds
    heard: Heard
    connections: Connections
    ready: Callable[[], Awaitable[Sequence[Reason]]]
