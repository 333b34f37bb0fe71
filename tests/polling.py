"""How a test waits: it polls a condition, with a reason and a bound, and never sleeps in hope."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

POLL_EVERY_S = 0.02
# Nobody waits so long on a machine at its usual speed; one that is busy may be five times slower.
FOR_EVER_S = 60.0


@overload
async def eventually(check: Callable[[], Awaitable[T | None]], *, reason: str, timeout_s: float = ...) -> T: ...
@overload
async def eventually(check: Callable[[], T | None], *, reason: str, timeout_s: float = ...) -> T: ...
async def eventually(
    check: Callable[[], T | Awaitable[T | None] | None], *, reason: str, timeout_s: float = FOR_EVER_S
) -> T:
    """The first truthy value of check(), which may be async.

    Raises AssertionError with the reason and the last value or exception once timeout_s has passed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        last: object
        try:
            found = check()
            value = await found if inspect.isawaitable(found) else found
            if value:
                return value
            last = value
        except (AssertionError, OSError, LookupError, ValueError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {reason} (last: {last!r})")
        await asyncio.sleep(POLL_EVERY_S)
