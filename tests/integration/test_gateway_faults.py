"""Faults around a gateway: history away, the broker killed, a drain; what was accepted stays, nobody waits in vain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from services.operator.provisioning import provision
from services.runtime import streams
from tests.brokers import broker
from tests.gateway_roads import MODEL, GatewayRoad, gateway_road
from tests.gateways import gateway, sse_events
from tests.polling import eventually
from tests.services import ROOT

FOR_EVER_S = 60.0


async def test_history_away_a_known_session_is_served_and_told_later(tmp_path: Path) -> None:
    async with gateway_road(tmp_path, gateways=2, gateway_outcome_s=0.3) as whole:
        session, unknown = await whole.new_session(), "99999999-9999-4999-8999-999999999999"
        async with whole.http() as client, whole.http(1) as other, whole.gateway.socket() as socket:
            await socket.attach(session)
            await whole.history.kill()
            sent = await client.post(f"/v1/sessions/{session}/messages", json={"text": "hi"})
            assert (sent.status_code, sent.json()["status"]) == (202, "accepted")
            refused = await client.post(f"/v1/sessions/{session}/messages", json={"text": "hi", "parent_id": unknown})
            assert refused.status_code == 202
            await socket.say("send", session=session, text="also", client_message_id="mine", parent_id=unknown)
            (accepted,) = await socket.until(lambda: socket.of("accepted"), "accepted")
            assert accepted["client_message_id"] == "mine"
            not_known = await client.post(f"/v1/sessions/{unknown}/messages", json={"text": "hi"})
            assert (not_known.status_code, not_known.json()["code"]) == (503, "not_accepted")
            assert not_known.headers["retry-after"]
            asked = await client.get(sent.headers["location"])
            assert (asked.status_code, asked.json()["code"]) == (503, "not_ready")
            assert (await client.get("/healthz")).status_code == 200

            async def not_ready() -> bool:
                reasons = (await client.get("/readyz")).json()["reasons"]
                return [reason["name"] for reason in reasons] == ["history_away"]

            await eventually(not_ready, reason="readiness names history")
            await whole.history.start()
            await socket.until(socket.terminals, "the answer of what was accepted")
            (told,) = await socket.until(lambda: socket.of("refused"), "the refusal of what was accepted")
            assert (told["code"], told["client_message_id"]) == ("parent_unknown", "mine")
            found = (await other.get(sent.headers["location"])).json()
            assert (found["status"], found["turn"]["event_id"]) == ("recorded", sent.json()["event_id"])
            found = (await other.get(refused.headers["location"])).json()
            assert (found["status"], found["code"]) == ("refused", "parent_unknown")


async def test_unrecorded_sends_of_a_session_are_bounded(tmp_path: Path) -> None:
    async with gateway_road(tmp_path, gateway_outcome_s=0.01) as whole:
        session = await whole.new_session()
        whole.history.pause()
        async with whole.http() as client:
            statuses = [
                (await client.post(f"/v1/sessions/{session}/messages", json={"text": str(number)})).status_code
                for number in range(22)
            ]
        assert statuses == [202] * 20 + [429] * 2
        whole.history.resume()


async def test_a_stream_of_an_answer_outlives_history(tmp_path: Path) -> None:
    async with gateway_road(tmp_path, gateway_outcome_s=0.3) as whole:
        session = await whole.new_session()
        whole.history.pause()

        async def stream() -> str:
            async with whole.http() as client:
                sent = await client.post(
                    f"/v1/sessions/{session}/messages",
                    json={"text": "hi"},
                    headers={"accept": "text/event-stream"},
                )
            return sent.text

        streaming = asyncio.create_task(stream())
        await eventually(lambda: _stored(whole.broker.folder), reason="the send is in the queue")
        await whole.history.kill()
        await whole.history.start()
        frames = [frame for _, frame in sse_events(await streaming)]
        assert frames[0]["type"] == "accepted"
        assert frames[-1]["event"]["type"] == "answer_completed"


def _stored(folder: Path) -> bool:
    return any(path.stat().st_size for path in (folder / "jetstream").rglob("*.blk"))


async def test_a_killed_broker_loses_no_frame_of_a_watcher(tmp_path: Path) -> None:
    """Frames of core NATS that were sent while the gateway was away are asked for again."""
    async with gateway_road(tmp_path, gateways=2, speed={"load_s": 0, "token_gap_ms": 20}) as whole:
        session = await whole.new_session()
        await whole.model.control.script([f"p{number} " for number in range(60)], model=MODEL, times=None)
        async with whole.gateway.socket() as socket, whole.gateways[1].socket() as other:
            await socket.attach(session)
            await other.attach(session)
            for round_ in range(1, 3):
                await socket.say("send", session=session, text="hi")
                await socket.until(lambda round_=round_: len(socket.events("answer_started")) == round_, "it runs")
                await whole.broker.kill()
                await whole.broker.start()
                for each in (socket, other):
                    await each.until(
                        lambda each=each, round_=round_: len(each.terminals()) == round_, "the end", timeout_s=40
                    )
            for each in (socket, other):
                versions = [frame["version"] for frame in each.events()]
                assert versions == list(range(1, len(versions) + 1))
                _check_tokens(each.frames)
            assert [text for text in socket.raw if '"event":' in text] == [
                text for text in other.raw if '"event":' in text
            ]


def _check_tokens(frames: list[dict[str, Any]]) -> None:
    """Token after token, or a text that replaces; none before its start or after its end."""
    place: tuple[str, int, int] | None = None
    for frame in frames:
        event = frame.get("event", {})
        if event.get("type") == "answer_started":
            place = event["turn_id"], event["data"]["attempt"], 0
        elif event.get("type") == "answer_completed":
            place = None
        elif frame["type"] in ("token", "answer_so_far"):
            assert place is not None
            assert (frame["turn_id"], frame["attempt"]) == place[:2]
            assert frame["index"] == place[2] + 1 or (frame["type"] == "answer_so_far" and frame["index"] > place[2])
            place = *place[:2], frame["index"]


async def test_a_broker_away_refuses_and_says_which_way(tmp_path: Path) -> None:
    async with gateway_road(tmp_path) as whole:
        session = await whole.new_session()
        async with whole.http() as client:
            whole.broker.pause()
            unknown = await client.post(f"/v1/sessions/{session}/messages", json={"text": "hi"})
            assert (unknown.status_code, unknown.json()["code"]) == (503, "unknown")
            key = unknown.headers["idempotency-key"]
            whole.broker.resume()
            again = await client.post(
                f"/v1/sessions/{session}/messages", json={"text": "hi"}, headers={"idempotency-key": key}
            )
            assert again.json()["event_id"] == unknown.json()["event_id"]
            await whole.broker.kill()

            async def refused() -> bool:
                sent = await client.post(f"/v1/sessions/{session}/messages", json={"text": "lost"})
                return (sent.status_code, sent.json()["code"]) == (503, "not_accepted")

            await eventually(refused, reason="the gateway knows that it is cut off")


async def test_a_full_stream_a_full_disk_and_a_wiped_store_refuse_and_are_named(tmp_path: Path) -> None:
    """Nothing is accepted that is not durable; a store that was made anew is followed on an operator's word only."""
    async with gateway_road(tmp_path) as whole, whole.http() as client:
        session = await whole.new_session()

        async def refused_with(code: str) -> bool:
            sent = await client.post(f"/v1/sessions/{session}/messages", json={"text": "hi"})
            return (sent.status_code, sent.json()["code"], "retry-after" in sent.headers) == (503, code, True)

        async def is_named(words: str) -> None:
            async def named() -> bool:
                reasons = (await client.get("/readyz")).json()["reasons"]
                return any(words in reason["detail"] for reason in reasons)

            await eventually(named, reason=f"readiness says {words}", timeout_s=FOR_EVER_S)

        broker_client = await whole.broker.connect()
        intake = streams.declared()[0]
        await broker_client.jetstream().update_stream(replace(intake, max_bytes=1))
        await eventually(lambda: refused_with("not_accepted"), reason="the intake is full", timeout_s=FOR_EVER_S)
        await broker_client.jetstream().update_stream(intake)
        await broker_client.close()

        resource.prlimit(whole.broker.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        await eventually(lambda: refused_with("unknown"), reason="the disk takes nothing", timeout_s=FOR_EVER_S)
        await is_named("write error")

        await whole.broker.kill()
        shutil.rmtree(whole.broker.folder / "jetstream")
        await whole.broker.start()
        await eventually(lambda: refused_with("not_accepted"), reason="there is no intake", timeout_s=FOR_EVER_S)
        await is_named("stream CHAT_INTAKE is missing")
        assert whole.history.alive, "it waits for its stream"
        broker_client = await whole.broker.connect()
        await provision(broker_client.jetstream())
        await broker_client.close()
        assert await whole.history.ended(FOR_EVER_S) == 1
        [died] = [line for line in whole.history.logged() if line.get("event") == "task_died"]
        assert "it is another stream" in died["exception"][0]["words"]


async def test_a_drain_ends_each_stream_with_a_word(tmp_path: Path) -> None:
    async with gateway_road(tmp_path, speed={"load_s": 0, "token_gap_ms": 50}) as whole:
        session = await whole.new_session()
        await whole.model.control.script(["x"] * 400, model=MODEL, times=None)
        streams = [
            asyncio.create_task(_read(whole.gateway, "GET", f"/v1/sessions/{session}/events", None)),
            asyncio.create_task(_read(whole.gateway, "POST", f"/v1/sessions/{session}/messages", {"text": "hi"})),
        ]
        waiting = asyncio.create_task(_wait_for_answer(whole, session))
        async with whole.gateway.socket() as socket:
            await socket.attach(session)
            await socket.until(lambda: len(socket.of("token")) > 3, "the answer runs")
            await socket.until(lambda: len(socket.events("user_message_submitted")) == 2, "the other one waits")
            assert await whole.gateway.process.stop() == 0
            await socket.until(lambda: socket.closed, "closed")
            assert socket.closed is not None
            assert socket.closed[0] == 1012
            assert socket.closed[1].startswith("retry_ms=")
            assert socket.frames[-1] == {"type": "error", "code": "stream_cut"}
        retries = set()
        for text in await asyncio.gather(*streams):
            assert [frame for _, frame in sse_events(text)][-1] == {"type": "error", "code": "stream_cut"}
            [goodbye] = text.split("\n\n")[-2:-1]
            retry, payload = goodbye.split("\n")
            assert payload.startswith("data: "), "a block without data is an event to some clients"
            retries.add(int(retry.removeprefix("retry: ")))
        assert all(200 <= retry_ms <= 3000 for retry_ms in retries)
        held = await waiting
        assert (held.status_code, held.json()["status"]) == (202, "accepted")
        assert held.headers["location"].startswith(f"/v1/sessions/{session}/turns/")


async def _wait_for_answer(whole: GatewayRoad, session: str) -> httpx.Response:
    async with whole.http() as client:
        return await client.post(f"/v1/sessions/{session}/messages?wait=answer", json={"text": "also"})


async def _read(each: Any, method: str, path: str, body: dict[str, Any] | None) -> str:
    async with each.http(headers={"accept": "text/event-stream"}) as client:
        return str((await client.request(method, path, json=body)).text)


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    async with broker(tmp_path) as b, gateway(tmp_path, b, ready=False, drain_timeout_s=4) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(f"POST /v1/sessions HTTP/1.1\r\nHost: {running.host}\r\nContent-Length: 9\r\n\r\n".encode())
        await writer.drain()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await running.process.stop()
        assert loop.time() - began < 8
        with contextlib.suppress(OSError):
            writer.close()


async def test_only_loopback_is_served_without_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "services.gateway", "--gateway-host", host],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 2
        assert "CHATLOG_GATEWAY_HOST" in ended.stderr
        assert "loopback" in ended.stderr


async def test_a_full_house_is_heard_from_history(tmp_path: Path) -> None:
    """History says how full it is; a test says so in its place."""
    async with gateway_road(tmp_path) as whole:
        session = await whole.new_session()
        await whole.history.kill()
        client = await whole.broker.connect()
        for load, code in (
            ({"intake_bytes": 80, "queues": []}, "not_accepted"),
            ({"disk_free_bytes": 1, "queues": []}, "not_accepted"),
            ({"queues": [{"model": MODEL, "waiting": 999, "running": 1}]}, "queue_full"),
        ):
            told = {"intake_bytes": 1, "intake_max_bytes": 100, "disk_free_bytes": 10**12, **load}
            await client.publish("chat.load", json.dumps(told).encode())
            await client.flush()

            async def refused(code: str = code) -> bool:
                async with whole.http() as http:
                    sent = await http.post(f"/v1/sessions/{session}/messages", json={"text": "hi"})
                return "retry-after" in sent.headers and sent.json().get("code") == code

            await eventually(refused, reason=code)
        await client.close()
