"""Provenance: where a number was measured, so that it can be read and repeated."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from swarmkv_lab.llama import LLAMA_CPP_VERSION, Model, default_threads

_PACKAGES = ("numpy", "pandas", "matplotlib", "jupyterlab", "ipywidgets")


def environment(model: Model, **settings: Any) -> dict[str, Any]:
    """The machine, the versions, the model and the settings of a measurement."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": model.on_gpu,
        "python": platform.python_version(),
        "llama_cpp": LLAMA_CPP_VERSION,
        "packages": {name: version(name) for name in _PACKAGES},
        "model": model.name,
        "model_hash": model.content_hash,
        "n_threads": settings.get("n_threads") or default_threads(),
        "settings": {name: value for name, value in settings.items() if value is not None},
    }


def caption(env: dict[str, Any]) -> str:
    """The small print under a figure."""
    return f"{env['model']}, {env['processor']}, {env['n_threads']} threads, {env['llama_cpp']}, {env['time'][:10]}"


def _processor() -> str:
    """The processor's own name where the system tells it (Linux), else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
