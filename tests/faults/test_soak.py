"""Some faults in each test run, by one seed and by a new one; `make soak` runs as many as it is asked to, by any."""

from __future__ import annotations

import secrets
import shutil

import pytest

from tests.faults.soak import new_folder, soak

KILLS = 4
SEED = 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [SEED, None], ids=["fixed", "fresh"])
async def test_the_promises_hold_under_faults(seed: int | None) -> None:
    chosen = secrets.randbelow(2**31) if seed is None else seed
    folder = new_folder(chosen)
    result = await soak(folder, chosen, KILLS)
    assert not result.violations, f"{result.sentence()} See {folder}: {[str(each) for each in result.violations]}"
    assert result.counts["turns completed"], result.sentence()
    shutil.rmtree(folder)
