"""What a connection still has to be written is bounded: a client that does not read costs so much and no more (P7)."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway.outbox import Outbox


class Client:
    """A connection that takes what is written while it reads; a prompt one takes it at once."""

    def __init__(self, *, frames: int = 3, size: int = 100, prompt: bool = False) -> None:
        self.reads = asyncio.Event()
        self.got: list[bytes] = []
        self.overflows = 0
        now = {"write_now": self._write_now} if prompt else {}
        self.outbox = Outbox(self._write, frames=frames, size=size, on_overflow=self._overflow, **now)

    async def _write(self, item: bytes) -> None:
        await self.reads.wait()
        self.got.append(item)

    def _write_now(self, item: bytes) -> bool:
        if self.reads.is_set():
            self.got.append(item)
        return self.reads.is_set()

    def _overflow(self) -> None:
        self.overflows += 1


@pytest.mark.parametrize("item", [b"x", b"x" * 40])
async def test_live_frames_are_bounded_by_number_and_by_size(item: bytes) -> None:
    """One more is being written; the one that finds no room ends it, once, and frees what was held."""
    client = Client()
    client.outbox.put(b"first")
    await asyncio.sleep(0)
    for _ in range(50):
        client.outbox.put(item)
    assert (client.overflows, client.outbox.closed, client.outbox.unwritten) == (1, True, 0)
    client.reads.set()
    assert await client.outbox.drained(60)
    assert client.got == [b"first"]


async def test_a_page_of_the_log_does_not_count_and_what_is_written_counts_no_more() -> None:
    client = Client()
    for number in range(50):
        client.outbox.put(b"page %d" % number, counted=False)
    client.reads.set()
    for number in range(50):
        client.outbox.put(b"live %d" % number)
        assert await client.outbox.drained(60)
    assert (client.overflows, len(client.got)) == (0, 100)


async def test_what_is_written_at_once_never_counts_nor_overtakes() -> None:
    client = Client(prompt=True)
    client.outbox.put(b"1")
    client.outbox.put(b"2", counted=False)
    client.reads.set()
    client.outbox.put(b"3")
    assert client.got == [], "what waited has its turn first"
    assert await client.outbox.drained(60)
    for number in range(4, 50):
        client.outbox.put(b"%d" % number)
        assert client.outbox.unwritten == 0
    assert client.overflows == 0
    assert client.got == [b"%d" % number for number in range(1, 50)]


async def test_a_close_has_its_word_even_if_nothing_else_fits() -> None:
    client = Client(frames=0)
    client.outbox.put(b"live")
    client.reads.set()
    assert await client.outbox.finish([b"too slow"], 60)
    assert client.got == [b"too slow"]


async def test_a_client_that_reads_nothing_is_given_up() -> None:
    client = Client()
    client.outbox.put(b"live")
    assert not await client.outbox.finish([b"too slow"], 0.01)
    assert client.outbox.closed
