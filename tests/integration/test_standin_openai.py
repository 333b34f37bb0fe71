"""The stand-in on OpenAI's wire: llama.cpp's stream, and the dialects of other servers."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.integration.test_standin_slots import running, warm
from tests.standins import QUICK, Heard, Standin, chat, plain_client, post, raw, standin_process

STREAM: dict[str, Any] = {"stream": True, "max_tokens": 5}


def deltas(heard: Heard, name: str) -> list[str]:
    told = [chunk["choices"][0]["delta"] for chunk in heard.objects if chunk.get("choices")]
    return [delta[name] for delta in told if delta.get(name) is not None]


def reasons(heard: Heard) -> list[str]:
    told = [chunk["choices"][0]["finish_reason"] for chunk in heard.objects if chunk.get("choices")]
    return [reason for reason in told if reason]


async def test_a_stream_has_role_pieces_reason_usage_if_asked_and_done() -> None:
    async with standin_process(**QUICK) as standin:
        plain = await chat(standin.openai_url, "hi", **STREAM)
        assert plain.headers["content-type"] == "text/event-stream"
        assert plain.objects[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
        assert (len(deltas(plain, "content")), reasons(plain), plain.lines[-1]) == (5, ["length"], "data: [DONE]")
        assert not any("usage" in chunk for chunk in plain.objects)
        asked = await chat(standin.openai_url, "hi", stream_options={"include_usage": True}, **STREAM)
        assert asked.last["choices"] == []
        assert asked.last["usage"] == {
            "completion_tokens": 5,
            "prompt_tokens": 10,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 9},
        }
        assert deltas(asked, "content") == deltas(plain, "content")


async def test_an_answer_that_is_not_streamed_says_the_same() -> None:
    async with standin_process(**QUICK) as standin:
        streamed = await chat(standin.openai_url, "hi", stream=True)
        whole = (await chat(standin.openai_url, "hi")).last
        assert whole["choices"][0]["message"]["content"] == "".join(deltas(streamed, "content"))
        assert (whole["choices"][0]["finish_reason"], reasons(streamed)) == ("stop", ["stop"])
        assert whole["usage"]["completion_tokens"] == 49
        assert (await chat(standin.ollama_url, "hi")).text == "".join(deltas(streamed, "content"))


async def test_headers_come_with_the_slot_before_the_prompt_is_read() -> None:
    async with standin_process(prefill_tokens_per_s=50, token_gap_ms=10) as standin:
        await warm(standin)
        first = asyncio.create_task(chat(standin.openai_url, "word " * 20, **STREAM))
        await running(standin)
        second = await chat(standin.openai_url, "hi", **STREAM)
        heard = await first
        assert heard.head_s < 0.3 < 0.5 < heard.end_s
        assert second.head_s > 0.1, "the slot was busy"
        await standin.control.fault("dialect", dialect={"headers": "first_piece"})
        assert (await chat(standin.openai_url, "word two " * 10, **STREAM)).head_s > 0.3


async def test_dialects_of_other_servers() -> None:
    async with standin_process(**QUICK) as standin:

        async def spoken(**dialect: Any) -> Heard:
            await standin.control.fault("dialect", dialect=dialect)
            return await chat(standin.openai_url, "hi", **STREAM)

        assert reasons(await spoken(finish_reason=False)) == []
        assert (await spoken(done_marker=False)).lines[-1] != "data: [DONE]"
        assert "usage" in (await spoken(usage="always")).last
        assert (await spoken(tail="empty_choices")).last["choices"] == []
        assert "choices" not in (await spoken(tail="no_choices")).last
        commented = await spoken(comment=": ping")
        assert commented.lines[0] == ": ping"
        assert commented.lines.count(": ping") == 6
        asked: dict[str, Any] = {**STREAM, "stream_options": {"include_usage": True}}
        await standin.control.fault("dialect", dialect={"usage": "never"})
        assert not any("usage" in chunk for chunk in (await chat(standin.openai_url, "hi", **asked)).objects)


async def test_headers_at_once_come_while_the_slot_is_busy() -> None:
    async with standin_process(token_gap_ms=20) as standin:
        await warm(standin)
        first = asyncio.create_task(chat(standin.openai_url, "a story", stream=True, max_tokens=30))
        await running(standin)
        await standin.control.fault("dialect", dialect={"headers": "arrival"})
        second = await chat(standin.openai_url, "hi", **STREAM)
        assert second.head_s < 0.3 < second.end_s
        await first


async def test_thinking_has_a_field_of_its_own_in_either_spelling() -> None:
    async with standin_process(thinking_tokens=6) as standin:
        asked: dict[str, Any] = {"model": "thinker", "stream": True, "max_tokens": 10}
        heard = await chat(standin.openai_url, "hi", **asked)
        assert (len(deltas(heard, "reasoning_content")), len(deltas(heard, "content"))) == (6, 4)
        await standin.control.fault("dialect", dialect={"reasoning": "reasoning"})
        heard = await chat(standin.openai_url, "hi", **asked)
        assert (len(deltas(heard, "reasoning")), deltas(heard, "reasoning_content")) == (6, [])


async def test_refusals_are_llama_cpps() -> None:
    async with standin_process(window=512, **QUICK) as standin:
        long = await chat(standin.openai_url, "word " * 600, **STREAM)
        error = long.last["error"]
        assert (long.status, error["type"], error["n_ctx"]) == (400, "exceed_context_size_error", 512)
        assert error["n_prompt_tokens"] == 610
        assert (await chat(standin.openai_url, "hi", temperature="x")).status == 400
        assert (await chat(standin.openai_url, "hi", model="nosuch")).status == 404
        await standin.control.fault("dialect", dialect={"unknown_model": "serve"})
        assert (await chat(standin.openai_url, "hi", model="nosuch")).status == 200
        bad = await raw(
            standin.openai_url,
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{",
            until=b"parse_error",
        )
        assert bad.startswith(b"HTTP/1.1 400 ")
        assert (await raw(standin.openai_url, post("/nope", {}), until=b"File Not Found")).startswith(b"HTTP/1.1 404 ")


async def models(standin: Standin) -> list[dict[str, Any]]:
    async with plain_client(5.0) as client:
        listed: list[dict[str, Any]] = (await client.get(f"{standin.openai_url}/models")).json()["data"]
        return listed


async def test_the_list_of_models_tells_the_window_as_the_dialect_does() -> None:
    async with standin_process(models=["m", {"name": "n", "window": 512}]) as standin:
        assert [(model["id"], model["meta"]["n_ctx"]) for model in await models(standin)] == [("m", 4096), ("n", 512)]
        await standin.control.fault("dialect", route="models", dialect={"window_told": "max_model_len"})
        assert [model["max_model_len"] for model in await models(standin)] == [4096, 512]
        await standin.control.fault("dialect", route="models", dialect={"window_told": "nowhere"})
        assert not {"meta", "max_model_len"} & set((await models(standin))[0])


async def test_with_a_key_all_but_health_want_it() -> None:
    async with standin_process(api_key="k-1") as standin:
        base = standin.openai_url.removesuffix("/v1")
        async with plain_client(5.0, base) as client:
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.get("/v1/models", headers={"Authorization": "Bearer k-1"})).status_code == 200
        assert (await chat(standin.openai_url, "hi")).status == 401
