"""Credentials of a stack in containers: made once, kept, and handed out as files, each to those who need it.

Owns which file holds which secret. `chatlog up` gives its children their secrets in their environment; containers share
folders instead, so that no secret is in compose.yaml, in an image or on a command line. Must never make a secret anew
where there is one: the broker and the box would no longer know who asks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from services.operator import broker
from services.operator.folder import DataFolder
from services.operator.settings import OperatorSettings

# Inside its container the broker listens on all addresses: its port is not published, and asks for a password.
_ALL_ADDRESSES = "0.0.0.0"
_NATS_PORT = 4222


@dataclass(frozen=True, slots=True)
class Handout:
    """Where the files go, and where the broker keeps its streams. services is what CHATLOG_CONFIG names."""

    broker: Path
    services: Path
    box_key: Path
    nats_store: Path


def hand_out(settings: OperatorSettings, to: Handout) -> list[Path]:
    """Write each file again from the data folder's secrets, which are made at the first call; the files."""
    kept = DataFolder(settings.data_dir.absolute())
    secrets = kept.secrets()
    conf = broker.BrokerConfig(
        store_dir=to.nats_store,
        user=settings.nats_user,
        password=secrets.nats_password,
        system_user=settings.nats_system_user,
        system_password=secrets.nats_system_password,
        host=_ALL_ADDRESSES,
        port=_NATS_PORT,
        max_file_store_bytes=settings.max_file_store_bytes,
    )
    passwords = {"nats_password": secrets.nats_password, "nats_system_password": secrets.nats_system_password}
    kept.write_private(to.broker, broker.render(conf))
    kept.write_private(to.services, "".join(f"{name} = {json.dumps(value)}\n" for name, value in passwords.items()))
    kept.write_private(to.box_key, secrets.box_api_key + "\n")
    return [to.broker, to.services, to.box_key]
