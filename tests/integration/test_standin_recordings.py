"""The stand-in against the recordings of a real Ollama: what differs is exactly what its page says."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.services import ROOT
from tests.standins import standin_process

CHECK = ROOT / "tests" / "recordings" / "check.py"
PAGE = ROOT / "docs" / "standin.md"
FENCE = "```differences\n"

ALLOWED = ("embed: ", "openai-layer: ", "tools: ")
ALLOWED_IN_OPTIONS = "options: POST /api/chat (logprobs)"


def documented(page: Path) -> list[str]:
    """The lines of the page's block of differences: check.py's own output."""
    return page.read_text().split(FENCE)[1].split("```")[0].splitlines()


async def found(url: str) -> tuple[list[str], str]:
    """What check.py finds, and its summary."""
    checking = await asyncio.create_subprocess_exec(sys.executable, str(CHECK), url, stdout=asyncio.subprocess.PIPE)
    told, _ = await asyncio.wait_for(checking.communicate(), 60)
    *differences, summary = told.decode().splitlines()
    return differences, summary


async def test_the_differences_are_those_that_the_page_lists() -> None:
    async with standin_process(token_gap_ms=1, load_s=0.05) as standin:
        differences, summary = await found(standin.ollama_url)
    assert summary.startswith("0.32.15: 90 requests compared")
    assert differences == documented(PAGE)


def test_the_page_lists_only_cases_that_may_differ() -> None:
    labels = [line for line in documented(PAGE) if not line.startswith(" ")]
    assert labels
    assert all(label.startswith(ALLOWED) or label == ALLOWED_IN_OPTIONS for label in labels)
