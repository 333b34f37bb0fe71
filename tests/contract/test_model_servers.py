"""The port to a model server, held by both adapters: each with the stand-in on its own wire, openai also with the box.

Compared are the order of pieces, the end, which usage counts there are, and the failure's code; not texts or counts.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.inference.models.factory import Kind
from services.inference.models.port import End, ModelRequest, Piece
from services.standin.faults import STATUS_ROWS
from tests import boxes
from tests.boxes import Box, box
from tests.model_answers import HASTY, PATIENT, Subject, ask, rest_of
from tests.polling import eventually
from tests.standins import Standin, standin_process

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = boxes.MODEL
THINKER = "thinker:latest"
MODELS = [MODEL, {"name": THINKER, "capabilities": ["completion", "thinking"]}]
WINDOW = 4096  # of the box and of the stand-in alike
QUESTION = ModelRequest(MODEL, (("user", "What is the capital of France?"),), seed=7, max_tokens=24)
# A server sees a hang-up within milliseconds, on a machine that is busy with other tests later; the story takes longer.
HANG_UP_S = 4.0
STORY = ModelRequest(MODEL, (("user", "Tell me a long story about a fox."),), seed=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_standin() -> AsyncIterator[Standin]:
    async with standin_process(models=MODELS, load_s=0, token_gap_ms=2, slots=2) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Box]:
    async with box(tmp_path_factory.mktemp("box"), slots=2) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def standin(running_standin: Standin) -> Standin:
    await running_standin.control.reset()
    return running_standin


def subject_of(kind: Kind, standin: Standin) -> Subject:
    return Subject(kind, standin.ollama_url if kind == "ollama" else standin.openai_url)


@pytest.fixture(params=["ollama", "openai"])
def faulty(request: pytest.FixtureRequest, standin: Standin) -> Subject:
    """Both adapters, each with a server that can be made to fail."""
    return subject_of(request.param, standin)


@pytest.fixture(params=["ollama-standin", "openai-standin", "openai-box"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Both adapters, openai also with a real model."""
    kind, _, server = request.param.partition("-")
    if server == "box":
        running: Box = request.getfixturevalue("running_box")
        return Subject("openai", running.openai_url, running.api_key)
    return subject_of(kind, request.getfixturevalue("standin"))


# What every server can: answer, stop, count, refuse.


async def test_an_answer_comes_in_pieces_and_ends_once(subject: Subject) -> None:
    heard = await ask(subject, replace(QUESTION, max_tokens=None))
    assert heard.order == ["text"]
    assert len(heard.pieces) > 1
    assert heard.verdict == ("stop", False)


async def test_max_tokens_ends_an_answer_as_length(subject: Subject) -> None:
    heard = await ask(subject, replace(QUESTION, max_tokens=3))
    assert heard.verdict == ("length", False)
    assert 1 <= len(heard.pieces) <= 3


async def test_the_end_tells_the_counts_that_its_server_knows(subject: Subject) -> None:
    heard = await ask(subject, QUESTION)
    assert heard.end is not None
    told = {"prompt_tokens", "completion_tokens"} | ({"cached_tokens"} if subject.kind == "openai" else set())
    assert set(heard.end.usage) == told
    assert heard.end.usage["completion_tokens"] >= len(heard.pieces)


async def test_a_stop_string_ends_the_answer_before_it(subject: Subject) -> None:
    whole = (await ask(subject, QUESTION)).text
    word = whole.split()[2]
    heard = await ask(subject, replace(QUESTION, stop=(word,)))
    assert heard.verdict == ("stop", False)
    assert whole.startswith(heard.text.rstrip())
    assert word not in heard.text


async def test_the_same_seed_gives_the_same_answer(subject: Subject) -> None:
    texts = {(await ask(subject, replace(QUESTION, temperature=1.0))).text for _ in range(2)}
    assert len(texts) == 1


async def test_all_options_are_taken(subject: Subject) -> None:
    heard = await ask(subject, replace(QUESTION, temperature=0.0, top_p=0.5, top_k=5, max_tokens=5, stop=("#",)))
    assert heard.failure is None


