"""Beside the road: what websockets cost the gateway: idle ones, one frame to many, stalled ones beside healthy.

Owns the three loads. The clients are one process, this one, which counts frames without decoding them; its CPU is
beside the gateway's. Must never measure with clients that were cut: a watcher that ends before its answer fails the
run.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from bench import streams
from bench.figures import Result, percentile, run
from bench.stack import Stack, stack, told_port
from bench.watchers import Stalled, Watcher, held_by, stall, watch

IDLE_SOCKETS = 2000
# Opened before, so that what is measured is not the first socket's share of code and pools.
FIRST_SOCKETS = 100
OPENED_AT_ONCE = 8
# A stalled client that the gateway has cut comes back, so that there are always as many: so many a sample, spread over
# it: no storm.
REPLACED_AT_ONCE = 20
# Memory of sockets that were opened just now still holds what their opening took.
SETTLE_S = 5.0
WATCHERS = 500
BURST_TOKENS = 400
BURSTS = 5
HEALTHY, STALLED, SESSIONS = 50, 500, 10
TOKENS_PER_S = 20
STALLED_S = 120.0
STALLED_REPEATS = 5
DAILY_STALLED_S, DAILY_REPEATS = 10.0, 2
SAMPLE_S = 0.5
# What everything but the stalled clients' runs may take, and what each of these more than its length.
SETUP_S, PAUSE_S = 600.0, 30.0
SLOTS = 16
METHOD = (
    f"{IDLE_SOCKETS} idle; {WATCHERS} on one session; {HEALTHY} healthy without and with {STALLED} stalled in turns, "
    "{0} x {1:g} s"
)


async def measure(stalled_s: float = DAILY_STALLED_S, repeats: int = DAILY_REPEATS) -> Result:
    result = Result("sockets", METHOD.format(repeats, stalled_s))
    async with told_port("bench.model_server") as (_, port):
        for sessions in (IDLE_SOCKETS, SESSIONS):
            async with stack(f"http://127.0.0.1:{port}", slots=SLOTS) as running:
                await _idle(result, running, sessions)
        async with stack(f"http://127.0.0.1:{port}", slots=SLOTS) as running:
            result.settings = running.settings
            await _fan_out(result, running)
            await _stalled(result, running, stalled_s, repeats)
    return result


async def _idle(result: Result, running: Stack, session_count: int) -> None:
    gateway = running.process("gateway")
    sessions = await _sessions(running, session_count, "steady:1")
    first = await _watch(running, (sessions * FIRST_SOCKETS)[:FIRST_SOCKETS])
    await asyncio.sleep(SETTLE_S)  # pace: idle
    before = gateway.memory_kib()
    idle = await _watch(running, (sessions * IDLE_SOCKETS)[:IDLE_SOCKETS])
    await asyncio.sleep(SETTLE_S)  # pace: idle
    each = (gateway.memory_kib() - before) / IDLE_SOCKETS
    of = "a session each" if session_count == IDLE_SOCKETS else f"{session_count} sessions"
    result.add(f"{IDLE_SOCKETS} idle, {of}", "KiB each", [each], at_most=30)
    _close([*first, *idle])


async def _fan_out(result: Result, running: Stack) -> None:
    gateway = running.process("gateway")
    [session] = await _sessions(running, 1, "burst:1")
    watchers = await _watch(running, [session] * WATCHERS)
    rates, costs, own_costs = [], [], []
    for _ in range(BURSTS + 1):
        for watcher in watchers:
            watcher.listen_anew()
        cpu_s, own_cpu_s = gateway.cpu_s(), time.process_time()
        await _answers(running, [session], BURST_TOKENS)
        await asyncio.gather(*(watcher.ended for watcher in watchers))
        frames = sum(watcher.frames for watcher in watchers)
        assert frames == len(watchers) * watchers[0].frames, "each watcher sees every frame"
        took_s = max(watcher.last_at for watcher in watchers) - min(watcher.first_at for watcher in watchers)
        rates.append(frames / took_s)
        costs.append(1e6 * (gateway.cpu_s() - cpu_s) / frames)
        own_costs.append(1e6 * (time.process_time() - own_cpu_s) / frames)
    result.add(f"{WATCHERS} watch one session", "deliveries/s", rates[1:], at_least=40_000)
    result.add("the same: CPU of the gateway", "us a delivery", costs[1:])
    result.add("the same: CPU of the clients", "us a delivery", own_costs[1:])
    _close(watchers)


async def _stalled(result: Result, running: Stack, lasting_s: float, repeats: int) -> None:
    p99s: dict[bool, list[float]] = {False: [], True: []}
    peaks: dict[bool, list[float]] = {False: [], True: []}
    cuts: list[float] = []
    sessions = await _sessions(running, SESSIONS, "steady:1")
    await _beside(running, sessions, lasting_s=min(lasting_s, DAILY_STALLED_S), count=0)
    for _ in range(repeats):
        for stalling in (False, True):
            hops, peak_kib, cut = await _beside(running, sessions, lasting_s, STALLED if stalling else 0)
            p99s[stalling].append(1000 * percentile(hops, 0.99))
            peaks[stalling].append(peak_kib / 1024)
            cuts += [cut] if stalling else []
    beside = f"{HEALTHY} healthy, {SESSIONS} sessions of {TOKENS_PER_S} tokens/s"
    for stalling, what in ((False, "alone"), (True, f"beside {STALLED} stalled")):
        result.add(f"{beside}, {what}: hop p99", "ms", p99s[stalling])
        result.add(f"the same, {what}: peak of the gateway", "MiB", peaks[stalling])
    ratios = [mine / alone for mine, alone in zip(p99s[True], p99s[False], strict=True)]
    result.add("the same: hop p99 with / without stalled", "ratio", ratios, at_most=2)
    result.add("the same: stalled clients that were cut, and replaced", "clients", cuts)


async def _beside(running: Stack, sessions: list[str], lasting_s: float, count: int) -> tuple[list[float], int, int]:
    """The healthy clients' hops, the gateway's peak, and how many stalled ones it cut."""
    watchers = await _watch(running, (sessions * HEALTHY)[:HEALTHY])
    crowd = Crowd(running, sessions)
    await crowd.fill(count)
    for watcher in watchers:
        watcher.listen_anew()
        watcher.hops = []
    peak_kib = 0
    answers = asyncio.create_task(_answers(running, sessions, int(lasting_s * TOKENS_PER_S)))
    while not all(watcher.ended.done() for watcher in watchers):
        await asyncio.sleep(SAMPLE_S)  # pace: of samples
        await crowd.replace_cut()
        peak_kib = max(peak_kib, running.process("gateway").memory_kib())
    await answers
    await asyncio.gather(*(watcher.ended for watcher in watchers))
    _close(watchers)
    crowd.close()
    return [hop for watcher in watchers for hop in watcher.hops or []], peak_kib, crowd.cut


class Crowd:
    """The stalled clients: those that the gateway has cut are replaced, so that as many stall all the time."""

    def __init__(self, running: Stack, sessions: list[str]) -> None:
        self._port = running.gateway_port
        self._sessions = sessions
        self._stalled: list[Stalled] = []
        self.cut = 0

    async def fill(self, count: int) -> None:
        wanted = (self._sessions * count)[:count]
        self._stalled = await _limited([stall(self._port, session) for session in wanted])

    async def replace_cut(self) -> None:
        held = held_by(self._port) if self._stalled else set()
        gone = [place for place, each in enumerate(self._stalled) if each.port not in held][:REPLACED_AT_ONCE]
        for place in gone:
            await asyncio.sleep(SAMPLE_S / REPLACED_AT_ONCE)  # pace: one after the other, as people come back
            self._stalled[place].close()
            self._stalled[place] = await stall(self._port, self._sessions[place % len(self._sessions)])
            self.cut += 1

    def close(self) -> None:
        for each in self._stalled:
            each.close()


T = TypeVar("T")


async def _limited(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them, OPENED_AT_ONCE at a time."""
    at_once = asyncio.Semaphore(OPENED_AT_ONCE)

    async def one(work: Coroutine[Any, Any, T]) -> T:
        async with at_once:
            return await work

    return list(await asyncio.gather(*(one(work) for work in works)))


async def _sessions(running: Stack, count: int, model: str) -> list[str]:
    port = running.gateway_port
    made = await _limited([streams.post(port, "/v1/sessions", {"model": model}) for _ in range(count)])
    return [str(each["session_id"]) for each in made]


async def _watch(running: Stack, sessions: Sequence[str]) -> list[Watcher]:
    return await _limited([watch(running.gateway_port, session) for session in sessions])


async def _answers(running: Stack, sessions: Sequence[str], tokens: int) -> None:
    """Have one message answered in each session; whoever watches sees the answers."""
    body = {"text": "say something", "options": {"max_tokens": tokens}}
    await _limited([streams.post(running.gateway_port, f"/v1/sessions/{each}/messages", body) for each in sessions])


def _close(watchers: Sequence[Watcher]) -> None:
    for watcher in watchers:
        watcher.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stalled-s", type=float, default=DAILY_STALLED_S)
    parser.add_argument("--repeats", type=int, default=DAILY_REPEATS)
    chosen = parser.parse_args()
    run(
        lambda: measure(chosen.stalled_s, chosen.repeats), SETUP_S + 2 * chosen.repeats * (chosen.stalled_s + PAUSE_S)
    ).tell()


if __name__ == "__main__":
    main()
