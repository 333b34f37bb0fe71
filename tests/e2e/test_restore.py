"""Backup under load, the log destroyed, restored: nothing accepted is missing, and clients of before begin again.

And NATS's own folder lost, with the log whole: what was recorded is there, on a stack of `chatlog up`.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.chatting import Chatter, chatter, http, new_session, send
from tests.commands import chatlog, started
from tests.faults.checker import check
from tests.faults.journal import Journal
from tests.faults.remains import read_evidence, unfinished_turns
from tests.folding import SessionView
from tests.installations import Installation, installation
from tests.operated import Up, operated
from tests.polling import eventually

pytestmark = pytest.mark.timeout(400)

SENT_TIMEOUT_S = 120.0
PACE_S = 0.1
CLIENTS = 3
ACCEPTED = (200, 201, 202)


@dataclass
class Crowd:
    """Clients that chat without a pause, and what they were told is accepted."""

    up: Installation
    sessions: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def chat(self, session_id: str) -> None:
        """One message after the other, each again and again until it is accepted."""
        text = f"message {next(self.numbers)}"
        async with http(self.up.http()) as web:
            while True:
                with suppress(httpx.TransportError):  # it may be accepted or not: the same key is sent again
                    answer = await send(web, session_id, text, headers={"Idempotency-Key": text})
                    if answer.status_code in ACCEPTED:
                        self.accepted.append(text)
                        text = f"message {next(self.numbers)}"
                await asyncio.sleep(PACE_S)  # pace: people type

    async def more(self, count: int, reason: str) -> None:
        wanted = len(self.accepted) + count
        await eventually(lambda: len(self.accepted) >= wanted, reason=reason, timeout_s=SENT_TIMEOUT_S)

    @asynccontextmanager
    async def chatting(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.chat(session_id)) for session_id in self.sessions]
        try:
            yield
        finally:
            assert not [task.exception() for task in tasks if task.done()], "no client met an error"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Round:
    """One loss of the log. with_views: what would tell history that it was another one is lost too."""

    up: Installation
    crowd: Crowd
    file: Path
    with_views: bool

    @property
    def data(self) -> Path:
        return self.up.folder / "data"

    @property
    def environment(self) -> dict[str, str]:
        return {**self.up.broker.environment(), "CHATLOG_DATA_DIR": str(self.data)}

    async def lose_and_restore(self) -> None:
        """Clients chat all the time, also while there is no history."""
        await self.crowd.more(12, "accepted before the backup")
        assert (await chatlog(self.environment, "backup", self.file))[0] == 0
        await self.crowd.more(12, "accepted after the backup")
        code, _, err = await chatlog(self.environment, "restore", self.file)
        assert (code, "another process writes to this log" in err) == (1, True), err
        await self.up.history.kill()
        for path in self.data.glob("*.db*" if self.with_views else "log.db*"):
            path.unlink()
        await self.crowd.more(2, "accepted while there is no log")
        code, _, err = await chatlog(self.environment, "restore", self.file)
        assert code == 0, err
        await self.up.history.start()
        await self.crowd.more(10, "accepted by the restored one")

    async def all_ended(self) -> None:
        log = self.data / "log.db"

        def ended() -> bool:
            return unfinished_turns(log) == 0 and not set(self.crowd.accepted) - set(texts(log))

        await eventually(ended, reason="what was accepted is recorded and has its end", timeout_s=SENT_TIMEOUT_S)

    def nothing_is_missing_or_twice(self) -> None:
        found = Counter(texts(self.data / "log.db"))
        assert not set(self.crowd.accepted) - found.keys()
        assert set(found.values()) == {1}


def texts(log: Path) -> list[str]:
    """Of all messages that the log has."""
    sql = "SELECT json_extract(body, '$.data.text') FROM events WHERE type = 'user_message_submitted'"
    with closing(sqlite3.connect(f"file:{log}?mode=ro", uri=True)) as connection:
        return [text for (text,) in connection.execute(sql)]


async def begins_again(up: Installation, live: Chatter, views: list[SessionView], cursors: dict[str, str]) -> None:
    """Who watched all the time, and who comes back at a cursor: both are told, and end with what a new client sees."""
    for view in views:
        await live.until(lambda v=view: not v.attached, "resync")  # type: ignore[misc]
        await live.attach(view.session_id, view.session_id)
    async with chatter(up.ws()) as back, chatter(up.ws()) as fresh:
        for session_id, cursor in cursors.items():
            await back.tell(type="attach", session=session_id, after=cursor)
        await back.until(lambda: len(back.replies("resync")) == len(cursors), "each old cursor is told")
        assert {frame["reason"] for frame in back.replies("resync")} == {"epoch"}
        for view in views:
            whole = await fresh.attach(view.session_id, view.session_id)
            await live.until(lambda v=view, w=whole: v.version == w.version, "the same version")  # type: ignore[misc]
            assert view.event_frames[-view.version :] == whole.event_frames
            assert view.broken == whole.broken == []


async def test_a_log_that_is_destroyed_under_load_comes_back_from_its_backup(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(installation(tmp_path, slots=4, CHATLOG_TURNS_WAITING="1000"))
        crowd = Crowd(up)
        async with http(up.http()) as web:
            crowd.sessions += [await new_session(web) for _ in range(CLIENTS)]
        live = await stack.enter_async_context(chatter(up.ws()))
        views = [await live.attach(session_id, session_id) for session_id in crowd.sessions]
        for with_views in (False, True):
            loss = Round(up, crowd, tmp_path / f"backup-{with_views}.db", with_views)
            cursors = {view.session_id: f"{view.epoch}.{view.version}" for view in views}
            async with crowd.chatting():
                await loss.lose_and_restore()
            await loss.all_ended()
            loss.nothing_is_missing_or_twice()
            await begins_again(up, live, views, cursors)
        await up.history.stop()
        with closing(Journal(tmp_path / "journal")) as journal:
            assert check(await read_evidence(loss.data, journal)) == [], "chain, places, ends, and views equal a replay"


async def messages(up: Up, session_id: str) -> list[str]:
    async with http(up.gateway) as web:
        return [row["text"] for row in (await web.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]]


async def down(up: Up) -> None:
    assert (await chatlog(up.environment, "down"))[0] == 0
    await up.ended()
    up.output_file.unlink()


async def ask(web: httpx.AsyncClient, session_id: str, text: str) -> None:
    answer = await web.post(f"/v1/sessions/{session_id}/messages?wait=answer", json={"text": text})
    assert answer.status_code in ACCEPTED, answer.text


async def killed_while_its_broker_runs(up: Up, file: Path) -> None:
    """The broker ends with it, so that the next one may start it on the same folder."""
    restoring = started(up.environment, up.output_file, "restore", file)
    await eventually(lambda: up.pid_of("nats-server"), reason="it has started the broker")
    restoring.kill()
    await up.all_gone()
    up.output_file.unlink()


async def test_nats_without_its_folder_goes_on_with_the_log(tmp_path: Path) -> None:
    """Nothing that was recorded is missing; that something may be, which was not, is said and has to be accepted."""
    file = tmp_path / "backup.db"
    async with operated(tmp_path) as up:
        await up.start()
        await up.ready()
        async with http(up.gateway) as web:
            session_id = await new_session(web)
            await ask(web, session_id, "before")
        said = await messages(up, session_id)
        assert (await chatlog(up.environment, "restore", file))[0] == 1, "not beside a stack that runs"
        await down(up)
        shutil.rmtree(up.data / "nats")
        assert (await chatlog(up.environment, "backup", file))[0] == 0, "nothing needs to run"
        before = (up.data / "log.db").read_bytes()
        await killed_while_its_broker_runs(up, file)
        code, _, err = await chatlog(up.environment, "restore", file)
        assert (code, "there is no intake stream" in err) == (1, True), err
        assert (up.data / "log.db").read_bytes() == before, "nothing is touched before it is sure"
        code, out, err = await chatlog(up.environment, "restore", file, "--accept-gap")
        assert (code, "gap accepted: the backup ends at event " in out.decode() + err) == (0, True), err
        assert not up.process_ids(), "the broker that was asked is gone"
        await up.start()
        await up.ready()
        assert await messages(up, session_id) == said
        async with http(up.gateway) as web:
            await ask(web, session_id, "after")
        assert (await messages(up, session_id))[: len(said)] == said
        _, out, _ = await chatlog(up.environment, "status")
        assert "cannot be restored without a gap" in out.decode(), "that backup has followed the stream that is gone"
