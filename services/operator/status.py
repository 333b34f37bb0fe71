"""`chatlog status`: what history, the broker, the gateway and the workers say of themselves, gathered in seconds.

Owns the questions. Must never change anything, and never waits for long: no answer is one, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import StreamInfo

from contracts import subjects
from contracts.errors import ContractError
from contracts.queries import Failure, StatusReply, read_reply
from contracts.turns import Presence, read_presence
from services.operator.asking import why_not_ready
from services.operator.folder import DataFolder
from services.runtime.bus import Bus, NoAnswer, NotSent
from services.runtime.health import Reason, server_reasons

# Who is there answers within milliseconds, on a machine that others keep busy within seconds; and who does not answer
# is said to be down.
ASK_TIMEOUT_S = 5.0
# Workers say who they are every 2 s.
LISTEN_S = 2.2
STREAMS = (subjects.INTAKE_STREAM, subjects.CONTEXT_STREAM)
# What st_blocks counts, whatever the file system: a sparse file is as large as what it takes.
_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Status:
    """What was heard. history None: it did not answer. gateway: why it is not ready; None: nobody knows where."""

    server: list[Reason]
    streams: list[StreamInfo]
    history: StatusReply | None
    workers: list[Presence]
    gateway: list[str] | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def troubles(self) -> list[str]:
        """What is down or missing, a line each: while there is one, a message may wait for its answer."""
        there = {info.config.name for info in self.streams}
        found = [f"broker: {reason.name}: {reason.detail}" for reason in self.server]
        found += [f"stream {name} is missing" for name in STREAMS if name not in there]
        found += [] if self.history else ["history does not answer"]
        found += [f"gateway: {reason}" for reason in self.gateway or []]
        found += [f"worker {each.worker_id}: {each.server}" for each in self.workers if each.server != "ok"]
        return found if self.workers else [*found, "no worker answers"]

    @property
    def lag(self) -> int | None:
        """Events in the intake that the log does not have yet; None where nobody can tell."""
        intake = next((info for info in self.streams if info.config.name == subjects.INTAKE_STREAM), None)
        if intake is None or self.history is None:
            return None
        return max(intake.state.last_seq - self.history.cursor, 0)


async def gather(bus: Bus, system: Bus, folder: DataFolder) -> Status:
    """Ask everybody at once. Both connections are open."""
    server, streams, history, workers, gateway = await asyncio.gather(
        server_reasons(system), _streams(bus), _history(bus), listen_for_workers(bus), _gateway(folder)
    )
    sizes = await asyncio.to_thread(sizes_on_disk, folder.root)
    return Status(server=server, streams=streams, history=history, workers=workers, gateway=gateway, sizes=sizes)


async def listen_for_workers(bus: Bus) -> list[Presence]:
    """Who is there: everybody says so within LISTEN_S, or on a busy machine somebody by the next time."""
    heard: dict[str, Presence] = {}
    somebody = asyncio.Event()

    async def hear(message: Msg) -> None:
        with contextlib.suppress(ContractError):  # another version's worker: it is not ours to judge here
            presence = read_presence(message.data)
            heard[presence.worker_id] = presence
            somebody.set()

    subscription = await bus.subscribe(subjects.PRESENCE_ALL, hear)
    await asyncio.sleep(LISTEN_S)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(somebody.wait(), LISTEN_S)
    await subscription.unsubscribe()
    return sorted(heard.values(), key=lambda presence: presence.worker_id)


def sizes_on_disk(data: Path) -> dict[str, int]:
    """Bytes of each part of the data folder, largest first."""
    sizes: Counter[str] = Counter()
    for entry in data.iterdir() if data.is_dir() else ():
        sizes[_part(entry.name)] += _size(entry)
    return dict(sizes.most_common())


def _part(name: str) -> str:
    """The log and the views are several files each: the database and what SQLite keeps beside it."""
    if name.startswith("log.db"):
        return "log"
    if name.startswith("views-"):
        return "views"
    return name if name in ("nats", "logs") else "other"


def _size(path: Path) -> int:
    total = 0
    for each in [path, *path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # files come and go while we look
            total += each.lstat().st_blocks * _BLOCK_BYTES
    return total


async def _streams(bus: Bus) -> list[StreamInfo]:
    found = []
    for name in STREAMS:
        with contextlib.suppress(nats.errors.Error, OSError):  # a stream that is missing shows as missing
            found.append(await bus.jetstream(ASK_TIMEOUT_S).stream_info(name))
    return found


async def _history(bus: Bus) -> StatusReply | None:
    try:
        raw = await bus.request(subjects.operator_query("status"), b"{}", ASK_TIMEOUT_S)
        answer = read_reply(StatusReply, raw)
    except (NotSent, NoAnswer, ContractError):
        return None
    return None if isinstance(answer, Failure) else answer


async def _gateway(folder: DataFolder) -> list[str] | None:
    """In containers no file says where it is."""
    if not folder.stack_file.exists():
        return None
    url: str = json.loads(folder.stack_file.read_text())["gateway"]
    return await why_not_ready(url.removeprefix("http://"), ASK_TIMEOUT_S)
