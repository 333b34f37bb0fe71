"""Whether a machine can run the box: each reason against it is one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from services.llamacpp.machine import CannotRunError, check_processor, find_model, why_not_loaded
from services.llamacpp.settings import BoxSettings, api_key
from services.runtime.settings import SettingsError

OLD = "processor\t: 0\nflags\t\t: fpu sse4_2 avx\n"
NEW = "processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2\n"


def test_an_x86_without_avx2_cannot_run_it() -> None:
    with pytest.raises(CannotRunError, match="AVX2"):
        check_processor("x86_64", OLD)


@pytest.mark.parametrize(("machine", "cpuinfo"), [("x86_64", NEW), ("aarch64", OLD), ("x86_64", ""), ("arm64", "")])
def test_other_processors_can(machine: str, cpuinfo: str) -> None:
    check_processor(machine, cpuinfo)


def test_the_model_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model().stat().st_size > 50_000_000
    with pytest.raises(CannotRunError, match=r"requirements-box\.lock"):
        find_model("no_such_package")
    (tmp_path / "empty_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CannotRunError, match=r"requirements-box\.lock"):
        find_model("empty_package")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("No module named 'xllamacpp'", name="xllamacpp"), r"requirements-box\.lock"),
        (ImportError("libgomp.so.1: cannot open shared object file"), "apt-get install libgomp1"),
        (ImportError("libstdc++.so.6: cannot open shared object file"), r"apt-get install libstdc\+\+6"),
        (ImportError("something new"), "something new"),
    ],
)
def test_a_failed_import_says_what_to_install(error: ImportError, says: str) -> None:
    with pytest.raises(CannotRunError, match=says):
        raise why_not_loaded(error)


def test_the_key_comes_from_the_environment_or_a_file_and_there_is_no_box_without(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("from-file\n")
    given = BoxSettings(box_api_key=SecretStr("from-env"), box_api_key_file=path)
    assert api_key(given) == "from-env"
    assert api_key(BoxSettings(box_api_key_file=path)) == "from-file"
    for nothing in (BoxSettings(), BoxSettings(box_api_key_file=tmp_path / "none")):
        with pytest.raises(SettingsError, match="CHATLOG_BOX_API_KEY"):
            api_key(nothing)
