"""Commands that take every setting as a flag, before their arguments or after them.

Owns which words of a command line are settings; what they mean is settings' own. A command's own option wins over a
setting of that name. What is neither, is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

from typer.core import TyperCommand

from services.operator.settings import CLASSES
from services.runtime.settings import fields_of, flag_of, is_secret

EPILOG = "Every setting is also a flag, as --data-dir FOLDER: `chatlog settings` lists them."


class SettingsCommand(TyperCommand):
    """Its context's args are the settings among its words: `parse_flags` reads them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "epilog": EPILOG})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for parameter in self.params for name in parameter.opts}
        rest, flags = apart(args, own)
        super().parse_args(ctx, rest)
        ctx.args = flags
        return flags


def apart(words: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """(the command's own words, the settings with their values). Behind -- nothing is a flag."""
    settings = {flag_of(name) for name, field in fields_of(CLASSES).items() if not is_secret(field)} - set(own)
    rest: list[str] = []
    flags: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, _ = word.partition("=")
        if name in settings:
            flags += [word, *islice(left, 0 if equals else 1)]
        else:
            rest.append(word)
        if word == "--":
            rest += left
    return rest, flags
