"""What a connection still has to be written is bounded: a client that does not read costs so much and no more (P7)."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.outbox import Outbox


class Client:
    """A connection that takes what is written while it reads."""

    def __init__(self, *, frames: int = 3, size: int = 100) -> None:
        self.reads = asyncio.Event()
        self.got: list[str] = []
        self.overflows = 0
        self.outbox: Outbox[str] = Outbox(self._write, frames=frames, size=size, on_overflow=self._overflow)

    async def _write(self, item: str) -> None:
        await self.reads.wait()
        self.got.append(item)

    def _overflow(self) -> None:
        self.overflows += 1


@pytest.mark.parametrize("item", ["x", "x" * 40])
async def test_live_frames_are_bounded_by_number_and_by_size(item: str) -> None:
    """One more is being written; the one that finds no room ends it, once, and frees what was held."""
    client = Client()
    client.outbox.put("first")
    await asyncio.sleep(0)
    for _ in range(50):
        client.outbox.put(item)
    assert (client.overflows, client.outbox.closed, client.outbox.unwritten) == (1, True, 0)
    client.reads.set()
    assert await client.outbox.drained(60)
    assert client.got == ["first"]


async def test_a_page_of_the_log_does_not_count_and_what_is_written_counts_no_more() -> None:
    client = Client()
    for number in range(50):
        client.outbox.put(f"page {number}", counted=False)
    client.reads.set()
    for number in range(50):
        client.outbox.put(f"live {number}")
        assert await client.outbox.drained(60)
    assert (client.overflows, len(client.got)) == (0, 100)


async def test_a_close_has_its_word_even_if_nothing_else_fits() -> None:
    client = Client(frames=0)
    client.outbox.put("live")
    client.reads.set()
    assert await client.outbox.finish(["too slow"], 60)
    assert client.got == ["too slow"]


async def test_a_client_that_reads_nothing_is_given_up() -> None:
    client = Client()
    client.outbox.put("live")
    assert not await client.outbox.finish(["too slow"], 0.01)
    assert client.outbox.closed
