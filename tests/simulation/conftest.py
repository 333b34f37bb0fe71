"""One simulated world for a schedule; when the schedule is over, everything must come to rest in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.live(2)
    yield made
    made.settle()
    made.close()
