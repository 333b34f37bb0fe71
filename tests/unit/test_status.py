"""`chatlog status`: what is wrong is said where it is wrong."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from nats.js.api import StreamConfig, StreamInfo, StreamState
from rich.console import Console

from contracts.queries import StatusReply
from contracts.turns import ModelPresence, Presence
from services.operator.asking import why_not_ready
from services.operator.show import as_json, print_status, status_values
from services.operator.status import STREAMS, Status
from services.runtime.health import Reason
from tests.conversing import new_id


def presence(server: str, *models: ModelPresence) -> Presence:
    return Presence(
        worker_id=new_id(), models=list(models), server=server, server_kind="ollama", slots=2, free=2, runs=[]
    )


def test_a_sick_server_and_a_model_in_trouble_are_named_with_the_reason() -> None:
    console = Console(record=True, width=200)
    sick = presence("model_unreachable", ModelPresence(name="a"))
    halting = presence("ok", ModelPresence(name="b", trouble="model_stalled"), ModelPresence(name="c"))
    print_status(console, Status(server=[], streams=[], history=None, workers=[sick, halting], sizes={}))
    said = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
    assert "ollama model_unreachable" in said[sick.worker_id]
    assert "ollama ok" in said[halting.worker_id]
    assert said[halting.worker_id].endswith("b (model_stalled), c")


def test_each_part_that_is_down_is_a_trouble() -> None:
    """The exit code is 1 while there is one; programs are told the same."""
    down = Status(server=[Reason("broker", "is away")], streams=[], history=None, workers=[], gateway=["it hangs"])
    assert down.troubles == [
        "broker: broker: is away",
        "stream CHAT_INTAKE is missing",
        "stream CHAT_CONTEXT is missing",
        "history does not answer",
        "gateway: it hangs",
        "no worker answers",
    ]
    sick = replace(well(), workers=[presence("ok"), presence("model_unreachable")])
    assert sick.troubles == [f"worker {sick.workers[1].worker_id}: model_unreachable"]
    assert well().troubles == []
    told = json.loads(as_json(status_values(well())))
    assert (told["troubles"], told["history"]["position"], told["lag"]) == ([], 3, 2)
    assert told["streams"][0] == {
        "name": "CHAT_INTAKE", "messages": 9, "bytes": 700, "max_bytes": 2048, "last_sequence": 9
    }  # fmt: skip


def well() -> Status:
    streams = [
        StreamInfo(
            config=StreamConfig(name=name, max_bytes=2048),
            state=StreamState(messages=9, bytes=700, first_seq=1, last_seq=9, consumer_count=1),
        )
        for name in STREAMS
    ]
    history = StatusReply(
        epoch=new_id(), caught_up=True, cursor=7, last_sequence=9, position=3, views_position=3, parked=0,
        turns_waiting=0, turns_running=0, sizes={}, queues=[],
    )  # fmt: skip
    return Status(server=[], streams=streams, history=history, workers=[presence("ok")], gateway=[], sizes={"log": 1})


async def test_an_answer_that_comes_in_two_parts_is_read_whole() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        await asyncio.sleep(0.1)  # pace: the head arrives alone
        writer.write(b'{"reasons": [{"name": "history_away", "detail": "it is"}]}')
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await why_not_ready(f"127.0.0.1:{port}", timeout_s=60) == ["history_away: it is"]


def test_sizes_are_said_in_a_unit_that_shows_them() -> None:
    console = Console(record=True, width=200)
    sizes = {"nats": 3 * 1024 * 1024, "log": 1024 * 1024 - 1, "other": 1}
    print_status(console, replace(well(), sizes=sizes))
    said = console.export_text()
    assert "on disk nats 3.0 MiB, log 1024 KiB, other 1 KiB\n" in said
    assert "\ngateway ready\n" in said
