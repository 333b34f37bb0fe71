"""Prompts longer than the window, and prompts read before, with the outcome that was recorded of Ollama 0.32.15."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.test_standin_slots import loaded
from tests.standins import QUICK, Standin, chat, standin_process

SHORT: dict[str, Any] = {"num_predict": 4, "seed": 1}
MANY: list[dict[str, Any]] = [
    {"role": "user" if n % 2 == 0 else "assistant", "content": f"fact number {n} is that {n} is a number"}
    for n in range(81)
] + [{"role": "user", "content": "And now?"}]
ONE_LONG = "word " * 2000
CUT_REFUSED = "the prompt is longer than the context length currently available to the model;"


async def window_in_force(standin: Standin) -> int:
    return int((await loaded(standin))[0]["context_length"])


async def test_messages_are_dropped_from_the_front_in_silence() -> None:
    async with standin_process(window=512, **QUICK) as standin:
        heard = await chat(standin.ollama_url, MANY, options=SHORT)
        assert (heard.status, heard.last["done_reason"]) == (200, "length")
        assert 450 < heard.last["prompt_eval_count"] < 512
        assert await window_in_force(standin) == 512


async def test_truncate_false_is_llama_servers_json_as_a_string() -> None:
    async with standin_process(window=512, **QUICK) as standin:
        for asked in (MANY, ONE_LONG):
            heard = await chat(standin.ollama_url, asked, truncate=False, options=SHORT)
            assert (heard.status, heard.headers["content-type"]) == (400, "application/json")
            inner = json.loads(heard.last["error"])["error"]
            assert (inner["code"], inner["type"], inner["n_ctx"]) == (400, "exceed_context_size_error", 512)
            assert inner["n_prompt_tokens"] > 512
        assert inner["n_prompt_tokens"] == 2010


async def test_one_message_over_the_window_is_cut_to_half_of_it() -> None:
    async with standin_process(window=512, **QUICK) as standin:
        heard = await chat(standin.ollama_url, ONE_LONG, options=SHORT)
        assert (heard.status, heard.last["prompt_eval_count"]) == (200, 258)


async def test_shift_false_reloads_and_then_refuses() -> None:
    async with standin_process(window=512, load_s=0.2) as standin:
        await chat(standin.ollama_url, [])
        heard = await chat(standin.ollama_url, ONE_LONG, shift=False, options=SHORT)
        assert heard.status == 400
        assert heard.last["error"].startswith(CUT_REFUSED)
        assert heard.head_s >= 0.2, "it was loaded again"


async def test_without_shift_an_answer_ends_where_the_window_does() -> None:
    async with standin_process(window=64, answer_tokens=200, token_gap_ms=0) as standin:
        off = await chat(standin.ollama_url, "a story", shift=False)
        assert off.last["done_reason"] == "length"
        assert off.last["prompt_eval_count"] + off.last["eval_count"] == 64
        on = await chat(standin.ollama_url, "a story")
        assert (on.last["done_reason"], on.last["eval_count"]) == ("stop", 201)


async def test_num_ctx_asked_and_not_asked_again_reloads_both_times() -> None:
    async with standin_process(window=512, load_s=0.1) as standin:
        seen = []
        for options in (SHORT, {**SHORT, "num_ctx": 1024}, {**SHORT, "num_ctx": 1024}, SHORT):
            heard = await chat(standin.ollama_url, "hi", options=options)
            seen.append((heard.last["load_duration"] >= 0.1e9, await window_in_force(standin)))
        assert seen == [(True, 512), (True, 1024), (False, 1024), (True, 512)]


async def test_a_megabyte_is_cut_to_half_the_window_in_silence() -> None:
    async with standin_process(**QUICK) as standin:
        heard = await chat(standin.ollama_url, "word " * 200_000, options=SHORT)
        assert (heard.status, heard.last["prompt_eval_count"]) == (200, 2050)


async def test_a_cached_prompt_counts_its_tokens_but_not_its_time() -> None:
    async with standin_process(prefill_tokens_per_s=500, token_gap_ms=0) as standin:
        first = [{"role": "system", "content": "You are brief. " * 40}, {"role": "user", "content": "Write a poem."}]
        cold = (await chat(standin.ollama_url, first, options=SHORT)).last
        again = (await chat(standin.ollama_url, first, options=SHORT)).last
        said = (await chat(standin.ollama_url, first, options=SHORT)).text
        longer = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "Another."}]
        turn = (await chat(standin.ollama_url, longer, options=SHORT)).last
        await chat(standin.ollama_url, "another conversation", options=SHORT)
        back = (await chat(standin.ollama_url, first, options=SHORT)).last
        assert cold["prompt_eval_count"] == again["prompt_eval_count"] == back["prompt_eval_count"]
        assert turn["prompt_eval_count"] > cold["prompt_eval_count"]
        for told in (again, turn, back):
            assert told["prompt_eval_duration"] < cold["prompt_eval_duration"] / 3
