"""How the suite runs: what takes longest first, so that no process is left with it alone at the end; and hypothesis
with the same examples as always, so that who changes one thing is not stopped by another. `make properties` tries
fresh ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The folders of whole stacks, and of single processes; what has none of its own comes last.
LONGEST_FIRST = ("faults", "e2e", "containers", "integration", "contract", "simulation")
TESTS = Path(__file__).parent

# No deadline: how long an example takes is a matter of the machine.
settings.register_profile("same", derandomize=True, deadline=None)
if "FRESH_EXAMPLES" in os.environ:
    settings.register_profile("fresh", deadline=None, max_examples=int(os.environ["FRESH_EXAMPLES"]), print_blob=True)
settings.load_profile("fresh" if "FRESH_EXAMPLES" in os.environ else "same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path))


def _place(path: Path) -> int:
    folder = path.relative_to(TESTS).parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)
