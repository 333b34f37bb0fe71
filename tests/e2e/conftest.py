"""One stack with two gateways for all tests of a file: starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.installations import QUICK, Installation, installation


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    async with installation(tmp_path_factory.mktemp("stack"), gateways=2) as up:
        yield up


@pytest_asyncio.fixture(loop_scope="module")
async def running(started: Installation) -> Installation:
    """Each test has sessions of its own, and the stand-in as it began."""
    await started.standin.control.reset()
    await started.standin.control.speed(**QUICK)
    return started
