"""The pages of the documentation whose commands are run as they are written there.

Owns how a page's code blocks are found and run on a stack of `chatlog up`. Must never change what a block says but for
the port, which is a test's own.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.operated import ROOT, Up

# Two cores and a suite beside it: alone it is a second or two.
COMMAND_TIMEOUT_S = 240.0

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """A page's code blocks in this language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(text: str, language: str, words: str) -> str:
    """The one code block that has these words."""
    [found] = [each for each in blocks(text, language) if words in each]
    return found


def sections(text: str) -> dict[str, str]:
    """A page's second-level sections by their headings."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def at(up: Up, text: str) -> str:
    """The same words for the test's own port."""
    return text.replace("localhost:8700", up.gateway.removeprefix("http://"))


async def run(up: Up, *command: str, folder: Path = ROOT) -> str:
    """What a command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, env=up.environment, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    assert process.returncode == 0, f"{command[-1]}\n{out.decode()}\n{err.decode()}"
    return out.decode()