async def test_a_conversation_beyond_the_window_is_refused_and_not_cut(subject: Subject) -> None:
    long = replace(QUESTION, messages=(("user", "word " * 2 * WINDOW),))
    many = replace(QUESTION, messages=(("user", "word " * 300), ("assistant", "yes")) * 20 + (("user", "so?"),))
    for request in (long, many):
        assert (await ask(subject, request)).verdict == ("context_too_long", False)


async def test_a_model_that_the_server_does_not_have_is_not_found(subject: Subject) -> None:
    heard = await ask(subject, replace(QUESTION, model="nosuch:1b"))
    assert heard.verdict == ("model_not_found", subject.kind == "openai")  # where only a list lacks it: lists flap


async def test_an_empty_conversation_is_refused(subject: Subject) -> None:
    assert (await ask(subject, replace(QUESTION, messages=()))).verdict == ("model_refused", False)


async def test_the_models_are_told_with_the_window_in_force(subject: Subject) -> None:
    await ask(subject, QUESTION)  # an Ollama tells the window of a loaded model only
    server = subject.open()
    windows = {model.name: model.window for model in await server.models()}
    await server.aclose()
    assert windows[MODEL] == WINDOW


async def test_one_adapter_answers_many_times(subject: Subject) -> None:
    server = subject.open()
    for _ in range(10):
        items = [item async for item in server.answer(replace(QUESTION, max_tokens=2), PATIENT)]
        assert [type(item) for item in items[-2:]] == [Piece, End]
    await server.aclose()


# Hanging up: the only cancel.


async def test_closing_an_answer_of_the_box_frees_its_slot(running_box: Box) -> None:
    server = Subject("openai", running_box.openai_url, running_box.api_key).open()
    async with aclosing(server.answer(STORY, PATIENT)) as items:
        for _ in range(5):
            await anext(items)
        assert await running_box.busy_slots() == 1

    async def free() -> bool:
        return await running_box.busy_slots() == 0

    await eventually(free, reason="the slot is free again", timeout_s=HANG_UP_S)
    await server.aclose()


async def test_closing_an_answer_hangs_up_at_once(faulty: Subject, standin: Standin) -> None:
    await standin.control.script(["word "] * 5000)
    server = faulty.open()
    async with aclosing(server.answer(STORY, PATIENT)) as items:
        for _ in range(5):
            await anext(items)

    async def noticed() -> dict[str, Any]:
        record = (await standin.control.requests())[-1]
        assert record["slot_freed"], record
        return record

    record = await eventually(noticed, reason="the server sees the hang-up", timeout_s=HANG_UP_S)
    assert (record["outcome"], record["tokens"] < 1000) == ("client_gone", True)
    await server.aclose()


async def test_cancelling_who_waits_for_a_header_hangs_up(faulty: Subject, standin: Standin) -> None:
    await standin.control.fault("stall", after=None)
    waiting = asyncio.create_task(ask(faulty, QUESTION))

    async def reported(outcome: str) -> bool:
        return [record["outcome"] for record in await standin.control.requests()] == [outcome]

    await eventually(lambda: reported("in_flight"), reason="the request has come")
    waiting.cancel()
    await eventually(lambda: reported("client_gone"), reason="the server sees the hang-up", timeout_s=HANG_UP_S)


async def test_a_killed_box_is_a_lost_answer_and_then_unreachable(tmp_path: Path) -> None:
    async with box(tmp_path) as running:
        subject = Subject("openai", running.openai_url, running.api_key)
        server = subject.open()
        items = server.answer(STORY, PATIENT)
        assert isinstance(await anext(items), Piece)
        await running.stop(signal.SIGKILL)
        assert (await rest_of(items)).verdict == ("model_lost", True)
        assert (await ask(subject, QUESTION)).verdict == ("model_unreachable", True)
        await server.aclose()


@pytest.mark.parametrize("kind", ["ollama", "openai"])
async def test_a_killed_server_is_a_lost_answer_and_then_unreachable(kind: Kind) -> None:
    async with standin_process(load_s=0, token_gap_ms=20) as running:
        subject = subject_of(kind, running)
        server = subject.open()
        items = server.answer(STORY, PATIENT)
        assert isinstance(await anext(items), Piece)
        running.kill()
        assert (await rest_of(items)).verdict == ("model_lost", True)
        await asyncio.to_thread(running.process.wait, 30)  # until then its port still takes connections
        assert (await ask(subject, QUESTION)).verdict == ("model_unreachable", True)
        await server.aclose()


