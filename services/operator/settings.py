"""What can be set of the stack as a whole, and every service's settings together.

Owns the one place where all settings classes are known: a key of the TOML file or a flag that none of them has is an
error here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.gateway.settings import GatewaySettings
from services.history.settings import HistorySettings
from services.inference.settings import InferenceSettings
from services.llamacpp.settings import BoxSettings
from services.operator import broker
from services.runtime import settings as runtime
from services.runtime.settings import Row, Settings, SettingsError, SharedSettings, setting


class OperatorSettings(SharedSettings):
    """What `chatlog up` decides before any service starts."""

    model_server: Literal["auto", "ollama", "openai", "box", "standin"] = setting(
        "auto", unit="", reason="openai or ollama where its URL is set, else an Ollama that answers here, else the box"
    )
    workers: int = setting(
        1, unit="processes", reason="one drives a machine's model; more share its slots fairly", ge=0, le=64
    )
    nats_port: int = setting(8701, unit="", reason="the bundled nats-server, beside the gateway's 8700", ge=1, le=65535)
    nats_server: str = setting("", unit="", reason="another nats-server program than the bundled one")
    max_file_store_bytes: int = setting(
        broker.MAX_FILE_STORE_BYTES, unit="bytes", reason="both streams, with room; fixed, not from free space", ge=1
    )
    standin_port: int = setting(
        8706, unit="", reason="the stand-in for model servers, where it is asked for", ge=1, le=65535
    )


CLASSES: tuple[type[Settings], ...] = (
    OperatorSettings,
    GatewaySettings,
    HistorySettings,
    InferenceSettings,
    BoxSettings,
)


@dataclass(frozen=True, slots=True)
class StackSettings:
    """Every service's settings, as the services themselves will load them."""

    operator: OperatorSettings
    gateway: GatewaySettings
    history: HistorySettings
    inference: InferenceSettings
    box: BoxSettings


def load_all(flags: Mapping[str, Any]) -> StackSettings:
    """Raises SettingsError, so that a wrong value stops `chatlog up` before anything runs."""
    unknown = runtime.unknown_keys(CLASSES)
    if unknown:
        raise SettingsError("\n".join(unknown))
    return StackSettings(
        operator=runtime.load(OperatorSettings, _of(OperatorSettings, flags)),
        gateway=runtime.load(GatewaySettings, _of(GatewaySettings, flags)),
        history=runtime.load(HistorySettings, _of(HistorySettings, flags)),
        inference=runtime.load(InferenceSettings, _of(InferenceSettings, flags)),
        box=runtime.load(BoxSettings, _of(BoxSettings, flags)),
    )


def rows(flags: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """The settings of each part, each setting once, under the first part that has it."""
    load_all(flags)
    seen: set[str] = set()
    found: list[tuple[str, list[Row]]] = []
    for each in CLASSES:
        own = [row for row in runtime.rows(each, _of(each, flags)) if row.name not in seen]
        seen.update(row.name for row in own)
        found.append((each.__name__.removesuffix("Settings").lower(), own))
    return found


def parse_flags(argv: Sequence[str]) -> dict[str, str]:
    return runtime.parse_flags(CLASSES, argv, "chatlog")


def unknown_variables() -> list[str]:
    """CHATLOG_ variables that no setting has: most likely misspelt."""
    known = {runtime.variable_of(name) for name in runtime.fields_of(CLASSES)} | {runtime.CONFIG_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(runtime.PREFIX) and name not in known)


def _of(each: type[Settings], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that this class has. A worker is told one of two kinds of server, once the choice is made."""
    own = {name: value for name, value in flags.items() if name in each.model_fields}
    return own | {"model_server": "ollama"} if each is InferenceSettings else own
