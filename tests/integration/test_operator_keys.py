"""`chatlog keys` as a person types it, on a real broker: a key is shown once, and only once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from contracts.keys import key_id_of
from tests.brokers import Broker, broker
from tests.commands import chatlog


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def keys(b: Broker, *arguments: str) -> tuple[int, str, str]:
    code, out, err = await chatlog(b.environment(), "keys", *arguments)
    return code, out.decode(), err


async def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    async with broker(tmp_path) as b:
        code, key, told = await keys(b, "create", "--user", "ann [x]", "--name", "laptop", "--expires", "30d")
        assert (code, key.count("\n")) == (0, 1), told
        key = key.strip()
        key_id = key_id_of(key)
        assert key_id is not None
        assert key not in told
        assert "shown this once" in told
        assert told.endswith("asks for a key before it runs with CHATLOG_AUTH=keys; here it is open\n")
        code, shown, _ = await keys(b, "list")
        assert (code, key in shown, key.split("_", 2)[2][:43] in shown) == (0, False, False)
        [row] = [line for line in shown.splitlines() if key_id in line]
        assert "ann [x]" in row
        assert "laptop" in row
        assert row.rstrip().endswith("live")
        for _ in range(2):  # again is no error
            code, revoked, _ = await keys(b, "revoke", key_id)
            assert (code, "is revoked since" in revoked) == (0, True)
        assert "revoked" in (await keys(b, "list"))[1]
    stored = b"".join(path.read_bytes() for path in files(tmp_path))
    assert key.encode() not in stored
    assert key_id.encode() in stored


WRONG = {
    ("create", "--user", " "): "a user has 1 to 200 printable characters",
    ("create", "--user", "a\nb"): "a user has 1 to 200 printable characters",
    ("create", "--user", "ann", "--expires", "soon"): "--expires takes a number and s, m, h or d",
    ("create", "--user", "ann", "--scope", "admin"): "--scope",
    ("revoke", "000000000000"): "there is no key 000000000000",
    ("revoke", ">"): "no id of a key",
}


async def test_what_cannot_be_done_is_one_line(tmp_path: Path) -> None:
    async with broker(tmp_path) as b:
        told = await asyncio.gather(*(keys(b, *arguments) for arguments in WRONG))
    for (code, out, err), line in zip(told, WRONG.values(), strict=True):
        assert code in (1, 2)
        assert (out, line in err, "Traceback" in err) == ("", True, False), err


async def test_a_broker_without_the_bucket_is_named(tmp_path: Path) -> None:
    async with broker(tmp_path, provisioned=False) as b:
        code, _, err = await keys(b, "list")
    assert (code, "`chatlog provision` makes it" in err) == (1, True)
