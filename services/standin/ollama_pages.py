"""Beside the road (core): the JSON of Ollama's pages about models: tags, ps, show, and its /v1/models.

It owns their shapes, as recorded of 0.32.15; what nothing of ours reads is shorter than the recording (docs/standin.md
lists it). It must never ask a clock or a socket: what is loaded is handed in.
"""

from __future__ import annotations

from typing import Any, Final

from services.standin import gojson
from services.standin.model import Catalogue, ModelSpec

MODIFIED_NS: Final = 1_795_247_919_588_794_949
"""When the models that are none were modified: one moment, so that every answer is the same."""

SIZE_BYTES: Final = 98_362_745
STOPS: Final = ("<|im_start|>", "<|im_end|>")
TEMPLATE: Final = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    }


def tags(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": spec.full_name,
                "model": spec.full_name,
                "modified_at": gojson.timestamp(MODIFIED_NS),
                "size": SIZE_BYTES,
                "digest": spec.digest,
                "details": {**_details(), "context_length": spec.train_window, "embedding_length": 576},
                "capabilities": list(spec.capabilities),
            }
            for spec in catalogue
        ]
    }


def loaded_model(spec: ModelSpec, window: int, expires_epoch_s: float) -> dict[str, Any]:
    """A line of /api/ps: the only place that tells the window in force."""
    return {
        "name": spec.full_name,
        "model": spec.full_name,
        "size": SIZE_BYTES,
        "digest": spec.digest,
        "details": _details(),
        "expires_at": gojson.timestamp(int(expires_epoch_s * 1e9)),
        "size_vram": 0,
        "context_length": window,
    }


def show(spec: ModelSpec) -> dict[str, Any]:
    parameters = [f"{'stop':<30} {gojson.encode(stop).decode()}" for stop in STOPS]
    if spec.window:
        parameters.append(f"{'num_ctx':<30} {spec.window}")
    return {
        "modelfile": f"# The stand-in has no model file.\nFROM {spec.full_name}\n",
        "parameters": "\n".join(parameters),
        "template": TEMPLATE,
        "details": _details(),
        "model_info": {
            "general.architecture": "llama",
            "general.parameter_count": 134_515_008,
            "llama.context_length": spec.train_window,
            "llama.embedding_length": 576,
        },
        "capabilities": list(spec.capabilities),
        "modified_at": gojson.timestamp(MODIFIED_NS),
    }


def v1_model(spec: ModelSpec) -> dict[str, Any]:
    return {
        "id": spec.full_name,
        "object": "model",
        "created": MODIFIED_NS // 1_000_000_000,
        "owned_by": "library",
    }


def v1_models(catalogue: Catalogue) -> dict[str, Any]:
    return {"object": "list", "data": [v1_model(spec) for spec in catalogue]}


def v1_not_found(name: str) -> dict[str, Any]:
    return {"error": {"message": f"model '{name}' not found", "type": "not_found_error", "param": None, "code": None}}
