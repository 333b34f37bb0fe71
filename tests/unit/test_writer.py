"""The recorder in its own thread: when a word may be given, and what an error of the log does to the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.turns import Go
from services.history.log.port import LogError
from services.history.publisher import Publisher
from services.history.writer import LogThread, Writer
from services.runtime.bus import Bus, BusAddress
from tests.conversing import USER
from tests.polling import eventually
from tests.recording import Scene, begin


class Written:
    """A writer on a real log, in the log's own thread, without a broker."""

    def __init__(self, thread: LogThread, on: Scene) -> None:
        self.thread = thread
        self.on = on
        self.catching_up = False
        publisher = Publisher(Bus(BusAddress("nats://127.0.0.1:1", "", ""), "never connected"))
        self.writer = Writer(
            thread, on.recorder, publisher, lambda: replace(on.situation(), catching_up=self.catching_up)
        )


@asynccontextmanager
async def written(folder: Path) -> AsyncIterator[Written]:
    thread = LogThread()
    on = await thread.run(lambda: Scene(folder))
    try:
        yield Written(thread, on)
    finally:
        await thread.run(on.log.close)
        thread.close()


async def test_a_word_is_given_once_the_log_has_the_claim(tmp_path: Path) -> None:
    """Before that it would be the word on the run before: a worker that takes over would leave the turn to nobody."""
    async with written(tmp_path) as all_of:
        said, run = await all_of.thread.run(lambda: all_of.on.running(begin(all_of.on)))
        consumed, turn_id = all_of.writer.cursor.sequence, str(said.turn_id)
        assert await all_of.writer.word(USER, turn_id, claimed_at=consumed + 1) is None
        word = await all_of.writer.word(USER, turn_id, claimed_at=consumed)
        assert isinstance(word, Go)
        assert word.run == run
        all_of.catching_up = True
        assert await all_of.writer.word(USER, turn_id) is None, "what ended the turn may be in the stream"


async def test_an_error_of_the_log_ends_the_process_whoever_met_it() -> None:
    """A query's handler, or a callback of the bus, may swallow it; whether the commit is there is not known."""
    thread = LogThread()

    def fail() -> None:
        raise LogError("disk full")

    watching = asyncio.create_task(thread.watch())
    with pytest.raises(LogError):
        await thread.run(fail)
    await eventually(watching.done, reason="the process ends")
    with pytest.raises(LogError, match="disk full"):
        await watching
    thread.close()
