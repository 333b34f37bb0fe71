"""A cancel that meets the answer to a request is not lost: without it a drain may wait for ever."""

from __future__ import annotations

import asyncio

import pytest

from services.runtime.bus import heeding_cancel

BOUND_S = 5.0


class Server:
    """Answers when it is told to, as nats-py waits for it: in wait_for."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.asked = asyncio.Event()

    async def ask(self) -> str:
        self.answer = asyncio.get_running_loop().create_future()
        self.asked.set()
        return await asyncio.wait_for(self.answer, BOUND_S)


async def for_ever(server: Server) -> None:
    while True:
        await heeding_cancel(server.ask())


@pytest.mark.parametrize("error", [None, OSError("cut")])
async def test_a_cancel_that_meets_the_answer_ends_a_loop_of_questions(error: Exception | None) -> None:
    server = Server()
    asking = asyncio.create_task(for_ever(server))
    await server.asked.wait()
    if error is None:
        server.answer.set_result("heard")
    else:
        server.answer.set_exception(error)
    asking.cancel()
    ended, _ = await asyncio.wait({asking}, timeout=BOUND_S / 5)
    assert ended, "it asks again"
    assert asking.cancelled()


async def test_a_task_group_ends_although_the_answer_came_with_its_only_cancel() -> None:
    """As a run's heartbeats do: the group cancels them once, however often it is cancelled itself."""
    server = Server()

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(for_ever(server))
            await server.asked.wait()
            server.answer.set_result("heard")
            await asyncio.sleep(0)  # pace: the answer is on its way
            raise asyncio.CancelledError

    running = asyncio.create_task(run())
    ended, _ = await asyncio.wait({running}, timeout=BOUND_S / 5)
    assert ended


async def test_after_a_cancel_a_last_question_is_answered() -> None:
    """What is told while a cancelled task ends (a nak, a last presence) is no reason to be cancelled again."""
    server = Server()

    async def run() -> str:
        try:
            await asyncio.sleep(BOUND_S)  # pace: it is cancelled in here
        finally:
            said = await heeding_cancel(server.ask())
        return said

    running = asyncio.create_task(run())
    await asyncio.sleep(0)  # pace: it has begun
    running.cancel()
    await server.asked.wait()
    server.answer.set_result("heard")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert server.answer.done()


async def test_a_time_limit_around_it_is_a_time_limit() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await heeding_cancel(Server().ask())
