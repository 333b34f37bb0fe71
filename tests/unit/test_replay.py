"""A rebuild on real files, without a stack: equal to what serves, and nobody's views before it is finished (D4).

The serving views are folded a few rows at a time, the rebuild in small batches, so that rows are cut everywhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from services.history.tools import replay
from services.history.tools.compare import Comparison, Difference
from services.history.views import filling, folder
from services.history.views.store import NotFinished, adopt
from services.history.views.tables import View
from tests.conversing import completed, new_id, session_started
from tests.recording import Scene, scene
from tests.viewing import opened

BATCH = 7


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(filling, "BATCH_EVENTS", BATCH)
    with scene(tmp_path) as made:
        yield made


async def talk(on: Scene, sessions: int = 3, turns: int = 3) -> list[str]:
    """Sessions side by side with whole turns and open ones; views that serve, folded a few rows at a time."""
    begun = [new_id() for _ in range(sessions)]
    on.take(*[session_started(each, title=f"title of {number}") for number, each in enumerate(begun)])
    for number in range(turns):
        for each in begun:
            said, _ = on.running(each, f"question {number}")
            if number + 1 < turns:
                on.take(completed(each, str(said.turn_id), text=f"answer {number} to the question"))
    await serve(on)
    return begun


async def serve(on: Scene) -> None:
    async with opened(on) as (store, reader):
        while rows := await reader.rows_after(store.position, 5):
            await store.apply(rows)


def rebuild(on: Scene, only: View | None = None, told: Callable[[int], None] = lambda _: None) -> Comparison:
    with replay.rebuilding(on.folder, only) as each:
        compared = each.run(told)
        each.finish(told)
    assert replay.install(on.folder) is None, "the log's writer holds its lock: history is to be asked"
    return compared


def views(on: Scene) -> list[str]:
    return sorted(path.name for path in on.folder.glob("*.db") if path.name != "log.db")


def change(on: Scene, *statements: str) -> None:
    with closing(sqlite3.connect(on.folder / "views-1.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


async def test_a_rebuild_equals_what_serves_and_takes_over_where_history_does_not_run(on: Scene) -> None:
    await talk(on)
    compared = rebuild(on)
    [(last,)] = on.sql("SELECT max(position) FROM events")
    assert compared == Comparison(last, None, [])
    assert views(on) == ["rebuild.db", "views-1.db"]
    on.log.close()
    assert replay.install(on.folder) == on.folder / "views-2.db"
    assert views(on) == ["views-2.db"]
    on.open()
    async with opened(on) as (store, _):
        assert (store.path.name, store.position) == ("views-2.db", last)


DAMAGE = {
    "sessions": ["UPDATE sessions SET title = 'another' WHERE place = -1"],
    "messages": ["UPDATE messages SET text = 'another' WHERE role = 'user' AND place < 12000"],
    "turns": ["DELETE FROM turns WHERE status = 'completed'", "UPDATE turns SET attempt = 3 WHERE status = 'running'"],
    "words": ["INSERT INTO words (rowid, owner, text) VALUES (7, 'x', 'nobody said this')"],
}


@pytest.mark.parametrize("view", DAMAGE)
async def test_what_the_serving_views_say_otherwise_is_named_and_never_shown(on: Scene, view: View) -> None:
    """One view alone is rebuilt; the others are as they were."""
    await talk(on)
    change(on, *DAMAGE[view])
    compared = rebuild(on, view)
    assert {each.view for each in compared.differences} == {view}
    assert not [each for each in compared.differences if "another" in each.what + each.row]
    on.log.close()
    replay.install(on.folder)
    on.open()
    assert rebuild(on).equal, "what was rebuilt is as the log says"


async def test_a_report_is_bounded(on: Scene) -> None:
    await talk(on, sessions=10)
    change(on, "UPDATE messages SET status = 'lost'", "DELETE FROM turns")
    compared = rebuild(on)
    assert len([each for each in compared.differences if each.view == "messages"]) == 20
    assert Difference("messages", compared.differences[0].row, "differs in status") in compared.differences


async def test_a_rebuild_of_something_else_is_begun_anew(on: Scene) -> None:
    await talk(on)
    with replay.rebuilding(on.folder, "turns") as each:
        each.run(lambda _: None)
    told: list[int] = []
    assert rebuild(on, told=told.append).equal
    assert told[0] == BATCH
    for path in on.folder.glob("views-*"):
        path.unlink()
    with pytest.raises(replay.ReplayFailed, match="no views serve"), replay.rebuilding(on.folder, "turns"):
        pass


async def test_an_unfinished_rebuild_is_nobodys_views(on: Scene) -> None:
    await talk(on)

    def cancel(position: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replay.rebuilding(on.folder, "messages") as each:
        each.run(cancel)
    assert each.path.exists()
    with pytest.raises(NotFinished):
        adopt(on.folder)
    with replay.rebuilding(on.folder, None), pytest.raises(replay.ReplayFailed), replay.rebuilding(on.folder, None):
        pass
    assert sorted(path.name for path in on.folder.glob("*.lock")) == ["log.lock"], "it locks without a file"


def break_row(on: Scene, position: int) -> None:
    with closing(sqlite3.connect(on.path)) as log, log:
        log.execute("UPDATE events SET body = x'7b7d' WHERE position = ?", (position,))


async def test_a_row_that_cannot_be_read_ends_the_rebuild_with_its_position(on: Scene) -> None:
    await talk(on)
    break_row(on, 9)
    with pytest.raises(replay.ReplayFailed, match="position 9"):
        rebuild(on)


async def test_a_long_stretch_is_folded_by_a_process_beside(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rebuild, and by a start of history whose views are far behind."""
    await talk(on)
    monkeypatch.setattr(filling, "FAR_EVENTS", 1)
    monkeypatch.setattr(folder, "FAR_EVENTS", 1)
    assert rebuild(on).equal
    for path in on.folder.glob("views-*"):
        path.unlink()
    async with opened(on) as (store, reader):
        await folder.ViewFolder(store, reader, cast(Any, None)).catch_up()
        assert store.position == await reader.last_position()
    assert rebuild(on).equal
    (on.folder / "rebuild.db").unlink()
    break_row(on, 9)
    with pytest.raises(replay.ReplayFailed, match="position 9"):
        rebuild(on)


async def test_rows_that_were_read_before_a_swap_are_folded_once(on: Scene) -> None:
    """The views that serve were behind the rebuilt ones, and then ahead of them: what is seen never goes back."""
    begun = await talk(on)
    async with opened(on) as (store, reader):
        on.running(begun[0], "more")
        rows = await reader.rows_after(store.position, 100)
        rebuild(on)
        await store.swap(reader)
        assert (store.path.name, store.position) == ("views-2.db", rows[-1].position)
        await store.apply(rows)
        assert store.position == rows[-1].position
        rebuild(on)
        on.running(begun[1], "and more")
        await store.apply(await reader.rows_after(store.position, 100))
        ahead = store.position
        await store.swap(reader)
        assert (store.path.name, store.position) == ("views-3.db", ahead)
    assert rebuild(on).equal
    assert views(on) == ["rebuild.db", "views-3.db"]
