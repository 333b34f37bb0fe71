"""Every plain fault of a model server, through the whole stack: the right end with a stable code, on both wires.

All of a wire's faults run at once, each in a session of its own, met by a marker in its message.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.chatting import chatter, http, new_session, send
from tests.folding import SessionView
from tests.installations import MODEL, Installation, installation
from tests.polling import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(500)]

# Short, so that three attempts of every fault fit into a minute; the shapes of the waits are production's.
PATIENCE: dict[str, Any] = {"CHATLOG_FIRST_TOKEN_S": "6", "CHATLOG_BETWEEN_TOKENS_S": "4"}
PIECES = ["one ", "two ", "three ", "four ", "five"]
ENDED_TIMEOUT_S = 240.0
BOTH = ("ollama", "openai")
# The stand-in's model that can think, by the name that people say: it is listed as thinker:latest.
THINKER = "thinker"
ODD = ["a\u0085b", "\u2028", "🌌", "\u2029<&>", "\ufeff", "é"]


@dataclass(frozen=True)
class Case:
    """A fault that each of a turn's attempts meets, and how the turn ends."""

    name: str
    faults: tuple[dict[str, Any], ...]
    ends: str  # a code of answer_failed, or completed
    text: str = ""
    wires: tuple[str, ...] = BOTH
    pieces: tuple[str, ...] = tuple(PIECES)
    thinking: tuple[str, ...] = ()
    usage: frozenset[str] | None = None
    model: str = MODEL

    @property
    def marker(self) -> str:
        return f"[{self.name}]"


def fault(kind: str, **fields: Any) -> tuple[dict[str, Any], ...]:
    return ({"kind": kind, **fields},)


def dialect(**fields: Any) -> tuple[dict[str, Any], ...]:
    return fault("dialect", dialect=fields)


WHOLE = "".join(PIECES)
TWO = "one two "
CASES = (
    Case("404 before the stream", fault("status", status=404, body="gone"), "model_not_found"),
    Case("400 before the stream", fault("status", status=400, body='{"error":"no"}'), "model_refused"),
    Case("403 with an empty body", fault("status", status=403, body=""), "model_refused"),
    Case("500 before the stream", fault("status", status=500, body='{"error":"x"}'), "model_error"),
    Case("502 as HTML", fault("status", status=502, body="<html>bad</html>"), "model_error"),
    Case("503 before the stream", fault("status", status=503, body='{"error":"busy"}'), "model_busy"),
    Case("429 with Retry-After", fault("status", status=429, headers={"Retry-After": "1"}, body=""), "model_busy"),
    Case("hang before headers", fault("hang"), "model_stalled"),
    Case("error line at once", fault("error_line", after=0), "model_error"),
    Case("error line in mid-answer", fault("error_line", after=2), "model_error", TWO),
    Case("clean end with nothing", fault("clean_end", after=0), "model_cut"),
    Case("clean end in mid-answer", fault("clean_end", after=2), "model_cut", TWO),
    Case("reset before a byte", fault("reset", after=None), "model_lost"),
    Case("reset in mid-answer", fault("reset", after=2), "model_lost", TWO),
    Case("cut in a chunk", fault("cut", after=2), "model_lost", TWO),
    Case("stall before a piece", fault("stall", after=0), "model_stalled"),
    Case("stall in mid-answer", fault("stall", after=2), "model_stalled", TWO),
    Case("slow drip", fault("drip", seconds=0.3), "completed", WHOLE),
    Case("split at every byte", fault("split", size=1), "completed", "".join(ODD), pieces=tuple(ODD)),
    Case("odd characters", (), "completed", "".join(ODD), pieces=tuple(ODD)),
    Case("a line of 1 MB", (), "completed", "x" * 300_000, pieces=("x" * 300_000,)),
    Case("thinking", (), "completed", WHOLE, thinking=("hm ", "so"), model=THINKER),
    Case("error as a string", fault("error_line", after=2, form="string"), "model_error", TWO, ("openai",)),
    Case("headers at once", dialect(headers="arrival"), "completed", WHOLE, ("openai",)),
    Case("comment lines", dialect(comment=": ping"), "completed", WHOLE, ("openai",)),
    Case("no finish_reason", dialect(finish_reason=False), "model_cut", WHOLE, ("openai",)),
    Case("no [DONE]", dialect(done_marker=False), "completed", WHOLE, ("openai",)),
    Case("no usage", dialect(usage="never"), "completed", WHOLE, ("openai",), usage=frozenset()),
    Case("a last chunk without choices", dialect(tail="no_choices"), "completed", WHOLE, ("openai",)),
    Case(
        "reasoning",
        dialect(reasoning="reasoning"),
        "completed",
        WHOLE,
        ("openai",),
        thinking=("hm ", "so"),
        model=THINKER,
    ),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BOTH)
