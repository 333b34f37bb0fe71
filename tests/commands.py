"""The `chatlog` command for tests, as an operator types it: a process of its own, forked from one that has its imports.

Owns nothing that outlives a command but what `started` gives away. tests/operated.py runs `chatlog up`, which does not
end by itself.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.environments import plain_environment
from tests.forks import Forked, fork_server

# Alone it is a second; a restore starts a broker twice.
COMMAND_TIMEOUT_S = 120.0


async def chatlog(environment: Mapping[str, str], *arguments: object) -> tuple[int, str]:
    """Its exit code, and all that it said."""
    return await asyncio.to_thread(_run, environment, arguments)


def started(environment: Mapping[str, str], output: Path, *arguments: object) -> Forked:
    """One that a test ends itself."""
    words = [str(argument) for argument in arguments]
    return fork_server().spawn("services.operator", words, {**plain_environment(), **environment}, output)


def _run(environment: Mapping[str, str], arguments: tuple[object, ...]) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        code = started(environment, output, *arguments).wait(COMMAND_TIMEOUT_S)
        return code, output.read_text()
