"""Beside the road (core): the JSON of Ollama's pages about models: tags, ps, show, and its /v1/models.

It owns their shapes, as recorded of 0.32.15. It must never ask a clock or a socket: what is loaded is handed in.
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

MODEL_INFO: Final[dict[str, object]] = {
    "general.architecture": "llama",
    "general.basename": "stand-in",
    "general.file_type": 3,
    "general.finetune": "none",
    "general.languages": None,
    "general.license": "apache-2.0",
    "general.organization": "none",
    "general.parameter_count": 134_515_008,
    "general.quantization_version": 2,
    "general.size_label": "135M",
    "general.type": "model",
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.attention.layer_norm_rms_epsilon": 0.00001,
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.rope.dimension_count": 64,
    "llama.rope.freq_base": 100_000,
    "llama.vocab_size": 49_152,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.merges": None,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.token_type": None,
    "tokenizer.ggml.tokens": None,
    "tokenizer.ggml.unknown_token_id": 0,
}
"""What /api/show says of the recorded model; the stand-in borrows its shape."""


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
        "model_info": {**MODEL_INFO, "llama.context_length": spec.train_window},
        "tensors": [{"name": "output_norm.weight", "type": "F32", "shape": [576]}],
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
