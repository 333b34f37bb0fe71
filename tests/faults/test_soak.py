"""Some faults in each test run, by one seed and by a new one; `make soak` runs as many as it is asked to, by any."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.faults.soak import soak

KILLS = 4
SEED = 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [SEED, None], ids=["fixed", "fresh"])
async def test_the_promises_hold_under_faults(tmp_path: Path, seed: int | None) -> None:
    result = await soak(tmp_path, secrets.randbelow(2**31) if seed is None else seed, KILLS)
    assert not result.violations, f"{result.sentence()} See {tmp_path}: {[str(each) for each in result.violations]}"
    assert result.counts["turns completed"], result.sentence()
