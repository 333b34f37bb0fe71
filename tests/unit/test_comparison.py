"""A recorded answer beside a new one: equal only if they say the same, and where they part."""

from __future__ import annotations

import pytest

from services.operator.comparison import compare


@pytest.mark.parametrize(
    ("recorded", "again", "equal", "differs_at"),
    [
        (("", "one\ntwo"), ("", "one\ntwo"), True, None),
        (("hm", "one"), ("oh", "one"), False, None),
        (("", "one"), ("", "once"), False, 2),
        (("", "one"), ("", "one and two"), False, 3),
        (("", ""), ("", "one"), False, 0),
    ],
)
def test_where_two_answers_part(
    recorded: tuple[str, str], again: tuple[str, str], equal: bool, differs_at: int | None
) -> None:
    compared = compare(recorded, again)
    assert (compared.equal, compared.differs_at) == (equal, differs_at)
    assert bool(compared.lines) == (differs_at is not None)


def test_the_lines_that_differ() -> None:
    lines = compare(("", "a\nb\nc"), ("", "a\nB\nc")).lines
    assert [line for line in lines if line[0] in "+-" and line[:3] not in ("---", "+++")] == ["-b", "+B"]
