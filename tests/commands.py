"""The `chatlog` command for tests, as an operator types it: a process of its own, forked from one that has its imports.

Owns nothing that outlives a command but what `started` gives away. tests/operated.py runs `chatlog up`, which does not
end by itself.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.environments import plain_environment
from tests.forks import Forked, fork_server

# Alone it is a second; a restore starts a broker twice.
COMMAND_TIMEOUT_S = 120.0


class Ended(NamedTuple):
    """A command that has ended: its exit code, what it printed, and what it said beside that."""

    code: int
    out: bytes
    err: str


async def chatlog(environment: Mapping[str, str], *arguments: object) -> Ended:
    return await asyncio.to_thread(_run, environment, arguments)


def started(environment: Mapping[str, str], output: Path, *arguments: object, errors: Path | None = None) -> Forked:
    """One that a test ends itself. errors: where its standard error goes, if not to output."""
    words = [str(argument) for argument in arguments]
    return fork_server().spawn("services.operator", words, {**plain_environment(), **environment}, output, errors)


def _run(environment: Mapping[str, str], arguments: tuple[object, ...]) -> Ended:
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        code = started(environment, output, *arguments, errors=errors).wait(COMMAND_TIMEOUT_S)
        return Ended(code, output.read_bytes(), errors.read_text())
