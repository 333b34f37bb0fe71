"""The programs of the stack: what each is called, how it is started and with which settings.

Owns the environment that each child gets, secrets included: none of them is ever on a command line. Must never start
a program.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.inference.settings import InferenceSettings
from services.operator import broker
from services.operator.choice import SMALL_MODEL, Choice
from services.operator.folder import DataFolder, Secrets
from services.operator.settings import OperatorSettings, StackSettings
from services.runtime.settings import CONFIG_VARIABLE, config_path, load, variable_of

NATS = "nats"
BOX = "box"
STANDIN = "standin"
HISTORY = "history"
GATEWAY = "gateway"
INFERENCE = "inference"

_LOOPBACK = "127.0.0.1"
_LEASH = Path(__file__).with_name("leash.py")


@dataclass(frozen=True, slots=True)
class Listens:
    """Where a program listens, and the setting that moves it elsewhere."""

    host: str
    port: int
    variable: str


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised process. at_once: it needs nothing of the others, so it starts with the supervisor.

    Programs stop in reverse order: gateways first, the broker last, so that what was accepted is recorded.
    """

    name: str
    command: tuple[str, ...]
    at_once: bool = False
    listens: Listens | None = None
    environment: dict[str, str] = field(default_factory=dict)


def leashed(*command: str, supervisor: bool = False) -> tuple[str, ...]:
    """The command under a leash: it is told to end when its parent dies."""
    mark = ("--supervisor",) if supervisor else ()
    return (sys.executable, "-I", "-S", str(_LEASH), *mark, *command)


def programs(settings: StackSettings, choice: Choice, folder: DataFolder) -> list[Program]:
    """All programs of the stack in the order of their start."""
    gateway_listens = Listens(settings.gateway.gateway_host, settings.gateway.gateway_port, "CHATLOG_GATEWAY_PORT")
    workers = [f"{INFERENCE}-{number}" for number in range(1, settings.operator.workers + 1)]
    return [
        nats_program(settings.operator, folder),
        *_model_servers(settings, choice),
        Program(HISTORY, _module("history"), environment=_health(folder, HISTORY)),
        *(Program(name, _module("inference"), environment=_health(folder, name)) for name in workers),
        Program(GATEWAY, _module("gateway"), listens=gateway_listens),
    ]


def nats_program(settings: OperatorSettings, folder: DataFolder) -> Program:
    """The bundled broker. Its configuration is to be written before it starts."""
    server = str(broker.find_nats_server(settings.nats_server))
    listens = Listens(_LOOPBACK, settings.nats_port, "CHATLOG_NATS_PORT")
    return Program(NATS, leashed(server, "-c", str(folder.broker_config)), at_once=True, listens=listens)


def _model_servers(settings: StackSettings, choice: Choice) -> list[Program]:
    """The model server that we run ourselves, if it is one of ours."""
    if choice.kind == "box":
        listens = Listens(settings.box.box_host, settings.box.box_port, "CHATLOG_BOX_PORT")
        return [Program(BOX, _module("llamacpp"), at_once=True, listens=listens)]
    if choice.kind == "standin":
        listens = Listens(_LOOPBACK, settings.operator.standin_port, "CHATLOG_STANDIN_PORT")
        arguments = ("--port", str(listens.port), "--model", SMALL_MODEL, "--slots", str(_all_slots(settings)))
        return [Program(STANDIN, _module("standin", *arguments), at_once=True, listens=listens)]
    return []


def _all_slots(settings: StackSettings) -> int:
    """As many answers at once as the workers can ask for."""
    return max(settings.operator.workers * settings.inference.slots, 1)


def broker_config(settings: OperatorSettings, folder: DataFolder, secrets: Secrets) -> broker.BrokerConfig:
    return broker.BrokerConfig(
        store_dir=folder.broker_store,
        user=settings.nats_user,
        password=secrets.nats_password,
        system_user=settings.nats_system_user,
        system_password=secrets.nats_system_password,
        port=settings.nats_port,
        max_file_store_bytes=settings.max_file_store_bytes,
    )


def environment(
    settings: StackSettings, choice: Choice, folder: DataFolder, secrets: Secrets, flags: dict[str, Any]
) -> dict[str, str]:
    """What all children have in their environment beside ours: flags, the folder, the broker, the chosen server."""
    found = {variable_of(name): str(value) for name, value in flags.items()}
    if config_path().exists():
        found[CONFIG_VARIABLE] = str(config_path().absolute())
    found |= {
        variable_of("data_dir"): str(folder.root),
        variable_of("nats_url"): f"nats://127.0.0.1:{settings.operator.nats_port}",
        variable_of("nats_password"): secrets.nats_password,
        variable_of("nats_system_password"): secrets.nats_system_password,
        # Output goes through a pipe to a log file: without this a line may wait there for minutes.
        "PYTHONUNBUFFERED": "1",
    }
    chosen = _model_server(settings, choice, secrets)
    return found | {variable_of(name): value for name, value in chosen.items()}


def worker_settings(
    settings: StackSettings, choice: Choice, secrets: Secrets, flags: dict[str, Any]
) -> InferenceSettings:
    """What the stack's workers run with."""
    given = {**flags, **_model_server(settings, choice, secrets)}
    return load(InferenceSettings, {name: given[name] for name in InferenceSettings.model_fields.keys() & given})


def _model_server(settings: StackSettings, choice: Choice, secrets: Secrets) -> dict[str, str]:
    """The worker knows two kinds: the box speaks OpenAI's API, the stand-in is asked on Ollama's."""
    if choice.kind in ("ollama", "standin"):
        return {"model_server": "ollama", "ollama_url": choice.url}
    chosen = {"model_server": "openai", "openai_url": choice.url}
    if choice.kind == "openai":
        return chosen
    key = _secret(settings.box.box_api_key) or secrets.box_api_key
    return chosen | {"openai_api_key": key, "box_api_key": key, "box_slots": str(_all_slots(settings))}


def _module(service: str, *arguments: str) -> tuple[str, ...]:
    return leashed(sys.executable, "-m", f"services.{service}", *arguments)


def _health(folder: DataFolder, name: str) -> dict[str, str]:
    return {variable_of("health_address"): f"unix:{folder.health_socket(name)}"}


def _secret(value: SecretStr) -> str:
    return value.get_secret_value()
