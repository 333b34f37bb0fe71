"""The stand-in's slots, queue, loads and unloads, each with the outcome that was recorded of Ollama 0.32.15."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.polling import eventually
from tests.standins import QUICK, Standin, chat, plain_client, post, raw, standin_process

SHORT: dict[str, Any] = {"options": {"num_predict": 3}}
LONG: dict[str, Any] = {"options": {"num_predict": 40}}


async def loaded(standin: Standin) -> list[dict[str, Any]]:
    async with plain_client(5.0) as client:
        models: list[dict[str, Any]] = (await client.get(f"{standin.ollama_url}/api/ps")).json()["models"]
        return models


async def warm(standin: Standin, model: str = "smollm2:135m") -> None:
    await chat(standin.ollama_url, [], model=model)


async def running(standin: Standin, how_many: int = 1) -> None:
    """Returns once so many answers have their slot."""

    async def enough() -> bool:
        return bool((await standin.control.report())["running"] >= how_many)

    await eventually(enough, reason=f"{how_many} answers run")


async def test_on_one_slot_the_second_hears_no_header_before_the_first_has_ended() -> None:
    async with standin_process(token_gap_ms=10) as standin:
        await warm(standin)
        first = asyncio.create_task(chat(standin.ollama_url, "a story", **LONG))
        await running(standin)
        second = await chat(standin.ollama_url, "a question", **SHORT)
        assert (await first).status == second.status == 200
        told = {
            record["messages"][0]["content"]: record
            for record in await standin.control.requests(messages=True)
            if record["messages"]
        }
        assert told["a question"]["first_byte"] >= told["a story"]["slot_freed"]


async def test_two_slots_answer_two_at_once_and_the_third_waits() -> None:
    async with standin_process(token_gap_ms=10, slots=2) as standin:
        await warm(standin)
        heard = await asyncio.gather(*(chat(standin.ollama_url, f"question {n}", **LONG) for n in range(3)))
        assert [answer.status for answer in heard] == [200, 200, 200]
        report = await standin.control.report()
        assert report["max_running"] == 2
        assert report["max_in_flight"] == 3
        assert (await loaded(standin))[0]["context_length"] == 4096


async def test_a_hundred_at_once_all_wait_and_are_served_first_come_first_served() -> None:
    async with standin_process(token_gap_ms=0, load_s=0) as standin:
        await warm(standin)
        heard = await asyncio.gather(*(chat(standin.ollama_url, f"question {n}", **SHORT) for n in range(100)))
        assert {answer.status for answer in heard} == {200}
        records = [record for record in await standin.control.requests() if record["slot_start"]]
        assert len(records) == 100
        by_arrival = sorted(records, key=lambda record: record["arrived"])
        by_service = sorted(records, key=lambda record: record["slot_start"])
        assert by_arrival == by_service


async def test_only_those_who_wait_for_a_load_are_refused_by_a_full_queue() -> None:
    async with standin_process(max_queue=1, load_s=0.3, token_gap_ms=0) as standin:
        cold = await asyncio.gather(*(chat(standin.ollama_url, "hi", **SHORT) for _ in range(12)))
        assert sorted(answer.status for answer in cold) == [200] * 2 + [503] * 10
        refused = next(answer for answer in cold if answer.status == 503)
        assert refused.lines == ['{"error":"server busy, please try again.  maximum pending requests exceeded"}']
        assert "retry-after" not in refused.headers
        now_warm = await asyncio.gather(*(chat(standin.ollama_url, "hi", **SHORT) for _ in range(12)))
        assert {answer.status for answer in now_warm} == {200}


async def test_another_model_waits_for_the_running_answer_and_takes_its_place() -> None:
    async with standin_process(max_loaded=1, token_gap_ms=10, load_s=0.1) as standin:
        await warm(standin)
        first = asyncio.create_task(chat(standin.ollama_url, "a story", **LONG))
        await running(standin)
        other = await chat(standin.ollama_url, "hi", model="other", **SHORT)
        assert (await first).last["done_reason"] == "length"
        assert other.last["load_duration"] > 0.1e9
        told = {record["model"]: record for record in await standin.control.requests()}
        assert told["other"]["slot_start"] >= told["smollm2:135m"]["slot_freed"] + 0.1
        assert [model["name"] for model in await loaded(standin)] == ["other:latest"]


async def test_ps_answers_during_a_load_and_does_not_list_the_loading_model() -> None:
    async with standin_process(load_s=0.5) as standin:
        asking = asyncio.create_task(chat(standin.ollama_url, "hi", **SHORT))
        await eventually(lambda: in_flight(standin), reason="the request that loads has arrived")
        assert await loaded(standin) == []
        assert (await asking).status == 200
        assert len(await loaded(standin)) == 1


async def in_flight(standin: Standin) -> int:
    return int((await standin.control.report())["in_flight"])


async def test_load_and_unload_are_one_json_object_even_where_a_stream_was_asked() -> None:
    async with standin_process(load_s=0.1) as standin:
        heard = await chat(standin.ollama_url, [], stream=True)
        assert heard.headers["content-type"] == "application/json; charset=utf-8"
        assert heard.last["done_reason"] == "load"
        assert len(await loaded(standin)) == 1
        assert (await chat(standin.ollama_url, [], keep_alive=-1)).last["done_reason"] == "load"
        assert (await loaded(standin))[0]["expires_at"] > "2300"
        assert (await chat(standin.ollama_url, [], keep_alive=0)).last["done_reason"] == "unload"
        await eventually(lambda: none_loaded(standin), reason="unloaded within a second", timeout_s=1.0)
        assert (await chat(standin.ollama_url, [], keep_alive=0)).last["done_reason"] == "unload"


async def none_loaded(standin: Standin) -> bool:
    return await loaded(standin) == []


async def test_an_answer_with_keep_alive_zero_unloads_its_model() -> None:
    async with standin_process() as standin:
        assert (await chat(standin.ollama_url, "hi", keep_alive=0, **SHORT)).status == 200
        await eventually(lambda: none_loaded(standin), reason="unloaded within a second", timeout_s=1.0)


async def test_a_model_is_unloaded_once_its_keep_alive_has_passed() -> None:
    async with standin_process() as standin:
        await chat(standin.ollama_url, "hi", keep_alive="300ms", **SHORT)
        assert len(await loaded(standin)) == 1
        await eventually(lambda: none_loaded(standin), reason="its 300 ms are over", timeout_s=2.0)


async def test_one_connection_serves_a_second_chat_after_a_stream() -> None:
    async with standin_process(**QUICK) as standin:
        body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "hi"}], **SHORT}
        last = {**body, "options": {"num_predict": 2}}
        closing = post("/api/chat", last).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        both = await raw(standin.ollama_url, post("/api/chat", body) + closing)
        assert both.count(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: ") == 2
        assert both.count(b"\r\n0\r\n\r\n") == 2
        assert [record["reused_connection"] for record in await standin.control.requests()] == [False, True]


async def test_the_same_seed_tells_the_same_text_cold_and_warm_and_another_tells_another() -> None:
    async with standin_process(**QUICK) as standin:
        same = [(await chat(standin.ollama_url, "hi", options={"seed": 42})).text for _ in range(2)]
        other = (await chat(standin.ollama_url, "hi", options={"seed": 43})).text
        assert same[0] == same[1] != other
        assert same[0].startswith("This is the stand-in, not a model:")


async def test_durations_are_those_of_the_wall() -> None:
    async with standin_process(load_s=0.2, prefill_tokens_per_s=100, token_gap_ms=10) as standin:
        heard = await chat(standin.ollama_url, "word " * 20, options={"num_predict": 20})
        told = heard.last
        assert 0.2e9 <= told["load_duration"] < 0.5e9
        assert 0.25e9 <= told["prompt_eval_duration"] < 0.6e9
        assert 0.19e9 <= told["eval_duration"] < 0.5e9
        parts = told["load_duration"] + told["prompt_eval_duration"] + told["eval_duration"]
        assert parts <= told["total_duration"] <= heard.end_s * 1e9
        assert heard.head_s >= 0.45, "load and prefill come before the headers"
