"""Beside the road: settings -> llama.cpp's own HTTP server, every option that matters explicit.

Owns what the box is: its model's name, its window, its sampling, which doors are open. A foreign Host
header cannot be refused, llama.cpp has no such option: the key is what keeps web pages out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.llamacpp.machine import why_not_loaded
from services.llamacpp.settings import BoxSettings

MODEL_NAME = "smollm2:135m"  # a name that Ollama knows too: the same send works with either
WINDOW_TOKENS = 4096  # of each slot, as Ollama's default; 243 MB resident with one
# llama.cpp keeps finished prompts in memory, 8 GiB of them by default. This holds some ten conversations.
PROMPT_CACHE_MIB = 64
# With these 6 of 6 answers to "What is the capital of France?" named Paris, with llama.cpp's defaults 2 of 6.
TEMPERATURE, TOP_P, REPEAT_PENALTY = 0.3, 0.9, 1.15
# Each stream, each waiting request and each idle connection holds a thread of the server; probes must find one free.
HTTP_THREADS_PER_SLOT, HTTP_THREADS_SPARE = 2, 8
# A client that neither sends nor reads for so long is gone; without a bound it would hold a slot for an hour.
CLIENT_TIMEOUT_S = 60
PING_EVERY_S = 30  # a comment line in a quiet stream, so that the server notices who has gone
LOG_ERRORS = 1  # from level 3 on each request is logged; errors hold no text of a conversation (tried)


def start_server(settings: BoxSettings, api_key: str, model_file: Path) -> Any:
    """llama.cpp's server with its model loaded; `listening_address` is its URL, and it serves for as long as it lives.

    Raises CannotRunError where xllamacpp cannot be loaded, RuntimeError where the server does not start.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise why_not_loaded(error) from error
    return xllamacpp.Server(_parameters(xllamacpp.CommonParams(), settings, api_key, model_file))


def _parameters(parameters: Any, settings: BoxSettings, api_key: str, model_file: Path) -> Any:
    parameters.model.path = str(model_file)
    parameters.model_alias = {MODEL_NAME}
    parameters.offline = True
    parameters.verbosity = LOG_ERRORS
    _open_doors(parameters, settings, api_key)
    parameters.n_parallel = settings.box_slots
    parameters.n_ctx = WINDOW_TOKENS * settings.box_slots
    parameters.kv_unified = False  # each slot has its own window, whatever its neighbours do
    parameters.fit_params = False  # it would shrink the window in silence where memory is short
    parameters.ctx_shift = False  # an answer that outgrows the window ends as `length`, not with its start forgotten
    parameters.cache_ram_mib = PROMPT_CACHE_MIB
    parameters.sampling.temp = TEMPERATURE
    parameters.sampling.top_p = TOP_P
    parameters.sampling.penalty_repeat = REPEAT_PENALTY
    return parameters


def _open_doors(parameters: Any, settings: BoxSettings, api_key: str) -> None:
    parameters.hostnames = [settings.box_host]
    parameters.port = settings.box_port
    parameters.reuse_port = False  # a second box on the port must fail, not share it
    parameters.api_keys = [api_key]
    parameters.cors_origins = ""  # the default lets every web page in
    parameters.cors_credentials = False
    parameters.ui = False
    parameters.endpoint_slots = True  # with the key: who holds a slot
    parameters.endpoint_metrics = True  # with the key: tokens per second, what waits
    parameters.endpoint_props = False  # no door changes what runs
    parameters.n_threads_http = HTTP_THREADS_PER_SLOT * settings.box_slots + HTTP_THREADS_SPARE
    parameters.timeout_read = CLIENT_TIMEOUT_S
    parameters.timeout_write = CLIENT_TIMEOUT_S
    parameters.sse_ping_interval = PING_EVERY_S