async def test_without_the_key_a_server_refuses(running_box: Box) -> None:
    heard = await ask(Subject("openai", running_box.openai_url, "wrong"), QUESTION)
    assert heard.verdict == ("model_refused", False)


# Planned faults, on both wires.

ROWS: dict[str, tuple[str, bool]] = {
    "bad_request": ("model_refused", False),
    "too_long": ("context_too_long", False),
    "unauthorized": ("model_refused", False),
    "forbidden": ("model_refused", False),
    "not_found": ("model_not_found", False),
    "no_route": ("model_not_found", False),
    "no_method": ("model_refused", False),
    "too_many": ("model_busy", True),
    "canceled": ("model_refused", False),
    "runner_stopped": ("model_error", True),
    "runner_exit": ("model_error", True),
    "load_timeout": ("model_error", True),
    "panic": ("model_error", True),
    "proxy_502": ("model_error", True),
    "busy": ("model_busy", True),
    "proxy_504": ("model_error", True),
}


async def test_every_status_row_of_the_standin_has_its_line_here() -> None:
    assert set(ROWS) == set(STATUS_ROWS)


@pytest.mark.parametrize("row", ROWS)
async def test_a_status_before_the_stream(faulty: Subject, standin: Standin, row: str) -> None:
    await standin.control.fault("status", row=row)
    heard = await ask(faulty, QUESTION)
    assert (heard.pieces, heard.verdict) == ([], ROWS[row])
    assert (await ask(faulty, QUESTION)).verdict == ("length", False)


async def test_retry_after_is_told(faulty: Subject, standin: Standin) -> None:
    await standin.control.fault("status", row="busy", headers={"Retry-After": "12"})
    heard = await ask(faulty, QUESTION)
    assert heard.failure is not None
    assert (heard.failure.code, heard.failure.retry_after_s) == ("model_busy", 12)


# (fault, how many pieces come before it, verdict). None: before any header.
BREAKS: list[tuple[str, dict[str, Any], int | None, tuple[str, bool]]] = [
    ("error_line", {}, 3, ("model_error", True)),
    ("error_line", {}, 0, ("model_error", True)),
    ("error_line", {"text": "the input length exceeds the context length"}, 0, ("context_too_long", False)),
    ("clean_end", {}, 3, ("model_cut", False)),
    ("clean_end", {}, 0, ("model_cut", True)),
    ("reset", {}, None, ("model_lost", True)),
    ("reset", {}, 3, ("model_lost", True)),
    ("cut", {}, None, ("model_lost", True)),
    ("cut", {}, 0, ("model_lost", True)),
    ("cut", {}, 3, ("model_lost", True)),
    ("kill_runner", {}, 3, ("model_error", True)),
]


@pytest.mark.parametrize(("kind", "fields", "after", "verdict"), BREAKS)
async def test_a_broken_answer_ends_with_its_code(
    faulty: Subject, standin: Standin, kind: str, fields: dict[str, Any], after: int | None, verdict: tuple[str, bool]
) -> None:
    await standin.control.fault(kind, after=after, **fields)
    heard = await ask(faulty, QUESTION)
    assert heard.verdict == verdict
    if kind != "reset":  # what the kernel had not yet handed over is lost with a reset
        assert len(heard.pieces) == (after or 0)
    assert (await ask(faulty, QUESTION)).verdict == ("length", False)


@pytest.mark.parametrize(
    ("kind", "after"), [("hang", 0), ("stall", None), ("stall", 0), ("stall", 3), ("stop_runner", 3)]
)
async def test_a_silent_server_is_stalled(faulty: Subject, standin: Standin, kind: str, after: int | None) -> None:
    await standin.control.fault(kind, after=after)
    heard = await asyncio.wait_for(ask(faulty, QUESTION, HASTY), 10)
    assert heard.verdict == ("model_stalled", False)
    assert len(heard.pieces) == (after or 0)
    if kind == "stop_runner":
        await standin.control.runner(MODEL, "continue")


async def test_a_slow_drip_is_an_answer(faulty: Subject, standin: Standin) -> None:
    await standin.control.fault("drip", seconds=0.3)
    heard = await ask(faulty, replace(QUESTION, max_tokens=4), HASTY)
    assert (len(heard.pieces), heard.verdict) == (4, ("length", False))


