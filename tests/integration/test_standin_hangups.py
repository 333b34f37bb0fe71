"""Clients that hang up, in each phase of an answer, with the outcome that was recorded of Ollama 0.32.15."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from tests.integration.test_standin_slots import in_flight, loaded, none_loaded, running, warm
from tests.polling import eventually
from tests.standins import Standin, chat, half_heard, standin_process

SHORT: dict[str, Any] = {"options": {"num_predict": 3}}
ENDLESS: dict[str, Any] = {"options": {"num_predict": 4000}}


async def ended(standin: Standin, number: int) -> dict[str, Any]:
    """The record of the nth request once it is over and its slot, if it had one, is free."""

    async def over() -> dict[str, Any] | None:
        record: dict[str, Any] = (await standin.control.requests())[number]
        free = record["slot_start"] is None or record["slot_freed"] is not None
        return record if record["ended"] and free else None

    found: dict[str, Any] | None = await eventually(over, reason=f"request {number} is over")
    assert found is not None
    return found


async def leave(standin: Standin, asking: asyncio.Task[Any]) -> None:
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_in_decode_the_slot_is_free_at_once() -> None:
    async with standin_process(token_gap_ms=5, answer_tokens=4000) as standin:
        await warm(standin)
        async with half_heard(standin.ollama_url, "a story", lines=10, **ENDLESS):
            pass
        following = await chat(standin.ollama_url, "hi", **SHORT)
        assert following.head_s < 0.5
        record = await ended(standin, 1)
        assert record["outcome"] == "client_gone"
        assert record["slot_held_after_disconnect_s"] < 0.1
        assert record["tokens_after_disconnect"] <= 2
        assert 10 <= record["tokens"] < 200


async def test_in_prefill_the_slot_is_free_once_ollama_has_noticed() -> None:
    async with standin_process(prefill_tokens_per_s=100, prefill_notice_s=0.3) as standin:
        await warm(standin)
        asking = asyncio.create_task(chat(standin.ollama_url, "word " * 1000))
        await running(standin)
        await leave(standin, asking)
        following = await chat(standin.ollama_url, "hi", **SHORT)
        assert 0.2 < following.head_s < 1.5, "far less than the ten seconds of the prompt"
        record = await ended(standin, 1)
        assert (record["outcome"], record["tokens"]) == ("client_gone", 0)
        assert 0.2 < record["slot_held_after_disconnect_s"] < 1.0


async def test_in_prefill_llama_cpp_reads_the_whole_prompt_first() -> None:
    async with standin_process(prefill_tokens_per_s=1000, prefill_notice_s=0) as standin:
        await warm(standin)
        asking = asyncio.create_task(chat(standin.openai_url, "word " * 1000, stream=True))
        await running(standin)
        await leave(standin, asking)
        record = await ended(standin, 1)
        assert record["outcome"] == "client_gone"
        assert record["slot_freed"] - record["slot_start"] >= 0.99


async def test_while_waiting_the_one_that_left_is_skipped() -> None:
    async with standin_process(token_gap_ms=10) as standin:
        await warm(standin)
        first = asyncio.create_task(chat(standin.ollama_url, "a story", options={"num_predict": 40}))
        await running(standin)
        waiting = asyncio.create_task(chat(standin.ollama_url, "another story", **ENDLESS))
        await eventually(lambda: all_in_flight(standin, 2), reason="the second waits")
        await leave(standin, waiting)
        following = await chat(standin.ollama_url, "hi", **SHORT)
        assert (await first).last["done_reason"] == "length"
        assert following.status == 200
        record = await ended(standin, 2)
        assert (record["outcome"], record["slot_start"], record["tokens"]) == ("client_gone", None, 0)


async def test_in_a_load_nothing_is_loaded_afterwards() -> None:
    async with standin_process(load_s=0.3) as standin:
        asking = asyncio.create_task(chat(standin.ollama_url, "hi", **SHORT))
        await eventually(lambda: in_flight(standin), reason="the load has begun")
        await leave(standin, asking)
        await ended(standin, 0)
        assert await none_loaded(standin)
        assert await standin.control.loads() == ["given_up"]
        other = await chat(standin.ollama_url, "hi", model="other", **SHORT)
        assert other.status == 200, "a load that took as long has passed meanwhile"
        assert [model["name"] for model in await loaded(standin)] == ["other:latest"]
        assert await standin.control.loads() == ["given_up", "loaded"]


async def test_a_hundred_hang_ups_lose_no_slot() -> None:
    """All have asked before the first leaves: some go in the load, others while waiting, in prefill or in decode."""
    async with standin_process(token_gap_ms=5, answer_tokens=4000, prefill_notice_s=0.01, load_s=0.5) as standin:
        asking = [
            asyncio.create_task(chat(standin.ollama_url, f"word {number} " * 20, **ENDLESS)) for number in range(100)
        ]
        await eventually(lambda: all_in_flight(standin, len(asking)), reason="all have asked")
        random.Random(8).shuffle(asking)
        await asyncio.gather(*(leave(standin, each) for each in asking[:20]))
        for each in asking[20:]:
            await leave(standin, each)
            await asyncio.sleep(0.003)  # pace: a slot is taken by the next one, which may have begun to answer
        await eventually(lambda: nobody(standin), reason="all have left")
        following = await chat(standin.ollama_url, "hi", **SHORT)
        assert following.status == 200
        report = await standin.control.report()
        assert (report["running"], report["in_flight"]) == (0, 0)
        outcomes = Counter(record["outcome"] for record in report["requests"])
        assert outcomes == {"client_gone": 100, "done": 1}


async def all_in_flight(standin: Standin, number: int) -> bool:
    return await in_flight(standin) == number


async def nobody(standin: Standin) -> bool:
    report = await standin.control.report()
    return bool(report["in_flight"] == 0 and report["running"] == 0)


async def test_a_leaked_slot_is_gone_until_its_runner_is() -> None:
    """Nobody notices that its client has left: with one slot nobody is served any more, and every page looks well."""
    async with standin_process(token_gap_ms=10, load_s=0) as standin:
        for url in (standin.ollama_url, standin.openai_url):
            await standin.control.fault("leak_slot")
            leaving = asyncio.create_task(chat(url, "leaving", **ENDLESS))
            await running(standin)
            await leave(standin, leaving)
            following = await chat(url, "following", timeout_s=0.5, **SHORT)
            assert (following.lines, following.end) == ([], "silent")
            await standin.control.runner("smollm2:135m", "kill")
            assert (await chat(url, "after that", **SHORT)).end == "clean"
            await standin.control.reset()
