"""`chatlog export` and `chatlog import` as they are typed, on a running stack: files in and out, and exit codes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from services.history.backup_note import IMPORTED
from tests import commands
from tests.chatting import chatter, http, new_session, send
from tests.commands import Ended
from tests.installations import Installation
from tests.unit.test_chatgpt import CONVERSATION, NEW, PATH, conversation

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


async def chatlog(running: Installation, *arguments: str) -> Ended:
    data = {"CHATLOG_DATA_DIR": str(running.folder / "data")}
    return await commands.chatlog(running.broker.environment() | data, *arguments)


async def messages(running: Installation, session: str) -> list[dict[str, Any]]:
    async with http(running.http()) as client:
        listed: list[dict[str, Any]] = (await client.get(f"/v1/sessions/{session}/messages")).json()["messages"]
        return listed


async def test_a_session_goes_out_and_is_found_to_be_there(running: Installation, tmp_path: Path) -> None:
    async with http(running.http()) as client:
        session_id = await new_session(client)
        sent = await client.post(f"/v1/sessions/{session_id}/messages?wait=answer", json={"text": "Hello <b>there</b>"})
        assert sent.status_code == 201
    file, page = tmp_path / "one.jsonl", tmp_path / "one.md"
    code, out, said = await chatlog(running, "export", session_id, "-o", str(file))
    assert (code, out) == (0, b""), said
    assert "exported: sessions 1, events 5" in said
    assert file.stat().st_mode & 0o777 == 0o600
    assert (await chatlog(running, "export", session_id))[1] == file.read_bytes()
    assert (await chatlog(running, "import", str(file)))[2] == "sessions imported 0, unchanged 1, problems 0\n"
    assert (await chatlog(running, "export", session_id, "--format", "markdown", "-o", str(page)))[0] == 0
    assert "```text\nHello <b>there</b>\n```" in page.read_text()
    assert not file.with_name("one.jsonl.part").exists(), "nothing half written is left"


async def test_what_cannot_be_done_is_one_line_and_an_exit_code(running: Installation, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("garbage\n")
    code, out, said = await chatlog(running, "import", str(file))
    assert (code, out) == (1, b"")
    assert said.splitlines() == [
        f"{file}: line 1 is not that of an export of this version of Chatlog",
        "sessions imported 0, unchanged 0, problems 1",
    ]
    _, whole, _ = await chatlog(running, "export")
    cut = whole.splitlines(keepends=True)[:-1]
    file.write_bytes(b"".join(cut))
    code, _, said = await chatlog(running, "import", str(file))
    assert code == 1
    assert said.startswith(f"{file}: the file ends before its last line: it was cut\nsessions imported 0, unchanged ")


async def test_a_chatgpt_zip_becomes_sessions_that_one_chats_on_in(running: Installation, tmp_path: Path) -> None:
    file = tmp_path / "chatgpt.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("export/conversations.json", json.dumps([conversation(), {"mapping": {}}]))
    noted = running.folder / "data" / IMPORTED
    assert not noted.exists()
    code, _, said = await chatlog(running, "import", str(file))
    assert noted.exists(), "a backup of before lacks it for good"
    assert code == 1, "one of the two has no id"
    assert said.splitlines() == [
        "conversation 2: no conversation_id",
        "sessions imported 1, unchanged 0, problems 1; messages left out: system 1",
    ]
    listed = await messages(running, CONVERSATION)
    assert [each["text"] for each in listed if each["message_id"] in NEW.values()] == [
        *PATH[:2], "And of Itly?", "Did you mean Italy?", *PATH[2:]
    ]  # fmt: skip
    assert {each["turn_id"] for each in listed} == {None}
    async with chatter(running.ws()) as watcher, http(running.http()) as client:
        view = await watcher.attach(CONVERSATION, CONVERSATION)
        assert (await send(client, CONVERSATION, "And of Spain?")).status_code == 201
        await watcher.until(lambda: "answer_completed" in view.order, "the answer")
        assert view.broken == []
    [context] = [
        frame["event"] for frame in map(json.loads, view.event_frames) if frame["event"]["type"] == "context_assembled"
    ]
    assert context["data"]["message_ids"][:-1] == [NEW["q1"], NEW["a1"], NEW["q2b"], NEW["a2b"]]
    assert "sessions imported 0, unchanged 1, problems 1" in (await chatlog(running, "import", str(file)))[2]
    _, whole, _ = await chatlog(running, "export", CONVERSATION)
    assert whole.count(b'"type":"session_imported"') == 1
