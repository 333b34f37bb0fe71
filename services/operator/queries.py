"""What `chatlog` asks of a running history over the bus, and how an answer that does not come is said.

Owns one request and its reply. Must never retry by itself: what was asked may have been done.
"""

from __future__ import annotations

import getpass
from typing import TypeVar

from contracts import subjects
from contracts.base import Contract, dump
from contracts.errors import ContractError
from contracts.queries import Failure, read_reply
from services.operator.running import AskFailed
from services.runtime.bus import Bus, NoAnswer, NotSent

T = TypeVar("T", bound=Contract)

# What is asked may wait for a transaction with its fsync, behind those that are under way.
ASK_TIMEOUT_S = 10.0


async def ask(bus: Bus, name: str, query: Contract, shape: type[T], timeout_s: float = ASK_TIMEOUT_S) -> T:
    """History's reply to an operator's query. Raises AskFailed."""
    try:
        reply = read_reply(shape, await bus.request(subjects.operator_query(name), dump(query), timeout_s))
    except NotSent as error:
        raise AskFailed("history does not answer; `chatlog status` says more") from error
    except NoAnswer as error:
        raise AskFailed("history did not answer in time; asking again is safe") from error
    except ContractError as error:
        raise AskFailed(f"history answered what this version cannot read: {error.reason}") from error
    if isinstance(reply, Failure):
        raise AskFailed(f"history says {reply.error}")
    return reply


def who() -> str:
    """For history's log: the account that runs the command."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's uid without a name
        return "unknown"
