"""A connection to the stack that runs on a data folder: for the commands that speak to it.

Owns where its broker is and with which passwords. Must never start anything.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from services.operator.folder import DataFolder
from services.operator.plan import CannotStart
from services.operator.settings import StackSettings, load_all, parse_flags
from services.runtime import logs

if TYPE_CHECKING:  # FastStream takes a third of a second to import: only commands that speak to NATS wait for it
    from services.runtime.bus import Bus

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3.0


class AskFailed(Exception):
    """History did not do what was asked. The text is one clear line."""


def folder_of(settings: StackSettings) -> DataFolder:
    return DataFolder(Path(settings.operator.data_dir).absolute())


def on_history(context: typer.Context, work: Callable[[Bus], Coroutine[None, None, T]]) -> T:
    """What work makes of a connection to the running stack."""
    settings = load_all(parse_flags(context.args))
    logs.configure("chatlog", "critical")
    return asyncio.run(on_bus(settings, folder_of(settings), lambda bus, _system: work(bus)))


async def on_bus(
    settings: StackSettings, folder: DataFolder, work: Callable[[Bus, Bus], Coroutine[None, None, T]]
) -> T:
    """What work makes of a connection of the services' account and one of the system's."""
    from services.runtime.bus import Bus, BusAddress

    url, password, system_password = address_of(settings, folder)
    operator = settings.operator
    bus = Bus(BusAddress(url, operator.nats_user, password), "chatlog")
    system = Bus(BusAddress(url, operator.nats_system_user, system_password), "chatlog-system")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await bus.connect()
            await system.connect()
    except TimeoutError:
        raise CannotStart(f"no NATS at {url} lets us in; is Chatlog running?") from None
    made = await work(bus, system)
    await bus.stop()
    await system.stop()
    return made


def address_of(settings: StackSettings, folder: DataFolder) -> tuple[str, str, str]:
    """URL and passwords: those that were set, else those of the stack that runs on this data folder."""
    operator = settings.operator
    if operator.nats_password.get_secret_value():
        return (
            operator.nats_url,
            operator.nats_password.get_secret_value(),
            operator.nats_system_password.get_secret_value(),
        )
    if not folder.stack_file.exists() or folder.holder() is None:
        raise CannotStart(f"nothing runs on {folder.root}; CHATLOG_DATA_DIR or --data-dir names another folder")
    secrets = folder.secrets()
    return json.loads(folder.stack_file.read_text())["nats_url"], secrets.nats_password, secrets.nats_system_password
