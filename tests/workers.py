"""A worker for a test: inside the test's process, or as a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from services.inference.app import main
from services.inference.settings import InferenceSettings
from services.runtime.lifecycle import Lifecycle, cancel_all
from services.runtime.settings import load
from tests.boxes import Box
from tests.brokers import Broker
from tests.standins import Standin

ROOT: Final = Path(__file__).parent.parent
STOP_TIMEOUT_S: Final = 60.0


def settings_of(b: Broker, server: Standin | Box, **more: Any) -> dict[str, Any]:
    """The settings of a worker on this broker and this model server."""
    if isinstance(server, Box):
        asked = {"model_server": "openai", "openai_url": server.openai_url, "openai_api_key": server.api_key}
    else:
        asked = {"model_server": "ollama", "ollama_url": server.ollama_url}
    return {
        "nats_url": b.url,
        "nats_user": b.user,
        "nats_password": b.password,
        "drain_timeout_s": 5.0,
        **asked,
        **more,
    }


@asynccontextmanager
async def worker(b: Broker, server: Standin | Box, **more: Any) -> AsyncIterator[Lifecycle]:
    """A worker inside this process. Leaving the block drains it."""
    lifecycle = Lifecycle()
    life = asyncio.create_task(main(load(InferenceSettings, settings_of(b, server, **more)), lifecycle))
    try:
        yield lifecycle
        assert not lifecycle.stopping.is_set() or life.done() or lifecycle.exit_code == 0
    finally:
        lifecycle.stop()
        done, _ = await asyncio.wait({life}, timeout=STOP_TIMEOUT_S)
        # As the lifecycle does with a main that has not drained in its time. wait_for would wait for ever: in Python
        # 3.11 a cancel may be swallowed on its way.
        await cancel_all([life])
        if done:
            await life


@contextmanager
def _ended(process: asyncio.subprocess.Process) -> Iterator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()


@asynccontextmanager
async def worker_process(b: Broker, server: Standin, **more: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker as a process. Leaving the block kills it."""
    variables = {f"CHATLOG_{name.upper()}": str(value) for name, value in settings_of(b, server, **more).items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.inference", cwd=ROOT, env={**os.environ, **variables}
    )
    with _ended(process):
        yield process
    await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
