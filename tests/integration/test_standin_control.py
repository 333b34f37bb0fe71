"""The stand-in's report, its scripts and speed, and who may reach its listeners."""

from __future__ import annotations

import time
from typing import Any

from tests.standins import QUICK, Standin, chat, plain_client, post, raw, standin_process


def all_urls(standin: Standin) -> list[str]:
    return [standin.ollama_url, standin.openai_url.removesuffix("/v1"), standin.control_url]


async def test_the_report_tells_what_was_asked_and_what_came_of_it() -> None:
    async with standin_process(**QUICK) as standin:
        before = time.monotonic()
        await chat(standin.ollama_url, "hi", options={"num_predict": 5, "seed": 7}, truncate=False, keep_alive="2m")
        report = await standin.control.report(messages=True)
        (record,) = report["requests"]
        assert (record["wire"], record["model"], record["outcome"]) == ("ollama", "smollm2:135m", "done")
        assert record["fields"]["options"] == {"num_predict": 5, "seed": 7}
        assert (record["fields"]["truncate"], record["fields"]["keep_alive"]) == (False, "2m")
        assert record["messages"] == [{"role": "user", "content": "hi"}]
        assert (record["pieces_sent"], record["tokens"], record["prompt_tokens"]) == (5, 5, 10)
        moments = ["arrived", "slot_start", "first_byte", "slot_freed", "ended"]
        times = [record[moment] for moment in moments]
        assert times == sorted(times)
        assert before < times[0] < times[-1] < time.monotonic(), "one clock for all processes of a machine"
        assert (report["in_flight"], report["max_in_flight"], report["max_running"]) == (0, 1, 1)
        assert "messages" not in (await standin.control.requests())[0]
        await standin.control.reset()
        assert await standin.control.requests() == []


async def test_refused_requests_are_reported_with_what_could_be_read() -> None:
    async with standin_process(**QUICK) as standin:
        await chat(standin.ollama_url, "hi", model="nosuch")
        await raw(standin.ollama_url, post("/api/chat", [1]), until=b"cannot unmarshal")
        records = await standin.control.requests()
        assert [(record["model"], record["outcome"]) for record in records] == [("nosuch", "refused"), ("", "refused")]


async def test_a_script_is_told_word_for_word_with_thinking_on_both_wires() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.script(["one", " two"], thinking=["hm", " so"], model="thinker", times=2)
        heard = await chat(standin.ollama_url, "hi", model="thinker")
        told = [line["message"] for line in heard.objects]
        assert [message.get("thinking") for message in told] == ["hm", " so", None, None, None]
        assert heard.text == "one two"
        assert (heard.last["done_reason"], heard.last["eval_count"]) == ("stop", 5)
        whole = (await chat(standin.openai_url, "hi", model="thinker")).last["choices"][0]["message"]
        assert whole == {"role": "assistant", "content": "one two", "reasoning_content": "hm so"}
        assert (await chat(standin.ollama_url, "hi", model="thinker")).text.startswith("This is the stand-in")


async def test_stop_strings_across_pieces_end_a_script() -> None:
    async with standin_process(**QUICK) as standin:
        await standin.control.script(["a", "b EN", "D c"])
        heard = await chat(standin.ollama_url, "hi", options={"stop": ["END"]})
        assert (heard.text, heard.last["done_reason"]) == ("ab ", "stop")


async def test_the_speed_may_be_changed_while_it_runs() -> None:
    async with standin_process(token_gap_ms=0) as standin:
        changed = await standin.control.speed(token_gap_ms=20, answer_tokens=10)
        assert (changed["token_gap_ms"], changed["answer_tokens"]) == (20, 10)
        heard = await chat(standin.ollama_url, "hi")
        assert (len(heard.lines), heard.end_s >= 0.18) == (11, True)


REFUSED: list[tuple[str, Any]] = [
    ("/faults", {"kind": "nosuch"}),
    ("/faults", {"kind": "status"}),
    ("/faults", {"kind": "status", "row": "nosuch"}),
    ("/faults", {"kind": "stall", "secnods": 1}),
    ("/script", {"pieces": "no list"}),
    ("/speed", {"load_s": -1}),
    ("/speed", []),
    ("/runner", {"model": "smollm2:135m", "action": "kill"}),
    ("/nope", {}),
]


async def test_the_control_plane_refuses_what_it_does_not_know() -> None:
    async with standin_process(**QUICK) as standin, plain_client(5.0, standin.control_url) as client:
        for path, body in REFUSED:
            answer = await client.post(path, json=body)
            assert answer.status_code in (400, 404), (path, body)
            assert answer.json()["error"]
        assert (await client.post("/faults", content=b"{")).status_code == 400


FOREIGN_HOSTS = ["evil.example", "evil.example:11434", "127.0.0.1.evil.example", "[::", "8.8.8.8"]


async def test_a_foreign_host_is_refused_on_every_listener() -> None:
    async with standin_process(**QUICK) as standin:
        for host in FOREIGN_HOSTS:
            for url in all_urls(standin):
                request = f"GET /api/tags HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
                answer = await raw(url, request)
                assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n"), (host, url)
                assert b"Content-Length: 0\r\n" in answer
                assert answer.endswith(b"\r\n\r\n")


async def test_a_foreign_origin_is_refused_on_every_listener() -> None:
    async with standin_process(**QUICK) as standin, plain_client(5.0) as client:
        for url, path in zip(all_urls(standin), ("/api/tags", "/v1/models", "/report"), strict=True):
            assert (await client.get(url + path)).status_code == 200
            refused = await client.get(url + path, headers={"Origin": "http://evil.example"})
            assert (refused.status_code, refused.content) == (403, b"")


async def test_what_is_no_http_is_refused_and_the_stand_in_lives() -> None:
    async with standin_process(**QUICK) as standin:
        assert (await raw(standin.ollama_url, b"\x00\xff nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await chat(standin.ollama_url, "hi")).status == 200
