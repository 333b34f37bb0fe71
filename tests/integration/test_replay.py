"""`chatlog replay` on a real broker and history, as a person types it, while people chat: no request fails (D4)."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from contracts import subjects
from contracts.base import dump
from contracts.queries import SessionQuery
from services.history.log.reader import LogReader
from services.history.tools.replay import rebuilding
from services.history.views.store import ViewStore
from tests.conversing import USER, message
from tests.environments import plain_environment
from tests.operated import ROOT
from tests.roads import Road, road

REPLAY_TIMEOUT_S = 120
ANSWER_S = 60.0
PEOPLE = 20


async def chatlog_replay(walk: Road, *arguments: str) -> tuple[int, str, str]:
    """Its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.operator", "replay", *arguments),
        cwd=ROOT,
        env={**plain_environment(), **walk.nats.environment(), "CHATLOG_DATA_DIR": str(walk.data_dir)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), REPLAY_TIMEOUT_S)
    return int(process.returncode or 0), out.decode(), err.decode()


def files(walk: Road) -> list[str]:
    return sorted(path.name for path in walk.data_dir.glob("*.db") if path.name != "log.db")


def spoil(walk: Road, views: str, statement: str) -> None:
    with closing(sqlite3.connect(walk.data_dir / views, timeout=30)) as connection, connection:
        connection.execute(statement)


async def chat(walk: Road, session_id: str, until: asyncio.Event) -> int:
    """One of many people: each message is recorded, and each question sees what was recorded before it."""
    said = 0
    while not until.is_set():
        outcome = await walk.talk.say(message(session_id, f"word {said}"))
        assert outcome.code is None, outcome
        query = SessionQuery(user_id=USER, session_id=session_id, min_position=int(outcome.position or 0))
        # A busy machine may take more than the second for which a query waits: then it says so, and nothing older.
        while (row := await ask(walk, query)) == {"error": "not_ready"}:
            pass
        assert row["version"] >= (outcome.version or 0), row
        said += 1
    return said


async def ask(walk: Road, query: SessionQuery) -> Any:
    return json.loads(await walk.talk.bus.request(subjects.history_query("session", USER), dump(query), ANSWER_S))


async def fresh_fold(walk: Road, folder: Path) -> dict[str, list[Any]]:
    """All rows, folded from position 1 into a folder of its own."""
    await asyncio.to_thread(folder.mkdir)
    reader = await LogReader.open(walk.data_dir / "log.db")
    store = await ViewStore.open(folder, reader)
    try:
        await store.fill(reader.path, await reader.last_position())
    finally:
        await store.close()
        await reader.close()
    return rows(folder / "views-1.db")


def rows(views: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(f"file:{views}?mode=ro", uri=True)) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()
            for table in ("sessions", "messages", "turns")
        }


async def test_views_are_rebuilt_and_swapped_while_twenty_people_chat(tmp_path: Path) -> None:
    async with road(tmp_path, turns_waiting=10_000) as walk:
        sessions = [await walk.begin(title=f"of {number}") for number in range(PEOPLE)]
        await walk.run_turn(sessions[0], "eins", "zwei")
        enough = asyncio.Event()
        people = [asyncio.create_task(chat(walk, each, enough)) for each in sessions]
        code, out, err = await chatlog_replay(walk)
        assert (code, err) == (0, ""), (out, err)
        assert out.endswith("the serving views say the same\nviews-2.db serves\n")
        assert files(walk) == ["views-2.db"]
        enough.set()
        assert min(await asyncio.gather(*people)) > 0
        after = await walk.views(sessions[0])
        assert rows(walk.data_dir / "views-2.db") == await fresh_fold(walk, tmp_path / "fresh")
        await walk.history.stop()
        await walk.history.start()
        assert await walk.views(sessions[0]) == after
        assert files(walk) == ["views-2.db"], "a start goes on with what was swapped in"


async def test_what_serves_is_compared_and_put_right(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin(title="right")
        await walk.run_turn(session_id)
        right = await walk.views(session_id)
        spoil(walk, "views-1.db", "UPDATE sessions SET title = 'a secret'")
        wrong = await walk.views(session_id)
        assert wrong != right
        code, out, _ = await chatlog_replay(walk, "--dry-run", "--json")
        told = json.loads(out)
        assert (code, told["equal"]) == (1, False)
        assert told["differences"] == [{"view": "sessions", "row": session_id, "what": "differs in title"}]
        assert files(walk) == ["views-1.db"], "nothing is left behind"
        assert await walk.views(session_id) == wrong, "and nothing is changed"
        code, out, _ = await chatlog_replay(walk, "--only", "sessions")
        assert (code, f"sessions {session_id}: differs in title" in out) == (0, True)
        assert await walk.views(session_id) == right
        code, out, _ = await chatlog_replay(walk, "--dry-run")
        assert (code, "say the same" in out, files(walk)) == (0, True, ["views-2.db"])


async def test_without_a_stack_the_rebuilt_views_serve_from_the_next_start(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.run_turn(session_id)
        before = await walk.views(session_id)
        with rebuilding(walk.data_dir, None) as rebuild:
            rebuild.run(lambda _: None)
        await walk.history.stop()
        await walk.history.start()
        assert files(walk) == ["rebuild.db", "views-1.db"], "a start serves what served, and leaves the rebuild alone"
        assert await walk.views(session_id) == before
        await walk.history.stop()
        assert (await chatlog_replay(walk))[0] == 0
        assert files(walk) == ["views-2.db"]
        await walk.history.start()
        assert await walk.views(session_id) == before
        (walk.data_dir / "log.db").rename(tmp_path / "log.db")
        code, out, err = await chatlog_replay(walk)
        assert (code, out, err.startswith("chatlog: there is no log in")) == (1, "", True)
        (tmp_path / "log.db").rename(walk.data_dir / "log.db")
