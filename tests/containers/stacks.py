"""compose.yaml as a test runs it: a project of its own, a free port, and nothing left behind.

Owns the containers, volumes and networks of its project. Images stay: the next run builds on their layers.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.operated import free_port

ROOT = Path(__file__).parents[2]
# The first build installs all packages.
COMMAND_TIMEOUT_S = 540.0


async def run(*command: str, environment: dict[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """What a command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    assert process.returncode == 0, f"{' '.join(command)}\n{out.decode()[-2000:]}\n{err.decode()[-4000:]}"
    return out.decode()


@dataclass(frozen=True)
class Stack:
    """A compose project under a profile."""

    project: str
    profile: str
    files: tuple[str, ...]
    environment: dict[str, str]

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.environment['CHATLOG_GATEWAY_PORT']}"

    async def compose(self, *command: str) -> str:
        files = [argument for file in self.files for argument in ("-f", file)]
        profile = ["--profile", self.profile] if self.profile else []
        return await run(
            "docker", "compose", "-p", self.project, *files, *profile, *command, environment=self.environment
        )

    async def containers(self, service: str = "") -> list[dict[str, Any]]:
        """What `docker inspect` says of each container, the oldest number first."""
        ids = (await self.compose("ps", "-a", "-q", *([service] if service else []))).split()
        found: list[dict[str, Any]] = json.loads(await run("docker", "inspect", *ids)) if ids else []
        return sorted(found, key=lambda each: str(each["Name"]))

    async def logged(self, container: dict[str, Any]) -> list[dict[str, Any]]:
        # What a container said on stderr, docker says on stderr too.
        lines = (await run("sh", "-c", 'exec docker logs "$0" 2>&1', container["Id"])).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def clean_environment() -> dict[str, str]:
    """Without what this machine's user has set for their own Chatlog."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CHATLOG_", "COMPOSE_"))}


@asynccontextmanager
async def stack(
    profile: str, *options: str, files: tuple[str, ...] = ("compose.yaml",), wait: bool = True, **variables: str
) -> AsyncIterator[Stack]:
    """Built, up and (wait) healthy before the block; containers, volumes and networks are gone after it.

    Compose cannot wait for a stack with a one-shot on which nobody waits: it takes that one's end for a failure.
    """
    environment = {**clean_environment(), "CHATLOG_GATEWAY_PORT": str(free_port()), **variables}
    made = Stack(f"chatlog-test-{uuid.uuid4().hex[:8]}", profile, files, environment)
    try:
        await made.compose("up", "--detach", *(("--wait", "--wait-timeout", "120") if wait else ()), *options)
        yield made
    finally:
        await made.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")
