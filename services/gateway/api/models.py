"""Step 2, gateway/api/models: what models are on offer, as OpenAI lists them, our own fields beside.

Owns the list made from what workers say of themselves. Must never name a model that no worker was heard with.
"""

from __future__ import annotations

from typing import Any

from services.gateway.api.requests import CurrentUser, Gateway


async def list_models(_user_id: CurrentUser, parts: Gateway) -> dict[str, Any]:
    """The models that workers offer now. window in tokens, where a server tells it; server: ok, or its trouble."""
    return {
        "object": "list",
        "data": [
            {
                "id": model.name,
                "object": "model",
                # OpenAI's clients want both: no model here has a birthday or an owner that a worker could tell.
                "created": 0,
                "owned_by": "chatlog",
                "window": model.window,
                "workers": model.workers,
                "slots": model.slots,
                "free": model.free,
                "server": model.server,
            }
            for model in parts.heard.models()
        ],
    }
