"""The containers' health check as a process of its own: against the listener that services have, and against nobody."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.operator import probe
from services.runtime.health import Reason, listening
from tests.operated import free_port

TIMEOUT_S = 60.0


async def asked(address: str, path: str = "/readyz") -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(probe.__file__), address, path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    return process.returncode, out.decode()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_it_tells_a_service_that_is_ready_from_one_that_is_not(tmp_path: Path, kind: str) -> None:
    reasons: list[Reason] = []

    async def ready() -> Sequence[Reason]:
        return reasons

    address = f"unix:{tmp_path / 'health.sock'}" if kind == "unix" else f"127.0.0.1:{free_port()}"
    async with listening(address, ready):
        assert await asked(address) == (0, "HTTP/1.1 200 OK\n")
        reasons.append(Reason("broker_disconnected", "no connection to NATS"))
        assert await asked(address) == (1, "HTTP/1.1 503 Service Unavailable\n")
        assert await asked(address, "/healthz") == (0, "HTTP/1.1 200 OK\n")


async def test_nobody_there_is_not_healthy(tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path / 'none.sock'}", f"127.0.0.1:{free_port()}"):
        code, said = await asked(address)
        assert code == 1
        assert said.startswith(address)
