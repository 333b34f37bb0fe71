"""Step 12, inference/models: a kind of model server -> its adapter.

Owns the choice between the two adapters. Must never guess: the kind is a setting.
"""

from __future__ import annotations

from typing import Literal

from services.inference.models.ollama import Ollama
from services.inference.models.openai import OpenAI
from services.inference.models.port import ModelServer

Kind = Literal["ollama", "openai"]


def open_model_server(kind: Kind, url: str, api_key: str | None = None, num_ctx: int | None = None) -> ModelServer:
    """A connection to the server at url, for one slot. Raises ValueError for a URL or key that no client can use.

    num_ctx is Ollama's alone: OpenAI's API cannot ask for a window.
    """
    if kind == "ollama":
        return Ollama(url, api_key, num_ctx)
    return OpenAI(url, api_key)
