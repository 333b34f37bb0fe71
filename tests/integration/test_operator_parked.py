"""`chatlog parked` as a person types it, on a real broker and history: list, show, retry, discard."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from contracts import subjects
from contracts.base import compact
from contracts.envelope import Event
from tests.commands import Ended, chatlog
from tests.conversing import MODEL, USER, message
from tests.roads import Road, road

# More than one reply may hold, so that show has to ask for it in parts.
LARGE = 3 * 512 * 1024 + 7


async def parked(walk: Road, *arguments: str) -> Ended:
    return await chatlog(walk.nats.environment(), "parked", *arguments)


async def said(walk: Road, *arguments: str) -> Any:
    """What a program reads."""
    code, out, err = await parked(walk, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


async def park(walk: Road, event: Event, body: bytes, **headers: str) -> None:
    subject = subjects.intake(event.user_id, event.session_id, event.type)
    known = {subjects.CHAT_EVENT: event.event_id, subjects.CHAT_USER: event.user_id}
    before = len(walk.talk.outcomes.get(event.event_id, []))
    await walk.talk.publish_raw(subject, body, known | headers)
    assert (await walk.talk.outcome(event.event_id, before + 1)).code == "event_parked"


async def test_what_is_parked_is_listed_shown_retried_and_discarded(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        assert await parked(walk, "list") == (0, b"nothing is parked\n", "")
        session_id = await walk.begin()
        newer, broken = message(session_id, "a secret", model=MODEL), message(session_id)
        later = compact(json.loads(newer.body) | {"schema_version": 2})
        await park(walk, newer, later, **{"X-Odd": "\x1b[31mred"})
        await park(walk, broken, b"x" * LARGE)
        await lists_without_texts(walk, newer)
        await shows_bytes_only_where_asked(walk, later)
        await retries_with_a_newer_version(walk, newer)
        await discards(walk)
        assert (await walk.status()).parked == 0
        for command in ("show", "retry", "discard"):
            code, out, err = await parked(walk, command, "2")
            assert (code, out, err) == (1, b"", "chatlog: no event is parked under 2\n")


async def lists_without_texts(walk: Road, newer: Event) -> None:
    code, out, _ = await parked(walk, "list")
    lines = out.decode().splitlines()
    assert (code, len(lines)) == (0, 3)
    for word in ("1 ", "user_message_submitted", newer.session_id, USER, "version"):
        assert word in lines[1]
    assert b"secret" not in out
    _, out, _ = await parked(walk, "list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["parked_id"], row["bytes"]) for row in rows] == [(1, len(rows_body(walk, 1))), (2, LARGE)]
    assert rows[0]["parked_at"]


def rows_body(walk: Road, parked_id: int) -> bytes:
    [(body,)] = walk.sql("SELECT body FROM parked WHERE parked_id = ?", parked_id)
    return bytes(body)


async def shows_bytes_only_where_asked(walk: Road, later: bytes) -> None:
    code, out, _ = await parked(walk, "show", "1")
    assert code == 0
    assert hashlib.sha256(later).hexdigest() in out.decode()
    assert "\\x1b[31mred" in out.decode(), "a header cannot speak to the terminal"
    assert b"\x1b" not in out
    assert b"secret" not in out
    assert await parked(walk, "show", "1", "--body") == (0, later, "")
    _, out, _ = await parked(walk, "show", "2", "--body")
    assert out == b"x" * LARGE
    values = await said(walk, "show", "1", "--body")
    assert base64.b64decode(values["body"]) == later
    assert values["headers"][subjects.CHAT_USER] == USER
    assert "body" not in await said(walk, "show", "1")


async def retries_with_a_newer_version(walk: Road, newer: Event) -> None:
    code, out, _ = await parked(walk, "retry", "1")
    assert (code, out.startswith(b"1 is parked again: ")) == (1, True), "this version cannot read it either"
    # What a newer version would read, this one reads once the bytes are those that it knows.
    await walk.history.stop()
    walk.write("UPDATE parked SET body = ? WHERE parked_id = 1", newer.body)
    await walk.history.start()
    await walk.talk.watch(newer.session_id)
    assert await said(walk, "retry", "1") == {"parked_id": 1, "status": "recorded", "position": 2, "version": 2}
    await walk.talk.outcome(newer.event_id, 3)
    assert [outcome.code for outcome in walk.talk.outcomes[newer.event_id]] == ["event_parked", "event_parked", None]
    assert await walk.talk.types(newer.session_id) == ["session_started", "user_message_submitted", "context_assembled"]
    assert (await walk.outcome_of(newer)).status == "recorded"
    frames = [json.loads(frame) for frame in walk.talk.frames[newer.session_id]]
    shown = [frame["version"] for frame in frames if frame["type"] == "event"]  # among what is said of the queue
    assert shown == [2, 3], "whoever watches sees it"
    context, _ = await walk.talk.context()
    assert context.turn_id == newer.turn_id
    assert (await parked(walk, "retry", "1"))[0] == 1, "again finds nothing"


async def discards(walk: Road) -> None:
    assert await said(walk, "discard", "2") == {"parked_id": 2, "status": "discarded"}
    [line] = walk.said("parked_discarded")
    assert (line["parked_id"], bool(line["by"]), bool(line["reason"])) == (2, True, True)
    assert "xxxx" not in walk.history.log_path.read_text()


async def test_a_history_that_is_away_is_one_line(tmp_path: Path) -> None:
    async with road(tmp_path, started=False) as walk:
        code, out, err = await parked(walk, "list")
        assert (code, out) == (1, b"")
        assert err.startswith("chatlog: history does not answer")
