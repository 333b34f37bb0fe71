"""Which request meets which fault."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.standin.faults import Asked, Dialect, Fault, FaultBook, Script
from services.standin.hosts import host_allowed, origin_allowed, rule_of

ASKED = Asked("ollama", "chat", "m", "say [x]")


def met(fault: Fault, requests: int = 5) -> list[int]:
    """The numbers of the requests, all alike, that meet the fault."""
    book = FaultBook()
    book.add(fault)
    return [number for number in range(1, requests + 1) if book.plan(ASKED).faults]


def test_once_from_the_nth_on_or_always() -> None:
    assert met(Fault(kind="hang")) == [1]
    assert met(Fault(kind="hang", nth=3)) == [3]
    assert met(Fault(kind="hang", nth=2, times=2)) == [2, 3]
    assert met(Fault(kind="hang", nth=4, times=None)) == [4, 5]


def test_every_condition_must_fit() -> None:
    assert met(Fault(kind="hang", wire="ollama", model="m", marker="[x]")) == [1]
    for other in ({"wire": "openai"}, {"model": "n"}, {"marker": "[y]"}, {"route": "tags"}):
        assert met(Fault.model_validate({"kind": "hang", "times": None, **other})) == []


def test_only_requests_that_fit_are_counted() -> None:
    book = FaultBook()
    book.add(Fault(kind="hang", model="m", nth=2))
    other = Asked("ollama", "chat", "n")
    assert [bool(book.plan(asked).faults) for asked in (ASKED, other, other, ASKED)] == [False, False, False, True]


def test_the_first_script_that_is_due_is_told() -> None:
    book = FaultBook()
    book.add_script(Script(pieces=("one",)))
    book.add_script(Script(pieces=("two",), times=None))
    told = [plan.script.pieces for plan in (book.plan(ASKED) for _ in range(3)) if plan.script]
    assert told == [("one",), ("two",), ("two",)]
    book.clear()
    assert book.plan(ASKED).script is None


def test_a_plan_tells_what_strikes_when() -> None:
    book = FaultBook()
    for fault in (Fault(kind="stall", after=2), Fault(kind="cut", after=None), Fault(kind="split", size=3)):
        book.add(fault)
    plan = book.plan(ASKED)
    assert [fault.kind for fault in plan.strikes_at(2)] == ["stall"]
    assert [fault.kind for fault in plan.strikes_at(None)] == ["cut"]
    assert not plan.strikes_at(0), "a split does not strike at a point"
    assert plan.dialect == Dialect()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "status"},
        {"kind": "status", "row": "nosuch"},
        {"kind": "dialect"},
        {"kind": "clean_end", "after": None},
        {"kind": "stall", "after": -1},
        {"kind": "stall", "nth": 0},
        {"kind": "stall", "nosuch": 1},
    ],
)
def test_a_fault_that_means_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Fault.model_validate(fields)


@pytest.mark.parametrize(
    "host", [None, "", "localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80", "10.0.0.5", "box.local", "a.internal"]
)
def test_local_hosts_are_served(host: str | None) -> None:
    assert host_allowed(host)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "8.8.8.8", "notlocalhost", "[::", "local"])
def test_foreign_hosts_are_not(host: str) -> None:
    assert not host_allowed(host)


@pytest.mark.parametrize(("address", "served"), [("0.0.0.0", True), ("172.18.0.5", True), ("127.0.0.1", False)])
def test_a_name_is_served_beyond_loopback_only(address: str, served: bool) -> None:
    assert rule_of(address)("model:11434") is served
    assert rule_of(address)("localhost")


def test_origins() -> None:
    assert all(origin_allowed(origin) for origin in (None, "http://localhost:3000", "https://127.0.0.1", "app://x"))
    foreign = ("http://evil.example", "null", "http://localhost.evil.example", "ftp://localhost", "http://[")
    assert not any(origin_allowed(origin) for origin in foreign)
