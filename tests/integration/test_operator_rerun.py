"""`chatlog receipt` and `chatlog rerun` as a person types them: a log's file, a stand-in, nothing else that runs."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from contracts.turns import read_context
from services.history.effects import Queue
from tests import commands
from tests.conversing import MODEL, completed, message, new_id, session_started
from tests.recording import Scene, only, scene
from tests.standins import Standin, standin_process

OTHER = "other:1m"
WORDS = ["Once ", "upon ", "a ", "time."]


async def chatlog(folder: Path, server: Standin, *arguments: str) -> tuple[int, str, str]:
    environment = {"CHATLOG_DATA_DIR": str(folder), "CHATLOG_OLLAMA_URL": server.ollama_url}
    code, out, err = await commands.chatlog(environment, *arguments)
    return code, out.decode(), err


def turn_of(on: Scene, text: str, answer: str | None) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A turn with these options and this answer (None: it still runs), and the messages that the queue was given."""
    session_id = new_id()
    on.take(session_started(session_id, system="Be brief."))
    said = message(session_id, text, options={"seed": 7, "temperature": 0.5})
    on.take(said)
    queued = read_context(only(on.of(Queue)).payload)
    on.claim(said, new_id())
    if answer is not None:
        on.take(completed(session_id, str(said.turn_id), text=answer))
    return str(said.turn_id), queued.messages


def rows_of(folder: Path) -> list[Any]:
    with closing(sqlite3.connect(f"file:{folder / 'log.db'}?mode=ro", uri=True)) as connection:
        tables = ("events", "outcomes", "parked", "cursor", "log")
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


async def test_the_same_context_is_run_again_beside_the_recorded_answer(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        turn, messages = turn_of(on, "hello", "".join(WORDS))
        before = rows_of(tmp_path)
        async with standin_process(models=[MODEL, OTHER], load_s=0, token_gap_ms=1) as server:
            await server.control.script(WORDS)
            code, out, err = await chatlog(tmp_path, server, "rerun", turn, "--json")
            assert code == 0, err
            same = json.loads(out)
            [asked] = await server.control.requests(messages=True)
            assert asked["messages"] == [{"role": role, "content": content} for role, content in messages]
            assert asked["fields"]["options"] == {"seed": 7, "temperature": 0.5}
            assert (same["equal"], same["differs_at"], same["again"]["text"]) == (True, None, "".join(WORDS))
            assert same["recorded"]["text"] == same["again"]["text"]

            on.log.close()  # as with a stack that is down
            await server.control.script(["Once ", "there ", "was\x1b[31m"])
            code, out, err = await chatlog(tmp_path, server, "rerun", turn, "--model", OTHER)
            assert code == 0, err
            assert "different from character 5 on" in out
            assert "-Once upon a time." in out
            assert "\x1b" not in out, "a model's words do not reach into a terminal"
            for form in ([], ["--json"]):
                said = await chatlog(tmp_path, server, "rerun", turn, "--model", "nobody:1m", *form)
                why = f"chatlog: model_not_found: the model server at {server.ollama_url} has no model nobody:1m\n"
                assert said == (1, "", why), "nothing is compared with nothing"
        assert rows_of(tmp_path) == before, "nothing is written"
        on.open()


async def test_what_cannot_be_run_again_is_one_clear_line(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        turn, _ = turn_of(on, "a heron", None)
        async with standin_process(models=[MODEL], load_s=0) as server:
            code, out, err = await chatlog(tmp_path, server, "receipt", turn, "--json")
            assert code == 0, err
            receipt = json.loads(out)
            assert ([each["text"] for each in receipt["messages"]], receipt["verified"]) == (["a heron"], True)
            with closing(sqlite3.connect(on.path)) as connection, connection:
                connection.execute(
                    "UPDATE events SET body = CAST(replace(body, 'a heron', 'a crane') AS BLOB) WHERE version = 2"
                )
            code, out, err = await chatlog(tmp_path, server, "rerun", turn)
            assert (code, out, "rendered_hash" in err, err.count("\n")) == (1, "", True, 1), err
            assert await server.control.requests() == []
            code, out, _ = await chatlog(tmp_path, server, "receipt", turn)
            assert "NOT that of the texts now" in out
