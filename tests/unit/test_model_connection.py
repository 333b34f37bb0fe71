"""Byte for byte: what an adapter makes of splits, silences, cuts, hang-ups and odd framing, on both wires."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from services.inference.models import connection
from services.inference.models.factory import Kind, open_model_server
from services.inference.models.port import End, ModelFailure, ModelRequest, ModelServer, Patience, Piece
from tests.polling import eventually
from tests.raw_servers import RawServer, Reply, Wire, page, raw_server, silent, stream

ASKED = ModelRequest(model="m", messages=(("user", "u"),), seed=7)
PATIENT = Patience(first_token_s=20, between_tokens_s=20)
HASTY = Patience(first_token_s=0.3, between_tokens_s=0.3)
MODELS: dict[str, Reply] = {"GET /v1/models": page({"object": "list", "data": [{"id": "m"}]})}


@dataclass(frozen=True)
class Spelling:
    """How a wire says a text and the end."""

    kind: Kind
    route: str

    def text(self, text: str) -> bytes:
        if self.kind == "ollama":
            return json.dumps({"message": {"content": text}, "done": False}, ensure_ascii=False).encode() + b"\n"
        return self.event({"choices": [{"delta": {"content": text}, "finish_reason": None}]})

    @property
    def end(self) -> bytes:
        if self.kind == "ollama":
            return b'{"message":{"content":""},"done":true,"done_reason":"stop"}\n'
        return self.finish + b"data: [DONE]\n\n"

    @property
    def finish(self) -> bytes:
        return self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})

    @property
    def nothing(self) -> bytes:
        """A sign of an open connection and of nothing else."""
        return b': ping\n\ndata: {"choices":[]}\n\n' if self.kind == "openai" else self.text("")

    def event(self, chunk: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


SPELLINGS = [Spelling("ollama", "POST /api/chat"), Spelling("openai", "POST /v1/chat/completions")]


@pytest.fixture(params=SPELLINGS, ids=[spelling.kind for spelling in SPELLINGS])
def wire_of(request: pytest.FixtureRequest) -> Spelling:
    assert isinstance(request.param, Spelling)
    return request.param


@asynccontextmanager
async def served(spelling: Spelling, reply: Reply) -> AsyncIterator[tuple[RawServer, ModelServer]]:
    async with raw_server(MODELS | {spelling.route: reply}) as server:
        path = "/v1" if spelling.kind == "openai" else ""
        adapter = open_model_server(spelling.kind, server.url + path, "secret")
        try:
            yield server, adapter
        finally:
            await adapter.aclose()


async def answer(adapter: ModelServer, patience: Patience = PATIENT) -> tuple[str, End | ModelFailure]:
    """The whole text and how it ended."""
    text = ""
    async with aclosing(adapter.answer(ASKED, patience)) as items:
        try:
            async for item in items:
                if isinstance(item, End):
                    return text, item
                text += item.text
        except ModelFailure as failure:
            return text, failure
    raise AssertionError("the answer just stopped")


async def outcome(spelling: Spelling, reply: Reply, patience: Patience = PATIENT) -> tuple[str, str, bool]:
    """Text, code (or stop, length), again."""
    async with served(spelling, reply) as (_, adapter):
        text, end = await answer(adapter, patience)
    return (text, end.end, False) if isinstance(end, End) else (text, end.code, end.again)


ODD_TEXT = "a\u0085b\u2028c\u2029d\u2603\U0001f600<&>e\r"


@pytest.mark.parametrize("step", [1, 2, 5, 100_000])
async def test_a_body_may_be_split_anywhere(wire_of: Spelling, step: int) -> None:
    body = wire_of.text(ODD_TEXT) + wire_of.text("f") + wire_of.end
    parts = [body[at : at + step] for at in range(0, len(body), step)]
    assert await outcome(wire_of, stream(*parts)) == (ODD_TEXT + "f", "stop", False)


async def test_a_line_of_a_megabyte_is_one_piece_and_an_endless_one_is_an_error(wire_of: Spelling) -> None:
    long = "x" * (1024 * 1024)
    assert await outcome(wire_of, stream(wire_of.text(long), wire_of.end)) == (long, "stop", False)
    endless = [b"x" * (1024 * 1024)] * 9
    text, code, _ = await outcome(wire_of, stream(wire_of.text("a"), *endless))
    assert (text, code) == ("a", "model_error")


async def test_the_first_token_time_covers_the_headers(wire_of: Spelling) -> None:
    assert await outcome(wire_of, silent, HASTY) == ("", "model_stalled", False)


async def test_signs_of_an_open_connection_are_no_signs_of_life(wire_of: Spelling) -> None:
    async def chatter(wire: Wire) -> None:
        await wire.head()
        for pause_s in [0.05] * 200:
            await wire.chunks(wire_of.nothing)
            await asyncio.sleep(pause_s)  # pace: the chatter of a wedged server

    async def one_then_chatter(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(wire_of.text("a"))
        for pause_s in [0.05] * 200:
            await wire.chunks(wire_of.nothing)
            await asyncio.sleep(pause_s)  # pace: the chatter of a wedged server

    for reply, text in ((chatter, ""), (one_then_chatter, "a")):
        assert await asyncio.wait_for(outcome(wire_of, reply, HASTY), 8) == (text, "model_stalled", False)


async def test_a_slow_drip_of_pieces_is_life_and_the_time_of_our_own_side_does_not_count(wire_of: Spelling) -> None:
    loop = asyncio.get_running_loop()

    async def drip(wire: Wire) -> None:
        await wire.head()
        for piece in "abcd":
            await wire.chunks(wire_of.text(piece))
            await asyncio.sleep(0.15)  # pace: a slow model
        await wire.chunks(wire_of.end)
        await wire.end()

    async with served(wire_of, drip) as (_, adapter), aclosing(adapter.answer(ASKED, HASTY)) as items:
        assert await anext(items) == Piece(text="a")
        busy_until = loop.time() + 0.5
        await eventually(lambda: loop.time() > busy_until, reason="a worker that is busy with a piece")
        assert [item async for item in items] == [*(Piece(text=letter) for letter in "bcd"), End("stop")]


async def test_a_clean_end_without_the_servers_word_is_a_cut(wire_of: Spelling) -> None:
    half = wire_of.text("b")[:-12]
    assert await outcome(wire_of, stream()) == ("", "model_cut", True)
    assert await outcome(wire_of, stream(wire_of.nothing)) == ("", "model_cut", True)
    assert await outcome(wire_of, stream(wire_of.text("a"))) == ("a", "model_cut", False)
    assert await outcome(wire_of, stream(wire_of.text("a"), half)) == ("a", "model_cut", False)
    assert await outcome(wire_of, page(b"", "204 No Content")) == ("", "model_refused", False)


async def test_a_last_line_without_its_end_counts_if_it_is_whole(wire_of: Spelling) -> None:
    assert await outcome(wire_of, stream(wire_of.text("a"), wire_of.end.rstrip())) == ("a", "stop", False)


async def test_a_connection_that_breaks_is_lost(wire_of: Spelling) -> None:
    async def close_before_headers(wire: Wire) -> None:
        wire.writer.close()

    async def garbage(wire: Wire) -> None:
        await wire.send(b"SSH-2.0-OpenSSH_9.2\r\n")
        wire.writer.close()

    async def in_mid_chunk(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(wire_of.text("a"))
        await wire.send(b"ff\r\n" + wire_of.text("b")[:9])
        wire.writer.close()

    async def reset(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(wire_of.text("a"))
        await wire.reader.read(0)
        wire.reset()

    async def too_short(wire: Wire) -> None:
        await wire.head("200 OK", "Content-Length: 100000", chunked=False)
        await wire.send(wire_of.text("a"))
        wire.writer.close()

    async def unknown_length(wire: Wire) -> None:
        await wire.head("200 OK", "Connection: close", chunked=False)
        await wire.send(wire_of.text("a"))
        wire.writer.close()

    assert await outcome(wire_of, close_before_headers) == ("", "model_lost", True)
    assert await outcome(wire_of, garbage) == ("", "model_lost", True)
    for reply in (in_mid_chunk, too_short, unknown_length):
        assert await outcome(wire_of, reply) == ("a", "model_lost", True)
    _, code, again = await outcome(wire_of, reset)  # what the kernel still held is lost with it
    assert (code, again) == ("model_lost", True)


async def test_a_body_of_unknown_length_is_whole_if_the_server_says_so(wire_of: Spelling) -> None:
    async def reply(wire: Wire) -> None:
        await wire.head("200 OK", "Connection: close", chunked=False)
        await wire.send(wire_of.text("a") + wire_of.end)
        wire.writer.close()

    assert await outcome(wire_of, reply) == ("a", "stop", False)


async def test_a_server_that_is_not_there_is_unreachable(wire_of: Spelling) -> None:
    async with served(wire_of, silent) as (server, adapter):
        if wire_of.kind == "openai":
            await adapter.models()
        gone = server.url
    other = open_model_server(wire_of.kind, gone)
    for ask in (other.models(), anext(other.answer(ASKED, PATIENT))):
        with pytest.raises(ModelFailure) as failure:
            await ask
        assert (failure.value.code, failure.value.again) == ("model_unreachable", True)
    await other.aclose()


async def test_a_redirect_is_refused_and_not_followed(wire_of: Spelling) -> None:
    reply = page(b"", "307 Temporary Redirect", "Location: /elsewhere")
    async with served(wire_of, reply) as (server, adapter):
        _, failure = await answer(adapter)
        assert isinstance(failure, ModelFailure)
        assert failure.code == "model_refused"
        assert not server.asked("POST /elsewhere")


@pytest.mark.parametrize("patience", [HASTY, PATIENT])
async def test_a_status_counts_even_where_its_body_never_ends(
    wire_of: Spelling, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ERROR_BODY_TIMEOUT_S", 0.5)

    async def reply(wire: Wire) -> None:
        await wire.head("503 Service Unavailable", "Retry-After: 3")
        await wire.chunks(b"<html>")
        await wire.silence()

    async with served(wire_of, reply) as (_, adapter):
        _, failure = await asyncio.wait_for(answer(adapter, patience), 3)
    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.again, failure.retry_after_s) == ("model_busy", True, 3)


async def test_a_page_instead_of_a_stream_is_an_error(wire_of: Spelling) -> None:
    assert (await outcome(wire_of, page(b"<html>\n<p>hello</p>\n</html>\n")))[1] == "model_error"
    assert await outcome(wire_of, page({"error": {"type": "exceed_context_size_error"}})) == (
        "",
        "context_too_long",
        False,
    )


async def test_a_compressed_answer_is_not_guessed_at(wire_of: Spelling) -> None:
    body = gzip.compress(wire_of.text("a") + wire_of.end)
    async with served(wire_of, page(body, "200 OK", "Content-Encoding: gzip")) as (server, adapter):
        _, failure = await answer(adapter)
        assert isinstance(failure, ModelFailure)
        assert failure.code == "model_error"
        assert {seen.headers["accept-encoding"] for seen in server.seen} == {"identity"}


async def test_closing_the_answer_closes_the_socket_at_once(wire_of: Spelling) -> None:
    async def one_then_silence(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(wire_of.text("a"))
        await wire.silence()

    async with served(wire_of, one_then_silence) as (server, adapter):
        items = adapter.answer(ASKED, PATIENT)
        await anext(items)
        before = server.hung_up
        await items.aclose()
        await eventually(lambda: server.hung_up > before, reason="the server sees the hang-up", timeout_s=3)


@pytest.mark.parametrize("after_piece", [True, False])
async def test_cancelling_who_waits_closes_the_socket_at_once(wire_of: Spelling, after_piece: bool) -> None:
    async def reply(wire: Wire) -> None:
        if after_piece:
            await wire.head()
            await wire.chunks(wire_of.text("a"))
        await wire.silence()

    async with served(wire_of, reply) as (server, adapter):
        waiting = asyncio.create_task(answer(adapter))
        await eventually(lambda: server.asked(wire_of.route), reason="the request has come")
        before = server.hung_up
        waiting.cancel()
        await eventually(lambda: server.hung_up > before, reason="the server sees the hang-up", timeout_s=3)
        assert (await asyncio.gather(waiting, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_a_stalled_answer_closes_its_socket_too(wire_of: Spelling) -> None:
    async with served(wire_of, silent) as (server, adapter):
        await answer(adapter, HASTY)
        chat_connections = 1
        await eventually(lambda: server.hung_up >= chat_connections, reason="the socket is closed", timeout_s=3)


async def test_no_connection_is_used_twice(wire_of: Spelling) -> None:
    """A server may have closed its end of an idle one without a word: llama.cpp does so after each stream."""
    async with served(wire_of, stream(wire_of.text("a"), wire_of.end)) as (server, adapter):
        for _ in range(3):
            assert await answer(adapter) == ("a", End("stop"))
        assert server.connections == len(server.seen)


async def test_the_end_does_not_wait_for_the_bodys_end(wire_of: Spelling) -> None:
    async def reply(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(wire_of.text("a"), wire_of.end)
        await wire.silence()

    async with served(wire_of, reply) as (_, adapter):
        assert await asyncio.wait_for(answer(adapter), 3) == ("a", End("stop"))
        everything = [item async for item in adapter.answer(ASKED, PATIENT)]
        assert everything == [Piece(text="a"), End("stop")]


async def test_proxy_variables_lead_no_conversation_elsewhere(
    wire_of: Spelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with served(wire_of, stream(wire_of.text("a"), wire_of.end)) as (server, adapter):
        assert await answer(adapter) == ("a", End("stop"))
        assert server.asked(wire_of.route)[0].headers["authorization"] == "Bearer secret"


# What only OpenAI's wire has: an end in three parts, names that the server does not check, and no list of its own kind.
OPENAI = SPELLINGS[1]


@pytest.mark.parametrize(
    "after", [b"", b"data: [DONE]\n\n", b'data: {"error":"late"}\n\n', b"data: {\n\n", b": ping\n\n"]
)
async def test_finish_reason_is_the_servers_word_whatever_follows(after: bytes) -> None:
    assert await outcome(OPENAI, stream(OPENAI.text("a"), OPENAI.finish, after)) == ("a", "stop", False)


async def test_a_reset_or_silence_after_finish_reason_costs_only_the_usage() -> None:
    async def lost(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(OPENAI.text("a"), OPENAI.finish)
        await wire.send(b"ff\r\n")
        wire.writer.close()

    async def quiet(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(OPENAI.text("a"), OPENAI.finish)
        await wire.silence()

    for reply in (lost, quiet):
        assert await asyncio.wait_for(outcome(OPENAI, reply, PATIENT), 5) == ("a", "stop", False)


async def test_done_without_finish_reason_is_a_cut() -> None:
    assert await outcome(OPENAI, stream(b"data: [DONE]\n\n")) == ("", "model_cut", True)
    assert await outcome(OPENAI, stream(OPENAI.text("a"), b"data: [DONE]\n\n")) == ("a", "model_cut", False)


async def test_a_name_that_the_server_does_not_list_is_never_sent() -> None:
    async with raw_server(
        {"GET /v1/models": page({"data": [{"id": "other", "aliases": ["n"]}]}), OPENAI.route: silent}
    ) as server:
        adapter = open_model_server("openai", f"{server.url}/v1")
        with pytest.raises(ModelFailure) as failure:
            await anext(adapter.answer(ASKED, PATIENT))
        assert failure.value.code == "model_not_found"
        assert not server.asked(OPENAI.route)
        await adapter.aclose()


async def test_the_list_is_asked_once_and_again_after_a_loss() -> None:
    async def lost(wire: Wire) -> None:
        wire.writer.close()

    async with served(OPENAI, stream(OPENAI.text("a"), OPENAI.end)) as (server, adapter):
        for _ in range(2):
            await answer(adapter)
        assert len(server.asked("GET /v1/models")) == 1
        server.replies[OPENAI.route] = lost
        for _ in range(2):
            await answer(adapter)
        assert len(server.asked("GET /v1/models")) == 2
