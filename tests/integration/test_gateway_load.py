"""Step 3: what a gateway has heard of workers and of load holds for seconds; then it asks, or knows nothing."""

from __future__ import annotations

from pathlib import Path

from contracts import subjects
from contracts.base import dump
from contracts.turns import PRESENCE_FORGOTTEN_S, Load, QueueLoad
from services.gateway.load import LOAD_S, Heard
from tests.brokers import broker
from tests.conversing import MODEL, new_id, session_started, talker
from tests.polling import eventually

QUEUES = [QueueLoad(model="a:latest", waiting=5, running=2), QueueLoad(model="b", waiting=0, running=2)]


async def test_what_is_not_said_again_is_forgotten(tmp_path: Path) -> None:
    """While history is silent the intake fills: exactly then the broker is asked how full it is."""
    now_s = 100.0
    async with broker(tmp_path) as b, talker(b) as talk:
        heard = Heard(talk.bus, lambda: now_s)
        await heard.start()
        await talk.publish(session_started(new_id()))
        await talk.be_worker()
        load = Load(
            intake_bytes=60, intake_max_bytes=100, disk_free_bytes=7, queues=QUEUES, default_model="b", unassigned=9
        )
        await talk.bus.publish_live(subjects.LOAD, dump(load))
        await eventually(lambda: heard.workers, reason="the worker is heard")

        async def told() -> bool:
            return (await heard.room(0)).disk_free_bytes == 7

        await eventually(told, reason="the load is heard")
        assert (await heard.room(3)).intake_share == 0.6
        assert (await heard.room(3)).queued_turns == 0, "only a message needs room in a queue"
        found = [(await heard.room_for_message(model, 0)).queued_turns for model in ("a:latest", "a", None, "new")]
        assert found == [7, 7, 2, 0], "under whichever name; none: history's choice"
        now_s += LOAD_S + 0.1
        room = await heard.room(3)
        assert room.disk_free_bytes is None
        assert room.intake_share is not None
        assert 0 < room.intake_share < 0.01, "the broker's own word"
        now_s += PRESENCE_FORGOTTEN_S
        assert (heard.workers, heard.models()) == ([], [])
        assert heard.named == {MODEL}, "one that restarts does not make its model unknown"
