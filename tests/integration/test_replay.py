"""`chatlog replay` on a real broker and history, as a person types it: while people chat no request fails, and after
any kill what served serves, and the rebuild is gone on with (D4).
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from contracts import subjects
from contracts.base import dump
from contracts.queries import SessionQuery
from services.history.log.reader import LogReader
from services.history.views.store import ViewStore
from tests import commands
from tests.conversing import USER, completed, message
from tests.dying_replay import AFTER_THE_LAST, BATCH_EVENTS, IN_A_BATCH
from tests.environments import plain_environment
from tests.forks import fork_server
from tests.recording import begin, scene
from tests.roads import Road, road

REPLAY_TIMEOUT_S = 120
ANSWER_S = 60.0
PEOPLE = 20
SESSIONS, TURNS = 3, 10
KILLS = 10


def environment(walk: Road) -> dict[str, str]:
    return {**walk.nats.environment(), "CHATLOG_DATA_DIR": str(walk.data_dir)}


async def chatlog_replay(walk: Road, *arguments: str) -> tuple[int, str, str]:
    """Its exit code and what it said."""
    ended = await commands.chatlog(environment(walk), "replay", *arguments)
    return ended.code, ended.out.decode(), ended.err


def files(walk: Road) -> list[str]:
    return sorted(path.name for path in walk.data_dir.glob("*.db") if path.name != "log.db")


def spoil(walk: Road, views: str, statement: str) -> None:
    with closing(sqlite3.connect(walk.data_dir / views, timeout=30)) as connection, connection:
        connection.execute(statement)


async def chat(walk: Road, session_id: str, until: asyncio.Event) -> int:
    """One of many people: each message is recorded, and each question sees what was recorded before it."""
    said = 0
    while not until.is_set():
        event = message(session_id, f"word {said}")
        await walk.talk.publish(event, ANSWER_S)
        outcome = await walk.talk.outcome(event.event_id)
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
        assert not (walk.data_dir / "rebuild.lock").exists()
        assert await walk.views(session_id) == wrong, "and nothing is changed"
        code, out, _ = await chatlog_replay(walk, "--only", "sessions")
        assert (code, f"sessions {session_id}: differs in title" in out) == (0, True)
        assert await walk.views(session_id) == right
        code, out, _ = await chatlog_replay(walk, "--dry-run")
        assert (code, "say the same" in out, files(walk)) == (0, True, ["views-2.db"])


def written(folder: Path) -> list[str]:
    """A log of whole turns, session beside session: the sessions' ids."""
    folder.mkdir()
    with scene(folder) as on:
        sessions = [begin(on) for _ in range(SESSIONS)]
        for number in range(TURNS):
            for each in sessions:
                said, _ = on.running(each, f"question {number}")
                on.take(completed(each, str(said.turn_id), text=f"answer {number}"))
    return sessions


def kills(last: int) -> list[tuple[str, int]]:
    """Points and positions, chosen by a seed that a failure shows: all through the log, and after it."""
    seed = random.randrange(1 << 32)
    print(f"{seed=}")  # noqa: T201
    chosen = random.Random(seed)
    positions = sorted(chosen.sample(range(0, last, BATCH_EVENTS), KILLS - len(AFTER_THE_LAST)))
    return [*((chosen.choice(IN_A_BATCH), each) for each in positions), *((point, last) for point in AFTER_THE_LAST)]


async def killed(walk: Road, point: str, position: int) -> list[int]:
    """Where each batch began that it came to before it was killed."""
    output = walk.data_dir.parent / f"{point}-{position}.log"
    inherited = {**plain_environment(), **environment(walk)}
    process = fork_server().spawn("tests.dying_replay", (point, str(position)), inherited, output)
    assert await asyncio.to_thread(process.wait, REPLAY_TIMEOUT_S) == -signal.SIGKILL, output.read_text()
    return [int(line) for line in output.read_text().splitlines() if line.isdigit()]


def rebuilt(walk: Road) -> int:
    """How far the rebuild is, in its own file."""
    with closing(sqlite3.connect(f"file:{walk.data_dir / 'rebuild.db'}?mode=ro", uri=True)) as connection:
        [(position,)] = connection.execute("SELECT position FROM checkpoint")
    return int(position)


async def test_a_rebuild_that_is_killed_anywhere_is_gone_on_with_while_what_served_serves(tmp_path: Path) -> None:
    sessions = await asyncio.to_thread(written, tmp_path / "data")
    async with road(tmp_path, accept_gap=True) as walk:
        before = await walk.views(*sessions)
        [(last,)] = walk.sql("SELECT max(position) FROM events")
        reached = 0
        for number, (point, position) in enumerate(kills(last), start=1):
            begun = await killed(walk, point, position)
            assert begun[:1] in ([reached], []), "it goes on where the last one was killed"
            reached = rebuilt(walk)
            assert reached == (min(position + BATCH_EVENTS, last) if point == "committed" else position), point
            if number in (KILLS // 2, KILLS):
                await walk.history.kill()
                await walk.history.start()
            assert files(walk) == ["rebuild.db", "views-1.db"]
            assert await walk.views(*sessions) == before
        code, out, err = await chatlog_replay(walk)
        assert (code, "say the same" in out, files(walk)) == (0, True, ["views-2.db"]), (out, err)
        assert await walk.views(*sessions) == before
        assert rows(walk.data_dir / "views-2.db") == await fresh_fold(walk, tmp_path / "fresh")
        await without_a_stack(walk)
        assert await walk.views(*sessions) == before


async def without_a_stack(walk: Road) -> None:
    """The rebuilt views serve from the next start on; and without a log there is nothing to rebuild."""
    await walk.history.stop()
    assert (await chatlog_replay(walk))[0] == 0
    assert files(walk) == ["views-3.db"]
    log, away = walk.data_dir / "log.db", walk.data_dir / "away"
    log.rename(away)
    code, out, err = await chatlog_replay(walk)
    assert (code, out, err.startswith("chatlog: there is no log in")) == (1, "", True), err
    away.rename(log)
    await walk.history.start()
