"""Beside the road: how the tokens per second grow with the workers: 1, 2, 4 and 8 of them, 4 slots each, 20 ms a token.

Owns the load: as many sessions as there are slots, each always with an answer in flight. What is fixed is the model's
speed, so that a speed-up of 8 means that nothing but the number of workers held the answers up.
"""

from __future__ import annotations

import asyncio
import time

from bench import streams
from bench.figures import Result, run
from bench.stack import Stack, stack, told_port

MODEL = "smollm2:135m"
WORKERS = (1, 2, 4, 8)
SLOTS = 4
TOKENS = 60
ANSWERS = 4
REPEATS = 3
STANDIN = ("services.standin", "--model", MODEL, "--slots", str(SLOTS * max(WORKERS)), "--load-s", "0",
           "--prefill-tokens-per-s", "1e9", "--token-gap-ms", "20", "--answer-tokens", str(TOKENS))  # fmt: skip


async def measure(repeats: int = REPEATS) -> Result:
    result = Result("scale", f"{ANSWERS} answers of {TOKENS} tokens at 20 ms for each slot; {SLOTS} slots a worker")
    rates: dict[int, list[float]] = {}
    for workers in WORKERS:
        async with (
            told_port(*STANDIN) as (_, port),
            stack(f"http://127.0.0.1:{port}", workers=workers, slots=SLOTS) as running,
        ):
            result.settings = running.settings
            sessions = [await _session(running) for _ in range(workers * SLOTS)]
            await asyncio.gather(*(_answers(running, session, 1) for session in sessions))
            for _ in range(repeats):
                began = time.monotonic()
                await asyncio.gather(*(_answers(running, session, ANSWERS) for session in sessions))
                took_s = time.monotonic() - began
                rates.setdefault(workers, []).append(len(sessions) * ANSWERS * TOKENS / took_s)
    for workers, found in rates.items():
        result.add(f"{workers} workers", "tokens/s", found)
    speed_ups = [many / one for many, one in zip(rates[max(WORKERS)], rates[1], strict=True)]
    result.add("speed-up from 1 to 8 workers", "times", speed_ups, at_least=7.5)
    return result


async def _session(running: Stack) -> str:
    made = await streams.post(running.gateway_port, "/v1/sessions", {"model": MODEL})
    return str(made["session_id"])


async def _answers(running: Stack, session: str, count: int) -> None:
    """One after the other."""
    door = streams.chatlog(running.gateway_port)
    for number in range(count):
        await streams.hear(door, door.path.format(chat=session), {"text": f"number {number}, please"})


if __name__ == "__main__":
    run(measure).tell()
