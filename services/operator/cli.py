"""The `chatlog` command: up, down, status, settings, provision, credentials, keys, parked, and the log's tools.

Owns what a person types and reads. Every way in which a command cannot do its work ends in one clear line and an exit
code: 1 it could not be done, 2 a setting or flag is wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from contracts.base import time_text
from services.operator import backups
from services.operator import settings as operator_settings
from services.operator.broker import NoNatsServer
from services.operator.choice import NoModelServer, choose
from services.operator.credentials import Handout, hand_out
from services.operator.exchange import export, import_file
from services.operator.flags import SettingsCommand
from services.operator.folder import FolderInUse
from services.operator.plan import CannotStart, make_plan
from services.operator.provisioning import ProvisioningRefused, provision
from services.operator.receipt import receipt
from services.operator.replay import replay
from services.operator.rerun import rerun
from services.operator.running import AskFailed, folder_of, on_bus, on_history
from services.operator.sessions import show_session
from services.operator.settings import StackSettings, load_all, parse_flags
from services.operator.stack import DOWN_S
from services.operator.verify import verify
from services.runtime import logs, streams
from services.runtime.settings import SettingsError
from services.runtime.version import VERSION

if TYPE_CHECKING:  # FastStream takes a third of a second to import: only commands that speak to NATS wait for it
    from services.runtime.bus import Bus

_PIPE_COLUMNS = 240
StatusAsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]
_EXPECTED = (
    AskFailed,
    CannotStart,
    FolderInUse,
    NoModelServer,
    NoNatsServer,
    ProvisioningRefused,
    OSError,
    TimeoutError,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
keys_app = typer.Typer(no_args_is_help=True, help="API keys, for CHATLOG_AUTH=keys.")
app.add_typer(keys_app, name="keys")
parked_app = typer.Typer(no_args_is_help=True, help="Events that history could not read or decide, set aside.")
app.add_typer(parked_app, name="parked")
app.command(name="verify", cls=SettingsCommand)(verify)
app.command(name="replay", cls=SettingsCommand)(replay)
app.command(name="show", cls=SettingsCommand)(show_session)
app.command(name="backup", cls=SettingsCommand)(backups.backup)
app.command(name="restore", cls=SettingsCommand)(backups.restore)
app.command(name="receipt", cls=SettingsCommand)(receipt)
app.command(name="rerun", cls=SettingsCommand)(rerun)
app.command(name="export", cls=SettingsCommand)(export)
app.command(name="import", cls=SettingsCommand)(import_file)
# A pipe has no width: tables are as wide there as they need to be.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


@app.callback(invoke_without_command=True)
def chatlog(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Chatlog: a chat backend whose conversations are a log. Every setting is a flag of a command, too: chatlog up
    --gateway-port 8800.
    """
    if version:
        console.print(VERSION)
        raise typer.Exit


@app.command(cls=SettingsCommand)
def up(context: typer.Context) -> None:
    """Run the whole stack on this machine until Ctrl-C."""
    from services.operator.up import run_stack

    flags = parse_flags(context.args)
    settings = load_all(flags)
    for name in operator_settings.unknown_variables():
        console.print(f"note: {name} is set, and is not a setting of Chatlog")
    folder = folder_of(settings)
    folder.create()
    lock = folder.take_lock()
    try:
        logs.configure("chatlog", "critical")  # the services' logs are files; here speak sentences
        plan = make_plan(settings, choose(settings), folder, flags)
        asyncio.run(run_stack(plan, console))
    finally:
        os.close(lock)


@app.command(cls=SettingsCommand)
def down(context: typer.Context) -> None:
    """Stop the stack that runs on this data folder, and wait until it has stopped."""
    folder = folder_of(load_all(parse_flags(context.args)))
    holder = folder.holder()
    if holder is None:
        console.print(f"nothing runs on {folder.root}")
        return
    os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S
    while folder.holder() is not None:
        if time.monotonic() > deadline:
            raise CannotStart(f"process {holder} does not stop")
        time.sleep(0.05)
    console.print("stopped")


