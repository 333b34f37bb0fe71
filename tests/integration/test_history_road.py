"""Steps 5 to 10 on real parts: a history process on a real broker, spoken to as gateways and workers do."""

from __future__ import annotations

import json
from pathlib import Path

from contracts import ids
from contracts.queries import MessagesQuery, SessionsQuery, TurnQuery
from tests.brokers import broker
from tests.conversing import MODEL, USER, claim, completed, message, new_id, session_started, talker
from tests.services import service


async def test_one_message_goes_the_whole_way(tmp_path: Path) -> None:
    async with (
        broker(tmp_path) as nats,
        service("history", tmp_path, {**nats.environment(), "CHATLOG_DATA_DIR": str(tmp_path / "data")}),
        talker(nats) as talk,
    ):
        session_id = ids.session_id_of_name(USER, "road")
        await talk.watch(session_id)
        await talk.be_worker()
        started = await talk.say(session_started(session_id, name="road"))
        assert (started.code, started.version) == (None, 1)

        said = message(session_id, "What is a road?", model=MODEL)
        outcome = await talk.say(said)
        assert (outcome.code, outcome.version) == (None, 2)
        context, delivery = await talk.context()
        assert context.turn_id == said.turn_id
        assert context.messages == (("user", "What is a road?"),)

        run = new_id()
        await talk.hold(context.turn_id)
        await talk.publish(claim(session_id, context.turn_id, run))
        assert await talk.word(context.turn_id) == {
            "type": "go",
            "turn_id": context.turn_id,
            "run": run,
            "attempt": 1,
            "last": False,
        }
        answer = completed(session_id, context.turn_id, text="A way that is taken.")
        assert (await talk.say(answer)).version == 5
        assert (await talk.word(context.turn_id, 2))["type"] == "recorded"
        await delivery.ack()

        types = ["session_started", "user_message_submitted", "context_assembled", "answer_started", "answer_completed"]
        assert await talk.types(session_id) == types
        recorded = await talk.events(session_id)
        assert list(recorded.frames) == talk.frames[session_id], "live and from the log: the same bytes"

        position = json.loads(recorded.frames[-1])["position"]
        reply = await talk.ask("messages", MessagesQuery(user_id=USER, session_id=session_id, min_position=position))
        assert [(m["role"], m["text"], m["status"]) for m in reply["messages"]] == [
            ("user", "What is a road?", "recorded"),
            ("assistant", "A way that is taken.", "completed"),
        ]
        sessions = await talk.ask("sessions", SessionsQuery(user_id=USER, min_position=position))
        assert [s["session_id"] for s in sessions["sessions"]] == [session_id]
        turn = await talk.ask("turn", TurnQuery(user_id=USER, turn_id=context.turn_id, min_position=position))
        assert (turn["turn"]["status"], turn["turn"]["attempt"]) == ("completed", 1)
