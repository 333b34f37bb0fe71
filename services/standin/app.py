"""Beside the road: the stand-in's process: arguments, wiring, three listeners, one line that tells their ports.

It owns what is constructed and nothing else. It must never start unasked: `make up` runs it only where it is told to.
SIGTERM and SIGINT end it at once, in mid-answer, as they were recorded to end an Ollama.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

from services.standin.control import ControlDoor
from services.standin.faults import FaultBook
from services.standin.generation import Generation, Speed
from services.standin.hosts import rule_of
from services.standin.model import Catalogue, ModelSpec
from services.standin.ollama import OllamaDoor
from services.standin.ollama_chat import OllamaChat
from services.standin.openai import OpenaiDoor
from services.standin.report import Report
from services.standin.scheduler import Scheduler
from services.standin.wire import listen, port_of

MODELS: Final = (
    ModelSpec(name="smollm2:135m"),
    ModelSpec(name="thinker", capabilities=("completion", "thinking")),
    ModelSpec(name="tooler", capabilities=("completion", "tools")),
    ModelSpec(name="other", window=1024),
)
"""The models of the recordings."""


def model_spec(argument: str) -> ModelSpec:
    """`NAME`, or a JSON object with name, window, train_window, capabilities."""
    if argument.startswith("{"):
        return ModelSpec.model_validate_json(argument)
    return ModelSpec(name=argument)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.standin", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address of all three listeners")
    parser.add_argument("--port", type=int, default=0, help="Ollama's wire; 0 picks a free port")
    parser.add_argument("--openai-port", type=int, default=0, help="OpenAI's wire; 0 picks a free port")
    parser.add_argument("--control-port", type=int, default=0, help="the control plane; 0 picks a free port")
    parser.add_argument("--api-key", default=None, help="OpenAI's wire answers 401 without this Bearer key")
    parser.add_argument("--model", type=model_spec, action="append", dest="models", help=model_spec.__doc__)
    parser.add_argument("--window", type=int, default=4096, help="tokens of a model's window that sets none")
    parser.add_argument("--slots", type=int, default=1, help="answers at once per model (OLLAMA_NUM_PARALLEL)")
    parser.add_argument("--max-queue", type=int, default=512, help="requests waiting for a load (OLLAMA_MAX_QUEUE)")
    parser.add_argument("--max-loaded", type=int, default=3, help="models at once (OLLAMA_MAX_LOADED_MODELS)")
    for name, setting in Speed.model_fields.items():
        kind = int if setting.annotation is int else float
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=setting.default, help=setting.description)
    return parser


async def serve(options: argparse.Namespace) -> None:
    """Wires everything, listens, prints the ports, and serves until the process ends."""
    speed = Speed(**{name: getattr(options, name) for name in Speed.model_fields})
    catalogue = Catalogue(options.models or MODELS, options.window)
    scheduler = Scheduler(
        slots=options.slots,
        max_queue=options.max_queue,
        max_loaded=options.max_loaded,
        load_s=lambda: generation.speed.load_s,
    )
    generation = Generation(scheduler, Report(), speed)
    book = FaultBook()
    chat = OllamaChat(catalogue, generation, book)
    hosts = rule_of(options.host)
    ollama = await listen(OllamaDoor(catalogue, scheduler, book, chat, hosts).handle, options.host, options.port)
    openai_door = OpenaiDoor(catalogue, generation, book, options.api_key, hosts)
    openai = await listen(openai_door.handle, options.host, options.openai_port)
    control = await listen(ControlDoor(catalogue, generation, book).handle, options.host, options.control_port)
    ports = {"ollama": port_of(ollama), "openai": port_of(openai), "control": port_of(control)}
    sys.stdout.write(json.dumps({"standin": True, "host": options.host, **ports}) + "\n")
    sys.stdout.flush()
    await asyncio.gather(ollama.serve_forever(), openai.serve_forever(), control.serve_forever())


def main(argv: Sequence[str] | None = None) -> None:
    # Said, not left to the default: a container's first process is not ended by a signal that it does not handle.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)
    try:
        asyncio.run(serve(arguments().parse_args(argv)))
    except OSError as error:
        sys.exit(f"the stand-in cannot listen: {error}")


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
