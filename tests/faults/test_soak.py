"""Some faults in each test run: one seed that stays, and a new one that is printed (`make soak` runs thousands)."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.faults.soak import soak

KILLS = 4
FIXED_SEED = 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [FIXED_SEED, None])
async def test_the_promises_hold_under_faults(tmp_path: Path, seed: int | None) -> None:
    chosen = secrets.randbelow(2**31) if seed is None else seed
    result = await soak(tmp_path, chosen, KILLS, long_pauses=False)
    assert not result.violations, f"{result.sentence()} See {tmp_path}: {[str(each) for each in result.violations]}"
    assert result.counts["turns"], result.sentence()
