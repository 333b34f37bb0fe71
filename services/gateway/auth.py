"""Step 2, gateway/auth: who asks.

Owns the one function from what a request carries to a user; every door calls it and no other. In open mode, the only
one there is, everybody who reaches the loopback address is the user `local`. Must never be asked twice for one request.
"""

from __future__ import annotations

from collections.abc import Sequence

LOCAL_USER = "local"

# What a request carries: its headers as ASGI has them, of HTTP and of a WebSocket's handshake alike.
Carrier = Sequence[tuple[bytes, bytes]]


def authenticate(_carrier: Carrier) -> str:
    """The user of a request. Open mode needs nothing of it: the listener is on loopback, foreign pages are out."""
    return LOCAL_USER
