"""What `chatlog up` does from the start to the signal: start, show, watch.

Owns the order of what the user sees. The supervisor and the start of the services are stack's.
"""

from __future__ import annotations

import asyncio
from functools import partial

from rich.console import Console

from services.operator.plan import Plan
from services.operator.show import print_stack
from services.operator.stack import Stack, run_until_signal
from services.runtime.lifecycle import cancel_all


async def run_stack(plan: Plan, console: Console) -> None:
    """Run the stack until a signal. Raises CannotStart."""
    stack = Stack(plan, partial(console.print, markup=False))
    await run_until_signal(stack, _start_and_watch(stack, console))
    console.print("stopped")


async def _start_and_watch(stack: Stack, console: Console) -> None:
    plan = stack.plan
    await stack.start()
    # From here on it is told who ends and why: also while the others wait to be ready.
    watching = {asyncio.create_task(stack.watch(await stack.processes()))}
    try:
        unready = await stack.until_ready()
        print_stack(console, plan, await stack.processes())
        for name, reasons in unready.items():
            console.print(f"{name} is not ready yet: {'; '.join(reasons)}")
        # Imported once the stack is up: FastStream takes a third of a second, which the start does not wait for.
        from services.operator.watch import watch_broker
        from services.runtime.bus import BusAddress

        system = BusAddress(plan.nats_url, plan.settings.operator.nats_system_user, plan.secrets.nats_system_password)
        watching.add(asyncio.create_task(watch_broker(system, plan.folder.broker_store, stack.restart_broker)))
        # Both run for ever: whichever ends first raises, and that ends the stack.
        ended, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
        ended.pop().result()
    finally:
        await cancel_all(watching)
