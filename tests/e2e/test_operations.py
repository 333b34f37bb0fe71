"""docs/operations.md's own commands, in its order, on `chatlog up` with the small real model.

One stack and one shell for all sections: a section finds what those before it left, as its reader does. `sh` blocks are
run and must succeed; `console` blocks show what cannot be run here.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.operated import Up, operated
from tests.pages import OPERATIONS, at, blocks, run, sections

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

SECTIONS = sections(OPERATIONS)
# Runs until Ctrl-C in a terminal of its own: here the test starts the stack in its place.
MAKE_UP = "make up"


@dataclass(frozen=True, slots=True)
class Shell:
    """A folder that looks like Chatlog's own, and the variables that one block sets for the next."""

    up: Up
    folder: Path

    async def run(self, script: str) -> None:
        if script.strip() == MAKE_UP:
            await self.up.start()
            await self.up.ready()
            return
        whole = f"set -eua -o pipefail\n. ./variables\n{at(self.up, script)}\nexport -p > ./variables\n"
        await run(self.up, "bash", "-c", whole, folder=self.folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shell(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shell]:
    folder = tmp_path_factory.mktemp("operations")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "variables").touch()
    async with operated(folder, model_server="box") as stack:
        yield Shell(stack, folder)


@pytest.mark.parametrize("section", SECTIONS)
async def test_a_section_s_commands_do_what_it_says(shell: Shell, section: str) -> None:
    for script in blocks(SECTIONS[section], "sh"):
        await shell.run(script)
