"""Beside the road: what people who chat feel of a rebuild: a long log's views rebuilt and swapped beside 20 clients.

Owns the clients, who think between two messages, and the stretches: without and with `chatlog replay`, in turns in one
run. Before each swap the serving views are compared with the fresh fold. Must never leave a request out that failed, or
was slow: a turn counts to the stretch in which it was sent, whenever it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from subprocess import PIPE

from bench import streams
from bench.figures import Result, percentile, run
from bench.generated import MODELS
from bench.replay import log_of, views_of
from bench.stack import ROOT, NotMeasured, Stack, stack, told_port
from bench.watchers import HOST, OPEN_S, Watcher, client_frame
from services.history.log.reader import read_only

EVENTS = 200_000
CLIENTS = 20
# Between an answer's end and the next message: ten turns a second together, far from what two cores can do.
THINK_S = (1.0, 2.0)
# A context grows with its conversation; one that never ended would be measured for its length.
TURNS_OF_A_SESSION = 10
SLOTS = 32
TOKENS = 20
# The generated log ends amid some turns: they are answered first.
WARM_UP_S = 15.0
STRETCH_S = 30.0
REPEATS = 5
# One rebuild; and what a run takes beside its stretches, on a machine that is busy with other things.
REBUILD_S, SETUP_S = 1200.0, 1200.0
BESIDE = {False: "without", True: "beside"}
RECORDED = b'"type":"user_message_submitted"'
STANDIN = ("services.standin", *(word for model in MODELS for word in ("--model", model)), "--slots", str(SLOTS),
           "--load-s", "0", "--prefill-tokens-per-s", "1e9", "--token-gap-ms", "20",
           "--answer-tokens", str(TOKENS))  # fmt: skip


@dataclass
class Stretch:
    """What was met by the messages that were sent in it, in seconds from their sends."""

    recorded: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    lasted_s: float = 0.0


@dataclass
class Chat:
    """What the clients share. failed: each request that was refused, cut or not answered, and how."""

    port: int
    running: bool = True
    now: Stretch = field(default_factory=Stretch)
    stretches: dict[bool, list[Stretch]] = field(default_factory=lambda: {False: [], True: []})
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def stretch(self, *, rebuilding: bool) -> Iterator[None]:
        self.now = Stretch()
        began = time.monotonic()
        yield
        self.now.lasted_s = time.monotonic() - began
        self.stretches[rebuilding].append(self.now)


class Client(Watcher):
    """A watcher of one session who also sends, and notes when its message is recorded."""

    sent_at = 0.0
    recorded_at = 0.0

    def send(self, session: str) -> None:
        self.listen_anew()
        self.recorded_at = 0.0
        self.sent_at = time.monotonic()
        self._transport.write(client_frame({"type": "send", "session": session, "text": "go on, please"}))

    def data_received(self, received: bytes) -> None:
        if not self.recorded_at and RECORDED in self._rest + received:
            self.recorded_at = time.monotonic()
        super().data_received(received)


async def measure(
    events: int = EVENTS, folder: Path | None = None, stretch_s: float = STRETCH_S, repeats: int = REPEATS
) -> Result:
    with tempfile.TemporaryDirectory(prefix="chatlog-bench-") as temporary:
        data = Path(temporary)
        last = await asyncio.to_thread(_fill, data, events, folder)
        method = f"{CLIENTS} clients, in turns without and beside `chatlog replay` of {last} events"
        result = Result("rebuild", f"{method}, {repeats} x {stretch_s:g} s")
        async with (
            told_port(*STANDIN) as (_, port),
            stack(f"http://{HOST}:{port}", slots=SLOTS, data_dir=data, accept_gap=True) as running,
        ):
            result.settings = {"CHATLOG_SLOTS": str(SLOTS)}
            await _measure(result, running, stretch_s, repeats)
    return result


def _fill(data: Path, events: int, folder: Path | None) -> int:
    """A copy of the generated log, so that one that is kept stays as it is, with its views. Its last position."""
    with log_of(events, folder) as kept:
        shutil.copyfile(kept / "log.db", data / "log.db")
    with closing(read_only(data / "log.db")) as log:
        [(last,)] = log.execute("SELECT max(position) FROM events")
    views_of(data, last)
    return int(last)


async def _measure(result: Result, running: Stack, stretch_s: float, repeats: int) -> None:
    chat = Chat(running.gateway_port)
    rates: list[float] = []
    clients = [asyncio.create_task(_talk(chat, Random(number))) for number in range(CLIENTS)]
    await asyncio.sleep(WARM_UP_S)  # pace: a warm-up
    for _ in range(repeats):
        with chat.stretch(rebuilding=False):
            await asyncio.sleep(stretch_s)  # pace: the length of a stretch
        with chat.stretch(rebuilding=True):
            began = time.monotonic()
            while time.monotonic() - began < stretch_s:
                rates.append(await _rebuild(running))
    chat.running = False
    await asyncio.gather(*clients)
    await _rebuild(running, "--dry-run")
    _tell(result, chat, rates)


async def _talk(chat: Chat, random: Random) -> None:
    """One of those who chat, who begins again where a request has failed."""
    while chat.running:
        try:
            await _converse(chat, random)
        except (RuntimeError, TimeoutError, OSError) as error:
            chat.failed.append(f"{type(error).__name__} {error}")


async def _converse(chat: Chat, random: Random) -> None:
    await asyncio.sleep(random.uniform(*THINK_S))  # pace: of who begins
    session = str((await streams.post(chat.port, "/v1/sessions", {"model": MODELS[0]}))["session_id"])
    async with asyncio.timeout(OPEN_S):
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(chat.port, session), HOST, chat.port)
        await client.attached
    try:
        for _ in range(TURNS_OF_A_SESSION):
            await asyncio.sleep(random.uniform(*THINK_S))  # pace: of who thinks
            if not chat.running:
                return
            met = chat.now
            client.send(session)
            async with asyncio.timeout(streams.ANSWER_TIMEOUT_S):
                await client.ended
            met.whole.append(time.monotonic() - client.sent_at)
            met.recorded.append(client.recorded_at - client.sent_at)
    finally:
        client.close()


async def _rebuild(running: Stack, *options: str) -> float:
    """`chatlog replay` as from a terminal of its own, to which the kernel's scheduler gives a share of its own. Events
    a second, from the first line of Python to the last word.
    """
    plain = {key: value for key, value in os.environ.items() if not key.startswith("CHATLOG_")}
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.operator", "replay", "--json", *options), cwd=ROOT, stdout=PIPE,
        env={**plain, **running.shared, **running.settings}, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = await asyncio.wait_for(process.communicate(), REBUILD_S)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0 or not json.loads(said)["equal"]:
        raise NotMeasured(f"the rebuild ended with {process.returncode}: {said.decode()[:500]}")
    return float(json.loads(said)["position"]) / (time.monotonic() - began)


def _tell(result: Result, chat: Chat, rates: list[float]) -> None:
    _compare(result, chat, "message recorded", lambda stretch: stretch.recorded)
    _compare(result, chat, f"answer of {TOKENS} tokens ended", lambda stretch: stretch.whole)
    for rebuilding, stretches in chat.stretches.items():
        turns = [len(stretch.whole) / stretch.lasted_s for stretch in stretches]
        result.add(f"turns, {BESIDE[rebuilding]} a rebuild", "turns/s", turns)
    result.add("failed requests", "in all", [len(chat.failed)], at_most=0)
    result.add("rebuild beside the chat", "events/s", rates)
    sys.stderr.writelines(f"failed: {each}\n" for each in chat.failed)


def _compare(result: Result, chat: Chat, what: str, times_of: Callable[[Stretch], list[float]]) -> None:
    p99s: dict[bool, list[float]] = {}
    for rebuilding, stretches in chat.stretches.items():
        times = [[1000 * each for each in times_of(stretch)] for stretch in stretches]
        if not all(times):
            raise NotMeasured(f"no turn ended in a whole stretch: {chat.failed[:3]}")
        p99s[rebuilding] = [percentile(each, 0.99) for each in times]
        result.add(f"{what}, {BESIDE[rebuilding]} a rebuild: p50", "ms", [percentile(each, 0.5) for each in times])
        result.add(f"{what}, {BESIDE[rebuilding]} a rebuild: p99", "ms", p99s[rebuilding])
    ratios = [beside / alone for alone, beside in zip(p99s[False], p99s[True], strict=True)]
    result.add(f"{what}: p99 beside / without", "times", ratios, at_most=2)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a rebuild of a long log's views costs those who chat meanwhile.")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--stretch-s", type=float, default=STRETCH_S)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    run(
        lambda: measure(asked.events, asked.folder, asked.stretch_s, asked.repeats),
        SETUP_S + asked.repeats * (2 * asked.stretch_s + REBUILD_S),
    ).tell()


if __name__ == "__main__":
    main()
