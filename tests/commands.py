"""The `chatlog` command for tests, as an operator types it: a process of its own, forked from one that has its imports.

Owns nothing that outlives the command. tests/operated.py runs `chatlog up`, which does not end by itself.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.environments import plain_environment
from tests.forks import fork_server

# Alone it is a second; a restore starts a broker twice.
COMMAND_TIMEOUT_S = 120.0


async def chatlog(environment: Mapping[str, str], *arguments: object) -> tuple[int, str]:
    """Its exit code, and all that it said."""
    words = [str(argument) for argument in arguments]
    return await asyncio.to_thread(_run, {**plain_environment(), **environment}, words)


def _run(environment: dict[str, str], words: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        code = fork_server().spawn("services.operator", words, environment, output).wait(COMMAND_TIMEOUT_S)
        return code, output.read_text()
