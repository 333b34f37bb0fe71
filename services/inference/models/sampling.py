"""Step 12, inference/models: a request's sampling options as both wires spell them: one table for the two adapters.

Owns which options there are and that what was not set is not sent: a server's own default is not ours to repeat. Must
never choose a value. Does no I/O.
"""

from __future__ import annotations

from typing import Any

from services.inference.models.port import ModelRequest


def sampling(request: ModelRequest, *, max_tokens: str) -> dict[str, Any]:
    """The options that are set. max_tokens: the wire's own name for it, the only one in which the two differ."""
    options = {
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        max_tokens: request.max_tokens,
        "stop": list(request.stop) or None,
    }
    return {name: value for name, value in options.items() if value is not None}
