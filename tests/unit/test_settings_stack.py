"""All settings together: what `chatlog settings` prints and what `chatlog up` refuses before anything runs."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from services.operator import settings as stack
from services.operator.settings import CLASSES, load_all, parse_flags, rows
from services.operator.show import settings_table
from services.runtime.settings import SettingsError, fields_of, unit_of, variable_of
from services.runtime.version import VERSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_setting_is_shown_once() -> None:
    names = [row.name for _, part in rows({}) for row in part]
    assert sorted(names) == sorted(fields_of(CLASSES))


def test_a_setting_that_two_services_have_has_one_unit() -> None:
    for each in CLASSES:
        for name, field in each.model_fields.items():
            assert unit_of(field) == unit_of(fields_of(CLASSES)[name]), name


def test_a_key_that_nobody_has_stops_the_command() -> None:
    Path("chatlog.toml").write_text("gateway_prot = 1\n")
    with pytest.raises(SettingsError, match="gateway_prot is not a setting"):
        load_all({})


def test_a_flag_reaches_every_class_that_has_it() -> None:
    settings = load_all(parse_flags(["--data-dir", "/tmp/d", "--gateway-port", "9000", "--slots=4"]))
    assert str(settings.history.data_dir) == str(settings.operator.data_dir) == "/tmp/d"
    assert (settings.gateway.gateway_port, settings.inference.slots) == (9000, 4)


def test_the_kinds_of_model_server_that_only_we_know_do_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLOG_MODEL_SERVER", "box")
    assert load_all({}).operator.model_server == "box"
    assert {row.name: row.value for _, part in rows({}) for row in part}["model_server"] == "box"


def test_a_gateway_without_keys_leaves_loopback_only_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLOG_GATEWAY_HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match=r"CHATLOG_GATEWAY_HOST.*loopback"):
        load_all({})
    monkeypatch.setenv("CHATLOG_OPEN_BEYOND_LOOPBACK", "true")
    assert load_all({}).gateway.gateway_host == "0.0.0.0"


def test_a_misspelt_variable_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLOG_GATEWAY_PROT", "1")
    monkeypatch.setenv("CHATLOG_CONFIG", "")
    assert "CHATLOG_GATEWAY_PROT" in stack.unknown_variables()
    assert "CHATLOG_CONFIG" not in stack.unknown_variables()


def test_the_table_fits_a_terminal_of_a_hundred_columns() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for part, own in rows(parse_flags(["--gateway-port", "8800"])):
        console.print(settings_table(part, own), soft_wrap=False)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 100
    [port] = [line for line in lines if line.startswith("CHATLOG_GATEWAY_PORT ")]
    assert " 8800 " in port
    assert " flag, for 8700 " in port
    assert all(any(line.startswith(variable_of(name)) for line in lines) for name in fields_of(CLASSES))


def test_there_is_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
