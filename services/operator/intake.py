"""The broker while history is stopped: a restore asks what its intake holds, and empties its queue of contexts.

Owns the bundled nats-server for that time: started on the data folder as `chatlog up` starts it, and stopped again.
Where the settings name a broker of one's own, that one is asked. Must never leave a server running, nor start a second
one on a folder: the caller holds the folder's lock.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import nats
import nats.errors
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from contracts import subjects
from services.operator import broker, programs
from services.operator.folder import DataFolder
from services.operator.leash import PARENT_VARIABLE
from services.operator.plan import CannotStart, check_port
from services.operator.settings import OperatorSettings
from services.operator.stack import POLL_S, START_S, ignore, listens
from services.operator.supervisor import STOP_WAIT_S, Supervisor

_ASK_TIMEOUT_S = 5.0
_INTAKE_STATE = f"$JS.API.STREAM.INFO.{subjects.INTAKE_STREAM}"


async def told(settings: OperatorSettings, folder: DataFolder) -> bytes:
    """What the server says of the intake stream. Raises CannotStart."""
    async with _stopped(settings, folder) as client:
        try:
            return (await client.request(_INTAKE_STATE, b"", _ASK_TIMEOUT_S)).data
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise CannotStart("nats-server does not say what its intake holds") from error


async def drop_contexts(settings: OperatorSettings, folder: DataFolder) -> None:
    """History makes them anew from the log that it has then. Raises CannotStart."""
    async with _stopped(settings, folder) as client:
        try:
            with suppress(NotFoundError):  # no stream, no contexts
                await client.jetstream(timeout=_ASK_TIMEOUT_S).purge_stream(subjects.CONTEXT_STREAM)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise CannotStart("nats-server does not empty its queue of contexts") from error


@asynccontextmanager
async def _stopped(settings: OperatorSettings, folder: DataFolder) -> AsyncIterator[Client]:
    own = settings.nats_password.get_secret_value()
    if own:
        async with _connected(settings.nats_url, settings.nats_user, own) as client:
            yield client
        return
    async with _bundled(settings, folder):
        url = f"nats://127.0.0.1:{settings.nats_port}"
        async with _connected(url, settings.nats_user, folder.secrets().nats_password) as client:
            yield client


@asynccontextmanager
async def _connected(url: str, user: str, password: str) -> AsyncIterator[Client]:
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):  # nats-py tries for two minutes where nobody listens
            client = await nats.connect(url, user=user, password=password, allow_reconnect=False, error_cb=ignore)
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise CannotStart(f"no NATS at {url} lets us in") from error
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def _bundled(settings: OperatorSettings, folder: DataFolder) -> AsyncIterator[None]:
    """The folder's nats-server, alone. It is on a leash: it ends with us, however we end."""
    if Supervisor(folder).answers():
        raise CannotStart("the stack that ran here is still stopping: try again in a moment")
    folder.create()
    program = programs.nats_program(settings, folder)
    check_port(program)
    folder.write_private(
        folder.broker_config, broker.render(programs.broker_config(settings, folder, folder.secrets()))
    )
    with (folder.logs / f"{program.name}.log").open("ab") as log:
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        server = await asyncio.create_subprocess_exec(
            *program.command, env=environment, stdin=DEVNULL, stdout=log, stderr=log
        )
    try:
        await _until_it_listens(server, settings.nats_port)
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            server.terminate()
        try:
            await asyncio.wait_for(server.wait(), STOP_WAIT_S)
        except TimeoutError:
            server.kill()
            await server.wait()


async def _until_it_listens(server: Process, port: int) -> None:
    try:
        async with asyncio.timeout(START_S):
            while not await listens(port):
                if server.returncode is not None:
                    raise CannotStart(f"nats-server ended with {server.returncode}; see its log in the data folder")
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise CannotStart("nats-server does not start; see its log in the data folder") from None
