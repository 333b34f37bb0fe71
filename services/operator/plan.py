"""The plan of a stack: everything that is decided, and written into the data folder, before anything runs.

Owns the configuration files of the broker and the supervisor. Must never start a process.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from nats.js.api import StreamConfig

from services.operator import broker, programs, supervisor
from services.operator.choice import Choice
from services.operator.folder import DataFolder, Secrets
from services.operator.programs import Program
from services.operator.settings import StackSettings
from services.runtime import streams


class CannotStart(Exception):
    """The stack cannot start, or not go on. The text is one clear line for the user."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to run, and with what."""

    settings: StackSettings
    choice: Choice
    folder: DataFolder
    secrets: Secrets
    programs: list[Program]
    environment: dict[str, str]

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.settings.operator.nats_port}"

    @property
    def gateway_address(self) -> str:
        return f"{self.settings.gateway.gateway_host}:{self.settings.gateway.gateway_port}"

    @property
    def streams(self) -> tuple[StreamConfig, ...]:
        return streams.declared(self.settings.operator.intake_max_bytes, self.settings.operator.context_max_bytes)


def make_plan(settings: StackSettings, choice: Choice, folder: DataFolder, flags: dict[str, Any]) -> Plan:
    """Decide, and write the configuration files. The folder exists and its lock is ours."""
    secrets = folder.secrets()
    plan = Plan(
        settings=settings,
        choice=choice,
        folder=folder,
        secrets=secrets,
        programs=programs.programs(settings, choice, folder),
        environment=programs.environment(settings, choice, folder, secrets, flags),
    )
    conf = programs.broker_config(settings.operator, folder, secrets)
    folder.write_private(folder.broker_config, broker.render(conf))
    folder.write_private(folder.supervisor_config, supervisor.render(folder, plan.programs))
    return plan


def check_port(program: Program) -> None:
    """Raises CannotStart where somebody else has it."""
    if program.listens is None:
        return
    host, port = program.listens.host, program.listens.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers themselves do: a port that was just given back is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"port {port} on {host} for {program.name}: {error.strerror}; {program.listens.variable} moves it"
            ) from error
