"""Bytes -> lines -> events: split anywhere, ended by LF alone, bounded."""

from __future__ import annotations

import pytest

from services.inference.models.lines import LineSplitter
from services.inference.models.port import ModelFailure
from services.inference.models.sse import Event, EventReader

# Raw U+0085, U+2028 and U+2029, a form feed and a lone CR: none of them ends a line.
ODD = '{"content":"a\u0085b\u2028c\u2029d\x0ce\rf"}'.encode()


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_line_ends_at_lf_only_wherever_the_bytes_are_split(step: int) -> None:
    body = ODD + b"\n" + b"second\r\n" + b"\n"
    splitter = LineSplitter()

    lines = [line for at in range(0, len(body), step) for line in splitter.feed(body[at : at + step])]

    assert lines == [ODD, b"second", b""]


def test_lines_of_a_megabyte_pass_and_lines_beyond_the_bound_fail() -> None:
    long = b"x" * (1024 * 1024)
    assert list(LineSplitter().feed(long + b"\n")) == [long]

    splitter = LineSplitter(max_line_bytes=10)
    assert list(splitter.feed(b"0123456789\n")) == [b"0123456789"]
    assert list(splitter.feed(b"01234")) == []
    with pytest.raises(ModelFailure) as failure:
        list(splitter.feed(b"567890"))
    assert failure.value.code == "model_error"


@pytest.mark.parametrize(
    ("left", "given"), [(b'{"done":true}', [b'{"done":true}', b""]), (b'{"message":{"con', [b""]), (b"", [b""])]
)
def test_a_clean_end_gives_a_line_that_looks_whole_and_drops_half_of_one(left: bytes, given: list[bytes]) -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(left)) == []
    assert list(splitter.last()) == given


def events(stream: bytes) -> list[Event]:
    reader = EventReader()
    return [event for line in LineSplitter().feed(stream) if (event := reader.read(line)) is not None]


def test_events_have_data_and_comments_and_empty_events_give_nothing() -> None:
    stream = b": ping\n\n:\nid: 7\nretry: 3\nevent: ping\n\ndata:\n\ndata: one\n\ndata:two\r\n\r\ndata: 3\ndata: 4\n\n"

    assert events(stream) == [Event("message", b"one"), Event("message", b"two"), Event("message", b"3\n4")]


def test_the_name_of_an_event_is_its_own() -> None:
    assert events(b"event: error\ndata: x\n\ndata: y\n\n") == [Event("error", b"x"), Event("message", b"y")]


@pytest.mark.parametrize("line", [b'{"error":"no"}', b"<html>"])
def test_what_is_no_event_stream_is_an_error_and_not_an_unknown_field(line: bytes) -> None:
    assert events(line + b"\n") == [Event("error", line)]
    assert events(b"error: " + line + b"\n") == [Event("error", line)]
