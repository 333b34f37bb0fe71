"""In which order the suite runs: what takes longest first, so that no process is left with it alone at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

# The folders of whole stacks, and of single processes; what has none of its own comes last.
LONGEST_FIRST = ("faults", "e2e", "containers", "integration", "contract", "simulation")
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    folder = path.relative_to(TESTS).parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)
