"""Beside the road: durable turns per second with answers of one token, and what a turn costs each process in CPU time.

Owns the load: each of many sessions sends its next message as soon as its answer has ended, so that the queue never
runs dry. A turn counts once its answer_completed was seen by its sender, which is after it was synced to the log.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from bench import streams
from bench.figures import Result, run
from bench.stack import Process, Stack, stack, told_port

MODEL = "smollm2:135m"
SESSIONS = 32
SLOTS = 32
# A context grows with its conversation; one that never ended would be measured for its length.
TURNS_OF_A_SESSION = 10
WARM_UP_S = 2.0
REPEAT_S = 5.0
REPEATS = 5
STANDIN = ("services.standin", "--model", MODEL, "--slots", str(SLOTS), "--load-s", "0",
           "--prefill-tokens-per-s", "1e9", "--token-gap-ms", "0")  # fmt: skip


@dataclass
class Load:
    """What the sessions have done so far."""

    running: bool = True
    turns: int = 0
    errors: list[str] = field(default_factory=list)


async def measure(repeats: int = REPEATS) -> Result:
    result = Result(
        "turns",
        f"{SESSIONS} clients, sessions of {TURNS_OF_A_SESSION} turns, answers of 1 token, {repeats} x {REPEAT_S:g} s",
    )
    async with told_port(*STANDIN) as (standin, port), stack(f"http://127.0.0.1:{port}", slots=SLOTS) as running:
        result.settings = running.settings
        load = Load()
        sessions = [asyncio.create_task(_talk(running, load)) for _ in range(SESSIONS)]
        await asyncio.sleep(WARM_UP_S)  # pace: a warm-up
        rates: list[float] = []
        costs: dict[str, list[float]] = {}
        for _ in range(repeats):
            turns, before, began = load.turns, _cpu_s(running, standin), time.monotonic()
            await asyncio.sleep(REPEAT_S)  # pace: the length of a repeat
            turns = load.turns - turns
            rates.append(turns / (time.monotonic() - began))
            for name, cpu_s in _cpu_s(running, standin).items():
                costs.setdefault(name, []).append(1000 * (cpu_s - before[name]) / max(1, turns))
        load.running = False
        await asyncio.gather(*sessions)
    result.add("durable turns", "turns/s", rates, at_least=250)
    for name, found in costs.items():
        result.add(f"CPU of {name}", "ms a turn", found)
    return result


def _cpu_s(running: Stack, standin: Process) -> dict[str, float]:
    load = time.process_time()
    return {**running.cpu_s(), "stand-in": standin.cpu_s(), "the load itself": load}


async def _talk(running: Stack, load: Load) -> None:
    door = streams.chatlog(running.gateway_port)
    while load.running:
        made = await streams.post(running.gateway_port, "/v1/sessions", {"model": MODEL})
        path = door.path.format(chat=made["session_id"])
        for _ in range(TURNS_OF_A_SESSION):
            await streams.hear(door, path, {"text": "one word, please", "options": {"max_tokens": 1}})
            load.turns += 1


if __name__ == "__main__":
    run(measure).tell()
