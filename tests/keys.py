"""Keys for a test, made as `chatlog keys` makes them."""

from __future__ import annotations

from contracts.keys import Scope
from services.operator import keys
from tests.brokers import Broker


async def new_key(b: Broker, user_id: str, scope: Scope = "chat", lifetime: str | None = None) -> str:
    client = await b.connect()
    _, key = await keys.create(client.jetstream(), keys.Wanted(user_id, "", scope, lifetime))
    await client.close()
    return key


async def revoke_key(b: Broker, key: str) -> None:
    client = await b.connect()
    await keys.revoke(client.jetstream(), key.split("_")[1])
    await client.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
