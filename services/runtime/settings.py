"""Settings: one place for how a value gets here (flag > environment > TOML file > default) and where it came from.

Owns the base of every settings class and the settings that all services share. Each setting has a unit, a default and a
reason, or its class cannot be made. Must never print a secret.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from services.runtime import streams

PREFIX = "CHATLOG_"
CONFIG_VARIABLE = "CHATLOG_CONFIG"
DEFAULT_CONFIG = Path("chatlog.toml")
MASK = "********"

Source = Literal["flag", "environment", "file", "default"]


class SettingsError(Exception):
    """A setting cannot be used. The text names each wrong one, and what is wrong, without a secret's value."""


def setting(
    default: Any, *, unit: str, reason: str, ge: float | None = None, le: float | None = None, choices: str = ""
) -> Any:
    """A setting with its default, its unit ('' where it has none) and why the default is what it is."""
    return Field(
        default=default, description=reason, ge=ge, le=le, json_schema_extra={"unit": unit, "choices": choices}
    )


class Settings(BaseSettings):
    """The base of each settings class. Make one with load(), so that a wrong value is one clear line."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, validate_default=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if not field.description or not isinstance(field.json_schema_extra, dict):
                raise TypeError(f"{cls.__name__}.{name} needs setting(default, unit=..., reason=...)")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, read_file())


class SharedSettings(Settings):
    """What every service needs: the data folder, the broker, its log and its health address."""

    data_dir: Path = setting(Path("data"), unit="", reason="everything that Chatlog keeps, in one folder to back up")
    nats_url: str = setting("nats://127.0.0.1:8701", unit="", reason="the bundled nats-server, on loopback only")
    nats_user: str = setting("chatlog", unit="", reason="the services' user in the broker's CHAT account")
    nats_password: SecretStr = setting(SecretStr(""), unit="", reason="generated once by `chatlog up`")
    nats_system_user: str = setting(
        "system", unit="", reason="readiness asks the broker's system account for its health"
    )
    nats_system_password: SecretStr = setting(SecretStr(""), unit="", reason="generated once by `chatlog up`")
    intake_max_bytes: int = setting(
        streams.INTAKE_MAX_BYTES,
        unit="bytes",
        reason="holds the events of a long outage of history; full refuses",
        ge=1,
    )
    context_max_bytes: int = setting(
        streams.CONTEXT_MAX_BYTES, unit="bytes", reason="holds the contexts of all dispatched turns, with texts", ge=1
    )
    auth: Literal["open", "keys"] = setting(
        "open", unit="", reason="open: one user, on loopback; keys: each user has keys, see `chatlog keys`"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", unit="", reason="ids of what happened, never texts", choices="debug, info, warning, error"
    )
    health_address: str = setting(
        "", unit="", reason="where a service without a door answers /readyz: unix:PATH or HOST:PORT; empty: nowhere"
    )
    drain_timeout_s: float = setting(
        10.0, unit="s", reason="after SIGTERM: time to finish what is in flight before it is dropped", ge=0
    )


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `chatlog settings`."""

    name: str
    variable: str
    value: str
    unit: str
    default: str
    reason: str
    source: Source


def load(settings_class: type[S], flags: Mapping[str, Any] | None = None) -> S:
    """The settings in force. Raises SettingsError with a line for each wrong value."""
    try:
        return settings_class(**(flags or {}))
    except ValidationError as error:
        lines = [
            f"{variable_of(str(problem['loc'][0]))} ({_source(str(problem['loc'][0]), flags or {})}): {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise SettingsError("\n".join(lines)) from None


def parse_flags(settings_classes: Iterable[type[Settings]], argv: Sequence[str], program: str) -> dict[str, str]:
    """--gateway-port 8700 and the like. A secret has no flag: every user of the machine can read a command line."""
    parser = _Parser(prog=program, allow_abbrev=False, description="Every flag is a setting; see `chatlog settings`.")
    for name, field in fields_of(settings_classes).items():
        if not is_secret(field):
            default = str(field.default).replace("%", "%%")
            reason = str(field.description).replace("%", "%%")
            parser.add_argument(
                flag_of(name),
                dest=name,
                default=argparse.SUPPRESS,
                help=f"{reason} (default {default} {unit_of(field)})",
            )
    return vars(parser.parse_args(list(argv)))


def rows(settings_class: type[Settings], flags: Mapping[str, Any] | None = None) -> list[Row]:
    """Each setting of a class, its value in force and where that came from. Raises SettingsError."""
    values = load(settings_class, flags)
    return [
        Row(
            name=name,
            variable=variable_of(name),
            value=shown(getattr(values, name)),
            unit=unit_of(field),
            default=shown(field.default),
            reason=str(field.description),
            source=_source(name, flags or {}),
        )
        for name, field in settings_class.model_fields.items()
    ]


def unknown_keys(settings_classes: Iterable[type[Settings]]) -> list[str]:
    """Keys of the TOML file that no class has. A service ignores its neighbours' keys; who knows all classes asks."""
    known = fields_of(settings_classes)
    return [f"{config_path()}: {key} is not a setting" for key in read_file() if key not in known]


def read_file() -> dict[str, Any]:
    """The TOML file's keys: settings' names, without a table. None there: empty, unless CHATLOG_CONFIG asked for it."""
    path = config_path()
    if not path.exists() and CONFIG_VARIABLE not in os.environ:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error


def config_path() -> Path:
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


def fields_of(settings_classes: Iterable[type[Settings]]) -> dict[str, FieldInfo]:
    """All settings of several classes by name; what they share appears once."""
    return {name: field for each in settings_classes for name, field in each.model_fields.items()}


def variable_of(name: str) -> str:
    return PREFIX + name.upper()


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def unit_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def shown(value: object) -> str:
    """A value for people: secrets masked, nothing as an empty word."""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    return "" if value is None else str(value)


def is_secret(field: FieldInfo) -> bool:
    return isinstance(field.default, SecretStr) or "SecretStr" in str(field.annotation)


def _source(name: str, flags: Mapping[str, Any]) -> Source:
    if name in flags:
        return "flag"
    if os.environ.get(variable_of(name)):
        return "environment"
    return "file" if name in read_file() else "default"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other wrong setting is said."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)
