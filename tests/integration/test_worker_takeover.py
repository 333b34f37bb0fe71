"""Steps 5 to 14 with a real history and two real workers, when the first one dies or sleeps in mid-answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from contracts import ids, subjects
from services.runtime import streams
from tests.brokers import broker
from tests.conversing import USER, Talker, message, session_started, talker
from tests.polling import eventually
from tests.services import Service, service
from tests.standins import standin_process

MODEL = "small:1b"
WORDS = [f"word{number} " for number in range(40)]
TERMINALS = {"answer_completed", "answer_failed", "answer_cancelled"}


@pytest.mark.parametrize("wakes", [False, True])
async def test_a_turn_whose_worker_is_gone_is_answered_once(tmp_path: Path, wakes: bool) -> None:
    async with broker(tmp_path) as b, standin_process(models=[MODEL], load_s=0, slots=2, token_gap_ms=100) as server:
        await server.control.script(WORDS, times=None)
        shared = {**b.environment(), "CHATLOG_DATA_DIR": str(tmp_path / "data")}
        asked = {**shared, "CHATLOG_MODEL_SERVER": "ollama", "CHATLOG_OLLAMA_URL": server.ollama_url}
        async with (
            service("history", tmp_path, shared),
            talker(b) as talk,
            service("inference", tmp_path, asked, label="first") as first,
            service("inference", tmp_path, asked, label="second", started=False) as second,
        ):
            await soon_delivered_again(talk)
            session_id = ids.session_id_of_name(USER, "takeover")
            await talk.watch(session_id)
            await talk.say(session_started(session_id, name="takeover", model=MODEL))
            await talk.say(message(session_id, "Tell me a story."))
            await eventually(lambda: len(tokens(talk, session_id, 1)) > 3, reason="the first worker answers")
            await leave(first, wakes=wakes)
            await second.start()
            await soon_delivered_again(talk)
            await eventually(lambda: tokens(talk, session_id, 2), reason="the second worker answers", timeout_s=60)
            if wakes:
                # It holds an old delivery and half an answer, and must end nobody's.
                first.resume()
            await eventually(lambda: ended(talk, session_id), reason="the turn ends", timeout_s=60)
            await eventually(lambda: emptied(talk), reason="the context is acked")
            assert (await talk.types(session_id))[3:] == ["answer_started", "answer_started", "answer_completed"]
        end = ended(talk, session_id)[0]["event"]["data"]
        assert (end["attempt"], end["text"]) == (2, "".join(WORDS))
        assert "".join(frame["text"] for frame in tokens(talk, session_id, 2)) == end["text"]
        assert len(ended(talk, session_id)) == 1


async def leave(worker: Service, *, wakes: bool) -> None:
    if wakes:
        worker.pause()
    else:
        await worker.kill()


async def soon_delivered_again(talk: Talker) -> None:
    """Shorten the queue's patience with silent workers, so that a test need not wait for 10 s."""
    consumer = dataclasses.replace(streams.context_consumer(MODEL), ack_wait=2.0)
    await talk.bus.jetstream().add_consumer(subjects.CONTEXT_STREAM, consumer)


async def emptied(talk: Talker) -> bool:
    return (await talk.bus.jetstream().stream_info(subjects.CONTEXT_STREAM)).state.messages == 0


def tokens(talk: Talker, session_id: str, attempt: int) -> list[dict[str, str]]:
    frames = [json.loads(frame) for frame in talk.frames[session_id]]
    return [frame for frame in frames if frame["type"] == "token" and frame["attempt"] == attempt]


def ended(talk: Talker, session_id: str) -> list[dict[str, dict[str, dict[str, object]]]]:
    frames = [json.loads(frame) for frame in talk.frames[session_id]]
    return [frame for frame in frames if frame["type"] == "event" and frame["event"]["type"] in TERMINALS]
