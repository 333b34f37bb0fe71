"""Watching on the real road: attach in mid-answer, cursors, streams, many sessions, and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from tests.gateway_roads import GatewayRoad, gateway_road
from tests.gateways import Socket, sse_events

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIECES = [f"piece{number} " for number in range(120)]
TEXT = "".join(PIECES)
# A token every 5 ms: long enough for many clients to come in the middle.
SLOW = {"load_s": 0, "token_gap_ms": 5}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayRoad]:
    folder = tmp_path_factory.mktemp("watch")
    async with gateway_road(
        folder, gateways=2, speed=SLOW, gateway_heartbeat_s=0.2, gateway_client_frames=100
    ) as running:
        await running.model.control.script(PIECES, times=None)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def at_leisure(whole: GatewayRoad) -> AsyncIterator[None]:
    """A token every 50 ms: an answer of six seconds, for a client that goes away and is back before its end."""
    await whole.model.control.speed(token_gap_ms=50)
    yield
    await whole.model.control.speed(token_gap_ms=SLOW["token_gap_ms"])


def answer_of(frames: list[dict[str, Any]], held: str = "") -> str:
    """What a client shows that follows the frames' meaning; it fails where P4 is broken.

    An answer that was over before the client attached is told by its event alone; one that ended later must have been
    told word for word before it.
    """
    text, place = held, None
    coming = any(frame["type"] == "attached" for frame in frames)
    for frame in frames:
        if frame["type"] == "attached":
            coming = False
        elif frame["type"] == "event" and frame["event"]["type"] == "answer_started":
            text, place = "", 0
        elif frame["type"] == "answer_so_far":
            text, place = frame["text"], frame["index"]
        elif frame["type"] == "token":
            assert place is None or frame["index"] == place + 1
            text, place = text + frame["text"], frame["index"]
        elif frame["type"] == "event" and frame["event"]["type"] == "answer_completed":
            told = frame["event"]["data"]["text"]
            assert told.startswith(text) if coming else told == text
            text = told
    return text


async def test_clients_that_come_in_mid_answer_end_with_the_same_text(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    chance = random.Random(7)

    async def join(at: int, watcher: Socket) -> None:
        # A starved worker tells several pieces in one frame: there may be fewer.
        await watcher.until(lambda: len(watcher.of("token")) >= at or watcher.terminals(), f"{at} tokens")
        async with whole.gateways[at % 2].socket() as late:
            await late.attach(session)
            await late.until(late.terminals, "the end")
            assert answer_of(late.frames) == TEXT

    async with whole.gateway.socket() as watcher:
        await watcher.attach(session)
        await watcher.say("send", session=session, text="hi")
        await asyncio.gather(*(join(chance.randrange(0, 100), watcher) for _ in range(20)))
        assert answer_of(watcher.frames) == TEXT
        assert watcher.of("answer_so_far") == []


async def test_a_stream_goes_on_inside_an_answer(whole: GatewayRoad, at_leisure: None) -> None:
    session = await whole.new_session()
    async with whole.gateway.socket() as socket:
        await socket.say("send", session=session, text="hi")
        first, cursor = await follow(whole, session, None, until=lambda frame: frame.get("index", 0) >= 20)
        assert cursor is not None
        assert len(cursor.split(".")) == 4
        second, _ = await follow(whole, session, cursor, until=is_end, number=1)
    versions = [frame["version"] for frame in first + second if frame["type"] == "event"]
    assert versions == list(range(1, len(versions) + 1))
    assert answer_of(second, held=answer_of(first)) == TEXT


async def test_nothing_left_is_said_with_204(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    async with whole.http() as client:
        address = f"/v1/sessions/{session}/events"
        await client.post(f"/v1/sessions/{session}/messages?wait=answer", json={"text": "hi"})
        _, cursor = await follow(whole, session, None, until=lambda frame: frame["type"] == "attached")
        assert (await client.get(address, headers={"last-event-id": str(cursor)})).status_code == 204
        behind = f"{str(cursor).split('.')[0]}.1"
        async with client.stream("GET", address, headers={"last-event-id": behind}) as stream:
            assert stream.status_code == 200
        async with client.stream("GET", address, params={"after": str(cursor)}) as stream:
            assert stream.status_code == 200, "only a browser's own header is answered so"


async def test_a_heartbeat_is_one_line_and_no_event(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    received = b""
    async with whole.http() as client, client.stream("GET", f"/v1/sessions/{session}/events") as stream:
        assert stream.headers["x-accel-buffering"] == "no"
        async for part in stream.aiter_bytes():
            received += part
            if received.count(b": hb\n") >= 3:
                break
    assert b": hb\n\n" not in received
    assert b"\n\n: hb\n: hb\n: hb\n" in received
    assert [frame["type"] for _, frame in sse_events(received.decode())] == ["event", "attached"]


@pytest.mark.parametrize(("cursor", "reason"), [("another.1", "epoch"), ("{epoch}.99", "version")])
async def test_a_cursor_that_cannot_be_served_is_told(whole: GatewayRoad, cursor: str, reason: str) -> None:
    session = await whole.new_session()
    async with whole.gateway.socket() as socket:
        attached = await socket.attach(session)
        after = cursor.format(epoch=attached["epoch"])
        socket.frames.clear()
        await socket.say("attach", session=session, after=after)
        await socket.until(lambda: socket.frames, "resync")
        assert socket.frames == [{"type": "resync", "session_id": session, "reason": reason}]
        await socket.attach(session)
    async with whole.http() as client:
        told = await client.get(f"/v1/sessions/{session}/events", headers={"last-event-id": after})
    assert list(sse_events(told.text)) == [("", {"type": "resync", "session_id": session, "reason": reason})]


async def test_many_sessions_on_one_socket_and_no_more(whole: GatewayRoad) -> None:
    sessions = [await whole.new_session() for _ in range(51)]
    async with whole.gateway.socket() as socket:
        for session in sessions:
            await socket.say("attach", session=session)
        await socket.until(lambda: len(socket.of("attached")) == 50, "50 attached")
        (refused,) = await socket.until(lambda: socket.of("refused"), "refused")
        assert (refused["session_id"], refused["code"]) == (sessions[50], "too_many_attached")
        await socket.say("detach", session=sessions[0])
        await socket.say("attach", session=sessions[50])
        await socket.until(lambda: len(socket.of("attached")) == 51, "attached in its place")
        await socket.say("send", session=sessions[0], text="unwatched")
        await socket.say("send", session=sessions[1], text="watched")
        await socket.until(socket.terminals, "the end of the watched one")
        assert {frame["session_id"] for frame in socket.of("token")} == {sessions[1]}


async def test_an_attach_may_be_repeated(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    async with whole.gateway.socket() as socket:
        first = await socket.attach(session)
        await socket.attach(session, after=f"{first['epoch']}.{first['version']}")
        assert len(socket.events()) == 1
        await socket.say("send", session=session, text="hi")
        await socket.until(socket.terminals, "the end")
        assert answer_of(socket.frames) == TEXT


async def test_a_long_past_is_no_live_frame(whole: GatewayRoad) -> None:
    """Twice as many recorded events as the bound lets live frames wait, read by a client that takes its time."""
    session = await whole.new_session()
    async with whole.http() as client:
        for first in range(0, 200, 10):
            titles = [f"{number} " + "x" * 190 for number in range(first, first + 10)]
            await asyncio.gather(*(client.patch(f"/v1/sessions/{session}", json={"title": t}) for t in titles))
    async with connect(f"ws://{whole.gateway.host}/v1/ws", max_queue=1) as slow:
        await slow.send(json.dumps({"type": "attach", "session": session}))
        received: list[dict[str, Any]] = []
        while not received or received[-1]["type"] != "attached":
            received.append(json.loads(await slow.recv()))
    versions = [frame["version"] for frame in received[:-1]]
    assert versions == list(range(1, 202))


async def test_a_client_that_does_not_read_is_told_and_let_go(whole: GatewayRoad) -> None:
    """6 MB: far more than the bound and what the kernel keeps for a socket, and soon enough sent: who answers no ping
    for 20 s is cut off.
    """
    session = await whole.new_session()
    notice = {"type": "loading", "session_id": session, "turn_id": session, "model": "x" * 10_000}
    client = await whole.broker.connect()
    async with whole.gateway.socket() as watcher, connect(f"ws://{whole.gateway.host}/v1/ws", max_queue=1) as deaf:
        await watcher.attach(session)
        await deaf.send(json.dumps({"type": "attach", "session": session}))
        assert json.loads(await deaf.recv())["type"] == "event"
        for sent in range(50, 601, 50):
            for _ in range(50):
                await client.publish(f"chat.feed.u-local.{session}", json.dumps(notice).encode())
            await watcher.until(lambda sent=sent: len(watcher.of("loading")) == sent, "the reading watcher has all")
        last = [json.loads(text)["type"] async for text in _rest(deaf)]
        assert (deaf.close_code, deaf.close_reason) == (1008, "too_slow")
        assert last[-2:] == ["resync", "error"]
        assert last.count("loading") < 600
    await client.close()


async def _rest(connection: ClientConnection) -> AsyncIterator[str]:
    with contextlib.suppress(ConnectionClosedError):
        async for text in connection:
            assert isinstance(text, str)
            yield text


def is_end(frame: dict[str, Any]) -> bool:
    return bool(frame.get("event", {}).get("type") == "answer_completed")


async def follow(
    whole: GatewayRoad, session: str, cursor: str | None, *, until: Any, number: int = 0
) -> tuple[list[dict[str, Any]], str | None]:
    """Frames of the event stream up to one, and the last id."""
    frames: list[dict[str, Any]] = []
    headers = {"last-event-id": cursor} if cursor else {}
    last = cursor
    address = f"/v1/sessions/{session}/events"
    async with whole.http(number) as client, client.stream("GET", address, headers=headers) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("id: "):
                last = line.removeprefix("id: ")
            elif line.startswith("data: "):
                frames.append(json.loads(line.removeprefix("data: ")))
                if until(frames[-1]):
                    break
    return frames, last
