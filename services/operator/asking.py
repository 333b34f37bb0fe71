"""Asking a running service whether it is ready, over its door or its health socket.

Owns one small HTTP request. Must never wait longer than its timeout.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

ASK_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 64 * 1024


async def why_not_ready(address: str, timeout_s: float = ASK_TIMEOUT_S) -> list[str]:
    """The reasons that the service at address (unix:PATH or HOST:PORT) gives against itself; empty: it is ready."""
    try:
        async with asyncio.timeout(timeout_s):
            status, answer = await _get(address, "/readyz")
    except (OSError, TimeoutError, ValueError, IndexError):
        return ["it does not answer yet"]
    if status == 200:
        return []
    reasons = answer.get("reasons", []) if isinstance(answer, dict) else []
    return [f"{reason['name']}: {reason['detail']}" for reason in reasons] or [f"HTTP {status}"]


async def _get(address: str, path: str) -> tuple[int, Any]:
    if address.startswith("unix:"):
        name = "localhost"
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        name = address
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        raw = b""
        while part := await reader.read(_MAX_ANSWER_BYTES - len(raw)):  # head and body may come one after the other
            raw += part
    finally:
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
