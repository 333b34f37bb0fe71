"""Cancelling tasks of which one swallows a cancel, as nats-py does in the middle of a connect."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from services.runtime import lifecycle
from services.runtime.lifecycle import cancel_all


async def swallows(times: int) -> None:
    for _ in range(times):
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def raises() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise OSError("in the end")


async def test_a_swallowed_cancel_is_repeated() -> None:
    tasks = [asyncio.create_task(swallows(times)) for times in (1, 2, 3)] + [asyncio.create_task(raises())]
    await asyncio.sleep(0)
    assert await cancel_all(tasks) == set()
    assert all(task.done() for task in tasks)
    assert await cancel_all(tasks) == set()
    assert await cancel_all([]) == set()


async def test_what_does_not_end_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "CANCEL_S", 0.4)
    stubborn = asyncio.create_task(swallows(4))
    await asyncio.sleep(0)
    assert await cancel_all([stubborn]) == {stubborn}
    assert await cancel_all([stubborn]) == set()
