"""Beside the road: what can be set of the box, and why it is so by default."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from services.runtime.settings import Settings, SettingsError, setting


class BoxSettings(Settings):
    """The box's address, size and key."""

    box_host: str = setting("127.0.0.1", unit="", reason="loopback: only this machine's workers need it")
    box_port: int = setting(
        8703, unit="", reason="beside the gateway's 8700 and NATS's 8701; 0 takes any and says which", ge=0, le=65535
    )
    box_slots: int = setting(
        1, unit="slots", reason="answers at once: as many as CHATLOG_WORKERS x CHATLOG_SLOTS make", ge=1, le=64
    )
    box_api_key: SecretStr = setting(SecretStr(""), unit="", reason="without a key any web page could use the model")
    box_api_key_file: Path | None = setting(
        None, unit="", reason="the key's file, where the key itself must not stand in an environment"
    )


def api_key(settings: BoxSettings) -> str:
    """The key that the box asks for. Raises SettingsError where there is none: it never runs without."""
    key = settings.box_api_key.get_secret_value()
    if not key and settings.box_api_key_file is not None:
        try:
            key = settings.box_api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise SettingsError(f"CHATLOG_BOX_API_KEY_FILE: {error}") from error
    if not key:
        raise SettingsError("CHATLOG_BOX_API_KEY or CHATLOG_BOX_API_KEY_FILE: the box does not run without a key")
    return key
