"""Credentials for containers: made once, private, each file with what its readers need and nothing more."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from services.inference.settings import InferenceSettings
from services.operator.credentials import Handout, hand_out
from services.operator.folder import DataFolder
from services.operator.settings import OperatorSettings
from services.runtime.settings import SettingsError, load


@pytest.fixture
def to(tmp_path: Path) -> Handout:
    for name in ("secrets", "services", "box"):
        (tmp_path / name).mkdir()
    services = tmp_path / "services"
    return Handout(services / "nats.conf", services / "services.toml", tmp_path / "box" / "key", Path("/store"))


def test_each_file_holds_what_its_readers_need_and_nothing_more(tmp_path: Path, to: Handout) -> None:
    settings = OperatorSettings(data_dir=tmp_path / "secrets")
    files = hand_out(settings, to)
    kept = DataFolder(settings.data_dir).secrets()
    assert files == [to.broker, to.services, to.box_key]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    passwords = {"nats_password": kept.nats_password, "nats_system_password": kept.nats_system_password}
    assert tomllib.loads(to.services.read_text()) == passwords
    assert to.box_key.read_text() == f"{kept.box_api_key}\n"
    conf = to.broker.read_text()
    assert all(password in conf for password in passwords.values())
    assert 'store_dir: "/store"' in conf
    assert "sync_interval: always" in conf
    assert kept.box_api_key not in conf + to.services.read_text()


def test_they_are_made_once(tmp_path: Path, to: Handout) -> None:
    settings = OperatorSettings(data_dir=tmp_path / "secrets")
    first = [file.read_bytes() for file in hand_out(settings, to)]
    to.box_key.unlink()
    assert [file.read_bytes() for file in hand_out(settings, to)] == first


def test_services_read_their_password_as_a_setting(
    tmp_path: Path, to: Handout, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = OperatorSettings(data_dir=tmp_path / "secrets")
    hand_out(settings, to)
    monkeypatch.setenv("CHATLOG_CONFIG", str(to.services))
    read = load(InferenceSettings, {"openai_api_key_file": str(to.box_key)})
    kept = DataFolder(settings.data_dir).secrets()
    assert read.nats_password.get_secret_value() == kept.nats_password
    assert read.openai_key() == kept.box_api_key


def test_a_worker_s_key_is_its_own_setting_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    file = {"openai_api_key_file": str(tmp_path / "key")}
    assert load(InferenceSettings, {**file, "openai_api_key": "given"}).openai_key() == "given"
    assert load(InferenceSettings, file).openai_key() == "from-file"
    assert load(InferenceSettings).openai_key() == ""
    with pytest.raises(SettingsError, match=r"CHATLOG_OPENAI_API_KEY_FILE.*No such file"):
        load(InferenceSettings, {"openai_api_key_file": str(tmp_path / "none")})