ODD = ("a\u0085b", "\u2028c\u2029", "\U0001f600\u2603", '<&>"\\', "\r\n", "\x0c", " ", "data: [DONE]", "}\n\n")


@pytest.mark.parametrize("size", [1, 3, 4096])
async def test_odd_text_comes_through_whatever_the_bytes_are_split(
    faulty: Subject, standin: Standin, size: int
) -> None:
    await standin.control.script(ODD)
    await standin.control.fault("split", size=size)
    heard = await ask(faulty, replace(QUESTION, max_tokens=None))
    assert (heard.text, heard.verdict) == ("".join(ODD), ("stop", False))


async def test_a_piece_of_a_megabyte_is_one_piece(faulty: Subject, standin: Standin) -> None:
    long = "x" * 1_000_000
    await standin.control.script([long, "y"])
    heard = await ask(faulty, replace(QUESTION, max_tokens=None))
    assert [len(piece.text) for piece in heard.pieces] == [len(long), 1]


async def test_thinking_comes_first_and_apart(faulty: Subject, standin: Standin) -> None:
    await standin.control.script(["It", " is"], thinking=["hm", "m"])
    heard = await ask(faulty, replace(QUESTION, model=THINKER, max_tokens=None))
    assert heard.order == ["thinking", "text"]
    assert (heard.text, heard.verdict) == ("It is", ("stop", False))


async def test_every_native_request_asks_for_the_window_and_for_no_truncation(standin: Standin) -> None:
    server = subject_of("ollama", standin).open(num_ctx=2048)
    for _ in range(2):
        async for _ in server.answer(QUESTION, PATIENT):
            continue
    await server.aclose()
    fields = [record["fields"] for record in await standin.control.requests()]
    assert [(asked["truncate"], asked["options"]["num_ctx"]) for asked in fields] == [(False, 2048)] * 2


# What only servers of OpenAI's API do, each in its way.


@pytest.mark.parametrize(
    ("dialect", "verdict", "counted"),
    [
        ({"headers": "arrival"}, ("length", False), True),
        ({"headers": "first_piece"}, ("length", False), True),
        ({"usage": "always"}, ("length", False), True),
        ({"usage": "never"}, ("length", False), False),
        ({"tail": "empty_choices"}, ("length", False), True),
        ({"tail": "no_choices"}, ("length", False), True),
        ({"done_marker": False}, ("length", False), True),
        ({"finish_reason": False}, ("model_cut", False), False),
        ({"finish_reason": False, "done_marker": False}, ("model_cut", False), False),
        ({"comment": ": OPENROUTER PROCESSING"}, ("length", False), True),
        ({"unknown_model": "serve"}, ("length", False), True),
    ],
)
async def test_dialects_of_openai_servers(
    standin: Standin, dialect: dict[str, Any], verdict: tuple[str, bool], counted: bool
) -> None:
    await standin.control.fault("dialect", dialect=dialect)
    heard = await ask(subject_of("openai", standin), QUESTION)
    assert heard.verdict == verdict
    assert (heard.end is not None and bool(heard.end.usage)) == counted


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_is_thinking_under_either_name(standin: Standin, name: str) -> None:
    await standin.control.fault("dialect", dialect={"reasoning": name})
    heard = await ask(subject_of("openai", standin), replace(QUESTION, model=THINKER, max_tokens=None))
    assert heard.order == ["thinking", "text"]


@pytest.mark.parametrize("form", ["object", "string"])
async def test_an_error_in_the_stream_may_have_either_form(standin: Standin, form: str) -> None:
    await standin.control.fault("error_line", after=2, form=form)
    heard = await ask(subject_of("openai", standin), QUESTION)
    assert (len(heard.pieces), heard.verdict) == (2, ("model_error", True))


async def test_a_server_that_would_serve_any_name_is_not_asked(standin: Standin) -> None:
    await standin.control.fault("dialect", dialect={"unknown_model": "serve"})
    heard = await ask(subject_of("openai", standin), replace(QUESTION, model="nosuch:1b"))
    assert heard.verdict == ("model_not_found", True)
    assert await standin.control.requests() == []
