"""Settings: the order of their sources, where each came from, and errors that name the setting and hide secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from services.runtime import settings
from services.runtime.settings import Settings, SettingsError, SharedSettings, load, parse_flags, rows, setting


class Sample(Settings):
    port: int = setting(8700, unit="port", reason="a port that nothing else has", ge=0, le=65535)
    name: str = setting("plain", unit="", reason="a word")
    key: SecretStr = setting(SecretStr(""), unit="", reason="a secret")


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PORT", "NAME", "KEY", "CONFIG"):
        monkeypatch.delenv(f"CHATLOG_{name}", raising=False)


def test_flag_beats_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> tuple[int, str]:
        row = rows(Sample, flags)[0]
        assert row.value == str(load(Sample, flags).port)
        return load(Sample, flags).port, row.source

    flags: dict[str, str] = {}
    assert found() == (8700, "default")
    Path("chatlog.toml").write_text("port = 1\n")
    assert found() == (1, "file")
    monkeypatch.setenv("CHATLOG_PORT", "2")
    assert found() == (2, "environment")
    flags = parse_flags([Sample], ["--port", "3"], "sample")
    assert found() == (3, "flag")


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLOG_PORT", "")
    assert load(Sample).port == 8700
    assert rows(Sample)[0].source == "default"


def test_the_file_may_be_elsewhere_but_then_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHATLOG_CONFIG", str(tmp_path / "mine.toml"))
    with pytest.raises(SettingsError, match=r"mine\.toml.*No such file"):
        load(Sample)
    (tmp_path / "mine.toml").write_text('name = "mine"\n')
    assert load(Sample).name == "mine"


def test_a_broken_file_is_one_clear_line() -> None:
    Path("chatlog.toml").write_text("port = \n")
    with pytest.raises(SettingsError, match=r"chatlog\.toml: Invalid value"):
        load(Sample)


def test_a_wrong_value_names_the_setting_and_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLOG_PORT", "70000")
    with pytest.raises(SettingsError, match=r"^CHATLOG_PORT \(environment\): Input should be less than"):
        load(Sample)
    with pytest.raises(SettingsError, match=r"^CHATLOG_PORT \(flag\): "):
        load(Sample, {"port": "nine"})


def test_a_key_that_no_class_has_is_found() -> None:
    Path("chatlog.toml").write_text("prot = 1\nname = 'x'\n")
    assert settings.unknown_keys([Sample, SharedSettings]) == ["chatlog.toml: prot is not a setting"]


def test_an_unknown_flag_and_a_flag_for_a_secret_are_refused() -> None:
    with pytest.raises(SettingsError, match="--prot"):
        parse_flags([Sample], ["--prot", "1"], "sample")
    with pytest.raises(SettingsError, match="--key"):
        parse_flags([Sample], ["--key", "canary"], "sample")


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(Sample)[2].value == ""
    monkeypatch.setenv("CHATLOG_KEY", "canary")
    assert rows(Sample)[2].value == settings.MASK
    assert "canary" not in f"{rows(Sample)} {load(Sample)!r}"


def test_a_setting_without_unit_or_reason_cannot_be_made() -> None:
    with pytest.raises(TypeError, match=r"Bare\.port needs setting"):

        class Bare(Settings):
            model_config = SettingsConfigDict()
            port: int = 1


def test_every_shared_setting_has_a_reason_and_a_default() -> None:
    assert all(row.reason for row in rows(SharedSettings))
