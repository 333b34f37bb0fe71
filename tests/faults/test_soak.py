"""Some faults in each test run, by one seed; `make soak` runs as many as it is asked to, by any seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import soak

KILLS = 4
SEED = 1


@pytest.mark.timeout(600)
async def test_the_promises_hold_under_faults(tmp_path: Path) -> None:
    result = await soak(tmp_path, SEED, KILLS)
    assert not result.violations, f"{result.sentence()} See {tmp_path}: {[str(each) for each in result.violations]}"
    assert result.counts["turns completed"], result.sentence()