@app.command(cls=SettingsCommand)
def status(context: typer.Context, json: StatusAsJson = False) -> None:
    """Streams, lag, queues, workers, parked events and sizes of the running stack; exit code 1 where a part is down."""
    from services.operator.show import as_json, print_status, status_values
    from services.operator.status import gather

    settings = load_all(parse_flags(context.args))
    folder = folder_of(settings)
    logs.configure("chatlog", "critical")

    found = asyncio.run(on_bus(settings, folder, lambda bus, system: gather(bus, system, folder)))
    if json:
        typer.echo(as_json(status_values(found)))
    else:
        print_status(console, found)
    sys.exit(1 if found.troubles else 0)


@app.command(name="settings", cls=SettingsCommand)
def show_settings(context: typer.Context) -> None:
    """Every setting: its value, where that came from, the default that it replaces, and the default's reason."""
    from services.operator.show import settings_table

    for part, rows in operator_settings.rows(parse_flags(context.args)):
        console.print(settings_table(part, rows), soft_wrap=False)
    for name in operator_settings.unknown_variables():
        console.print(f"note: {name} is set, and is not a setting of Chatlog")


@app.command(name="provision", cls=SettingsCommand)
def provision_streams(context: typer.Context) -> None:
    """Create the streams, or bring their options up to date, on a broker that already runs."""
    settings = load_all(parse_flags(context.args))
    logs.configure("chatlog", "critical")
    wanted = streams.declared(settings.operator.intake_max_bytes, settings.operator.context_max_bytes)

    async def declare(bus: Bus, _system: Bus) -> None:
        for line in await provision(bus.jetstream(), wanted):
            console.print(line)

    asyncio.run(on_bus(settings, folder_of(settings), declare))


@app.command(cls=SettingsCommand)
def credentials(
    context: typer.Context,
    broker: Annotated[Path, typer.Option(help="The broker's configuration, with its passwords.")],
    services: Annotated[Path, typer.Option(help="The services' passwords, for CHATLOG_CONFIG.")],
    box_key: Annotated[Path, typer.Option(help="The box's key, for the box and its workers.")],
    nats_store: Annotated[Path, typer.Option(help="Where the broker keeps its streams.")],
) -> None:
    """Write the credentials of a stack in containers: made once, the same ever after."""
    settings = load_all(parse_flags(context.args))
    for path in hand_out(settings.operator, Handout(broker, services, box_key, nats_store)):
        console.print(f"wrote {path}")


