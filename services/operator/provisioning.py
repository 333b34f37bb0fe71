"""Provisioning: the one step that creates the streams, or brings their options up to what is declared.

Owns every change to a stream. Runs before the services start and may run again at any time. Must never delete a stream
or a message: an option that cannot be changed in place is named, and the operator decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from services.runtime import streams


class ProvisioningRefused(Exception):
    """The server did not take an option. Says which stream and option, and why."""


async def provision(js: JetStreamContext, wanted: Sequence[StreamConfig] | None = None) -> list[str]:
    """Make the broker's streams what is declared; what was done, a line each. Raises ProvisioningRefused."""
    done: list[str] = []
    refused: list[str] = []
    for stream in streams.declared() if wanted is None else wanted:
        found = await streams.differences(js, stream)
        if not found:
            done.append(f"stream {stream.name} is as declared")
        elif found[0].option == "name":
            await js.add_stream(stream)
            done.append(f"stream {stream.name} created")
        else:
            refused += await _update(js, stream, found)
            done.append(f"stream {stream.name} updated: {', '.join(difference.option for difference in found)}")
    if refused:
        raise ProvisioningRefused("; ".join(refused))
    return done


async def _update(js: JetStreamContext, wanted: StreamConfig, found: list[streams.Difference]) -> list[str]:
    """Change what differs, all at once or, where the server refuses that, one by one; what it refused."""
    try:
        await js.update_stream(wanted)
        return []
    except APIError:
        return [refusal for difference in found if (refusal := await _update_one(js, wanted, difference)) is not None]


async def _update_one(js: JetStreamContext, wanted: StreamConfig, difference: streams.Difference) -> str | None:
    """The present options with this one as declared; the refusal where the server does not take it."""
    info = await js.stream_info(difference.stream)
    value = getattr(wanted, difference.option)
    try:
        await js.update_stream(dataclasses.replace(info.config, **{difference.option: value}))
        return None
    except APIError as error:
        return f"{difference}: {error.description}"
