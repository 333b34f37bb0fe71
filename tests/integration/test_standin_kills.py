"""Runners and servers that die or hang, with the outcome that was recorded of Ollama 0.32.15."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.integration.test_standin_slots import in_flight, loaded, running, warm
from tests.polling import eventually
from tests.standins import Standin, chat, half_heard, plain_client, standin_process

MODEL = "smollm2:135m"
SHORT: dict[str, Any] = {"options": {"num_predict": 2}}
LONG: dict[str, Any] = {"options": {"num_predict": 400}}
LOST = '{"error":"an error was encountered while running the model: unexpected EOF"}'


async def test_a_runner_killed_in_mid_answer_is_an_error_line_and_the_next_request_loads_again() -> None:
    async with standin_process(load_s=0.2) as standin:
        await warm(standin)
        await standin.control.fault("kill_runner", after=8)
        heard = await chat(standin.ollama_url, "a story", **LONG)
        assert (heard.status, heard.end, len(heard.lines), heard.lines[-1]) == (200, "clean", 9, LOST)
        assert [model["name"] for model in await loaded(standin)] == [MODEL], "/api/ps still lists it"
        following = await chat(standin.ollama_url, "hi", **SHORT)
        assert following.last["done_reason"] == "length"
        assert following.last["load_duration"] >= 0.2e9


async def test_a_runner_killed_before_the_headers_is_a_500_in_prefill_and_another_while_waiting() -> None:
    async with standin_process(prefill_tokens_per_s=100) as standin:
        await warm(standin)
        reading = asyncio.create_task(chat(standin.ollama_url, "word " * 1000))
        await running(standin)
        waiting = asyncio.create_task(chat(standin.ollama_url, "hi", **SHORT))
        await eventually(lambda: arrived(standin, 2), reason="the second waits")
        await standin.control.runner(MODEL, "kill")
        assert ((await reading).status, (await reading).lines) == (500, [LOST])
        assert (await waiting).status == 500
        assert (await waiting).lines == ['{"error":"llama-server process no longer running: unknown "}']


async def arrived(standin: Standin, how_many: int) -> bool:
    return await in_flight(standin) >= how_many


async def test_a_runner_that_died_while_idle_is_loaded_again_unnoticed() -> None:
    async with standin_process(load_s=0.2) as standin:
        await warm(standin)
        await standin.control.runner(MODEL, "kill")
        assert len(await loaded(standin)) == 1
        heard = [await chat(standin.ollama_url, "hi", **SHORT) for _ in range(2)]
        assert [answer.last["load_duration"] >= 0.2e9 for answer in heard] == [True, False]


async def test_a_runner_that_hangs_is_silence_while_the_plain_pages_answer() -> None:
    async with standin_process() as standin:
        await warm(standin)
        await standin.control.fault("stop_runner", after=8)
        hanging = asyncio.create_task(chat(standin.ollama_url, "a story", timeout_s=1.0, **LONG))
        await eventually(lambda: sent(standin, 8), reason="eight pieces are out")
        began = time.monotonic()
        async with plain_client(5.0) as client:
            for page in ("/", "/api/version", "/api/ps"):
                assert (await client.get(standin.ollama_url + page)).status_code == 200
        assert time.monotonic() - began < 0.5
        other = await chat(standin.ollama_url, "hi", timeout_s=0.5, **SHORT)
        assert (other.status, other.end) == (0, "silent")
        heard = await hanging
        assert (heard.status, heard.end, len(heard.lines)) == (200, "silent", 8)
        await standin.control.runner(MODEL, "continue")
        assert (await chat(standin.ollama_url, "hi", **SHORT)).status == 200


async def sent(standin: Standin, pieces: int) -> bool:
    return any(record["pieces_sent"] == pieces for record in await standin.control.requests())


@pytest.mark.parametrize("how", ["kill", "terminate"])
async def test_a_server_that_is_killed_or_told_to_stop_cuts_the_body(how: str) -> None:
    async with standin_process() as standin:
        await warm(standin)
        answering = asyncio.create_task(chat(standin.ollama_url, "a story", **LONG))
        await running(standin)
        await eventually(lambda: some_sent(standin), reason="it is in mid-answer")
        getattr(standin, how)()
        heard = await answering
        assert (heard.status, heard.end) == (200, "cut")
        assert 0 < len(heard.lines) < 48


async def some_sent(standin: Standin) -> bool:
    return any(record["pieces_sent"] > 3 for record in await standin.control.requests())


async def test_one_token_again_and_again_ends_cleanly_without_done() -> None:
    async with standin_process() as standin:
        await standin.control.script(['"', *["x"] * 900], times=None)
        heard = await chat(standin.ollama_url, "Write x.", options={"num_predict": 900})
        assert (heard.status, heard.end, len(heard.lines)) == (200, "clean", 32)
        assert not any(line["done"] for line in heard.objects)
        whole = await chat(standin.ollama_url, "Write x.", stream=False)
        assert (whole.status, whole.last["done"]) == (200, False)
        assert whole.last["message"]["content"] == '"' + "x" * 31
        assert "done_reason" not in whole.last


async def test_an_answer_that_is_left_in_the_middle_does_not_hold_a_hanging_runner() -> None:
    async with standin_process() as standin:
        await warm(standin)
        await standin.control.fault("stop_runner", after=2)
        async with half_heard(standin.ollama_url, "a story", lines=2, **LONG):
            pass
        await eventually(lambda: idle(standin), reason="the client has gone")
        await standin.control.runner(MODEL, "kill")
        assert (await chat(standin.ollama_url, "hi", **SHORT)).status == 200


async def idle(standin: Standin) -> bool:
    return await in_flight(standin) == 0