@keys_app.command(name="create", cls=SettingsCommand)
def create_key(
    context: typer.Context,
    user: Annotated[str, typer.Option(help="Whose sessions the key opens; any word of yours.")],
    name: Annotated[str, typer.Option(help="What the key is for, to know it by.")] = "",
    scope: Annotated[Literal["chat", "read"], typer.Option(help="chat: everything; read: changes nothing.")] = "chat",
    expires: Annotated[str | None, typer.Option(help="30d, 12h, 15m or 90s; without it: when revoked.")] = None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from services.operator.keys import Wanted, create

    async def make(bus: Bus) -> None:
        record, key = await create(bus.jetstream(), Wanted(user, name, scope, expires))
        typer.echo(f"key {record.key_id} of {record.user_id}; it is shown this once", err=True)
        typer.echo(key)

    if _on_keys(context, make).operator.auth == "open":
        typer.echo("no gateway asks for a key before it runs with CHATLOG_AUTH=keys; here it is open", err=True)


@keys_app.command(name="list", cls=SettingsCommand)
def list_keys(context: typer.Context) -> None:
    """Every key: its id, user, scopes and times. What opens the door is not kept."""
    from services.operator.keys import listed
    from services.operator.show import keys_table

    async def show(bus: Bus) -> None:
        console.print(keys_table(await listed(bus.jetstream()), time_text(datetime.now(UTC))))

    _on_keys(context, show)


@keys_app.command(name="revoke", cls=SettingsCommand)
def revoke_key(context: typer.Context, key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Revoke a key: nothing new is let in with it, and what it has open is closed within 2 s."""
    from services.operator.keys import revoke

    async def end(bus: Bus) -> None:
        record = await revoke(bus.jetstream(), key_id)
        console.print(f"key {record.key_id} of {record.user_id} is revoked since {record.revoked_at}", markup=False)

    _on_keys(context, end)


def _on_keys(context: typer.Context, work: Callable[[Bus], Coroutine[Any, Any, None]]) -> StackSettings:
    """The settings that it was done with."""
    from services.operator.keys import KeysRefused

    settings = load_all(parse_flags(context.args))
    logs.configure("chatlog", "critical")
    try:
        asyncio.run(on_bus(settings, folder_of(settings), lambda bus, _system: work(bus)))
    except KeysRefused as error:
        _fail(str(error), 1)
    return settings


AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
ParkedId = Annotated[int, typer.Argument(metavar="ID", min=1, help="From `chatlog parked list`.")]


@parked_app.command(name="list", cls=SettingsCommand)
def list_parked(context: typer.Context, json: AsJson = False) -> None:
    """Every parked event, oldest first: when, why, and whose. Nothing of what was said is shown."""
    from services.operator.parked import listed
    from services.operator.show import as_json, parked_table

    async def show(bus: Bus) -> None:
        rows = await listed(bus)
        if json:
            for row in rows:
                typer.echo(as_json(row.model_dump(mode="json")))
        else:
            console.print(parked_table(rows) if rows else "nothing is parked")

    on_history(context, show)


@parked_app.command(name="show", cls=SettingsCommand)
def show_parked(
    context: typer.Context,
    parked_id: ParkedId,
    body: Annotated[bool, typer.Option("--body", help="Its bytes, which may hold what somebody said.")] = False,
    json: AsJson = False,
) -> None:
    """One parked event: its reason, subject and headers. Its bytes only with --body, as they were received."""
    from services.operator.parked import shown
    from services.operator.show import as_json, parked_lines, printable, shown_values

    async def show(bus: Bus) -> None:
        found = await shown(bus, parked_id, with_body=body)
        if json:
            typer.echo(as_json(shown_values(found)))
        elif found.body is not None and sys.stdout.isatty():
            typer.echo(printable(found.body.decode(errors="backslashreplace")))
        elif found.body is not None:
            sys.stdout.buffer.write(found.body)
        else:
            for line in parked_lines(found):
                typer.echo(line)

    on_history(context, show)


@parked_app.command(name="retry", cls=SettingsCommand)
def retry_parked(context: typer.Context, parked_id: ParkedId, json: AsJson = False) -> None:
    """Decide a parked event again, as if it came now: recorded, refused, or parked again (then the exit code is 1)."""
    _act_on_parked(context, "parked_retry", parked_id, as_json=json)


@parked_app.command(name="discard", cls=SettingsCommand)
def discard_parked(context: typer.Context, parked_id: ParkedId, json: AsJson = False) -> None:
    """Forget a parked event for good; history's log keeps its number, subject and reason, and who said so."""
    _act_on_parked(context, "parked_discard", parked_id, as_json=json)


def _act_on_parked(context: typer.Context, query: str, parked_id: int, *, as_json: bool) -> None:
    from services.operator import show
    from services.operator.parked import act

    async def ask(bus: Bus) -> int:
        reply = await act(bus, query, parked_id)
        values = {"parked_id": parked_id, **reply.model_dump(mode="json", exclude_none=True)}
        typer.echo(show.as_json(values) if as_json else show.what_became(parked_id, reply))
        return int(reply.status == "parked")

    sys.exit(on_history(context, ask))


def main() -> None:
    """The entry point: what is wrong is one line."""
    try:
        app(prog_name="chatlog")
    except SettingsError as error:
        _fail(str(error), 2)
    except _EXPECTED as error:
        _fail(str(error) or type(error).__name__, 1)


def _fail(line: str, code: int) -> None:
    sys.stderr.write(f"chatlog: {line}\n")
    sys.exit(code)
