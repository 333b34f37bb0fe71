"""Settings as flags of every command: before its arguments, between them and after them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from services.operator.cli import app
from services.operator.flags import EPILOG, SettingsCommand, apart


@pytest.mark.parametrize(
    ("words", "rest", "flags"),
    [
        ("--data-dir d name:x --at 3", "name:x --at 3", "--data-dir d"),
        ("name:x --data-dir=d --at 3 --slots 2", "name:x --at 3", "--data-dir=d --slots 2"),
        ("--model m name:x", "--model m name:x", ""),
        ("--nats-password secret", "--nats-password secret", ""),
        ("--data-dir d -- --slots 2", "-- --slots 2", "--data-dir d"),
        ("name:x --data-dir", "name:x", "--data-dir"),
    ],
)
def test_what_is_a_setting_and_what_is_the_command_s_own(words: str, rest: str, flags: str) -> None:
    assert apart(words.split(), {"--at", "--model"}) == (rest.split(), flags.split())


def test_a_folder_is_named_before_an_argument_or_after_it(tmp_path: Path) -> None:
    folder = ["--data-dir", str(tmp_path)]
    for words in ([*folder, "name:x"], ["name:x", *folder], [f"--data-dir={tmp_path}", "name:x"]):
        done = CliRunner().invoke(app, ["show", *words])
        assert (done.exit_code, done.output) == (1, f"chatlog: there is no log in {tmp_path}\n")
    assert CliRunner().invoke(app, ["show", "--nope", "name:x"]).exit_code == 2


def test_every_command_takes_settings_and_says_so() -> None:
    top = typer.main.get_command(app)
    assert isinstance(top, TyperGroup)
    groups = [top, *(each for each in top.commands.values() if isinstance(each, TyperGroup))]
    commands = [each for group in groups for each in group.commands.values() if not isinstance(each, TyperGroup)]
    assert len(commands) > 15
    assert not [each.name for each in commands if not isinstance(each, SettingsCommand) or each.epilog != EPILOG]