async def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    folder = tmp_path_factory.mktemp(request.param)
    async with installation(folder, slots=len(CASES), wire=request.param, **PATIENCE) as up:
        yield up


def wire_of(running: Installation) -> str:
    return running.workers[0].environment["CHATLOG_MODEL_SERVER"]


async def end_of(client: httpx.AsyncClient, case: Case, session_id: str) -> dict[str, Any]:
    """Send the case's message and wait for its turn's end, as the views have it."""
    answer = await send(client, session_id, f"meet {case.marker}", model=case.model)
    assert answer.status_code == 201, answer.text

    async def ended() -> dict[str, Any] | None:
        found = await answer_of(client, session_id)
        return found if found["status"] not in ("waiting", "running") else None

    end: dict[str, Any] = await eventually(ended, reason=f"the end of {case.name}", timeout_s=ENDED_TIMEOUT_S)
    return end


async def answer_of(client: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    listed = (await client.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
    found: dict[str, Any] = listed[-1]
    return found


async def test_every_plain_fault_has_its_end(running: Installation) -> None:
    wire = wire_of(running)
    cases = [case for case in CASES if wire in case.wires]
    for case in cases:
        await running.standin.control.script(case.pieces, thinking=case.thinking, marker=case.marker, times=None)
        for each in case.faults:
            await running.standin.control.fault(**each, marker=case.marker, times=None)
    async with http(running.http()) as client, chatter(running.ws()) as socket:
        sessions = [await new_session(client) for _ in cases]
        views = [await socket.attach(each, each) for each in sessions]
        ends = await asyncio.gather(*(end_of(client, *pair) for pair in zip(cases, sessions, strict=True)))
        assert not [problem for pair in zip(cases, ends, strict=True) for problem in problems(*pair)]
        await socket.until(lambda: all(terminals(view) for view in views), "every end on the socket")
        for view, end in zip(views, ends, strict=True):
            assert not view.broken
            assert shown(view) == (end["text"], end["thinking"] or "")
        await rebuild_views(running)
        assert [await answer_of(client, each) for each in sessions] == ends, "after a replay"


def terminals(view: SessionView) -> list[str]:
    return [answer.ended_by for answer in view.answers.values() if answer.ended_by]


def shown(view: SessionView) -> tuple[str, str]:
    """What the socket's tokens and end came to: the same text, thinking by its tokens alone."""
    [answer] = [answer for answer in view.answers.values() if answer.ended_by]
    if answer.ended_by == "answer_completed":
        turn_id = next(iter(view.token_frames))
        by_tokens = "".join(json.loads(raw)["text"] for raw in view.token_frames[turn_id])
        assert by_tokens == answer.text
    return answer.text, answer.thinking


async def rebuild_views(running: Installation) -> None:
    await running.history.stop()
    for path in (running.folder / "data").glob("views-*"):
        path.unlink()
    await running.history.start()


def problems(case: Case, end: dict[str, Any]) -> list[str]:
    """In what an end is not what the case says."""
    found = end["code"] or end["status"]
    checks = {
        f"ended {found}, not {case.ends}": found == case.ends,
        f"text {end['text'][:40]!r}, not {case.text[:40]!r}": end["text"] == case.text,
        f"thinking {end['thinking']!r}": (end["thinking"] or "") == "".join(case.thinking),
        f"usage {end['usage']}": case.usage is None or set(end["usage"] or {}) == case.usage,
    }
    return [f"{case.name}: {problem}" for problem, holds in checks.items() if not holds]
