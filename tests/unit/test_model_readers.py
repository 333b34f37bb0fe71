"""Each wire's lines -> pieces and the end, and a request -> each wire's body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.inference.models import ollama, openai
from services.inference.models.connection import check_request
from services.inference.models.factory import open_model_server
from services.inference.models.port import End, ModelFailure, ModelRequest, Piece

ASKED = ModelRequest(model="m", messages=(("system", "s"), ("user", "u")), seed=7)
FULL = ModelRequest(
    model="m", messages=(("user", "u"),), seed=0, temperature=0.0, top_p=0.5, top_k=3, max_tokens=9, stop=("a", "b")
)


def ollama_line(**chunk: Any) -> list[Piece | End]:
    return list(ollama.read_line(json.dumps(chunk).encode()))


def openai_lines(*chunks: dict[str, Any]) -> tuple[list[Piece], openai.ChunkReader]:
    reader = openai.ChunkReader()
    pieces: list[Piece] = []
    for chunk in chunks:
        for line in (b"data: " + json.dumps(chunk).encode(), b""):
            pieces += reader.read(line)
    return pieces, reader


def choice(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_ollamas_body_forbids_truncation_and_leaves_out_what_is_not_set() -> None:
    assert ollama.chat_body(ASKED, num_ctx=None) == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "stream": True,
        "truncate": False,
        "options": {"seed": 7},
    }
    assert ollama.chat_body(FULL, num_ctx=2048)["options"] == {
        "seed": 0,
        "num_ctx": 2048,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "num_predict": 9,
        "stop": ["a", "b"],
    }


def test_openais_body_asks_for_usage_and_sends_top_k_only_where_it_was_set() -> None:
    plain = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert openai.chat_body(ASKED) == plain | {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "seed": 7,
    }
    assert openai.chat_body(FULL) == plain | {
        "messages": [{"role": "user", "content": "u"}],
        "seed": 0,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "max_tokens": 9,
        "stop": ["a", "b"],
    }


@pytest.mark.parametrize(
    "request_",
    [
        ModelRequest(model="", messages=(("user", "u"),), seed=1),
        ModelRequest(model="m", messages=(), seed=1),
        ModelRequest(model="m", messages=(("user", "u"),), seed=1, max_tokens=0),
    ],
)
def test_what_a_server_would_take_for_something_else_is_refused(request_: ModelRequest) -> None:
    check_request(ASKED)
    with pytest.raises(ModelFailure) as failure:
        check_request(request_)
    assert failure.value.code == "model_refused"


@pytest.mark.parametrize(
    ("short", "full"),
    [("M", "m:latest"), ("m:7b", "m:7b"), ("reg:80/ns/m", "reg:80/ns/m:latest"), ("hf.co/a/b:Q4", "hf.co/a/b:q4")],
)
def test_an_ollama_name_without_a_tag_is_its_latest(short: str, full: str) -> None:
    assert ollama.full_name(short) == full == ollama.full_name(full)


def test_ollamas_pieces_keep_thinking_apart_and_the_last_line_may_hold_text() -> None:
    assert ollama_line(message={"content": "", "thinking": "hm"}, done=False) == [Piece(thinking="hm")]
    assert ollama_line(message={"content": "a", "thinking": "b"}, done=False) == [Piece(thinking="b", text="a")]
    assert ollama_line(message={"content": ""}, done=False) == []
    assert ollama_line(message={"content": "x"}, done=True, done_reason="stop", eval_count=2) == [
        Piece(text="x"),
        End("stop", {"completion_tokens": 2}),
    ]
    assert list(ollama.read_line(b"")) == []


def test_a_count_that_ollama_leaves_out_is_not_zero() -> None:
    assert ollama_line(done=True, done_reason="length", prompt_eval_count=0) == [End("length", {"prompt_tokens": 0})]
    assert ollama_line(done=True, done_reason="stop", prompt_eval_count=None, eval_count=True) == [End("stop")]


@pytest.mark.parametrize(
    ("chunk", "code", "again"),
    [
        ({"done": True}, "model_cut", False),
        ({"done": True, "done_reason": "load"}, "model_cut", False),
        ({"error": "an error was encountered"}, "model_error", True),
        ({"error": {"message": "x"}}, "model_error", True),
        ({"message": {"content": ["x"]}}, "model_error", False),
    ],
)
def test_what_ollama_may_say_instead_of_an_answer(chunk: dict[str, Any], code: str, again: bool) -> None:
    with pytest.raises(ModelFailure) as failure:
        ollama_line(**chunk)
    assert (failure.value.code, failure.value.again) == (code, again)


@pytest.mark.parametrize("line", [b"{", b"[]", b"null", b"<html>", b"[" * 100_000])
def test_a_line_that_is_no_object_is_an_error(line: bytes) -> None:
    with pytest.raises(ModelFailure) as failure:
        list(ollama.read_line(line))
    assert (failure.value.code, failure.value.again) == ("model_error", True)


def test_broken_characters_become_u_fffd_on_both_wires() -> None:
    line = b'{"message":{"content":"a\\ud800b\xff\\udc00"}}'
    assert list(ollama.read_line(line)) == [Piece(text="a\ufffdb\ufffd\ufffd")]
    reader = openai.ChunkReader()
    pieces = [*reader.read(b'data: {"choices":[{"delta":{"content":"\\udfff\xc3"}}]}'), *reader.read(b"")]
    assert pieces == [Piece(text="\ufffd\ufffd")]


def test_openais_pieces_with_reasoning_under_either_name() -> None:
    pieces, reader = openai_lines(
        choice(role="assistant", content=None),
        choice(reasoning_content="a"),
        choice(reasoning="b"),
        choice(reasoning_content="c", reasoning="c"),
        choice(content=""),
        choice(content="d", finish="length"),
    )
    assert pieces == [Piece(thinking="a"), Piece(thinking="b"), Piece(thinking="c"), Piece(text="d")]
    assert reader.finished == "length"


def test_openais_usage_may_come_anywhere_and_choices_may_be_missing() -> None:
    last = {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 0}}}
    _, reader = openai_lines({"choices": []}, choice("stop"), last, {"choices": [], "usage": None})
    assert reader.usage == {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 0}
    _, reader = openai_lines(choice("stop") | {"usage": {"completion_tokens": 1, "prompt_tokens_details": None}})
    assert reader.usage == {"completion_tokens": 1}


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        ({"error": {"message": "x"}}, "model_error"),
        ({"error": "x"}, "model_error"),
        ({"object": "error", "message": "x"}, "model_error"),
        ({"error": {"type": "exceed_context_size_error"}}, "context_too_long"),
        (choice("content_filter"), "model_refused"),
        (choice("tool_calls"), "model_cut"),
        (choice("abort"), "model_cut"),
        (choice(content=[{"type": "text"}]), "model_error"),
    ],
)
def test_what_an_openai_server_may_say_instead_of_an_answer(chunk: dict[str, Any], code: str) -> None:
    with pytest.raises(ModelFailure) as failure:
        openai_lines(chunk)
    assert failure.value.code == code


def test_an_error_that_is_null_is_none() -> None:
    assert openai_lines(choice(content="x") | {"error": None})[0] == [Piece(text="x")]


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:11434", "ftp://127.0.0.1", "http://", "http://user:word@127.0.0.1", "http://[::1", "http://a\x00b"],
)
def test_a_url_that_no_client_can_use_is_refused_when_the_server_is_opened(url: str) -> None:
    for kind in ("ollama", "openai"):
        with pytest.raises(ValueError, match="URL"):
            open_model_server(kind, url)


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="ASCII") as error:
        open_model_server("openai", "http://127.0.0.1/v1", "geheim\nX-Other: 1")
    assert "geheim" not in str(error.value)
