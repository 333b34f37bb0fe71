"""Beside the road: what Chatlog adds to a stream: time to first token, hop of each token, tokens per second.

Owns the comparison: the same client straight to the model server, through Chatlog and through the naive relay, in turns
(A B C A B C) within one run, so that a busy machine is busy for all of them. Must never compare numbers of two runs.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from bench import streams
from bench.figures import Result, percentile, run
from bench.stack import Stack, stack, told_port
from bench.streams import Door, Heard, hear

TOKENS = 60
FLAT_STREAMS, FLAT_TOKENS = 8, 500
REPEATS = 3
# One stream alone is 60 hops: several one after the other make a repeat.
ALONE = 3
SPREAD_S = 1.0
SLOTS = 64
# One stream has nothing to be spread over: it stands for both.
TTFT_AT_MOST_MS = {("alone", 1): 5, ("spread", 16): 10, ("spread", 64): 15, ("at once", 16): 25, ("at once", 64): 60}
Samples = dict[str, list[list[Heard]]]


@dataclass(frozen=True)
class Load:
    """What each system is put under: so many streams of one model, started together or spread over a second."""

    model: str
    streams: int
    tokens: int
    spread_s: float


@dataclass
class System:
    """One of those that are compared."""

    door: Door
    prepare: Callable[[Load], Awaitable[str]]
    body: Callable[[Load, str], dict[str, Any]]
    samples: Samples = field(default_factory=dict)

    async def run(self, load: Load) -> tuple[list[Heard], float]:
        """All streams' answers, and how long they took together."""
        chats = [await self.prepare(load) for _ in range(load.streams)]
        began = time.monotonic()
        answers = await asyncio.gather(
            *(
                hear(
                    self.door,
                    self.door.path.format(chat=chat),
                    self.body(load, f"{chat}: say something"),
                    load.spread_s * number / load.streams,
                )
                for number, chat in enumerate(chats)
            )
        )
        took_s = time.monotonic() - began
        for answer in answers:
            assert len(answer.hops) == load.tokens, f"{self.door.name}: {len(answer.hops)} tokens of {load.tokens}"
        return list(answers), took_s


_NUMBERS = itertools.count(1)


def direct(port: int) -> System:
    async def prepare(_load: Load) -> str:
        return f"chat-{next(_NUMBERS)}"

    def body(load: Load, text: str) -> dict[str, Any]:
        said = [{"role": "user", "content": text}]
        return {"model": load.model, "messages": said, "options": {"num_predict": load.tokens}}

    return System(streams.model_server(port), prepare, body)


def naive(port: int) -> System:
    async def prepare(_load: Load) -> str:
        return f"chat-{next(_NUMBERS)}"

    def body(load: Load, text: str) -> dict[str, Any]:
        return {"text": text, "model": load.model, "max_tokens": load.tokens}

    return System(streams.naive(port), prepare, body)


def chatlog(running: Stack, name: str = "chatlog") -> System:
    async def prepare(load: Load) -> str:
        made = await streams.post(running.gateway_port, "/v1/sessions", {"model": load.model})
        return str(made["session_id"])

    def body(load: Load, text: str) -> dict[str, Any]:
        return {"text": text, "options": {"max_tokens": load.tokens}}

    door = streams.chatlog(running.gateway_port)
    return System(Door(name, door.port, door.path, door.token, door.end), prepare, body)


async def measure(repeats: int = REPEATS) -> Result:
    result = Result("relay", f"median of {repeats} repeats, direct, Chatlog and naive in turns; {TOKENS} tokens, 20 ms")
    async with AsyncExitStack() as processes:
        _, port = await processes.enter_async_context(told_port("bench.model_server"))
        url = f"http://127.0.0.1:{port}"
        running = await processes.enter_async_context(stack(url, slots=SLOTS))
        openai = await processes.enter_async_context(stack(f"{url}/v1", slots=SLOTS))
        _, naive_port = await processes.enter_async_context(told_port("bench.naive", NAIVE_MODEL_URL=url))
        result.settings = running.settings
        systems = [direct(port), chatlog(running), naive(naive_port)]
        await _warm_up([*systems, chatlog(openai, "openai")])
        for (start, count), at_most in TTFT_AT_MOST_MS.items():
            spread_s = SPREAD_S if start == "spread" else 0.0
            load = Load("paced:1", count, TOKENS, spread_s)
            await _latency(result, systems, load, f"{count}, {start}", (repeats, at_most))
        load = Load("eager:1", 16, TOKENS, SPREAD_S)
        await _latency(result, systems, load, "16, spread, first token at once", (repeats, None))
        load = Load("paced:1", 16, TOKENS, SPREAD_S)
        by_openai = [systems[0], chatlog(openai, "openai")]
        await _latency(result, by_openai, load, "16, spread", (repeats, None))
        await _flat_out(result, systems, repeats)
    return result


async def _warm_up(systems: list[System]) -> None:
    for system in systems:
        await system.run(Load("eager:1", SLOTS, 5, 0.0))


async def _latency(
    result: Result, systems: list[System], load: Load, what: str, wanted: tuple[int, float | None]
) -> None:
    repeats, at_most = wanted
    first: dict[str, list[float]] = {system.door.name: [] for system in systems}
    hops: dict[str, list[tuple[float, float]]] = {system.door.name: [] for system in systems}
    for _ in range(repeats):
        for system in systems:
            heard = [answer for _ in range(ALONE if load.streams == 1 else 1) for answer in (await system.run(load))[0]]
            first[system.door.name].append(1000 * statistics.median(answer.ttft_s for answer in heard))
            all_hops = [1000 * hop for answer in heard for hop in answer.hops]
            hops[system.door.name].append((percentile(all_hops, 0.5), percentile(all_hops, 0.99)))
    for name in [name for name in first if name != "direct"]:
        target = at_most if name == "chatlog" else None
        added = [mine - base for mine, base in zip(first[name], first["direct"], strict=True)]
        result.add(f"{what}: {name}: added TTFT p50", "ms", added, at_most=target)
        for place, share in enumerate(("p50", "p99")):
            added = [mine[place] - base[place] for mine, base in zip(hops[name], hops["direct"], strict=True)]
            alone = 1 if (load.streams, share, name, at_most is None) == (1, "p50", "chatlog", False) else None
            result.add(f"{what}: {name}: added hop {share}", "ms", added, at_most=alone)


async def _flat_out(result: Result, systems: list[System], repeats: int) -> None:
    rates: dict[str, list[float]] = {system.door.name: [] for system in systems}
    per_frame: list[float] = []
    load = Load("flat:1", FLAT_STREAMS, FLAT_TOKENS, 0.0)
    for _ in range(repeats + 1):
        for system in systems:
            heard, took_s = await system.run(load)
            rates[system.door.name].append(FLAT_STREAMS * FLAT_TOKENS / took_s)
            if system.door.name == "chatlog":
                per_frame.append(FLAT_STREAMS * FLAT_TOKENS / sum(answer.frames for answer in heard))
    ratios = [mine / other for mine, other in zip(rates["chatlog"][1:], rates["naive"][1:], strict=True)]
    what = f"{FLAT_STREAMS} x {FLAT_TOKENS} flat out"
    for name, found in rates.items():
        wanted = 30_000 if name == "chatlog" else None
        result.add(f"{what}: {name}", "tokens/s", found[1:], at_least=wanted)
    result.add(f"{what}: chatlog / naive", "ratio", ratios, at_least=0.75)
    result.add(f"{what}: chatlog: model tokens per frame", "tokens", per_frame[1:])


if __name__ == "__main__":
    run(measure).tell()
