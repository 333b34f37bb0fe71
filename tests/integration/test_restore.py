"""A restore and the broker: what the newest backup needs stays in the intake, a gap is refused, contexts are made anew.

The whole of it under load is tests/e2e/test_restore.py's; the files are tests/unit/test_backup.py's.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from contracts import subjects
from services.runtime.streams import declared
from tests import commands
from tests.conversing import MODEL, make_event, message
from tests.polling import eventually
from tests.roads import Road, road

pytestmark = pytest.mark.timeout(240)

LIMIT_BYTES = 80_000


async def chatlog(walk: Road, *arguments: object) -> tuple[int, str]:
    """A command beside this history: its exit code, and all that it said."""
    environment = {**walk.nats.environment(), "CHATLOG_DATA_DIR": str(walk.data_dir)}
    code, out, err = await commands.chatlog(environment, *arguments)
    return code, out.decode() + err


async def first_sequence(walk: Road) -> int:
    return (await walk.talk.bus.jetstream().stream_info(subjects.INTAKE_STREAM)).state.first_seq


async def rename(walk: Road, session_id: str, times: int) -> None:
    renames = [make_event("session_renamed", session_id, {"title": "x" * 190}) for _ in range(times)]
    await asyncio.gather(*(walk.talk.say(each) for each in renames))


async def test_the_intake_keeps_what_the_newest_backup_needs_up_to_half_of_it(tmp_path: Path) -> None:
    """All that was consumed is old here. More than half full, it is not kept any more, and status says so."""
    async with road(tmp_path, intake_keep_h=0, intake_max_bytes=LIMIT_BYTES, started=False) as walk:
        await walk.talk.bus.jetstream().update_stream(declared(intake_max_bytes=LIMIT_BYTES)[0])
        await walk.history.start()
        assert (await walk.status()).backup is None
        session_id = await walk.begin()
        await rename(walk, session_id, 5)
        assert (await chatlog(walk, "backup", tmp_path / "b.db"))[0] == 0
        needed = (await walk.status()).cursor + 1
        for times, first in ((10, needed), (60, needed + 70)):
            await rename(walk, session_id, times)
            await walk.history.stop()
            await walk.history.start()  # it purges at its start

            async def purged(first: int = first) -> bool:
                return await first_sequence(walk) == first

            await eventually(purged, reason=f"purged up to {first}")
            backup = (await walk.status()).backup
            assert backup is not None
            assert (backup.gap is None) == (first == needed), backup
        code, said = await chatlog(walk, "status")
        assert (code, "cannot be restored without a gap, make another: events" in said) == (1, True), said
        (walk.data_dir / "backup.json").write_text("{")
        code, said = await chatlog(walk, "status", "--json")
        assert (code, "backup.json" in said) == (1, True), said
        told = json.loads(said)
        assert told["troubles"] == ["no worker answers"], "which alone is why the exit code is 1"
        assert [stream["last_sequence"] - told["history"]["cursor"] for stream in told["streams"][:1]] == [told["lag"]]


async def test_a_restore_asks_the_intake_first_and_empties_the_queue(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        file = tmp_path / "b.db"
        session_id = await walk.begin()
        assert (await chatlog(walk, "backup", file))[0] == 0
        await walk.talk.say(message(session_id, model=MODEL))
        await rename(walk, session_id, 5)
        code, said = await chatlog(walk, "restore", file)
        assert (code, "stop history first" in said) == (1, True), said
        await walk.history.stop()
        assert await walk.queued() == 1
        cursor = (await walk.talk.bus.jetstream().stream_info(subjects.INTAKE_STREAM)).state.last_seq
        await walk.talk.bus.jetstream().purge_stream(subjects.INTAKE_STREAM, seq=cursor - 1)
        before = os.stat(walk.data_dir / "log.db")
        code, said = await chatlog(walk, "restore", file)
        assert code == 1
        assert f"the backup ends at event 1; events 2 to {cursor - 2} are gone" in said
        assert f"begins at {cursor - 1} and ends at {cursor}; --accept-gap" in said
        assert os.stat(walk.data_dir / "log.db") == before
        assert await walk.queued() == 1, "nothing is done before all has been asked"
        code, said = await chatlog(walk, "restore", file, "--accept-gap")
        assert (code, f"gap accepted: the backup ends at event 1; events 2 to {cursor - 2}" in said) == (0, True), said
        assert await walk.queued() == 0, "what the lost log had put there"
        await walk.history.start()
        assert await walk.talk.types(session_id) == ["session_started", "session_renamed", "session_renamed"]
        await walk.nats.stop()
        await walk.history.kill()
        code, said = await chatlog(walk, "restore", file)
        assert (code, "no NATS at" in said) == (1, True), said
