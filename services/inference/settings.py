"""The worker's settings: its slots, its model server, and how long it believes in a silent one.

Owns names, units, defaults and reasons. Must never choose between model servers: `chatlog up` does that once, and tells
the worker the kind and the address.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import SecretStr, field_validator

from services.runtime.settings import SharedSettings, setting

OLLAMA_URL = "http://127.0.0.1:11434"

_SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_-]{0,64}")


class InferenceSettings(SharedSettings):
    """What `python -m services.inference` needs beside the broker."""

    worker_id: str = setting("", unit="", reason="names the worker in presence and logs; empty: a new id at each start")
    slots: int = setting(1, unit="answers", reason="at once: as many as the server runs in parallel", ge=1, le=256)
    model_server: Literal["ollama", "openai"] = setting(
        "ollama", unit="", reason="the API to speak; `chatlog up` resolves auto, box and standin to one of the two"
    )
    ollama_url: str = setting("", unit="", reason=f"the Ollama to use; empty: {OLLAMA_URL}, Ollama's own default")
    openai_url: str = setting("", unit="", reason="a server that speaks OpenAI's chat completions; it ends in /v1")
    openai_api_key: SecretStr = setting(SecretStr(""), unit="", reason="that server's key; empty: it asks for none")
    openai_api_key_file: Path | None = setting(
        None, unit="", reason="the key's file, where the key itself must not stand in an environment"
    )
    num_ctx: int | None = setting(
        None, unit="tokens", reason="Ollama's window for every request; unset: its own choice (a change reloads)", ge=4
    )
    first_token_s: float = setting(
        300.0, unit="s", reason="a cold load and a long prompt take minutes without a byte on the wire", ge=0.1
    )
    between_tokens_s: float = setting(
        60.0, unit="s", reason="a running model that is silent this long is wedged: only a timer finds it", ge=0.1
    )
    turn_s: float = setting(
        1800.0, unit="s", reason="no answer runs longer: a model that loops would hold its slot for ever", ge=0.1
    )
    end_s: float = setting(
        1800.0,
        unit="s",
        reason="a finished answer is held so long for the log to record it",
        ge=1,
    )
    heartbeat_s: float = setting(
        3.0, unit="s", reason="three missed ones and the context goes to another worker (ack_wait 10 s)", ge=0.1, le=4
    )
    presence_s: float = setting(2.0, unit="s", reason="who is silent for 6 s is forgotten", ge=0.1, le=3)
    token_chars: int = setting(
        16 * 1024, unit="characters", reason="a longer piece of the model's is split: a frame stays small", ge=1
    )
    answer_chars: int = setting(
        1024 * 1024,
        unit="characters",
        reason="a longer answer ends with `length`: whole and escaped it must fit one message of 8 MiB",
        ge=1,
        le=1024 * 1024,
    )

    @field_validator("worker_id")
    @classmethod
    def _names_a_subject(cls, worker_id: str) -> str:
        if not _SUBJECT_TOKEN.fullmatch(worker_id):
            raise ValueError("at most 64 letters, digits, - or _")
        return worker_id

    @field_validator("openai_api_key_file")
    @classmethod
    def _can_be_read(cls, path: Path | None) -> Path | None:
        """Here, where it is one clear line, and not at the first slot."""
        try:
            if path is not None:
                path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(str(error)) from error
        return path

    @property
    def model_server_url(self) -> str:
        return self.openai_url if self.model_server == "openai" else self.ollama_url or OLLAMA_URL

    def openai_key(self) -> str:
        """The key for CHATLOG_OPENAI_URL, '' where there is none."""
        key = self.openai_api_key.get_secret_value()
        if key or self.openai_api_key_file is None:
            return key
        return self.openai_api_key_file.read_text(encoding="utf-8").strip()
