"""Every fault of the control plane, as it looks on the wire."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from services.standin.faults import STATUS_ROWS
from tests.standins import QUICK, Standin, chat, post, raw, standin_process

ASKED: dict[str, Any] = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "hi"}]}
ODD = ["plain", "\u0085", "\u2028", "\u2029", "<&>", "😀", "é", "中文", '"\\\n\t', "\x00"]


def urls(standin: Standin) -> tuple[str, str]:
    return standin.ollama_url, standin.openai_url


async def outcome(standin: Standin) -> str:
    return str((await standin.control.requests())[-1]["outcome"])


async def test_every_status_row_comes_before_the_stream_with_its_own_body() -> None:
    async with standin_process(**QUICK) as standin:
        for name, row in STATUS_ROWS.items():
            await standin.control.fault("status", row=name, wire="ollama")
            heard = await chat(standin.ollama_url, "hi")
            assert heard.status == row.status
            body = "\n".join(heard.lines)
            assert body == (row.text if row.content_type is not None else json.dumps({"error": row.text}))
        assert (await chat(standin.ollama_url, "hi")).status == 200, "each was met once"


async def test_on_openais_wire_a_status_row_is_an_error_object_and_may_say_retry_after() -> None:
    async with standin_process(**QUICK) as standin:
        for name, status in (("too_many", 429), ("busy", 503)):
            await standin.control.fault("status", row=name, headers={"Retry-After": "2"})
            heard = await chat(standin.openai_url, "hi")
            assert (heard.status, heard.headers["retry-after"]) == (status, "2")
            assert heard.last["error"]["code"] == status


async def test_an_empty_clean_end_is_a_status_of_200_without_a_body() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault("status", status=200, body="", headers={"Content-Type": "text/event-stream"})
        heard = await chat(standin.openai_url, "hi", stream=True)
        assert (heard.status, heard.end, heard.lines) == (200, "clean", [])
        assert heard.headers["content-type"] == "text/event-stream"


async def test_an_error_line_is_the_last_of_a_clean_200() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault("error_line", after=3, text="it broke", wire="ollama")
        heard = await chat(standin.ollama_url, "hi")
        assert (heard.status, heard.end, len(heard.lines)) == (200, "clean", 4)
        assert heard.lines[-1] == '{"error":"it broke"}'
        assert await outcome(standin) == "error"
        for form in ("object", "string"):
            await standin.control.fault("error_line", after=3, text="it broke", form=form, wire="openai")
            heard = await chat(standin.openai_url, "hi", stream=True)
            assert (heard.status, heard.end) == (200, "clean")
            error = heard.last["error"]
            assert (error if form == "string" else error["message"]) == "it broke"


async def test_a_clean_end_without_its_word_on_both_wires() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault("clean_end", after=3, times=None)
        native = await chat(standin.ollama_url, "hi")
        assert (native.end, len(native.lines)) == ("clean", 3)
        assert not any(line["done"] for line in native.objects)
        assert (await chat(standin.ollama_url, "hi", stream=False)).last["done"] is False
        other = await chat(standin.openai_url, "hi", stream=True)
        assert other.end == "clean"
        assert "data: [DONE]" not in other.lines
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in other.objects)


@pytest.mark.parametrize("kind", ["reset", "cut"])
async def test_a_stream_that_is_lost_in_the_middle(kind: str) -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault(kind, after=3, times=None)
        for url in urls(standin):
            heard = await chat(url, "hi", stream=True)
            assert (heard.status, heard.end) == (200, "cut")
            assert await outcome(standin) == kind


@pytest.mark.parametrize("kind", ["reset", "cut"])
async def test_a_connection_that_is_lost_before_any_header(kind: str) -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault(kind, after=None, times=None)
        for url in urls(standin):
            heard = await chat(url, "hi", stream=True)
            assert (heard.status, heard.end) == (0, "cut")


async def test_a_reset_is_a_reset_and_a_cut_ends_inside_a_chunk() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault("reset", after=2)
        assert (await raw(standin.ollama_url, post("/api/chat", ASKED))).endswith(b"<reset>")
        await standin.control.fault("cut", after=2)
        received = await raw(standin.ollama_url, post("/api/chat", ASKED))
        size, part = received.split(b"\r\n")[-2:]
        assert 0 < len(part) < int(size, 16)


async def test_a_stall_lasts_as_long_as_was_asked_or_for_ever() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault("stall", after=2, seconds=0.4, times=2)
        for url in urls(standin):
            heard = await chat(url, "hi", stream=True)
            assert (heard.status, heard.end) == (200, "clean")
            assert heard.end_s - heard.head_s >= 0.4
        await standin.control.fault("stall", after=2)
        heard = await chat(standin.ollama_url, "hi", timeout_s=0.5)
        assert (heard.status, heard.end, len(heard.lines)) == (200, "silent", 2)


async def test_a_hang_comes_before_the_headers() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault("hang", seconds=0.4)
        assert (await chat(standin.ollama_url, "hi")).head_s >= 0.4
        await standin.control.fault("hang", times=None)
        for url in urls(standin):
            heard = await chat(url, "hi", timeout_s=0.3)
            assert (heard.status, heard.end) == (0, "silent")


async def test_a_slow_drip_waits_before_each_piece() -> None:
    async with standin_process(token_gap_ms=0) as standin:
        await standin.control.fault("drip", seconds=0.05)
        heard = await chat(standin.ollama_url, "hi", options={"num_predict": 10})
        assert heard.end_s - heard.head_s >= 0.45


@pytest.mark.parametrize("size", [1, 7])
async def test_any_split_of_the_bytes_gives_the_same_answer_and_may_cut_a_character(size: int) -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.script(ODD, times=None)
        whole = await chat(standin.ollama_url, "hi")
        await standin.control.fault("split", size=size, times=None)
        split = await chat(standin.ollama_url, "hi")
        assert split.text == whole.text == "".join(ODD)
        received = await raw(standin.ollama_url, post("/api/chat", ASKED), until=b"\r\n0\r\n\r\n")
        body = received.split(b"\r\n\r\n", 1)[1]
        chunks = body.split(b"\r\n")[1::2]
        assert max(len(chunk) for chunk in chunks) == size
        assert any(0x80 <= chunk[0] < 0xC0 for chunk in chunks if chunk), "a chunk begins inside a character"


async def test_odd_characters_are_escaped_as_go_does_and_plain_elsewhere() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.script(ODD, times=None)
        native = await raw(standin.ollama_url, post("/api/chat", ASKED), until=b"\r\n0\r\n\r\n")
        for escaped in (rb"\u2028", rb"\u2029", rb"\u003c\u0026\u003e", rb"\u0000"):
            assert escaped in native
        assert "\u0085".encode() in native, "the one that Go leaves as it is"
        heard = await chat(standin.openai_url, "hi", stream=True)
        deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in heard.objects]
        assert "".join(deltas) == "".join(ODD)
        other = await raw(
            standin.openai_url, post("/v1/chat/completions", {**ASKED, "stream": True}), until=b"\r\n0\r\n\r\n"
        )
        assert "\u2028".encode() in other


async def test_a_line_of_a_megabyte() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.script(["a", "b" * 1_000_000, "c"], times=2)
        assert len((await chat(standin.ollama_url, "hi")).text) == 1_000_002
        heard = await chat(standin.openai_url, "hi", stream=True)
        assert max(len(line) for line in heard.lines) > 1_000_000


async def test_faults_meet_the_nth_request_a_model_a_wire_or_a_marker() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.fault("status", row="busy", nth=2)
        assert [(await chat(standin.ollama_url, "hi")).status for _ in range(3)] == [200, 503, 200]
        await standin.control.fault("status", row="busy", model="other", times=None)
        assert (await chat(standin.ollama_url, "hi")).status == 200
        assert (await chat(standin.ollama_url, "hi", model="other")).status == 503
        await standin.control.fault("status", row="panic", marker="[now]", wire="openai", times=None)
        assert (await chat(standin.openai_url, "hi")).status == 200
        assert (await chat(standin.ollama_url, "do it [now]")).status == 200
        assert (await chat(standin.openai_url, "do it [now]")).status == 500
        await standin.control.reset()
        assert (await chat(standin.openai_url, "do it [now]")).status == 200


async def test_plain_pages_have_faults_too() -> None:
    async with standin_process(**QUICK) as standin:
        tags = b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        models = tags.replace(b"/api/tags", b"/v1/models")
        await standin.control.fault("status", row="proxy_502", route="tags")
        await standin.control.fault("hang", seconds=0.3, route="models", wire="openai")
        assert (await raw(standin.ollama_url, tags)).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        began = time.monotonic()
        assert (await raw(standin.openai_url, models)).startswith(b"HTTP/1.1 200 OK\r\n")
        assert time.monotonic() - began >= 0.3

        await standin.control.fault("unlisted", unlisted=["tooler"], route="tags", times=2)
        await standin.control.fault("unlisted", unlisted=["tooler"], route="models", wire="openai", times=2)
        for url, request in ((standin.ollama_url, tags), (standin.openai_url, models)):
            assert [b"tooler" in await raw(url, request) for _ in range(3)] == [False, False, True]
